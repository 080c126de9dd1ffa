"""What becomes of calls that are asked about: who decides, once, what is remembered, and what each of them is told.

Without a run: those that a CLI makes are in `test_runs`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytest

from claude_contract.rules import QUESTION, Rules, parse_all
from claude_invoker.cli.messages import HookCall
from claude_invoker.cli.process import Allow, Deny, HookAnswer
from claude_invoker.model import PermissionAnswer, PermissionDecision
from claude_invoker.problem import Problem
from claude_invoker.runs.deferral import Deferral, call_key
from claude_invoker.runs.permissions import MAX_ASKED, Permissions, decision_about
from tests.support.waiting import until

BASH = Rules(ask=parse_all(["Bash"]), deny=parse_all(["Bash(rm:*)"]))
COLOUR = {"questions": [{"question": "Which?", "options": [{"label": "Red"}]}]}


class Asking:
    """Alice's run; `changes`, `decided`: what it has said of what waits and of what is decided."""

    def __init__(self, *rules: Rules, timeout_s: float = 60, is_heard: bool = False) -> None:
        self.told: list[tuple[str, Any]] = []
        self.answers: list[HookAnswer] = []
        self.changes: list[int] = []
        self.decided: list[tuple[PermissionDecision, Mapping[str, Any]]] = []
        self.permissions = Permissions(
            rules or (BASH,), timeout_s, "alice", lambda name, said: self.told.append((name, said))
        )
        self.permissions.is_heard = is_heard
        self.permissions.on_change = lambda: self.changes.append(len(self.permissions.waiting))
        self.permissions.on_decided = lambda *given: self.decided.append(given)

    async def call(self, command: str = "ls", **more: Any) -> None:
        given: dict[str, Any] = {"request_id": "r", "tool": "Bash", "input": {"command": command}, "call": "t"}
        await self.permissions.take(HookCall(**given | {"agent": None} | more), lambda path: None, self.answers.append)

    def answer(self, by: str = "alice", **given: Any) -> PermissionDecision:
        said = PermissionAnswer.model_validate({"decision": "allow"} | given)
        return self.permissions.answer(self.permissions.waiting[0].id, said, by)

    def refused(self, by: str = "alice", **given: Any) -> int:
        with pytest.raises(Problem) as found:
            self.answer(by, **given)
        return found.value.status


async def test_whoever_decides_is_shown_what_will_run_and_until_when() -> None:
    asking = Asking(is_heard=True)
    before = time.time()
    await asking.call("ls", agent="reviewer")
    await asking.call(tool=QUESTION, input=COLOUR)
    (shown, asked) = asking.permissions.waiting
    assert asking.told == [
        ("permission.requested", shown.model_dump(mode="json")),
        ("question.asked", asked.model_dump(mode="json")),
    ]
    assert (shown.tool, shown.input, shown.call, shown.agent) == ("Bash", {"command": "ls"}, "t", "reviewer")
    assert (shown.why, asked.why) == ("Bash is asked about", "the model asks")
    assert before <= shown.asked_at <= time.time() and shown.expires_at == shown.asked_at + 60
    assert shown.id != asked.id and shown.id.startswith("perm_")
    assert (asking.changes, asking.answers, asking.permissions.asked) == ([1, 2], [], 2)
    asking.permissions.end()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, Allow()),
        ({"input": {"command": "cat"}}, Allow({"command": "cat"})),
        ({"decision": "deny"}, Deny("Somebody was asked, and does not allow it.")),
        ({"decision": "deny", "message": "Not now."}, Deny("Not now.")),
    ],
)
async def test_the_cli_the_events_and_the_log_are_told_the_same(given: dict[str, Any], told: HookAnswer) -> None:
    asking = Asking()
    await asking.call()
    before = time.time()
    (held,) = asking.permissions._held.values()
    decision = asking.answer("bob", **given)
    assert held.timer.cancelled()
    assert asking.answers == [told]
    assert (decision.decision, decision.reason, decision.by) == (given.get("decision", "allow"), "answered", "bob")
    assert (decision.input, decision.message, decision.answers) == (given.get("input"), given.get("message"), None)
    assert before <= decision.decided_at <= time.time()
    assert asking.told[1:] == [("permission.decided", decision.model_dump(mode="json", exclude_none=True))]
    assert asking.decided == [(decision, {"command": "ls"})]
    assert asking.changes == [1, 0] and asking.permissions.decided == {decision.id: decision}


