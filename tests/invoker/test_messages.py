"""The border to the CLI: what it may say, and what becomes of a run whose CLI, or whose tool, says something else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_contract.nesting import MAX_DEPTH
from claude_invoker.cli.messages import (
    AgentEnded,
    AgentStarted,
    ControlAnswer,
    Heard,
    Malformed,
    ModelEvent,
    Result,
    Said,
    Started,
    ToolCall,
    ToolResult,
    parse,
)
from claude_invoker.jobs.record import Asks
from claude_invoker.model import Permission, RunResult
from tests.invoker.conftest import Invoker, as_root, bash, program, without_boundary


@pytest.fixture(scope="session")
def start_invoker(start_invoker: Callable[..., Invoker]) -> Callable[..., Invoker]:
    return without_boundary(start_invoker)


@pytest.fixture(scope="session")
def invoker(start_invoker: Callable[..., Invoker], unbounded: list[Invoker]) -> Invoker:
    if not unbounded:
        unbounded.append(start_invoker(pool_size=0))
    return unbounded[0]


GOOD = {"type": "result", "subtype": "success", "is_error": False, "result": "x", "total_cost_usd": 0.5, "num_turns": 1}
USED = {"inputTokens": 3, "outputTokens": 4, "cacheReadInputTokens": 5, "cacheCreationInputTokens": 6, "costUSD": 0.25}


def line(document: object) -> bytes:
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"type": "system", "subtype": "init", "model": "m", "tools": ["A"]}, Started("m", ("A",))),
        ({"type": "system", "subtype": "compact"}, None),
        (
            {"type": "system", "subtype": "task_started", "task_id": "a", "tool_use_id": "t", "task_type": "local_agent"},
            AgentStarted("a", "t"),
        ),
        ({"type": "system", "subtype": "task_started", "task_id": "a", "tool_use_id": "t", "task_type": "local_bash"}, None),
        ({"type": "system", "subtype": "task_started", "task_id": "a", "task_type": "local_agent"}, None),
        ({"type": "system", "subtype": "task_notification", "task_id": "a", "status": "stopped"}, AgentEnded("a")),
        ({"type": "of a newer CLI", "x": [1]}, None),
        ({"type": "stream_event", "event": {"type": "ping"}}, ModelEvent("ping", b'{"type":"ping"}', False)),
        (
            {"type": "stream_event", "event": {"type": "ping"}, "parent_tool_use_id": "t"},
            ModelEvent("ping", b'{"type":"ping"}', True),
        ),
        ({"type": "stream_event", "event": {"type": "run.finished", "result": "forged"}}, None),
        ({"type": "stream_event", "event": {"type": "ping\ndata: forged"}}, None),
        ({"type": "stream_event"}, None),
        (
            {"type": "assistant", "message": {"content": [{"type": "tool_use", "id": "1", "name": "A", "input": {}}]}},
            Said((ToolCall("1", "A", {}),)),
        ),
        ({"type": "assistant", "message": "x"}, Said(())),
        (
            {"type": "user", "message": {"content": [{"type": "tool_result", "tool_use_id": "1", "content": "x"}]}},
            Heard((ToolResult("1", False, "x"),)),
        ),
        (
            {
                "type": "user",
                "message": {
                    "content": [
                        {"type": "tool_result", "tool_use_id": "1", "content": [{"text": "x"}, 3, {"text": 4}], "is_error": True}
                    ]
                },
            },
            Heard((ToolResult("1", True, "x\n"),)),
        ),
        (
            {"type": "control_response", "response": {"subtype": "success", "request_id": "r", "response": {"model": "m"}}},
            ControlAnswer("r", None, None, "m"),
        ),
        (
            {"type": "control_response", "response": {"subtype": "error", "request_id": "r", "error": "e", "error_code": "c"}},
            ControlAnswer("r", "e", "c", None),
        ),
    ],
)  # fmt: skip
def test_what_the_cli_may_say(document: dict[str, Any], expected: object) -> None:
    assert parse(line(document)) == expected


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"not JSON",
        b"[]",
        b"3",
        b'{"type": "result"}',
        b'{"type": "result", "subtype": 3}',
        *(
            line(GOOD).replace(b"0.5", number)
            for number in (b"-400", b"-0.0001", b"1e999", b"NaN", b"Infinity", b'"0"', b"true", b"[0]", b"1e7")
        ),
        *(line(GOOD | {"num_turns": turns}) for turns in (-1, 1.5, 10**9, "1")),
        *(line(GOOD | {"model_usage_since_last_result": {"m": USED | wrong}}) for wrong in (
            {"costUSD": -1}, {"inputTokens": -1}, {"outputTokens": 1.5}, {"cacheReadInputTokens": 10**13}
        )),
        line(GOOD | {"permission_denials": [{"tool_name": "x" * 300}]}),
        line(GOOD | {"permission_denials": [3]}),
        b'{"type": "result", "subtype": "success", "structured_output": ' + b"[" * 400 + b"]" * 400 + b"}",
        b'{"type": "stream_event", "event": {"type": "ping", "x": ' + b"[" * 400 + b"]" * 400 + b"}}",
        b'{"type": "assistant", "message": {"content": [{"type": "tool_use", "id": "1", "name": "A", "input": {"x": '
        + b"[" * 400 + b"]" * 400 + b"}}]}}",
        b"[" * 100_000,
        line({"type": "control_response"}),
        line({"type": "system", "subtype": "init", "model": 3}),
        line({"type": "assistant", "message": {"content": [{"type": "tool_use", "id": 1, "name": "A", "input": {}}]}}),
    ],
)  # fmt: skip
def test_what_it_may_not(text: bytes) -> None:
    with pytest.raises(Malformed):
        parse(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
KIND = st.sampled_from(["system", "stream_event", "assistant", "user", "result", "control_response"])


@given(KIND, st.dictionaries(st.sampled_from([*GOOD, "event", "message", "response", "model", "tools"]), JSON))
def test_anything_is_a_message_or_is_refused(kind: str, members: dict[str, Any]) -> None:
    try:
        message = parse(json.dumps(members | {"type": kind}).encode())
    except Malformed:
        return
    if isinstance(message, Result):
        assert math.isfinite(message.used.costUSD) and message.used.costUSD >= 0
        orjson.dumps(message.model_dump())
    if isinstance(message, ModelEvent):
        assert b"\n" not in message.data and message.name.isidentifier()


def test_half_a_surrogate_pair_is_replaced() -> None:
    """An emoji that a preview cut in two."""
    text = b'{"type":"user","message":{"content":[{"type":"tool_result","tool_use_id":"1","content":"a\\ud83d b\\ude00 \\ud83d\\ude00"}]}}'
    assert parse(text) == Heard((ToolResult("1", False, "a� b� 😀"),))


def test_a_runs_own_use_is_counted_not_its_sessions() -> None:
    two = GOOD | {"total_cost_usd": 99.0, "model_usage_since_last_result": {"a": USED, "b": USED}}
    result = parse(line(two))
    assert isinstance(result, Result)
    assert (result.used.costUSD, result.used.inputTokens, result.used.outputTokens) == (0.5, 6, 8)
    plain = parse(line(GOOD))
    assert isinstance(plain, Result) and plain.used.costUSD == 0.5


# The same through the real CLI.

FORGER = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
pidfd = libc.syscall(434, int(os.environ["CLAUDE_PID"]), 0)
for number in (1, 5):
    fd = libc.syscall(438, pidfd, number, 0)
    if fd >= 0:
        os.set_blocking(fd, True)
        data = sys.stdin.buffer.read()
        while data: data = data[os.write(fd, data):]
        break
time.sleep(1)
"""


