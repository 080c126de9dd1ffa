"""The plugin server's half of the pair: what is asked beforehand, what is told in front of a message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from kong_claude.server.pair import MAX_QUESTIONS, PROTOCOL, Given, Pair, Questions, given, spliced, told_part
from tests.support.kong_driver import Driver, RPCError, plugin_server

HEADERS = ("kong.request.get_headers", 1000)


def event(*answers: Any, questions: int = 0, number: int = 7) -> Given:
    return Given("access", number, questions, list(answers))


def told(pair: Pair) -> list[Any]:
    """The notification's arguments; [] for none."""
    sent = pair.flush()
    if not sent:
        return []
    kind, label, message = msgpack.unpackb(sent, unicode_errors="surrogateescape")
    assert (kind, label) == (2, "claude-pair")
    return list(message)


def test_what_was_asked_once_comes_with_every_later_event() -> None:
    questions = Questions(100)
    first = Pair(questions, event())
    assert first.ask(HEADERS) == (False, None)
    number, new = told(first)
    assert (number, new) == (7, [101, list(HEADERS)])
    second = Pair(questions, event({"a": "1", "b": ["2", "3"], "c": True}, questions=101))
    assert second.ask(HEADERS) == (True, {"a": ["1"], "b": ["2", "3"], "c": []})
    assert second.flush() == b""


@pytest.mark.parametrize(
    ("phase", "asked", "learned"),
    [
        ("log", ("kong.log.serialize",), True),
        ("log", ("kong.request.get_method",), False),
        ("access", ("kong.log.serialize",), False),
        ("access", ("kong.request.get_method",), True),
    ],
)
def test_in_the_log_phase_kong_answers_one_thing_beforehand(phase: str, asked: tuple[str, ...], learned: bool) -> None:
    """There is no request in it any more; and serializing for nothing would cost every request."""
    questions = Questions(0)
    Pair(questions, Given(phase, 7, 0, [])).ask(asked)
    assert (asked in questions.current) is learned


@pytest.mark.parametrize("questions", [0, 100, 102, 999])
def test_answers_to_questions_that_are_not_ours_count_for_nothing(questions: int) -> None:
    """An earlier process's, or another instance's."""
    ours = Questions(100)
    ours.learn(HEADERS)
    assert Pair(ours, event({"forged": "1"}, questions=questions)).ask(HEADERS) == (False, None)
    assert Pair(ours, event({"a": "1"}, questions=101)).ask(HEADERS)[0]  # the control


def test_answers_of_another_number_count_for_nothing() -> None:
    ours = Questions(100)
    ours.learn(HEADERS)
    assert Pair(ours, event({"a": "1"}, "more", questions=101)).ask(HEADERS) == (False, None)


def test_the_questions_are_bounded() -> None:
    questions = Questions(0)
    for number in range(MAX_QUESTIONS + 5):
        questions.learn(("kong.nginx.get_var", f"v{number}"))
    assert len(questions.current) == MAX_QUESTIONS


def test_what_changes_the_request_makes_its_answers_old() -> None:
    questions = Questions(0)
    questions.learn(HEADERS)
    pair = Pair(questions, event({"a": "1"}, questions=1))
    pair.tell("kong.response.set_headers", told_part("kong.response.set_headers"), ({"X": "1"},))
    assert pair.ask(HEADERS)[0]
    pair.tell("kong.service.request.set_headers", told_part("kong.service.request.set_headers"), ({"X": "1"},))
    assert not pair.ask(HEADERS)[0]


@pytest.mark.parametrize(
    ("call", "kept"),
    [
        ("kong.client.authenticate", False),
        ("kong.service.request.clear_header", False),
        ("kong.service.request.set_body", False),
        ("kong.client.load_consumer", True),
        ("kong.log.warn", True),
        ("kong.request.get_header", True),
    ],
)
def test_a_call_that_changes_something_makes_answers_old(call: str, kept: bool) -> None:
    questions = Questions(0)
    questions.learn(("kong.client.get_consumer",))
    pair = Pair(questions, event({"username": "before"}, questions=1))
    pair.answer(call, None)
    assert pair.ask(("kong.client.get_consumer",))[0] is kept


def test_what_is_told_keeps_its_order() -> None:
    pair = Pair(Questions(0), event())
    calls: list[tuple[str, tuple[Any, ...]]] = [("kong.ctx.shared.set", (f"k{n}", {"mark": n})) for n in range(20)]
    for name, args in calls:
        pair.tell(name, told_part(name), args)
    assert told(pair) == [7, False, *[[name, list(args)] for name, args in calls]]
    assert pair.flush() == b""


def test_what_cannot_be_packed_fails_where_it_is_said() -> None:
    pair = Pair(Questions(0), event())
    with pytest.raises(TypeError):
        pair.tell("kong.ctx.shared.set", told_part("kong.ctx.shared.set"), ("k", object()))
    assert pair.flush() == b""


@drawn(st.binary(max_size=400), st.binary(max_size=400), st.binary(max_size=200), st.binary(max_size=200))
def test_a_splice_makes_the_new_body(start: bytes, end: bytes, before: bytes, after: bytes) -> None:
    old, new = start + before + end, start + after + end
    name, args = spliced(old, new)
    if name == "splice":
        at, length, inserted = args
        assert old[:at] + inserted + old[at + length :] == new
        assert len(inserted) < len(new)
    else:
        assert args == (new,)


