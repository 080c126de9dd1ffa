"""A run asks, somebody decides, and that is what happens."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.invoker.conftest import Invoker, as_root, tool, wait_for
from tests.permissions.conftest import APPROVER, BASH, Stream, asking, bash, clamp
from tests.rate_tiers.servers import RedisProcess
from tests.replicas.test_replicas import client
from tests.support.processes import gone

pytestmark = [as_root, pytest.mark.timeout(180), pytest.mark.xdist_group("permissions")]


def decide(api: httpx.Client, path: str, decision: str = "allow", **more: Any) -> httpx.Response:
    return api.post(path, json={"decision": decision} | more)


def test_what_is_allowed_runs(alice: httpx.Client) -> None:
    with asking(alice, bash("echo ran > made.txt; echo it ran")) as stream:
        asked = stream.until("permission.requested")
        assert (asked["tool"], asked["input"]["command"]) == ("Bash", "echo ran > made.txt; echo it ran")
        assert asked["why"] == "Bash is asked about" and asked["agent"] is None
        assert asked["expires_at"] == pytest.approx(asked["asked_at"] + 300)
        assert asked["call"] == stream.all("tool")[-1]["id"]
        seen = alice.get(stream.run).json()
        assert seen["state"] == "running" and seen["permissions"] == [asked] and seen["decisions"] == []
        assert alice.get(f"{stream.run}/permissions").json() == {"waiting": [asked], "decided": []}
        assert 'claude_invoker_approvals_waiting{of="runs"} 0.0' not in alice.get("/metrics").text
        decided = decide(alice, stream.path(asked))
        assert decided.status_code == 200, decided.text
        told = stream.until("permission.decided")
        assert told["id"] == asked["id"] and (told["decision"], told["reason"], told["by"]) == (
            "allow",
            "answered",
            "alice",
        )
        result = stream.until("run.finished")
    assert "it ran" in result["result"] and result["permission_denials"] == []
    assert [artifact["path"] for artifact in result["artifacts"]] == ["made.txt"]
    assert [(each["id"], each["decision"]) for each in result["decisions"]] == [(asked["id"], "allow")]
    # It is over: nothing is decided twice, and nothing else is there.
    assert decide(alice, stream.path(asked), "deny").status_code == 409
    assert decide(alice, f"{stream.run}/permissions/perm_0").status_code == 404
    assert alice.get(stream.run).json()["permissions"] == []


def test_the_model_is_told_why_something_is_denied(alice: httpx.Client) -> None:
    with asking(alice, bash("touch made.txt")) as stream:
        asked = stream.until("permission.requested")
        assert decide(alice, stream.path(asked), "deny", message="not on a Friday").status_code == 200
        result = stream.until("run.finished")
    assert "not on a Friday" in result["result"] and result["artifacts"] == []
    assert result["permission_denials"] == [{"tool": "Bash", "input": {"command": "touch made.txt"}}]
    assert result["decisions"][0]["message"] == "not on a Friday"


def test_what_runs_is_what_was_changed(alice: httpx.Client) -> None:
    with asking(alice, bash("echo one")) as stream:
        asked = stream.until("permission.requested")
        assert decide(alice, stream.path(asked), input={"command": "echo two"}).status_code == 200
        result = stream.until("run.finished")
    assert "two" in result["result"] and "one" not in result["result"]
    assert result["decisions"][0]["input"] == {"command": "echo two"}


def test_the_same_call_is_decided_once_where_that_is_wanted(alice: httpx.Client) -> None:
    with asking(alice, bash("echo a") + bash("echo a") + bash("echo b")) as stream:
        asked = stream.until("permission.requested")
        assert decide(alice, stream.path(asked), remember="run").status_code == 200
        other = stream.until("permission.requested")
        assert other["input"]["command"] == "echo b"
        assert decide(alice, stream.path(other)).status_code == 200
        result = stream.until("run.finished")
    assert [each["reason"] for each in result["decisions"]] == ["answered", "remembered", "answered"]


NO_DECISIONS: tuple[tuple[dict[str, Any], str], ...] = (
    ({}, "decision is missing"),
    ({"decision": "maybe"}, "decision must be"),
    ({"decision": "allow", "more": 1}, "more is not known here"),
    ({"decision": "allow", "message": "x"}, "message is of a denial"),
    ({"decision": "deny", "input": {}}, "input is of what is allowed"),
    ({"decision": "allow", "input": "ls"}, "input must be"),
    ({"decision": "allow", "input": {}, "remember": "run"}, "remember is of what the model has asked for"),
    ({"decision": "allow", "input": {}, "remember": "session"}, "remember is of what the model has asked for"),
    ({"decision": "allow", "remember": "session"}, "the run goes on with no session"),
    ({"decision": "allow", "remember": "always"}, "remember must be"),
)


def test_what_is_no_decision(alice: httpx.Client) -> None:
    with asking(alice, bash("echo one")) as stream:
        asked = stream.until("permission.requested")
        for body, at in NO_DECISIONS:
            refused = alice.post("/claude/runs/run_0/permissions/perm_0", json=body)
            assert refused.status_code in (404, 422), body
            refused = alice.post(stream.path(asked), json=body)
            assert refused.status_code == 422 and at in refused.json()["detail"], (body, refused.text)
        assert alice.post(stream.path(asked), content=b"{").status_code == 400
        assert decide(alice, stream.path(asked), "deny").status_code == 200


def test_of_two_who_decide_at_once_one_is_the_second(alice: httpx.Client, bob: httpx.Client) -> None:
    with asking(alice, bash("echo one")) as stream, ThreadPoolExecutor(2) as pool:
        asked = stream.until("permission.requested")
        answers = list(
            pool.map(lambda who: decide(who[0], stream.path(asked), who[1]), [(alice, "allow"), (bob, "deny")])
        )
        assert sorted(answer.status_code for answer in answers) == [200, 409]
        won = next(answer.json() for answer in answers if answer.status_code == 200)
        result = stream.until("run.finished")
    assert result["decisions"] == [won]
    assert ("one" in result["result"].replace("echo one", "")) == (won["decision"] == "allow")


def test_who_may_decide(alice: httpx.Client, bob: httpx.Client, one: Invoker) -> None:
    with (
        asking(alice, bash("echo one")) as stream,
        client(one, "mallory") as stranger,
        client(one, "root", roles=["admin"]) as admin,
        client(one, "carol", roles=["claude:approve"]) as carol,
    ):
        asked = stream.until("permission.requested")
        unknown = stranger.get("/claude/runs/run_0/permissions").json()
        for refused in (stranger.get(f"{stream.run}/permissions"), decide(stranger, stream.path(asked))):
            assert (refused.status_code, refused.json()) == (404, unknown)  # as one that does not exist
        # An administrator sees it, and who decides about others' runs sees that of them, and no more.
        assert admin.get(f"{stream.run}/permissions").json()["waiting"] == [asked]
        assert decide(admin, stream.path(asked)).status_code == 403
        assert bob.get(f"{stream.run}/permissions").json()["waiting"] == [asked]
        assert bob.get(stream.run).status_code == bob.get(f"{stream.run}/events").status_code == 404
        assert bob.delete(stream.run).status_code == 404
        assert carol.get(f"{stream.run}/permissions").json()["waiting"] == [asked]
        assert decide(bob, stream.path(asked)).json()["by"] == "bob"
        assert stream.until("run.finished")["decisions"][0]["by"] == "bob"


def test_it_is_in_the_audit_log(alice: httpx.Client, bob: httpx.Client, one: Invoker) -> None:
    with asking(alice, bash("echo one")) as stream:
        asked = stream.until("permission.requested")
        assert decide(bob, stream.path(asked)).status_code == 200
        stream.until("run.finished")
    log = one.state / "audit"

    def noted() -> Any:
        rows = [json.loads(row) for path in log.glob("details-*") for row in path.read_bytes().splitlines()]
        return next((row for row in rows if row["details"].get("permission") == asked["id"]), None)

    found = wait_for(noted, what="its line")
    line = next(
        row for path in log.glob("audit-*") for row in path.read_text().splitlines() if f'"seq":{found["seq"]},' in row
    )
    assert '"kind":"permission.decided","actor":"bob","subject":"alice"' in line
    assert found["details"]["decision"] == "allow" and "echo" not in json.dumps(found)


def test_four_eyes(one: Invoker, bob: httpx.Client) -> None:
    with (
        client(one, "alice", **clamp(ask=["Bash"], four_eyes=True), **APPROVER) as alice,
        asking(alice, bash("echo one")) as stream,
    ):
        asked = stream.until("permission.requested")
        refused = decide(alice, stream.path(asked))
        assert refused.status_code == 403 and "four_eyes" in refused.json()["detail"]
        assert decide(bob, stream.path(asked)).status_code == 200
        assert stream.until("run.finished")["decisions"][0]["by"] == "bob"


def test_a_tiers_rules_hold_whatever_the_caller_says(one: Invoker) -> None:
    rules = clamp(ask=["Edit", "Write"], deny=["Bash(rm:*)", "Edit(/keys/**)"], allow=["Edit(/docs/**)"])
    write = [tool("Write", file_path=path, content="x") for path in ("keys/a", "docs/a", "a")]
    with client(one, "alice", **rules) as alice:
        prompt = bash("ls; rm x") + bash("echo fine") + "".join(write)
        with asking(alice, prompt, ("Bash", "Write", "Read"), ask=["Read"]) as stream:
            asked = stream.until("permission.requested")
            assert asked["tool"] == "Write" and asked["input"]["file_path"].endswith("/work/a")
            # What is denied is not let in by who allows something else.
            refused = decide(alice, stream.path(asked), input={"file_path": "/x/../keys/a", "content": "x"})
            assert refused.status_code == 200 or refused.status_code == 422
            if refused.status_code == 422:
                assert decide(alice, stream.path(asked)).status_code == 200
            result = stream.until("run.finished")
        denied = [denial["input"] for denial in result["permission_denials"]]
        assert denied[0] == {"command": "ls; rm x"} and denied[1]["file_path"].endswith("/work/keys/a")
        assert "Bash(rm:*) is denied" in result["result"] and "fine" in result["result"]
        assert "docs/a" in [artifact["path"] for artifact in result["artifacts"]]
        unknown = alice.post("/claude/invoke", json={"prompt": "x", "ask": ["Write(/a)"]})
        assert unknown.status_code == 422 and unknown.json()["detail"].startswith("ask[0] matches nothing")


def test_a_caller_is_asked_about_more_than_the_tier_asks(one: Invoker) -> None:
    with (
        client(one, "alice", **clamp(ask=["Bash"], allow=["Bash(echo:*)"])) as alice,
        asking(alice, bash("echo a"), ask=["Bash(echo a)"]) as stream,
    ):
        asked = stream.until("permission.requested")
        assert asked["why"] == "Bash(echo a) is asked about"
        decide(alice, stream.path(asked), "deny")
        stream.until("run.finished")


def test_a_check_is_no_way_around_what_is_asked_about(one: Invoker) -> None:
    body = {"prompt": "hi", "tools": ["Read"]}
    with client(one, "alice", **clamp(ask=["Bash"], allow=["Bash(make test)"])) as alice:
        refused = alice.post("/claude/invoke", json=body | {"check": "git push"})
        assert refused.status_code == 403 and "Bash is asked about" in refused.json()["detail"]
        assert alice.post("/claude/invoke", json=body | {"check": "make test"}).status_code == 200


def test_nobody_decides(start: Callable[..., Invoker]) -> None:
    with client(start(approval_timeout_s=1), "alice", **BASH) as alice, asking(alice, bash("touch made.txt")) as stream:
        asked = stream.until("permission.requested")
        told = stream.until("permission.decided")
        assert (told["decision"], told["reason"], told.get("by")) == ("deny", "timeout", None)
        assert decide(alice, stream.path(asked)).status_code == 409
        result = stream.until("run.finished")
    assert "Nobody has allowed it within 1 seconds." in result["result"] and result["artifacts"] == []


def test_silence_is_not_counted_while_somebody_is_asked(start: Callable[..., Invoker]) -> None:
    """Nor is it afterwards, until the model is to speak again; the run's whole time is."""
    invoker = start(idle_s=1, approval_timeout_s=100)
    with client(invoker, "alice", **BASH) as alice:
        with asking(alice, bash("sleep 2; echo one")) as stream:
            asked = stream.until("permission.requested")
            wait_for(lambda: time.time() > asked["asked_at"] + 2.5, what="more than idle_s")
            assert decide(alice, stream.path(asked)).status_code == 200
            assert "one" in stream.until("run.finished")["result"]
        with asking(alice, bash("touch made.txt"), timeout_s=4) as stream:
            stream.until("permission.requested")
            ended = stream.until("error")
        assert ended["deadline"] == "total"
        assert stream.all("permission.decided")[0]["reason"] == "ended"