async def test_a_call_is_decided_once() -> None:
    asking = Asking()
    await asking.call()
    decision = asking.answer(decision="deny")
    await asking.call("another")
    for permission_id, status, says in ((decision.id, 409, "it is decided already: deny"), ("perm_0", 404, "no such")):
        with pytest.raises(Problem, match=says) as refused:
            asking.permissions.answer(permission_id, PermissionAnswer(decision="allow"), "alice")
        assert refused.value.status == status
    assert len(asking.answers) == 1
    asking.permissions.end()


@pytest.mark.parametrize("four_eyes", [False, True])
async def test_four_eyes_are_two_people_whichever_of_the_rules_wants_them(four_eyes: bool) -> None:
    for rules in ((BASH, Rules(parse_all(["Read"]), four_eyes=four_eyes)), (Rules(BASH.ask, four_eyes=four_eyes),)):
        for decision in ("allow", "deny"):
            asking = Asking(*rules)
            await asking.call()
            if four_eyes:
                assert asking.refused("alice", decision=decision) == 403 and asking.answers == []
                asking.answer("bob", decision=decision)
            else:
                asking.answer("alice", decision=decision)
            assert len(asking.answers) == 1


async def test_the_strictest_of_all_rules_holds() -> None:
    tier, own = Rules(deny=parse_all(["Bash(rm:*)"]), allow=parse_all(["Bash"])), Rules(ask=parse_all(["Bash"]))
    for rules in ((tier, own), (own, tier)):
        asking = Asking(*rules)
        await asking.call("rm x")
        assert asking.permissions.waiting == [] and isinstance(asking.answers[0], Deny)
        assert "Bash(rm:*) is denied" in asking.answers[0].message
        await asking.call("ls")
        assert len(asking.permissions.waiting) == 1 and len(asking.answers) == 1
        assert asking.refused(input={"command": "rm x"}) == 422
        asking.permissions.end()
    asking = Asking(tier)
    await asking.call("ls")
    assert asking.answers == [Allow()]


@pytest.mark.parametrize("decision", ["allow", "deny"])
async def test_what_is_remembered_is_the_same_call_with_the_same_input(decision: str) -> None:
    asking = Asking()
    await asking.call()
    first = asking.answer("bob", decision=decision, remember="run")
    await asking.call()
    again = list(asking.permissions.decided.values())[-1]
    assert asking.answers[0] == asking.answers[1] and asking.permissions.waiting == []
    assert again == first.model_copy(update={"id": again.id, "reason": "remembered", "decided_at": again.decided_at})
    assert again.id != first.id and asking.decided[-1] == (again, {"command": "ls"})
    assert [name for name, _ in asking.told] == ["permission.requested", "permission.decided", "permission.decided"]
    await asking.call("ls -l")
    assert len(asking.permissions.waiting) == 1, "another input"
    asking.permissions.end()
    once = Asking()
    await once.call()
    once.answer(decision=decision)
    await once.call()
    assert len(once.permissions.waiting) == 1, "it was to be once"
    once.permissions.end()


