"""What a hostile run, or a CLI of another version, does about being asked; each with its control."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from claude_contract.rules import Rules, parse_all
from claude_invoker.cli.messages import CallOver, HookCall, Malformed, parse
from claude_invoker.cli.process import Allow, Deny, Proceed
from claude_invoker.model import PermissionAnswer
from claude_invoker.problem import Problem
from claude_invoker.runs.permissions import (
    MAX_ASKED,
    MAX_DECIDED,
    MAX_INPUT,
    MAX_WAITING,
    Permissions,
    place_in,
)
from tests.invoker.conftest import Invoker, as_root
from tests.permissions.conftest import BASH, asking, bash
from tests.replicas.test_replicas import client

pytestmark = pytest.mark.timeout(180)
_NOT_UNDERSTOOD = "answers_that_the_cli_does_not_understand"


@as_root
@pytest.mark.parametrize(
    ("without", "runs"),
    [
        ((_NOT_UNDERSTOOD,), False),
        pytest.param((_NOT_UNDERSTOOD, "asked_tools_are_allowed_at_the_start"), True, marks=pytest.mark.slow),
        (("hooks_that_nobody_registers",), False),
        pytest.param(
            ("hooks_that_nobody_registers", "asked_tools_are_allowed_at_the_start"), True, marks=pytest.mark.slow
        ),
    ],
)
def test_a_cli_that_does_not_ask_runs_nothing(
    start: Callable[..., Invoker], without: tuple[str, ...], runs: bool
) -> None:
    """The CLI takes no notice of an answer that it does not understand, and goes on as if nobody had said anything."""
    with client(start(without=without), "alice", **BASH) as alice, asking(alice, bash("touch made.txt")) as stream:
        result = stream.until("permission.requested", "run.finished")
        if "result" not in result:
            alice.post(stream.path(result), json={"decision": "deny"})
            result = stream.until("run.finished")
    assert [artifact["path"] for artifact in result["artifacts"]] == ["made.txt"] * runs


# Where a path leads


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work" / "src").mkdir(parents=True)
    (tmp_path / "work" / "src" / "a").touch()
    return tmp_path / "work"


def test_a_path_is_where_it_leads(work: Path) -> None:
    (work / "link").symlink_to("src")
    (work / "absolute").symlink_to(work / "src" / "a")
    place = place_in(work)
    assert place(f"{work}/src/a") == place(f"{work}/link/a") == place(f"{work}/absolute") == "src/a"
    assert place(f"{work}//src/./a") == "src/a"
    assert place(f"{work}/link/new/deep") == "src/new/deep"
    assert place(f"{work}/new") == "new"
    assert place(str(work)) == "."


async def test_what_leads_elsewhere_while_it_waits_is_not_allowed(work: Path) -> None:
    """A link that another call of the run has turned: minutes, where it is asked about, in which nobody has to be fast."""
    (work / "keys").mkdir()
    rules = Rules(ask=parse_all(["Write"]), deny=parse_all(["Edit(/keys/**)"]))
    answers: list[Any] = []
    permissions = Permissions([rules], 60, "alice", lambda name, said: None)
    call = HookCall("r", "Write", {"file_path": f"{work}/src/new", "content": "x"}, "t", None)
    await permissions.take(call, place_in(work), answers.append)
    (work / "src").rename(work / "before")
    (work / "src").symlink_to("keys")
    waiting = permissions.waiting[0].id
    with pytest.raises(Problem, match=r"Edit.* is denied"):
        permissions.answer(waiting, PermissionAnswer(decision="allow"), "alice")
    assert answers == []
    (work / "src").unlink()
    (work / "before").rename(work / "src")
    permissions.answer(waiting, PermissionAnswer(decision="allow"), "alice")
    assert answers == [Allow()], "the control"


def test_a_path_that_is_at_no_place(work: Path) -> None:
    (work / "out").symlink_to("/etc")
    (work / "up").symlink_to("..")
    (work / "nowhere").symlink_to("missing")
    (work / "round").symlink_to("round")
    os.link(work / "src" / "a", work / "twice")
    place = place_in(work)
    paths = ["src/a", "", "/", "~/a", "/etc/passwd", f"{work}/../x", f"{work}/src/../src/a", f"{work}/out/passwd", f"{work}/up",
             f"{work}/nowhere", f"{work}/nowhere/a", f"{work}/round", f"{work}/round/a", f"{work}/twice", f"{work}/src/a",
             f"{work}/src/a/b", f"{work}/\0", f"{work}/{'x' * 5000}", f"{work}2/a", f"{work}/\ud800"]  # fmt: skip
    assert [path for path in paths if place(path) is not None] == []


def test_many_links_take_no_time(work: Path) -> None:
    """The kernel follows forty: a walk of our own could be made to follow any number."""
    for number in range(200):
        (work / f"l{number}").symlink_to("/".join([f"l{number + 1}"] * 20) if number < 199 else "src")
    assert place_in(work)(f"{work}/l0/a") is None


# What the CLI says


def hook(**more: Any) -> bytes:
    import orjson

    asked = {"tool_name": "Bash", "tool_input": {"command": "ls"}, "tool_use_id": "t", "hook_event_name": "PreToolUse"}
    request = {"subtype": "hook_callback", "callback_id": "ask", "input": asked | more}
    return orjson.dumps({"type": "control_request", "request_id": "r", "request": request})


def test_a_question_of_the_clis_is_read() -> None:
    assert parse(hook()) == HookCall("r", "Bash", {"command": "ls"}, "t", None)
    assert parse(hook(agent_type="x", agent_id="y")) == HookCall("r", "Bash", {"command": "ls"}, "t", "x")
    assert parse(b'{"type":"control_request","request_id":"r","request":{"subtype":"other"}}') is None
    assert parse(b'{"type":"control_request","request":[]}') is None
    assert parse(b'{"type":"control_cancel_request","request_id":"r"}') == CallOver("r")


@pytest.mark.parametrize("more", [{"tool_name": 1}, {"tool_name": "x" * 300}, {"tool_input": []}, {"tool_input": None}])
def test_a_question_that_is_none_ends_the_run(more: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        parse(hook(**more))


class Asked:
    """A run's questions, without a run."""

    def __init__(self, ask: list[str], deny: Iterable[str] = (), allow: Iterable[str] = ()) -> None:
        rules = Rules(parse_all(ask), parse_all(deny), parse_all(allow))
        self.events: list[tuple[str, Any]] = []
        self.answers: list[Any] = []
        self.permissions = Permissions([rules], 60, "alice", lambda name, said: self.events.append((name, said)))

    async def call(self, tool: str = "Bash", **given: Any) -> None:
        await self.permissions.take(HookCall("r", tool, given, "t", None), lambda path: None, self.answers.append)


