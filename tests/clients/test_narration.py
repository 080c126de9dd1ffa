"""What is asked and what is told, without a run: each event by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from claude_invoker.api.anthropic import messages
from claude_invoker.api.anthropic.stream import PING
from claude_invoker.api.anthropic.stream import Stream as Message
from claude_invoker.api.fields import CANNOT, UNKNOWN, refused
from claude_invoker.api.narration import MAX_ARGUMENT, Narration
from claude_invoker.api.openai import chat
from claude_invoker.api.openai.stream import DONE
from claude_invoker.api.openai.stream import Stream as Completion
from claude_invoker.api.stream import HEARTBEAT
from claude_invoker.model import RunResult, Usage
from claude_invoker.problem import Problem
from claude_invoker.runs.events import Event


def text(said: str, first: bool = True) -> list[Event]:
    delta = {"delta": {"type": "text_delta", "text": said}}
    begin = [Event(0, "content_block_start", b"{}")] if first else []
    return [*begin, Event(0, "content_block_delta", json.dumps(delta).encode())]


def calls(name: str, **arguments: Any) -> Event:
    return Event(0, "tool", json.dumps({"name": name, "input": arguments, "state": "started"}).encode())


def narrated(*events: Event, answer: str = "", silent: bool = False) -> list[str]:
    """Block by block."""
    blocks: list[str] = []
    narration = Narration(silent=silent)
    spoken = [one for event in events for one in narration.take(event)]
    for one in [*spoken, *narration.end(answer)]:
        if one.begins:
            blocks.append("")
        blocks[-1] += one.text
    return blocks


@pytest.mark.parametrize(
    ("events", "answer", "blocks"),
    [
        ([*text("Hel"), *text("lo", first=False)], "Hello", ["Hello"]),
        ([*text("Let me look."), calls("Read", file_path="a.py"), *text("It is fine.")], "It is fine.",
         ["Let me look.", "\n\n[Read a.py]\n\n", "It is fine."]),
        ([calls("Read", limit=1), calls("Grep", pattern="a\n b")], "Done", ["[Read]\n\n", "[Grep a b]\n\n", "Done"]),
        ([calls("Write", content="x" * (MAX_ARGUMENT + 1), file_path="b")], "", ["[Write b]\n\n"]),
        # A last message of several blocks, as a search makes it: its result is all of them.
        ([*text("One."), *text("Two.")], "One.Two.", ["One.", "\n\nTwo."]),
        # What the stream did not have, such as an answer that came in one piece.
        ([], "Whole.", ["Whole."]),
        ([*text("half of"), calls("Bash", command="ls")], "Whole.", ["half of", "\n\n[Bash ls]\n\n", "Whole."]),
        # A short answer is not taken for said because it is a part of something else.
        ([*text("The token is bad.")], "is", ["The token is bad.", "\n\nis"]),
        # Thoughts are not told, and nothing of unexpected form ends a stream.
        ([Event(0, "content_block_delta", b'{"delta": {"type": "thinking_delta", "thinking": "?"}}')], "A", ["A"]),
        ([Event(0, "content_block_delta", b'{"delta": {"type": "text_delta", "text": 3}}')], "A", ["A"]),
        ([Event(0, "content_block_delta", b'{"delta": 3}')], "A", ["A"]),
    ],
)  # fmt: skip
def test_a_run_is_told_block_by_block(events: list[Event], answer: str, blocks: list[str]) -> None:
    assert narrated(*events, answer=answer) == blocks


def test_by_a_schema_only_the_result_is_told() -> None:
    assert narrated(*text("Let me think."), calls("Read", path="a"), answer='{"a": 1}', silent=True) == ['{"a": 1}']


RESULT = RunResult(id="run_1", result="Done.", model="m", stop_reason="max_turns", usage=Usage(input_tokens=5))


def events_of(sent: bytes) -> list[tuple[str, Any]]:
    pieces = [piece.split("\n") for piece in sent.decode().split("\n\n") if piece]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in pieces]


def test_a_message_opens_and_closes_each_block_once() -> None:
    wanted = messages.wanted({"model": "claude-code", "messages": []})
    stream = Message(wanted, "run_1")
    sent = [stream.begin()]
    for event in (*text("One."), calls("Read", path="a"), None, *text("Done.")):
        sent += stream.take(event)
    assert PING in sent
    sent += stream.end(RESULT)
    told = events_of(b"".join(sent))
    assert all(name == data["type"] for name, data in told)
    open_at: int | None = None
    for name, data in told:
        if name == "content_block_start":
            assert open_at is None
            open_at = data["index"]
        elif name == "content_block_delta":
            assert data["index"] == open_at
        elif name == "content_block_stop":
            assert data["index"] == open_at
            open_at = None
    assert open_at is None
    assert [data["index"] for name, data in told if name == "content_block_start"] == [0, 1, 2]
    delta, stop = told[-2:]
    assert (delta[1]["delta"]["stop_reason"], delta[1]["usage"]["input_tokens"]) == ("max_tokens", 5)
    assert stop == ("message_stop", {"type": "message_stop"})


def test_a_failure_within_a_stream_is_the_error_of_an_answer() -> None:
    failed = Problem(504, "timeout", "deadline: idle")
    message = Message(messages.wanted({"model": "claude-code", "messages": []}), "run_1").fail(failed, "id-1")
    ((name, told),) = events_of(message)
    assert (name, told["error"]["type"], told["request_id"]) == ("error", "timeout_error", "id-1")
    completion = Completion(chat.wanted({"model": "claude-code", "messages": []}), "run_1", 0).fail(failed, "")
    assert json.loads(completion.removeprefix(b"data: "))["error"]["code"] == "timeout"


def test_a_completion_says_length_where_the_run_was_cut_off() -> None:
    stream = Completion(chat.wanted({"model": "claude-code", "messages": []}), "run_1", 7.9)
    assert list(stream.take(None)) == [HEARTBEAT]
    *_, last, done = stream.end(RESULT)
    assert done == DONE
    chunk = json.loads(last.removeprefix(b"data: "))
    assert (chunk["choices"][0]["finish_reason"], chunk["created"], "usage" in chunk) == ("length", 7, False)


def test_only_values_of_the_same_kind_are_neutral() -> None:
    neutral = {"n": (1,), "store": (False,)}
    assert refused({"n": 1, "store": False}, (), neutral) == []
    assert refused({"n": 1.0, "store": None, "x": None}, (), neutral) == []
    assert refused({"n": True, "store": 0, "x": 1}, (), neutral, "at") == [
        {"at": "at.n", "error": CANNOT},
        {"at": "at.store", "error": CANNOT},
        {"at": "at.x", "error": UNKNOWN},
    ]


def problem_of(call: Any, document: dict[str, Any]) -> Problem:
    with pytest.raises(Problem) as wrong:
        call({"model": "claude-code", "messages": [{"role": "user", "content": "hi"}]} | document)
    return wrong.value


@pytest.mark.parametrize(
    ("document", "at"),
    [
        ({"stream": "yes"}, "stream"),
        ({"system": [{"type": "image"}]}, "system[0]"),
        ({"system": [{"type": "text", "text": "a"}, 3]}, "system[1]"),
        ({"output_config": 3}, "output_config"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format"),
        ({"max_tokens": True}, "max_tokens"),
        ({"model": None}, "model"),
        ({"model": 7}, "model"),
    ],
)
def test_what_is_wrong_for_anthropics_names_its_place(document: dict[str, Any], at: str) -> None:
    problem = problem_of(messages.wanted, document)
    assert (problem.status, problem.extra["errors"][0]["at"]) == (422, at)


@pytest.mark.parametrize(
    ("document", "at"),
    [
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages"),
        ({"messages": [{"role": "system", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "system", "content": "a"}, {"role": "system", "content": None}]}, "messages[1].content"),
        ({"messages": [{"role": "system", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": 3}]}]},
         "messages[0].content[0].image_url.url"),
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]},
         "messages[0].content[0].file.file_data"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]}, "messages[0].tool_calls"),
        ({"stream_options": 3}, "stream_options"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "response_format"),
        ({"model": "claude-codex"}, "model"),
    ],
)  # fmt: skip
def test_what_is_wrong_for_openais_names_its_place(document: dict[str, Any], at: str) -> None:
    problem = problem_of(chat.wanted, document)
    assert (problem.status, problem.extra["errors"][0]["at"]) == (422, at)


def test_a_field_of_a_run_is_named_as_the_caller_has_it() -> None:
    leading = [{"role": "system", "content": "a"}, {"role": "developer", "content": "b"}]
    wanted = chat.wanted({"model": "claude-code", "messages": [*leading, {"role": "user", "content": "hi"}]})
    assert wanted.invocation["system"] == "a\n\nb"
    assert wanted.place(("messages", 0, "content")) == ("messages", 2, "content")
    assert wanted.place(("output_schema", "x")) == ("response_format", "json_schema", "schema", "x")
    assert messages.place(("output_schema",)) == ("output_config", "format", "schema")
    assert messages.place(("messages", 0)) == ("messages", 0) and wanted.place(()) == ()