async def test_what_a_session_remembers_holds_in_its_later_turns_under_the_same_rules() -> None:
    alone = Asking()
    await alone.call()
    assert alone.refused(remember="session") == 422, "it has no session"
    alone.answer(remember="run")
    assert alone.permissions.for_later() == []
    first = Asking()
    first.permissions.recall([])
    await first.call()
    first.answer("bob", remember="session")
    await first.call()
    assert first.permissions.waiting == [] and first.answers == [Allow()] * 2
    lines = first.permissions.for_later()
    later, stricter = Asking(), Asking(Rules(BASH.ask))
    for turn in (later, stricter):
        turn.permissions.recall([*lines, "no line"])
        await turn.call()
    assert later.answers == [Allow()] and later.permissions.for_later() == []
    assert later.decided[0][0].by == "bob"
    assert stricter.answers == [] and len(stricter.permissions.waiting) == 1
    stricter.permissions.end()


async def test_what_nobody_decides_is_denied_in_time() -> None:
    asking = Asking(timeout_s=0.01)
    await asking.call()

    async def is_answered() -> bool:
        return bool(asking.answers)

    await until(is_answered, "its time")
    assert asking.answers == [Deny("Nobody has allowed it within 0.01 seconds.")]
    (decision,) = asking.permissions.decided.values()
    assert (decision.decision, decision.reason, decision.by) == ("deny", "timeout", None)
    assert asking.changes == [1, 0]


async def test_what_ends_with_its_run_is_answered_no_more() -> None:
    asking = Asking()
    await asking.call()
    asking.permissions.end()
    (decision,) = asking.permissions.decided.values()
    assert (decision.decision, decision.reason, decision.message) == ("deny", "ended", "The run has ended.")
    assert asking.answers == [] and asking.permissions.waiting == []


async def test_what_was_put_away_waits_on_when_its_process_ends() -> None:
    asking = Asking()
    asking.permissions.defers_after_s, asking.permissions.can_defer = 0.0, lambda call: call == "t"
    told: list[bool] = []
    asking.permissions.on_deferring = lambda: told.append(True)
    await asking.call("another", call="u")
    await asking.call()

    async def is_told() -> bool:
        return bool(told)

    await until(is_told, "the CLI to be told")
    held = list(asking.permissions._held.values())
    away, waits = asking.permissions.deferred, asking.permissions.waiting
    assert away is not None and away.call == "t" and len(waits) == 2
    asking.permissions.end(is_deferred=True)
    assert asking.permissions.waiting == [away] == [asking.permissions.deferred]
    asking.permissions.close()
    assert (
        [each.timer.cancelled() for each in held]
        == [each.deferring.cancelled() for each in held if each.deferring]
        == [True] * 2
    )
    assert asking.refused() == 503
    asking.permissions.end()
    assert asking.permissions.waiting == [] and asking.permissions.deferred is None
    assert [decision.reason for decision in asking.permissions.decided.values()] == ["ended"] * 2


def brought(decision: dict[str, Any], asked: str = "ls", tool: str = "Bash") -> tuple[Deferral, PermissionDecision]:
    """A call that was put away, and how it was decided."""
    given = {"id": "perm_1", "tool": tool, "reason": "answered", "by": "bob", "decided_at": 1.0, "decision": "allow"}
    shown = {"id": "perm_1", "tool": tool, "input": {"command": asked}, "why": "", "asked_at": 1.0, "expires_at": 2.0}
    deferral = Deferral.model_validate({"session": "s", "permission": shown, "asked": 7})
    return deferral, PermissionDecision.model_validate(given | decision)


@pytest.mark.parametrize(
    ("decision", "told"),
    [
        ({}, Allow()),
        ({"input": {"command": "cat"}}, Allow({"command": "cat"})),
        ({"input": {"command": "rm x"}}, Deny("The rules of this service do not allow it: Bash(rm:*) is denied.")),
        ({"decision": "deny", "message": "No."}, Deny("No.")),
    ],
)
async def test_the_next_part_does_what_was_decided_as_far_as_the_rules_allow(
    decision: dict[str, Any], told: HookAnswer
) -> None:
    """Where the paths of a changed input were, nobody could tell when it was decided."""
    asking = Asking()
    deferral, decided = brought(decision)
    asking.permissions.bring(deferral, [decided])
    assert asking.permissions.asked == 7 and asking.permissions.decided == {"perm_1": decided}
    await asking.call()
    assert asking.answers == [told] and asking.told == []
    await asking.call()
    assert len(asking.permissions.waiting) == 1, "once"
    asking.permissions.end()


