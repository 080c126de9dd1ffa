"""What the dashboard makes of a run's events, whoever wrote them."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_invoker.dashboard.pricing import price_of
from claude_invoker.dashboard.render import html
from claude_invoker.dashboard.timeline import MOST_CALLS, MOST_DETAILS, MOST_ENTRIES, MOST_TEXT, Timeline, Turn, line_of
from claude_invoker.metering.usage import Used
from claude_invoker.settings import Settings


def by_output(_: str, used: Used) -> Decimal:
    return Decimal(used.output)


def told(*events: tuple[str, Any], price: Any = by_output) -> Timeline:
    timeline = Timeline(price)
    for name, document in events:
        timeline.take(name, json.dumps(document))
    return timeline


def start(model: str = "m", **usage: Any) -> tuple[str, Any]:
    return "message_start", {"type": "message_start", "message": {"model": model, "usage": usage}}


def used(**usage: Any) -> tuple[str, Any]:
    return "message_delta", {"type": "message_delta", "usage": usage}


def text(said: str) -> tuple[str, Any]:
    return "content_block_delta", {"delta": {"text": said}}


BLOCK = ("content_block_start", {"content_block": {"type": "text"}})


def test_turns_have_what_was_said_called_and_used() -> None:
    timeline = told(
        ("run.started", {"model": "m"}),
        start(input_tokens=10, cache_read_input_tokens=5, output_tokens=1),
        BLOCK,
        text("a"),
        ("content_block_delta", {"delta": {"partial_json": "{"}}),
        used(output_tokens=7),
        ("tool", {"id": "1", "state": "started", "name": "Read", "input": {"x": 1}}),
        ("tool", {"id": "2", "state": "started", "name": "Bash", "input": {}}),
        ("permission.decided", {"decision": "deny", "by": "bob", "tool": "Bash", "message": "no"}),
        ("tool", {"id": "2", "state": "finished", "is_error": True, "content": "denied"}),
        start(input_tokens=20),
        BLOCK,
        text("b"),
        used(output_tokens=3),
        ("job.done", {}),
    )
    assert timeline.text == "a\n\nb"
    started, first, decided, second, done = timeline.entries
    assert (started, decided, done) == ("started with m", "denied by bob: Bash (no)", "done")
    assert isinstance(first, Turn) and isinstance(second, Turn)
    assert (first.number, first.text, first.used) == (1, "a", Used(10, 7, 5))
    assert [(call.tool, call.brief, call.state, call.said) for call in first.calls] == [
        ("Read", '{"x": 1}', "running", ""),
        ("Bash", "{}", "failed", "denied"),
    ]
    assert (second.text, second.used, second.cost_usd, second.so_far_usd) == (
        "b",
        Used(20, 3),
        Decimal(3),
        Decimal(10),
    )
    assert (timeline.turns, timeline.used, timeline.cost_usd) == (2, Used(30, 10, 5), Decimal(10))


USAGE: tuple[tuple[list[dict[str, Any]], Used], ...] = (
    ([{"cache_creation_input_tokens": 9}], Used(cache_write_5m=9)),
    (
        [{"cache_creation_input_tokens": 9, "cache_creation": {"ephemeral_1h_input_tokens": 4}}],
        Used(cache_write_5m=5, cache_write_1h=4),
    ),
    (
        [
            {"cache_creation_input_tokens": 9, "cache_creation": {"ephemeral_1h_input_tokens": 9}},
            {"cache_creation_input_tokens": 9, "output_tokens": 2},
        ],
        Used(output=2, cache_write_1h=9),
    ),
    ([{"output_tokens": 5}, {"output_tokens": 3}, {}], Used(output=5)),
    ([{"output_tokens": 10**15, "input_tokens": -1}, {"input_tokens": True, "output_tokens": "7"}], Used()),
    ([{"cache_creation": "x", "server_tool_use": []}, {"cache_creation": None}], Used()),
)


@pytest.mark.parametrize(("said", "expected"), USAGE)
def test_usage_is_the_total_so_far_and_what_is_none_is_nothing(said: list[dict[str, Any]], expected: Used) -> None:
    assert told(start(), *(used(**each) for each in said)).used == expected


def test_a_turn_costs_what_the_list_says() -> None:
    timeline = told(start("claude-haiku-4-5", input_tokens=1_000_000), price=price_of(Settings()))
    assert timeline.cost_usd == Decimal(1)


def test_what_began_before_the_first_event_that_is_kept_is_a_turn() -> None:
    timeline = told(text("b"), ("tool", {"id": "9", "state": "finished", "content": "?"}))
    assert [entry.text for entry in timeline.entries if isinstance(entry, Turn)] == ["b"]


def test_a_page_has_so_much_at_most() -> None:
    many = [start(f"m{n}", output_tokens=1) for n in range(MOST_ENTRIES + 50)]
    call = ("tool", {"id": "1", "state": "started", "name": "B" * 10_000, "input": {"x": "y" * 100_000}})
    result = ("tool", {"id": "1", "state": "finished", "content": "z" * 100_000})
    timeline = told(*many, text("t" * 5000), *[call] * 300, result)
    assert (len(timeline.entries), timeline.left_out, timeline.turns) == (MOST_ENTRIES, 50, MOST_ENTRIES + 50)
    last = timeline.entries[-1]
    assert isinstance(last, Turn) and (len(last.calls), last.calls_left_out) == (MOST_CALLS, 300 - MOST_CALLS)
    fuller = ("tool", {"id": "1", "state": "started", "name": "B", "input": {"x": "y" * 5000}})
    crowded = told(*[start(), *[fuller] * (MOST_CALLS + 5), result] * (MOST_ENTRIES + 5))
    assert 1_000_000 < len(html("_timeline", timeline=crowded)) < 6_000_000
    kept = [
        call for turn in crowded.entries if isinstance(turn, Turn) for call in turn.calls if call.given or call.said
    ]
    assert len(kept) == MOST_DETAILS and all(call.given for call in kept)
    assert len(told(*[text("x" * 50_000)] * 9).end_of_text) < MOST_TEXT + 100
    asked: list[str] = []

    def priced(model: str, _: Used) -> Decimal:
        asked.append(model)
        return Decimal(1)

    told(*many, price=priced)
    assert len(set(asked)) <= 10, "prices are looked for of few models, whatever their names"


EVIL = "</pre><script>alert(1)</script>\u202e\" onclick='x'"
EVENTS = (
    start(EVIL),
    text(EVIL),
    ("tool", {"id": EVIL, "state": "started", "name": EVIL, "input": {EVIL: EVIL}}),
    ("tool", {"id": EVIL, "state": "finished", "is_error": True, "content": EVIL}),
    *(
        (name, dict.fromkeys(("model", "tool", "input", "by", "answers", "message", "path", "title", "output"), EVIL))
        for name in (
            "run.started",
            "permission.requested",
            "permission.decided",
            "message",
            "artifact",
            "check",
            "error",
        )
    ),
    (f"job.{EVIL}", {}),
)


def test_what_a_run_says_is_text_and_is_seen() -> None:
    shown = html("_timeline", timeline=told(*EVENTS))
    assert shown.count("alert(1)") >= 10
    assert "<script" not in shown and "\u202e" not in shown and "onclick='" not in shown


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=8), inside, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    [
        "message_start",
        "message_delta",
        "content_block_start",
        "content_block_delta",
        "tool",
        "permission.decided",
        "check",
    ]
)
MEMBERS = st.dictionaries(
    st.sampled_from(
        ["message", "usage", "delta", "content_block", "id", "state", "name", "input", "content", "answers"]
    ),
    ANY | st.just("started") | st.dictionaries(st.sampled_from(["model", "usage", "text", "type"]), ANY, max_size=3),
)


@given(st.lists(st.tuples(NAMES, MEMBERS | ANY), max_size=12))
def test_events_that_are_none_of_ours_break_nothing(events: list[tuple[str, Any]]) -> None:
    html("_timeline", timeline=told(*events))


def test_what_is_not_worth_a_line_has_none() -> None:
    assert line_of("content_block_stop", {}) is None