def test_a_run_that_is_cancelled_asks_no_more(alice: httpx.Client, one: Invoker) -> None:
    before = {process.pid for process in one.clis()}
    with asking(alice, bash("touch made.txt")) as stream:
        asked = stream.until("permission.requested")
        assert alice.delete(stream.run).status_code == 202
        assert stream.until("error")["status"] == 499
        assert stream.all("permission.decided")[0]["reason"] == "ended"
        assert decide(alice, stream.path(asked)).status_code == 409
    wait_for(lambda: {process.pid for process in one.clis()} <= before, what="the end of its process")


def test_who_comes_back_finds_what_waits(alice: httpx.Client) -> None:
    with asking(alice, bash("echo one")) as stream:
        asked = stream.until("permission.requested")
        with alice.stream("GET", f"{stream.run}/events", headers={"Last-Event-ID": "1"}) as again:
            later = Stream(httpx.Response(200, headers={"location": stream.run}, stream=again.stream))
            assert later.until("permission.requested") == asked
        assert decide(alice, stream.path(asked)).status_code == 200
        assert "one" in stream.until("run.finished")["result"]


def test_a_sessions_process_asks_in_its_next_turn(alice: httpx.Client) -> None:
    with asking(alice, tool("Write", file_path="a", content="x"), ("Bash", "Write"), session="new") as stream:
        session = stream.until("run.finished")["session"]
    with asking(alice, bash("echo one"), ("Bash", "Write"), session=session) as stream:
        asked = stream.until("permission.requested")
        assert decide(alice, stream.path(asked), "deny").status_code == 200
        assert stream.until("run.finished")["permission_denials"]