async def test_a_run_that_asks_and_asks_is_not_heard_for_ever() -> None:
    asked = Asked(ask=["Bash"])
    for number in range(MAX_WAITING + 3):
        await asked.call(command=f"echo {number}")
    assert len(asked.permissions.waiting) == MAX_WAITING
    assert [type(answer) for answer in asked.answers] == [Deny] * 3
    for number in range(MAX_ASKED):
        asked.permissions.end()
        await asked.call(command=f"again {number}")
    asked.permissions.end()
    assert sum(name == "permission.requested" for name, _ in asked.events) == MAX_ASKED
    assert asked.permissions.waiting == [] and len(asked.permissions.decided) == MAX_ASKED


async def test_what_cannot_be_shown_is_denied() -> None:
    asked = Asked(ask=["Bash", "Write"])
    await asked.call("Write", file_path="a", content="x" * MAX_INPUT)
    assert "cannot be shown" in asked.answers[0].message and asked.events == []
    await asked.call("Write", file_path="a", content="x" * (MAX_INPUT - 100))
    assert len(asked.permissions.waiting) == 1
    asked.permissions.end()


@pytest.mark.parametrize("given", [{"input": {"content": "x" * 200_000}}, {"remember": "run"}])
async def test_what_is_kept_of_decisions_is_bounded(given: dict[str, Any]) -> None:
    """A job has them in its record, which nobody counts: a caller's own model calls, and he decides."""
    asked = Asked(ask=["Write"])
    taken = 0
    with pytest.raises(Problem) as refused:
        for number in range(MAX_ASKED):
            await asked.call("Write", file_path=f"{number}", content="x" * 200_000 if "remember" in given else "x")
            (waits,) = asked.permissions.waiting
            asked.permissions.answer(waits.id, PermissionAnswer.model_validate({"decision": "allow"} | given), "alice")
            taken += 1
    assert refused.value.status == 422 and taken == MAX_DECIDED // 200_000
    (waits,) = asked.permissions.waiting
    asked.permissions.answer(waits.id, PermissionAnswer(decision="allow"), "alice")  # as it is


