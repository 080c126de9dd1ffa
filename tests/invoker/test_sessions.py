"""Conversations over several runs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from claude_invoker.problem import Problem
from claude_invoker.runs.sessions import Sessions
from tests.invoker.conftest import Invoker, StandInProcess, tool


def test_a_session_goes_on(api: httpx.Client, stand_in: StandInProcess) -> None:
    body = {"prompt": "my number is 4711 " + tool("Write", file_path="n.txt", content="4711"), "system": "First."}
    first = api.post("/invoke", json=body | {"session": "new"}).json()
    assert first["session"]
    second = api.post(
        "/invoke",
        json={
            "prompt": "which-number " + tool("Read", file_path="n.txt"),
            "session": first["session"],
            "system": "Second.",
        },
    )
    assert second.status_code == 200, second.text
    assert second.json()["session"] == first["session"]
    assert "4711" in second.json()["result"], "the session's files stay"
    assert second.json()["artifacts"] == [], "a file of an earlier run is not an artifact of this one"
    reached = next(line for line in reversed(stand_in.lines()) if "which-number" in json.dumps(line["messages"]))
    assert "my number is 4711" in json.dumps(reached["messages"])
    assert [block["text"] for block in reached["system"]][-1] == "Second."


def test_one_run_at_a_time(api: httpx.Client, invoker: Invoker) -> None:
    session = api.post("/invoke", json={"prompt": "x", "session": "new"}).json()["session"]
    statuses: list[int] = []

    def ask(client: httpx.Client) -> None:
        statuses.append(
            client.post("/invoke", json={"prompt": "[[delay 200]] [[say a b c d e f]]", "session": session}).status_code
        )

    with invoker.client() as other:
        threads = [threading.Thread(target=ask, args=(client,)) for client in (api, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(statuses) == [200, 409]


def test_sessions_that_are_not_there(api: httpx.Client) -> None:
    answer = api.post("/invoke", json={"prompt": "x", "session": "00000000-0000-0000-0000-000000000000"})
    assert answer.status_code == 404


def test_a_session_expires(start_invoker: Callable[..., Invoker]) -> None:
    invoker = start_invoker(session_ttl_s=0.5, pool_size=0)
    with invoker.client() as api:
        session = api.post("/invoke", json={"prompt": "x", "session": "new"}).json()["session"]
        time.sleep(0.6)
        assert api.post("/invoke", json={"prompt": "x", "session": session}).status_code == 404


def test_only_the_owner_finds_it(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path / "sessions", tmp_path / "locks", 60)
    with sessions.hold("alice", "new") as session:
        with pytest.raises(Problem) as busy, sessions.hold("alice", session.id):
            pass
        assert busy.value.status == 409
    with sessions.hold("alice", session.id) as again:
        assert again == session
    with pytest.raises(Problem) as foreign, sessions.hold("bob", session.id):
        pass
    assert foreign.value.status == 404
    assert sessions.expire() == 0
    assert Sessions(tmp_path / "sessions", tmp_path / "locks", 0).expire() == 1
    assert not session.tree.root.exists()