async def test_the_next_part_asks_about_what_is_not_decided_and_remembers_what_is() -> None:
    asking = Asking()
    deferral, decided = brought({})
    key = call_key("Bash", {"command": "cat"})
    deferral = deferral.model_copy(update={"remembered": {key: decided}, "for_session": {key: decided}})
    asking.permissions.bring(deferral, [])
    await asking.call("cat")
    assert asking.answers == [Allow()]
    await asking.call()
    assert len(asking.permissions.waiting) == 1
    assert len(asking.permissions.for_later()) == 1
    asking.permissions.end()


@pytest.mark.parametrize(
    ("decision", "lets"),
    [({}, {"command": "ls"}), ({"input": {"command": "cat"}}, {"command": "cat"}), ({"decision": "deny"}, None)],
)
@pytest.mark.parametrize("how", ["brought", "answered"])
async def test_a_servers_call_may_be_made_as_it_was_let_pass(
    decision: dict[str, Any], lets: dict[str, str] | None, how: str
) -> None:
    tool = "mcp__tickets__create"
    asking = Asking(Rules(parse_all([tool])))
    if how == "brought":
        deferral, decided = brought(decision, tool=tool)
        asking.permissions.bring(deferral, [decided])
    await asking.call(tool=tool)
    if how == "answered":
        asking.answer(**decision)
    for given in ({"command": "ls"}, {"command": "cat"}):
        assert [asking.permissions.spend(tool, given) for _ in range(2)] == [given == lets, False]


async def test_a_remembered_call_of_a_server_may_be_made_each_time() -> None:
    tool = "mcp__tickets__create"
    for decision in ("allow", "deny"):
        asking = Asking(Rules(parse_all([tool])))
        for number in range(2):
            await asking.call(tool=tool)
            if number == 0:
                asking.answer(decision=decision, remember="run")
            allowed = [asking.permissions.spend(tool, {"command": "ls"}) for _ in range(2)]
            assert allowed == [decision == "allow", False]


async def test_what_is_remembered_again_and_again_is_not_kept_for_ever() -> None:
    asking = Asking()
    await asking.call()
    asking.answer(remember="run")
    for _ in range(2 * MAX_ASKED):
        await asking.call()
    assert len(asking.permissions.decided) == 2 * MAX_ASKED
    assert len(asking.answers) == len(asking.decided) == 2 * MAX_ASKED + 1, "it is decided all the same"


@pytest.mark.parametrize(
    ("given", "by", "status"),
    [
        ({}, "bob", None),
        ({"input": {"command": "rm x"}}, "bob", 422),
        ({"decision": "deny"}, "bob", None),
        ({}, "alice", 403),
        ({"answers": {"Which?": "x"}}, "bob", 422),
    ],
)
def test_where_no_run_is_it_is_decided_as_in_one(given: dict[str, Any], by: str, status: int | None) -> None:
    deferral, _ = brought({})
    answer = PermissionAnswer.model_validate({"decision": "allow"} | given)
    rules = (Rules(BASH.ask, BASH.deny, four_eyes=True),)
    if status is None:
        decision = decision_about(deferral.permission, answer, by, "alice", rules, lambda path: None)
        assert (decision.id, decision.tool, decision.decision) == ("perm_1", "Bash", answer.decision)
        return
    with pytest.raises(Problem) as refused:
        decision_about(deferral.permission, answer, by, "alice", rules, lambda path: None)
    assert refused.value.status == status