async def test_what_the_cli_asks_no_more_waits_no_more() -> None:
    asked = Asked(ask=["Bash"])
    await asked.call(command="ls")
    asked.permissions.withdraw("another")
    assert len(asked.permissions.waiting) == 1
    asked.permissions.withdraw("r")
    assert asked.permissions.waiting == asked.answers == []
    assert [(name, said.get("reason")) for name, said in asked.events][1:] == [("permission.decided", "ended")]


async def test_what_no_rule_names_is_the_clis_own_business() -> None:
    asked = Asked(ask=["Bash"], allow=["Bash(ls)"])
    for tool, command in (("Read", ""), ("Bash", "ls")):
        await asked.call(tool, command=command)
    assert asked.answers == [Proceed(), Allow()]


async def test_a_changed_input_is_never_what_is_denied() -> None:
    asked = Asked(ask=["Bash"], deny=["Bash(rm:*)"])
    await asked.call(command="ls")
    waiting = asked.permissions.waiting[0].id
    with pytest.raises(Problem) as refused:
        asked.permissions.answer(waiting, PermissionAnswer(decision="allow", input={"command": "rm x"}), "alice")
    assert refused.value.status == 422 and asked.answers == []
    with pytest.raises(Problem, match="more than 256 KiB"):
        asked.permissions.answer(
            waiting, PermissionAnswer(decision="allow", input={"command": "x" * MAX_INPUT}), "alice"
        )
    asked.permissions.answer(waiting, PermissionAnswer(decision="allow", input={"command": "cat x"}), "alice")
    assert asked.answers == [Allow({"command": "cat x"})]


async def test_a_call_is_made_once_for_each_time_that_it_was_let_pass() -> None:
    """Whoever makes it without the CLI, which asks, has not been let pass."""
    asked = Asked(ask=["mcp__tickets__*"], allow=["mcp__tickets__search"])
    spend = asked.permissions.spend
    assert spend("mcp__other__create", {}) and spend("mcp__other__create", {}), "no rule names it"
    assert not spend("mcp__tickets__create", {"a": 1}) and not spend("mcp__tickets__search", {})
    await asked.call("mcp__tickets__search")
    assert [spend("mcp__tickets__search", {}) for _ in range(2)] == [True, False]
    for decision, given, done in (
        ("allow", None, {"a": 1, "b": 2}),
        ("allow", {"a": 3}, {"a": 3}),
        ("deny", None, None),
    ):
        await asked.call("mcp__tickets__create", b=2, a=1)
        waiting = asked.permissions.waiting[0].id
        assert not spend("mcp__tickets__create", {"a": 1, "b": 2}), "it waits"
        asked.permissions.answer(
            waiting, PermissionAnswer.model_validate({"decision": decision, "input": given}), "alice"
        )
        for other in ({"a": 1, "b": 2}, {"a": 3}):
            assert [spend("mcp__tickets__create", other) for _ in range(2)] == [other == done, False]
