"""What is told of a run: its parts, who it was for, and of all that was said nothing but digests and numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from claude_invoker.caller import Caller
from claude_invoker.cli.messages import Heard, Said, ToolCall, ToolResult
from claude_invoker.metering.control import Terms
from claude_invoker.metering.figures import MOST_REQUESTS, Figures
from claude_invoker.metering.usage import Used
from claude_invoker.metering.wire import Metered
from claude_invoker.model import RunResult
from claude_invoker.passthrough.heads import Session
from claude_invoker.passthrough.message import Message
from claude_invoker.plan import Plan
from claude_invoker.problem import Problem
from claude_invoker.runs.run import MOST_CALLS, Run, Step
from claude_invoker.runs.translate import Translator
from claude_invoker.tracing.spans import Span, Tells, of_message, of_run
from claude_invoker.workspace.repository import Source, Wanted

SECRET = "s3cret-of-alice"
OWNER = Caller("alice", issuer="https://id.example").owner
ASKED = Metered(
    "run_1:a",
    "claude-sonnet-4-5",
    1000.5,
    2.0,
    first_s=0.25,
    answered_by="claude-sonnet-4-5-20250929",
    status=200,
    used=Used(input=10, output=7, cache_read=900, cache_write_5m=90),
    usd=Decimal("0.0125"),
    request_id="req_1",
)


def run_of_alice() -> Run:
    wanted = Wanted("org/app", "main", Source(url="https://git.example/{repository}.git"))
    content = ({"type": "text", "text": f"{SECRET} of the prompt"}, {"type": "image", "source": {}})
    plan = Plan(content, f"{SECRET} system", "sonnet", None, ("Bash",), 3, 1.0, None, None, 60.0, repository=wanted)
    run = Run("run_1", "alice", plan, Path("/nowhere"), 60.0, tier="pro", owner=OWNER, isolation="landlock")
    run.created_at, run.first_token_at, run.finished_at = 1000.0, 1000.75, 1010.0
    run.steps = [Step("wait for a place", 1000.0, 1000.0), Step("fetch repository", 1000.0, 1000.3)]
    run.account.add(ASKED)
    run.account.used[ASKED.answered_by] = ASKED.used
    run.account.spent_usd = ASKED.usd
    called(run, "t1", {"command": f"echo {SECRET}"}, f"{SECRET} came out")
    run.result = RunResult.model_construct(result=f"{SECRET} is the answer")
    return run


def called(run: Run, number: str, given: dict[str, str], said: str | None, *, name: str = "Bash") -> None:
    translator = Translator(run)
    translator.take(Said((ToolCall(number, name, given),)))
    if said is not None:
        translator.take(Heard((ToolResult(number, False, said),)))


def named(span: Span) -> dict[str, Span]:
    return {child.name: child for child in span.children}


def test_a_run_is_its_requests_its_tools_and_what_it_has_waited_for() -> None:
    span = of_run(run_of_alice(), Tells())
    assert (span.name, span.kind, span.began, span.ended, span.error) == (
        "invoke_agent claude", "internal", 1000.0, 1010.0, None,
    )  # fmt: skip
    assert set(named(span)) == {"fetch repository", "chat claude-sonnet-4-5", "execute_tool Bash"}
    chat = named(span)["chat claude-sonnet-4-5"]
    assert (chat.kind, chat.began, chat.ended, chat.error) == ("client", 1000.5, 1002.5, None)
    expected = {
        "gen_ai.response.model": "claude-sonnet-4-5-20250929",
        "gen_ai.usage.input_tokens": 1000,
        "gen_ai.usage.output_tokens": 7,
        "gen_ai.usage.cache_read.input_tokens": 900,
        "gen_ai.usage.cache_creation.input_tokens": 90,
        "gen_ai.response.time_to_first_chunk": 0.25,
        "claude.cost_usd": 0.0125,
        "claude.api.request_id": "req_1",
        "http.response.status_code": 200,
    }
    assert chat.attributes.items() >= expected.items()
    assert span.attributes["gen_ai.response.time_to_first_chunk"] == 0.75, "since the run was asked for"
    assert span.attributes["claude.isolation"] == "landlock"


@pytest.mark.parametrize(("tells", "who"), [(Tells(), {"user.hash": OWNER}), (Tells("plain"), {"user.id": "alice"})])
def test_each_span_says_whose_it_is(tells: Tells, who: dict[str, str]) -> None:
    span = of_run(run_of_alice(), tells)
    stamp = {"claude.tier": "pro", "claude.run.id": "run_1", "vcs.repository.name": "org/app"} | who
    for each in (span, *span.children):
        assert each.attributes.items() >= stamp.items(), each.name
        assert tells.subject == "plain" or "alice" not in str(dict(each.attributes)).replace(SECRET, "")


def test_what_was_said_is_told_only_where_the_operator_wants_it() -> None:
    assert SECRET not in repr(of_run(run_of_alice(), Tells()))
    span = of_run(run_of_alice(), Tells(content=True))
    assert json.loads(str(span.attributes["gen_ai.input.messages"])) == [
        {"role": "user", "parts": [{"type": "text", "content": f"{SECRET} of the prompt"}]}
    ]
    assert json.loads(str(span.attributes["gen_ai.system_instructions"]))[0]["content"] == f"{SECRET} system"
    assert SECRET in str(span.attributes["gen_ai.output.messages"])
    tool = named(span)["execute_tool Bash"].attributes
    assert json.loads(str(tool["gen_ai.tool.call.arguments"])) == {"command": f"echo {SECRET}"}
    assert tool["gen_ai.tool.call.result"] == f"{SECRET} came out"


def test_of_what_was_said_there_is_only_the_beginning() -> None:
    run = run_of_alice()
    block = {"type": "text", "text": "x" * 10_000}
    run.plan = replace(run.plan, content=(block, {"type": "text", "text": ""}, *[block] * 50))
    called(run, "t4", {"command": "y" * 50_000}, "z" * 50_000, name="Read")
    span = of_run(run, Tells(content=True))
    (message,) = json.loads(str(span.attributes["gen_ai.input.messages"]))
    assert sum(len(part["content"]) for part in message["parts"]) in (16_383, 16_384)
    tool = named(span)["execute_tool Read"].attributes
    assert {len(str(tool[f"gen_ai.tool.call.{name}"])) for name in ("arguments", "result")} == {16_384}


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({}, None),
        ({"status": 529}, "529"),
        ({"status": None, "end": "broken"}, "broken"),
        ({"end": "left"}, "left"),
        ({"status": 429, "end": "complete"}, "429"),
    ],
)
def test_a_request_that_failed_says_how(changed: dict[str, Any], error: str | None) -> None:
    run = run_of_alice()
    run.account.requests = [structs.replace(ASKED, **changed)]
    assert named(of_run(run, Tells()))["chat claude-sonnet-4-5"].error == error


@pytest.mark.parametrize(
    ("problem", "error", "end"),
    [
        (None, None, "succeeded"),
        (Problem(499, "cancelled"), None, "cancelled"),
        (Problem(504, "timeout"), "timeout", "timeout"),
    ],
)
def test_a_run_that_failed_says_how(problem: Problem | None, error: str | None, end: str) -> None:
    run = run_of_alice()
    run.problem = problem
    span = of_run(run, Tells())
    assert (span.error, span.attributes["claude.end"]) == (error, end)


def test_a_call_without_a_result_ends_with_its_run() -> None:
    run = run_of_alice()
    called(run, "t2", {}, None, name="Read")
    span = named(of_run(run, Tells()))["execute_tool Read"]
    assert (span.ended, span.error) == (1010.0, "unanswered")


def test_a_call_that_failed_says_so() -> None:
    run = run_of_alice()
    translator = Translator(run)
    translator.take(Said((ToolCall("t3", "Write", {}),)))
    translator.take(Heard((ToolResult("t3", True, SECRET),)))
    assert named(of_run(run, Tells()))["execute_tool Write"].error == "tool_error"


@given(names=st.lists(st.text(max_size=300), max_size=5), ids=st.lists(st.text(max_size=300), min_size=5, max_size=5))
def test_names_that_a_run_has_made_up_are_plain_and_short(names: list[str], ids: list[str]) -> None:
    run = run_of_alice()
    for name, number in zip(names, ids, strict=False):
        called(run, number, {}, None, name=name)
    for span in of_run(run, Tells()).children:
        for text in (span.name, *map(str, span.attributes.values())):
            assert text.isascii() and len(text) < 160


def test_a_run_that_asks_and_calls_without_end_is_told_of_within_bounds() -> None:
    run = run_of_alice()
    for number in range(MOST_REQUESTS + MOST_CALLS):
        run.account.add(ASKED)
        called(run, f"c{number}", {}, "")
    span = of_run(run, Tells())
    assert len(span.children) <= MOST_REQUESTS + MOST_CALLS + 4
    assert span.attributes["claude.api.requests"] == MOST_REQUESTS + MOST_CALLS + 1
    assert span.attributes["claude.tool.calls"] == MOST_REQUESTS + MOST_CALLS + 1


def test_a_message_is_the_requests_that_were_sent_for_it() -> None:
    caller = Caller("alice", "pro", issuer="https://id.example")
    figures = Figures()
    figures.add(structs.replace(ASKED, status=503, end="broken"))
    figures.add(ASKED)
    terms = Terms(None, Decimal(1), None, 1)
    message = Message("msg_1", caller, ASKED.model, Session(), terms, "token", figures=figures)
    first, second = of_message(message, Tells())
    assert (first.error, second.error) == ("503", None)
    assert second.attributes.items() >= {"user.hash": OWNER, "claude.tier": "pro", "claude.cost_usd": 0.0125}.items()
