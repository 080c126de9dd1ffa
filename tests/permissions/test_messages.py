"""A run's caller tells its model more while it is at work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from claude_invoker.cli.messages import Lifecycle, Malformed, parse
from claude_invoker.problem import Problem
from claude_invoker.runs.steering import MAX_MESSAGES, Steering
from tests.interop.deployments import started
from tests.invoker.conftest import Invoker, as_root, wait_for
from tests.permissions.conftest import APPROVER, BASH, Stream, asking, bash
from tests.permissions.test_jobs import create, ended
from tests.rate_tiers.servers import RedisProcess
from tests.replicas.test_replicas import client

pytestmark = [pytest.mark.timeout(180), pytest.mark.xdist_group("permissions")]
SLOW = "[[delay 100]] [[say " + "word " * 20 + "]]"


def say(api: httpx.Client, run: str, message: str) -> httpx.Response:
    return api.post(f"{run}/messages", json={"message": message})


def tool_begins(stream: Stream) -> None:
    while stream.until("tool")["state"] != "started":
        pass


def states(stream: Stream, sent: dict[str, Any]) -> list[str]:
    return [told["state"] for told in stream.all("message") if told["id"] == sent["id"]]


@pytest.fixture
def carol(one: Invoker) -> Iterator[httpx.Client]:
    """Her tier asks about nothing."""
    with client(one, "carol") as api:
        yield api


@as_root
def test_the_model_sees_it_when_its_tool_has_ended(carol: httpx.Client, one: Invoker, stand_in: Any) -> None:
    with asking(carol, bash("sleep 1; echo one") + bash("echo two")) as stream:
        tool_begins(stream)
        told = say(carol, stream.run, "and be brief")
        assert told.status_code == 202 and told.json()["state"] == "queued", told.text
        sent = told.json()
        result = stream.until("run.finished")
        assert say(carol, stream.run, "too late").status_code == 409
        assert carol.delete(f"{stream.run}/messages/{sent['id']}").status_code == 409
    assert states(stream, sent) == ["queued", "taken"]
    assert "two" in result["result"] and result["num_turns"] == 3
    seen = [line["messages"] for line in stand_in.lines() if "and be brief" in str(line["messages"])]
    assert any("tool_result" in str(messages) for messages in seen)


@as_root
def test_while_it_speaks_it_is_a_further_turn(carol: httpx.Client) -> None:
    with asking(carol, SLOW) as stream:
        stream.until("content_block_delta")
        sent = say(carol, stream.run, "[[say another answer]]").json()
        result = stream.until("run.finished")
    assert states(stream, sent) == ["queued", "taken"]
    assert result["result"] == "another answer" and result["num_turns"] == 2


@as_root
def test_what_the_model_has_not_seen_is_taken_back(carol: httpx.Client) -> None:
    with asking(carol, bash("sleep 2; echo one")) as stream:
        tool_begins(stream)
        sent = say(carol, stream.run, "[[say never]]").json()
        taken_back = carol.delete(f"{stream.run}/messages/{sent['id']}")
        assert taken_back.status_code == 200 and taken_back.json()["state"] == "cancelled", taken_back.text
        assert carol.delete(f"{stream.run}/messages/{sent['id']}").status_code == 200
        assert carol.delete(f"{stream.run}/messages/x").status_code == 404
        result = stream.until("run.finished")
    assert states(stream, sent) == ["queued", "cancelled"] and "never" not in result["result"]


@as_root
def test_a_run_has_no_more_turns_by_it(carol: httpx.Client) -> None:
    with asking(carol, SLOW, max_turns=1) as stream:
        stream.until("content_block_delta")
        sent = say(carol, stream.run, "[[say another answer]]").json()
        result = stream.until("run.finished")
    assert states(stream, sent) == ["queued", "lost"] and result["result"].startswith("word")


@as_root
def test_it_waits_while_somebody_is_asked(alice: httpx.Client) -> None:
    with asking(alice, bash("echo one")) as stream:
        asked = stream.until("permission.requested")
        sent = say(alice, stream.run, "hello").json()
        assert alice.post(stream.path(asked), json={"decision": "allow"}).status_code == 200
        stream.until("run.finished")
    assert states(stream, sent) == ["queued", "taken"]


@as_root
def test_nobody_else_tells_it_anything(alice: httpx.Client, one: Invoker) -> None:
    with (
        asking(alice, bash("echo one")) as stream,
        client(one, "root", roles=["admin"]) as admin,
        client(one, "bob", **APPROVER) as bob,
    ):
        asked = stream.until("permission.requested")
        for other in (admin, bob):
            assert say(other, stream.run, "hello").status_code == 404
            assert other.delete(f"{stream.run}/messages/x").status_code == 404
        for body in ({}, {"message": ""}, {"message": 1}, {"message": "x", "more": 1}, {"message": "x" * 100_001}):
            assert alice.post(f"{stream.run}/messages", json=body).status_code == 422
        assert alice.post(stream.path(asked), json={"decision": "deny"}).status_code == 200
        stream.until("run.finished")
    assert stream.all("message") == []


@as_root
def test_a_job_is_told_by_its_worker(start: Callable[..., Invoker]) -> None:
    redis: RedisProcess = started()
    own = {"redis_url": redis.url, "runs_redis_url": redis.url}
    server = start(**own)
    start(**own, worker="embedded")
    with client(server, "alice", **BASH) as alice, client(server, "mallory") as stranger:
        path = create(alice, bash("echo one"))
        asked = wait_for(lambda: alice.get(path).json()["waiting_for_approval"], what="a call that is asked about")[0]
        assert say(stranger, path, "hello").status_code == 404
        kept, dropped = say(alice, path, "[[say kept]]").json(), say(alice, path, "[[say dropped]]").json()
        assert alice.delete(f"{path}/messages/{dropped['id']}").json()["state"] == "cancelled"
        assert alice.delete(f"{path}/messages/x").status_code == 404
        assert alice.post(f"{path}/permissions/{asked['id']}", json={"decision": "allow"}).status_code == 200
        assert ended(alice, path)["state"] == "done"
        assert say(alice, path, "too late").status_code == 409
        told = [line for line in alice.get(f"{path}/events").text.splitlines() if '"state":"taken"' in line]
        assert len(told) == 1 and kept["id"] in told[0]
    redis.close()


# Without a run


class _Process:
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str, text: str) -> None:
        self.said.append(text)


async def test_what_the_cli_says_of_messages_that_are_not_ours_counts_for_nothing() -> None:
    told: list[tuple[str, Any]] = []
    steering, process = Steering(lambda name, said: told.append((name, said))), _Process()
    steering.begin(process)  # type: ignore[arg-type]  # all that it needs
    sent = steering.say("one")
    for state in ("started", "cancelled"):
        steering.hear(Lifecycle("another", state))
    assert steering.is_pending
    steering.hear(Lifecycle(sent.id, "started"))
    steering.hear(Lifecycle(sent.id, "cancelled"))
    assert sent.state == "taken" and not steering.is_pending
    with pytest.raises(Problem) as refused:
        for _ in range(MAX_MESSAGES):
            steering.say("more")
    assert refused.value.status == 429 and len(process.said) == MAX_MESSAGES
    steering.end()
    assert not steering.is_pending and told[-1][1]["state"] == "lost"


def test_the_life_of_a_message_is_read() -> None:
    assert parse(b'{"type":"command_lifecycle","command_uuid":"u","state":"queued"}') == Lifecycle("u", "queued")
    with pytest.raises(Malformed):
        parse(b'{"type":"command_lifecycle","command_uuid":1,"state":"queued"}')