def forge(api: httpx.Client, said: str) -> httpx.Response:
    """A run whose tool takes the CLI's standard output and says something itself."""
    return bash(api, program(FORGER, "<<'SAID'\n" + said + "\nSAID"))


FORGED = json.dumps(GOOD | {"total_cost_usd": 0})


@pytest.mark.xdist_group("unbounded")
@as_root
@pytest.mark.parametrize(
    "said",
    [
        FORGED.replace('usd": 0', 'usd": -400'),
        FORGED.replace('usd": 0', 'usd": NaN'),
        FORGED.replace('usd": 0', 'usd": 1e999'),
        FORGED[:-1] + ', "structured_output": ' + "[" * 500 + "]" * 500 + "}",
        '{"type": "stream_event", "event": {"type": "ping", "x": ' + "[" * 500 + "]" * 500 + "}}",
        "gibberish",
    ],
)
def test_a_forged_message_ends_the_run_with_an_error(api: httpx.Client, said: str) -> None:
    answer = forge(api, said)
    assert answer.status_code == 502, answer.text
    assert answer.json()["type"].endswith("cli-failed")


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":[' + b"[]," * 1_000_000 + b"0]}",
        b'{"a":[' + b"{}," * 1_000_000 + b"0]}",
        b'{"a":"\\ud83d","b":"' + b"x" * 5_000_000 + b'"}',
        b'{"type":"result","subtype":"x","model_usage_since_last_result":{'
        + b",".join(b'"%d":1' % number for number in range(300_000))
        + b"}}",
        b'{"type":"result","subtype":"x","errors":[' + b"[" * 900 + b"]" * 900 + b"]}",
    ],
    ids=["lists", "dictionaries", "repairs", "mistakes", "depth"],
)
def test_a_line_that_is_slow_to_read_is_refused(text: bytes) -> None:
    """64 MB of any of these are seconds in which the invoker serves nobody, and gigabytes."""
    with pytest.raises(Malformed):
        parse(text)


