"""One subagent of a run is ended, and the rest goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from claude_invoker.cli.messages import AgentEnded, AgentStarted
from claude_invoker.problem import Problem
from claude_invoker.runs.agents import Agents
from tests.interop.deployments import started
from tests.invoker.conftest import Invoker, as_root, tool, wait_for
from tests.permissions.conftest import BASH, asking, bash
from tests.permissions.test_jobs import asked_by, create, ended
from tests.replicas.test_replicas import client

pytestmark = [pytest.mark.timeout(180), pytest.mark.xdist_group("permissions")]
ENDED = "[Request interrupted by user for tool use]"


@pytest.fixture(scope="module")
def invoker(start: Callable[..., Invoker]) -> Iterator[Invoker]:
    redis = started()
    urls = {"redis_url": redis.url, "runs_redis_url": redis.url}
    found = start(**urls, worker="embedded", tools_allowed="Bash,Task")
    yield found
    found.stop()
    redis.close()


def task(prompt: str) -> str:
    return tool("Task", description="d", prompt=prompt, subagent_type="general-purpose")


@as_root
def test_one_of_two_is_ended(invoker: Invoker) -> None:
    other = task(bash("until [ -e begun ]; do sleep 0.1; done; echo from-two")).replace("[[tool", "[[beside", 1)
    prompt = task(bash("touch begun; sleep 600; echo from-one")) + other
    with client(invoker, "alice") as alice, client(invoker, "mallory") as stranger:
        with asking(alice, prompt, ("Bash", "Task")) as stream:
            calls: dict[str, str] = {}
            while not (found := stream.until("tool")).get("content") or "from-two" not in found["content"]:
                if "prompt" in found.get("input", {}):
                    calls[found["input"]["prompt"]] = found["id"]
            one = next(call for prompt, call in calls.items() if "from-one" in prompt)
            path = f"{stream.run}/agents/{one}"
            assert stranger.delete(path).status_code == 404
            assert alice.delete(f"{stream.run}/agents/toolu_0").status_code == 404
            assert alice.delete(path).status_code == 202
            result = stream.until("run.finished")
            assert alice.delete(path).status_code == 409
    assert ENDED in result["result"] and "from-two" in result["result"] and "from-one" not in result["result"]
    assert result["stop_reason"] == "end_turn"


@as_root
def test_what_it_asks_is_asked_no_more(invoker: Invoker) -> None:
    """Of a job, whose worker is asked."""
    with client(invoker, "alice", **BASH) as alice:
        path = create(alice, task(bash("touch made.txt")), tools=["Bash", "Task"])
        asked = asked_by(alice, path)
        assert asked["agent"] == "general-purpose"
        calls = wait_for(lambda: _calls(alice, path), what="its call")
        assert alice.delete(f"{path}/agents/{calls[0]}").status_code == 202
        done = ended(alice, path)
        assert done["state"] == "done" and ENDED in done["result"]["result"], done
        assert [(each["id"], each["reason"]) for each in done["decisions"]] == [(asked["id"], "ended")]
        assert done["result"]["artifacts"] == []
        assert alice.delete(f"{path}/agents/{calls[0]}").status_code == 409


def _calls(api: httpx.Client, path: str) -> list[str]:
    """Those of subagents, of a job that goes on."""
    with api.stream("GET", f"{path}/events") as answer:
        for line in answer.iter_lines():
            if line.startswith("data: ") and '"subagent_type"' in line:
                said: dict[str, Any] = json.loads(line.removeprefix("data: "))
                return [said["id"]]
    return []


class _Process:
    def __init__(self) -> None:
        self.stopped: list[str] = []

    def stop_task(self, task: str) -> None:
        self.stopped.append(task)


@pytest.mark.parametrize(
    ("heard", "status"),
    [
        ([AgentStarted("a", "call"), AgentStarted("b", "other")], None),
        ([], 404),
        ([AgentStarted("a", "other")], 404),
        ([AgentStarted("a", "call"), AgentEnded("a")], 409),
        ([AgentStarted("a", "call"), AgentEnded("b")], None),
        ([AgentEnded("a"), AgentEnded("")], 404),
    ],
)
def test_which_is_ended(heard: list[Any], status: int | None) -> None:
    agents, process = Agents(), _Process()
    agents.begin(process)  # type: ignore[arg-type]
    for message in heard:
        agents.hear(message)
    if status is None:
        agents.stop("call")
        assert process.stopped == ["a"]
        agents.end()
        status = 409
    with pytest.raises(Problem) as refused:
        agents.stop("call")
    assert refused.value.status == status