def test_what_is_remembered_for_a_session(one: Invoker, alice: httpx.Client) -> None:
    """In its later turns, of the same call, as long as the rules are the same; nowhere else."""
    with asking(alice, bash("echo one"), session="new") as stream:
        asked = stream.until("permission.requested")
        assert decide(alice, stream.path(asked), remember="session").status_code == 200
        session = stream.until("run.finished")["session"]
    with asking(alice, bash("echo one") + bash("echo two"), session=session) as stream:
        asked = stream.until("permission.requested")
        assert asked["input"] == {"command": "echo two"}
        assert decide(alice, stream.path(asked), "deny", remember="session").status_code == 200
        decided = stream.until("run.finished")["decisions"]
    assert [(each["decision"], each["reason"]) for each in decided] == [("allow", "remembered"), ("deny", "answered")]
    with asking(alice, bash("echo one") + bash("echo two"), session=session) as stream:
        result = stream.until("run.finished", "permission.requested")
        assert [(each["decision"], each["reason"]) for each in result["decisions"]] == [
            ("allow", "remembered"),
            ("deny", "remembered"),
        ]
    with (
        client(one, "alice", **clamp(ask=["Bash"], four_eyes=True)) as stricter,
        asking(stricter, bash("echo one"), session=session) as stream,
    ):
        stream.until("permission.requested")
    with asking(alice, bash("echo one"), session="new") as stream:
        asked = stream.until("permission.requested")
        decide(alice, stream.path(asked), "deny")
        stream.until("run.finished")