def test_a_long_text_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse(b'{"type":"of a newer CLI","x":"' + b"x" * 40_000_000 + b'"}') is None


@pytest.mark.parametrize("name", [{}, [], 3, None, ["ping"]])
def test_a_name_of_another_type_is_no_error_of_ours(name: object) -> None:
    assert parse(line({"type": "stream_event", "event": {"type": name}})) is None
    assert parse(line({"type": name})) is None


def test_the_log_gets_no_text_of_the_runs() -> None:
    """The reason goes to the log: a key of the run's would be lines in it that the invoker never wrote."""
    forged = {"type": "result", "subtype": "x", "model_usage_since_last_result": {"m\n2026 ERROR forged": 5}}
    with pytest.raises(Malformed) as caught:
        parse(line(forged))
    assert str(caught.value) == "a message of type result has no valid model_usage_since_last_result"


def _nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


SAID = {
    "an answer of a schema": '{"type":"result","subtype":"success","structured_output":%s}',
    "a denial": '{"type":"result","subtype":"success","permission_denials":[{"tool_name":"Bash","tool_input":%s}]}',
    "a call": '{"type":"assistant","message":{"content":[{"type":"tool_use","id":"t","name":"Bash","input":%s}]}}',
    "a question": '{"type":"control_request","request_id":"r","request":{"subtype":"hook_callback",'
    '"input":{"tool_name":"Bash","tool_input":%s}}}',
}


@pytest.mark.parametrize("said", SAID.values(), ids=SAID)
def test_what_is_kept_of_a_run_can_be_read_again(said: str) -> None:
    """A job's record that nobody can read is one that nobody can show, cancel, or look after when its worker is gone."""
    assert parse((said % _nested(MAX_DEPTH)).encode()) is not None
    with pytest.raises(Malformed, match="too deep"):
        parse((said % _nested(220)).encode())


@pytest.mark.parametrize(("depth", "is_read"), [(MAX_DEPTH, True), (220, False)])
def test_the_control_of_that(depth: int, is_read: bool) -> None:
    """Whoever reads records bears less than whoever writes them."""
    value = orjson.loads(_nested(depth))
    asked = Permission(id="perm_1", tool="Bash", input=value, why="", asked_at=0, expires_at=0)
    for record in (
        RunResult(id="run_1", result="", model="m", stop_reason="", structured=value),
        Asks(waiting=[asked]),
    ):
        stored = record.model_dump_json()
        if is_read:
            assert type(record).model_validate_json(stored) == record
        else:
            with pytest.raises(ValueError, match="recursion limit"):
                type(record).model_validate_json(stored)
