"""A run asks before it acts, and is answered through the gateway, which takes neither place nor money for that."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.e2e.conftest import Gateway

pytestmark = [pytest.mark.xdist_group("e2e"), pytest.mark.timeout(240)]
TEAM = ("--tier", "team")
APPROVES = ("--tier", "free", "--role", "claude:invoke", "--role", "claude:approve")
BODY = {"prompt": '[[tool Write {"file_path": "made.txt", "content": "x"}]]', "tools": ["Write"], "ask": ["Write"]}


def until(lines: Any, wanted: str) -> Any:
    name = ""
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: ") and name == wanted:
            return json.loads(line.removeprefix("data: "))
    raise AssertionError(f"no {wanted}")


def test_a_run_is_answered_through_the_gateway(gateway: Gateway) -> None:
    streamed = {"Accept": "text/event-stream"}
    with (
        gateway.client("asker", *TEAM) as alice,
        gateway.client("approver", *APPROVES) as bob,
        gateway.client("stranger", *TEAM) as stranger,
        gateway.client() as nobody,
        alice.stream("POST", "/claude/invoke", json=BODY, headers=streamed) as answer,
    ):
        assert answer.status_code == 200, answer.read()
        lines = answer.iter_lines()
        asked = until(lines, "permission.requested")
        path = f"{answer.headers['location']}/permissions/{asked['id']}"
        decision = {"decision": "allow"}
        assert stranger.post(f"{answer.headers['location']}/interrupt").status_code == 404
        assert nobody.post(path, json=decision).status_code == 401
        assert stranger.post(path, json=decision).status_code == 404
        limits = bob.get("/claude/limits").json()
        before = limits["concurrent"], limits["usd"]["reserved"], limits["usd"]["day"]["spent"]
        assert bob.get(path.rpartition("/")[0]).json()["waiting"] == [asked]
        assert bob.post(path, json=decision).status_code == 200
        assert alice.post(path, json=decision).status_code == 409
        told = {"message": "be brief"}
        assert nobody.post(f"{answer.headers['location']}/messages", json=told).status_code == 401
        assert bob.post(f"{answer.headers['location']}/messages", json=told).status_code == 404
        after = bob.get("/claude/limits").json()
        assert (after["concurrent"], after["usd"]["reserved"], after["usd"]["day"]["spent"]) == before
        result = until(lines, "run.finished")
    assert [artifact["path"] for artifact in result["artifacts"]] == ["made.txt"]
    assert result["decisions"][0]["by"] == "approver"