def test_a_subagent_asks_too(start: Callable[..., Invoker]) -> None:
    invoker = start(tools_allowed="Bash,Task")
    task = tool("Task", description="d", prompt=bash("echo from-below"), subagent_type="general-purpose")
    with client(invoker, "alice", **BASH) as alice, asking(alice, task, ("Bash", "Task")) as stream:
        asked = stream.until("permission.requested")
        assert asked["agent"] == "general-purpose"
        assert decide(alice, stream.path(asked)).status_code == 200
        assert "from-below" in stream.until("run.finished")["result"]


@pytest.mark.parametrize("what", ["a command", "words", "a call that waits"])
def test_a_run_is_interrupted_and_its_session_goes_on(one: Invoker, what: str) -> None:
    prompt = {"words": "[[delay 200]] [[say " + "word " * 60 + "]]"}.get(what, bash("touch made.txt; sleep 600"))
    claims = BASH if what == "a call that waits" else {}
    first = {"words": "content_block_delta", "a command": "tool"}.get(what, "permission.requested")
    with client(one, "alice", **claims) as alice:
        written = tool("Write", file_path="before.txt", content="x")
        with asking(alice, written + prompt, ("Bash", "Write"), session="new") as stream:
            seen = stream.until(first)
            while what == "a command" and seen.get("name") != "Bash":
                seen = stream.until(first)
            assert alice.post(f"{stream.run}/interrupt").status_code == 202
            result = stream.until("run.finished")
            assert alice.post(f"{stream.run}/interrupt").status_code == 409
        assert result["stop_reason"] == "interrupted"
        assert "before.txt" in [artifact["path"] for artifact in result["artifacts"]]
        again = alice.post("/claude/invoke", json={"prompt": "[[say on]]", "session": result["session"]})
        assert again.status_code == 200 and again.json()["result"] == "on", again.text


