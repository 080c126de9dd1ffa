"""A run's model asks its caller a question, and goes on with the answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from claude_contract.rules import QUESTION
from claude_invoker.cli.messages import HookCall
from claude_invoker.cli.process import Allow, Deny
from claude_invoker.model import PermissionAnswer
from claude_invoker.problem import Problem
from claude_invoker.runs.permissions import Permissions
from tests.invoker.conftest import Invoker, as_root, tool
from tests.permissions.conftest import asking, clamp
from tests.replicas.test_replicas import client

pytestmark = [pytest.mark.timeout(180), pytest.mark.xdist_group("permissions")]
COLOUR = {
    "question": "Which colour?",
    "header": "Colour",
    "multiSelect": False,
    "options": [{"label": "Red", "description": "as it was"}, {"label": "Blue", "description": "new"}],
}
PARTS = COLOUR | {"question": "Which parts?", "header": "Parts", "multiSelect": True}
TOOLS = (QUESTION, "Read")


def ask(*questions: dict[str, Any]) -> str:
    return tool(QUESTION, questions=list(questions))


@as_root
def test_a_question_is_answered(alice: httpx.Client) -> None:
    with asking(alice, ask(COLOUR, PARTS), TOOLS) as stream:
        asked = stream.until("question.asked")
        assert asked["tool"] == QUESTION and asked["input"]["questions"] == [COLOUR, PARTS]
        assert alice.get(stream.run).json()["permissions"] == [asked]
        answers: dict[str, Any] = {"Which colour?": "Green, please", "Which parts?": ["Red", "Blue"]}
        answered = alice.post(stream.path(asked), json={"decision": "allow", "answers": answers})
        assert answered.status_code == 200, answered.text
        assert alice.post(stream.path(asked), json={"decision": "allow", "answers": answers}).status_code == 409
        result = stream.until("run.finished")
    assert "Green, please" in result["result"] and "Red, Blue" in result["result"]
    (decision,) = result["decisions"]
    assert decision["answers"] == {"Which colour?": "Green, please", "Which parts?": "Red, Blue"}
    assert decision["by"] == "alice" and decision["input"] is None and result["permission_denials"] == []


@as_root
def test_a_question_is_not_answered(alice: httpx.Client, bob: httpx.Client) -> None:
    with asking(alice, ask(COLOUR), TOOLS) as stream:
        asked = stream.until("question.asked")
        denied = bob.post(stream.path(asked), json={"decision": "deny", "message": "you decide"})
        assert denied.status_code == 200 and denied.json()["by"] == "bob"
        assert "you decide" in stream.until("run.finished")["result"]


@as_root
def test_nobody_is_there_to_answer(alice: httpx.Client) -> None:
    """Who follows by a JSON request hears of no question, so the model is told so at once."""
    answer = alice.post("/claude/invoke", json={"prompt": ask(COLOUR), "tools": list(TOOLS)})
    assert answer.status_code == 200 and "Nobody is there to answer" in answer.json()["result"], answer.text
    assert answer.json()["decisions"] == []


@as_root
def test_a_tier_without_questions(one: Invoker) -> None:
    with client(one, "alice", clamp={"tools": ["Read"]}) as api:
        refused = api.post("/claude/invoke", json={"prompt": ask(COLOUR), "tools": list(TOOLS)})
        assert refused.status_code == 403 and QUESTION in refused.json()["detail"]
        told = api.post("/claude/invoke", json={"prompt": ask(COLOUR), "tools": ["Read"]})
        assert "No such tool available" in told.json()["result"]


@as_root
def test_who_answers_under_four_eyes(one: Invoker, bob: httpx.Client) -> None:
    body = {"decision": "allow", "answers": {"Which colour?": "Red"}}
    rules = clamp(ask=["Bash"], four_eyes=True)
    with (
        client(one, "alice", **rules) as api,
        client(one, "mallory") as stranger,
        asking(api, ask(COLOUR), TOOLS) as run,
    ):
        asked = run.until("question.asked")
        assert api.post(run.path(asked), json=body).status_code == 403
        assert stranger.post(run.path(asked), json=body).status_code == 404
        assert bob.post(run.path(asked), json=body).status_code == 200
        assert "Red" in run.until("run.finished")["result"]


@as_root
def test_a_cli_that_does_not_ask_answers_nothing(start: Callable[..., Invoker]) -> None:
    """Without our hook the tool is not allowed: it does not wait for a person who is never told."""
    with (
        client(start(without=("hooks_that_nobody_registers",)), "alice") as api,
        asking(api, ask(COLOUR), TOOLS) as run,
    ):
        assert run.until("run.finished")["permission_denials"]


# Without a run


class Asked:
    def __init__(self, *, is_heard: bool = True) -> None:
        self.answers: list[Any] = []
        self.permissions = Permissions([], 60, "alice", lambda name, said: None)
        self.permissions.is_heard = is_heard

    async def ask(self, given: dict[str, Any]) -> None:
        await self.permissions.take(HookCall("r", QUESTION, given, "t", None), lambda path: None, self.answers.append)

    def answer(self, **given: Any) -> None:
        waiting = self.permissions.waiting[0].id
        self.permissions.answer(waiting, PermissionAnswer.model_validate(given), "alice")


async def test_an_answer_takes_the_place_of_what_the_model_says_it_is() -> None:
    asked = Asked()
    given = {"questions": [COLOUR], "answers": {"Which colour?": "Mine"}}
    await asked.ask(given)
    asked.answer(decision="allow", answers={"Which colour?": "Red"})
    assert asked.answers == [Allow({"questions": [COLOUR], "answers": {"Which colour?": "Red"}})]


@pytest.mark.parametrize(
    "given",
    [
        {"decision": "allow"},
        {"decision": "allow", "answers": {}},
        {"decision": "allow", "answers": {"Which colour?": "Red", "Which?": "x"}},
        {"decision": "allow", "answers": {"which colour?": "Red"}},
        {"decision": "allow", "input": {"questions": []}},
        {"decision": "allow", "remember": "run"},
    ],
)
async def test_what_is_no_answer(given: dict[str, Any]) -> None:
    asked = Asked()
    await asked.ask({"questions": [COLOUR]})
    with pytest.raises(Problem) as refused:
        asked.answer(**given)
    assert refused.value.status == 422 and asked.answers == [] and asked.permissions.waiting
    asked.permissions.end()


@pytest.mark.parametrize(
    "given",
    [{}, {"questions": "x"}, {"questions": [1, [], {}]}, {"questions": [{"question": 1}]}, {"questions": []}],
)
async def test_a_question_that_nobody_could_answer(given: dict[str, Any]) -> None:
    asked = Asked()
    await asked.ask(given)
    assert [type(answer) for answer in asked.answers] == [Deny]


async def test_nobody_hears() -> None:
    asked = Asked(is_heard=False)
    await asked.ask({"questions": [COLOUR]})
    assert asked.permissions.waiting == [] and "Nobody is there" in asked.answers[0].message


async def test_a_call_that_is_no_question_has_no_answers() -> None:
    from claude_contract.rules import Rules, parse_all

    permissions = Permissions([Rules(parse_all(["Bash"]))], 60, "alice", lambda name, said: None)
    await permissions.take(HookCall("r", "Bash", {"command": "ls"}, "t", None), lambda path: None, lambda answer: None)
    with pytest.raises(Problem, match="it is no question"):
        permissions.answer(
            permissions.waiting[0].id, PermissionAnswer(decision="allow", answers={"Which?": "x"}), "alice"
        )
    permissions.end()