def test_bodies_told_one_after_the_other() -> None:
    """The second differs from the first, which Kong has by then."""
    pair = Pair(Questions(0), event())
    pair.answer("kong.request.get_raw_body", b"a" * 200)
    pair.tell("kong.service.request.set_raw_body", told_part("kong.service.request.set_raw_body"), (b"a" * 200 + b"b",))
    pair.tell(
        "kong.service.request.set_raw_body", told_part("kong.service.request.set_raw_body"), (b"a" * 200 + b"bc",)
    )
    assert told(pair)[2:] == [["splice", [200, 0, b"b"]], ["splice", [201, 0, b"c"]]]


@pytest.mark.parametrize(
    "name",
    [
        "access",
        [],
        ["access"],
        ["access", PROTOCOL, 1],
        ["access", PROTOCOL + 1, 1, 0],
        ["access", PROTOCOL, "1", 0],
        ["access", PROTOCOL, 1, None],
        [1, PROTOCOL, 1, 0],
        {"access": 1},
    ],
)
def test_what_is_no_event_of_the_pair(name: Any) -> None:
    assert given(name) is None
    assert given(["access", PROTOCOL, 1, 0]) is not None


PLUGIN = """
version, priority = "0.1.0", 1
class Plugin:
    def __init__(self, config):
        pass
    def access(self, kong):
        seen = kong.request.get_headers(1000)
        kong.ctx.shared.set("seen", seen)
        if "exit" in seen:
            kong.response.exit(403)
        if "raise" in seen:
            raise ValueError
"""


@pytest.fixture(scope="module")
def kong(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("plugins")
    Path(directory, "pair.py").write_text(PLUGIN)
    with plugin_server(directory, "--no-lua-style") as server, server.driver() as driver:
        yield driver


def sent(kong: Driver, instance: Any, name: Any) -> tuple[list[Any], dict[str, Any]]:
    """The notifications in front of the reply to an event of that name, and the reply."""
    kong.send("plugin.HandleEvent", {"InstanceId": instance, "EventName": name})
    notifications = []
    while (frame := kong.receive())[0] == 2:
        notifications.append(frame)
    if frame[2] is not None:
        raise RPCError(frame[2])
    return notifications, frame[3]


def step(kong: Driver, event: Any, data: Any) -> tuple[list[Any], dict[str, Any]]:
    kong.send("plugin.Step", {"EventId": event, "Data": data})
    notifications = []
    while (frame := kong.receive())[0] == 2:
        notifications.append(frame)
    return notifications, frame[3]


def test_an_event_over_the_socket(kong: Driver) -> None:
    """The first one asks; the second needs nothing; a refusal and an exception stay calls."""
    instance = kong.start_instance("pair")
    notifications, result = sent(kong, instance, ["access", PROTOCOL, 1, 0])
    assert result["Data"] == {"Method": "kong.request.get_headers", "Args": [1000]}
    (first,) = notifications
    number, questions = first[2]
    assert (number, questions[1:]) == (1, [list(HEADERS)])
    notifications, result = step(kong, result["EventId"], {"a": ["1"]})
    assert (notifications[0][2][2:], result["Data"]) == ([["kong.ctx.shared.set", ["seen", {"a": ["1"]}]]], "ret")

    for headers, ends in (
        ({"a": "1"}, "ret"),
        ({"exit": "1"}, {"Method": "kong.response.exit", "Args": [403]}),
    ):
        notifications, result = sent(kong, instance, ["access", PROTOCOL, 2, questions[0], headers])
        assert result["Data"] == ends
        ((kind, label, message),) = notifications
        assert (kind, label, message[:2]) == (2, "claude-pair", [2, False])
        assert message[2] == ["kong.ctx.shared.set", ["seen", {k: [v] for k, v in headers.items()}]]

    notifications, result = sent(kong, instance, ["access", PROTOCOL, 3, questions[0], {"raise": "1"}])
    assert result["Data"]["Args"][0] == 503
    assert notifications == []  # nothing of an event that failed


@pytest.mark.parametrize("name", [["access", PROTOCOL + 1, 1, 0], ["access", 0], ["access"]])
def test_another_version_gets_single_calls(kong: Driver, name: Any) -> None:
    instance = kong.start_instance("pair")
    notifications, result = sent(kong, instance, name)
    assert (notifications, result["Data"]["Method"]) == ([], "kong.request.get_headers")
    notifications, result = step(kong, result["EventId"], {})
    assert (notifications, result["Data"]["Method"]) == ([], "kong.ctx.shared.set")
    notifications, result = step(kong, result["EventId"], None)
    assert (notifications, result["Data"]) == ([], "ret")


@pytest.mark.parametrize("name", [[], [None], [["access"]], ["log", PROTOCOL, 1, 0], [{}], {"access": 1}, 7, None])
def test_names_of_no_phase_are_refused(kong: Driver, name: Any) -> None:
    _, result = sent(kong, kong.start_instance("pair"), name)
    assert result["Data"]["Args"][0] == 503