def test_nobody_else_interrupts(one: Invoker, alice: httpx.Client, bob: httpx.Client) -> None:
    with asking(alice, bash("echo one")) as stream:
        stream.until("permission.requested")
        assert bob.post(f"{stream.run}/interrupt").status_code == 404
        assert alice.post(f"{stream.run}/interrupt").status_code == 202
        assert stream.until("run.finished")["stop_reason"] == "interrupted"


def test_an_invoker_that_is_killed_lets_nothing_run(start: Callable[..., Invoker]) -> None:
    invoker = start()
    with client(invoker, "alice", **BASH) as alice, asking(alice, bash("touch made.txt; sleep 60")) as stream:
        stream.until("permission.requested")
        work = next(path for path in invoker.trees() if (path / "work").is_dir())
        processes = [process.pid for process in invoker.clis()]
        os.kill(invoker.pid, signal.SIGKILL)
        with pytest.raises(httpx.TransportError):
            stream.until("run.finished")
    wait_for(lambda: gone(invoker.pid), what="its end")
    start(state_dir=invoker.state, uid_base=invoker.uid_base)
    wait_for(lambda: all(gone(pid) for pid in processes), what="the end of what it ran")
    assert not list(work.glob("work/made.txt"))


def _shown(api: httpx.Client, page: str) -> None:
    wait_for(lambda: "May it call Bash?" in api.get(page).text, what="it on the page of what waits")


def test_by_way_of_another_replica(start: Callable[..., Invoker], shared_redis: RedisProcess) -> None:
    shared = {"redis_url": shared_redis.url, "runs_redis_url": shared_redis.url}
    here, there = start(**shared), start(**shared)
    with (
        client(here, "alice", **BASH) as alice,
        client(there, "alice", **BASH) as other,
        client(there, "bob", **APPROVER) as bob,
        client(there, "mallory") as stranger,
        asking(alice, bash("echo one") + bash("echo two")) as stream,
    ):
        asked = stream.until("permission.requested")
        assert stranger.post(f"{stream.run}/interrupt").status_code == 404
        assert stranger.get(f"{stream.run}/permissions").status_code == 404
        assert decide(stranger, stream.path(asked)).status_code == 404
        assert other.get(f"{stream.run}/permissions").json()["waiting"] == [asked]
        assert decide(other, stream.path(asked), input={"command": "echo three"}).status_code == 200
        assert decide(other, stream.path(asked)).status_code == 409
        asked = stream.until("permission.requested")
        page = "/claude/dashboard/approvals"
        for api in (alice, other, bob):
            _shown(api, page)
        assert "Nothing waits for you." in stranger.get(page).text
        of_run = f"/claude/dashboard/runs/{stream.run.rpartition('/')[2]}"
        for api in (alice, other):
            shown = api.get(of_run).text
            assert "Turn 1" in shown and "echo one" in shown and "May it call Bash?" in shown
            assert of_run in api.get("/claude/dashboard/runs").text
        for api in (bob, stranger):
            assert api.get(of_run).status_code == 404
            assert of_run not in api.get("/claude/dashboard/runs?caller=alice").text
        assert bob.post(f"{of_run}/cancel").status_code == 403
        assert bob.post(f"{of_run}/cancel", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 404
        form = f"/claude/dashboard/runs/{stream.path(asked).removeprefix('/claude/runs/')}"
        no, ours = {"decision": "deny", "message": "no"}, {"Sec-Fetch-Site": "same-origin"}
        assert bob.post(form, data=no).status_code == 403, "by another's page"
        assert stranger.post(form, data=no, headers=ours).status_code == 404
        told = bob.post(form, data=no, headers=ours)
        assert (told.status_code, told.headers["location"]) == (303, page), told.text
        assert bob.post(form, data=no, headers=ours).status_code == 409
        result = stream.until("run.finished")
        assert "three" in result["result"] and result["decisions"][-1]["by"] == "bob"
        assert "Nothing waits for you." in bob.get(page).text and "Nothing waits for you." in alice.get(page).text
        wait_for(lambda: other.get(stream.run).json()["state"] == "succeeded", what="its record")
        assert decide(other, stream.path(asked)).status_code == 409
        assert other.get(f"{stream.run}/permissions").json()["decided"] == result["decisions"]
        assert "denied by bob: Bash (no)" in other.get(of_run).text
