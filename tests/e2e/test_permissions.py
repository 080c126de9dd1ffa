"""A run asks before it acts, and is answered through the gateway, which takes neither place nor money for that."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.e2e.conftest import Gateway
from tests.support.waiting import wait_for

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


def test_a_job_whose_token_has_expired_is_allowed_and_goes_on(gateway: Gateway) -> None:
    with gateway.client("approver", *APPROVES) as bob, gateway.client("late", *TEAM, "--ttl", "10s") as before:
        made = before.post("/claude/jobs", json=BODY)
        assert made.status_code == 202, made.text
        path = f"/claude/jobs/{made.json()['id']}"
        (asked,) = wait_for(lambda: bob.get(f"{path}/permissions").json()["waiting"], what="a call that waits")
        wait_for(lambda: before.get(path).status_code == 401, what="the end of the token")
        assert bob.post(f"{path}/permissions/{asked['id']}", json={"decision": "allow"}).status_code == 200
    with gateway.client("late", *TEAM) as after:
        done = wait_for(lambda: (seen := after.get(path).json())["state"] == "done" and seen, what="its end")
    assert [artifact["path"] for artifact in done["result"]["artifacts"]] == ["made.txt"]
