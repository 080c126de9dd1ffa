"""The same of jobs: the worker that runs one is another process than the server that is asked."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook

from claude_invoker.jobs import calls
from claude_invoker.jobs.store import Store
from claude_invoker.model import PermissionAnswer
from claude_invoker.problem import Problem
from tests.interop.deployments import started
from tests.invoker.conftest import Invoker, as_root, wait_for
from tests.jobs.conftest import job, store  # noqa: F401 the fixture
from tests.permissions.conftest import APPROVER, BASH, bash
from tests.rate_tiers.servers import RedisProcess
from tests.replicas.test_replicas import client

pytestmark = [pytest.mark.timeout(180), pytest.mark.xdist_group("permissions")]
KEY = "whsec_" + "a2V5IG9mIHRoZSB0ZXN0cyBvZiBob29rcw=="
OVER = ("done", "failed", "cancelled")


class _Hooks(BaseHTTPRequestHandler):
    events: list[Any]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.events.append(Webhook(KEY).verify(body, dict(self.headers)))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *_: object) -> None:
        pass


@pytest.fixture
def hooks() -> Iterator[tuple[str, list[Any]]]:
    """Where webhooks go, and what has come, verified."""
    events: list[Any] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hooks", (_Hooks,), {"events": events}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/", events
    server.shutdown()


@pytest.fixture
def redis_of_its_own() -> Iterator[RedisProcess]:
    server = started()
    yield server
    server.close()


@pytest.fixture(scope="module")
def settings() -> Iterator[dict[str, Any]]:
    """With a Redis that nobody else's workers take webhooks from, and nobody empties."""
    redis = started()
    allowed = {"webhook_hosts": "127.0.0.1", "webhook_private": "1", "webhook_secret": KEY}
    yield {"redis_url": redis.url, "runs_redis_url": redis.url} | allowed
    redis.close()


@pytest.fixture(scope="module")
def server(start: Callable[..., Invoker], settings: dict[str, Any]) -> Iterator[Invoker]:
    invoker = start(**settings)
    yield invoker
    invoker.stop()


def create(api: httpx.Client, prompt: str, **more: Any) -> str:
    made = api.post("/claude/jobs", json={"prompt": prompt, "tools": ["Bash"]} | more)
    assert made.status_code == 202, made.text
    return f"/claude/jobs/{made.json()['id']}"


def asked_by(api: httpx.Client, path: str, but: str = "") -> Any:
    """What the job waits for, once it does."""

    def waits() -> Any:
        seen = api.get(path).json()
        assert seen["state"] not in OVER, seen
        return [permission for permission in seen["waiting_for_approval"] if permission["id"] != but]

    return wait_for(waits, what="a call that is asked about")[0]


def ended(api: httpx.Client, path: str) -> Any:
    def is_over() -> Any:
        seen = api.get(path).json()
        return seen if seen["state"] in OVER else None

    return wait_for(is_over, what="the job's end")


@as_root
def test_a_job_asks_and_is_answered(server: Invoker, worker: Invoker, hooks: tuple[str, list[Any]]) -> None:
    url, events = hooks
    with (
        client(server, "alice", **BASH) as alice,
        client(server, "bob", **APPROVER) as bob,
        client(server, "mallory") as stranger,
    ):
        path = create(alice, bash("touch made.txt") + bash("echo two"), callback_url=url)
        asked = asked_by(alice, path)
        assert asked["input"] == {"command": "touch made.txt"}
        assert 'claude_invoker_approvals_waiting{of="jobs"} 1.0' in alice.get("/metrics").text
        wait_for(lambda: events, what="the webhook")
        (event,) = events
        assert (
            event["type"] == "dev.kong-claude.job.waiting_for_approval" and event["subject"] == path.rpartition("/")[2]
        )
        assert event["data"]["permission"]["id"] == asked["id"] and event["id"].endswith(asked["id"])
        assert "event: permission.requested" in _so_far(alice, path)

        assert stranger.get(f"{path}/permissions").status_code == 404
        assert stranger.post(f"{path}/permissions/{asked['id']}", json={"decision": "allow"}).status_code == 404
        assert bob.get(path).status_code == 404
        assert bob.get(f"{path}/permissions").json()["waiting"] == [asked]
        assert alice.post(f"{path}/permissions/perm_0", json={"decision": "allow"}).status_code == 404
        decided = bob.post(f"{path}/permissions/{asked['id']}", json={"decision": "allow"})
        assert decided.status_code == 200 and decided.json()["by"] == "bob", decided.text
        assert alice.post(f"{path}/permissions/{asked['id']}", json={"decision": "deny"}).status_code == 409

        second = asked_by(alice, path, but=asked["id"])
        assert (
            alice.post(f"{path}/permissions/{second['id']}", json={"decision": "deny", "message": "no"}).status_code
            == 200
        )
        done = ended(alice, path)
        assert done["state"] == "done" and done["waiting_for_approval"] == []
        assert [each["decision"] for each in done["decisions"]] == ["allow", "deny"]
        assert [artifact["path"] for artifact in done["result"]["artifacts"]] == ["made.txt"]
        assert alice.post(f"{path}/permissions/{second['id']}", json={"decision": "allow"}).status_code == 409
        wait_for(lambda: len(events) == 3, what="the last webhook")
        assert events[-1]["type"] == "dev.kong-claude.job.done"


def _so_far(api: httpx.Client, path: str) -> str:
    """The events of a job that goes on."""
    text = ""
    with api.stream("GET", f"{path}/events") as answer:
        for piece in answer.iter_text():
            text += piece
            if "permission.requested" in text:
                break
    return text


@as_root
def test_a_job_is_interrupted(server: Invoker, worker: Invoker) -> None:
    with client(server, "alice", **BASH) as alice, client(server, "mallory") as stranger:
        path = create(alice, bash("echo one"))
        asked_by(alice, path)
        assert stranger.post(f"{path}/interrupt").status_code == 404
        assert alice.post(f"{path}/interrupt").status_code == 202
        done = ended(alice, path)
        assert (done["state"], done["result"]["stop_reason"]) == ("done", "interrupted")
        assert alice.post(f"{path}/interrupt").status_code == 409


@as_root
def test_the_page_of_a_job_shows_what_it_asks(server: Invoker, worker: Invoker) -> None:
    page, ours = "/claude/dashboard/jobs/", {"Sec-Fetch-Site": "same-origin"}
    with client(server, "alice", **BASH) as alice, client(server, "root", roles=["admin"]) as admin:
        # Shown as it is written, "gnp.exe" would read "exe.png".
        path = create(alice, bash("echo '<script>' > made\u202egnp.exe"))
        asked = asked_by(alice, path)
        shown = alice.get(page + path.rpartition("/")[2])
        assert "May it call Bash?" in shown.text and "&lt;script&gt;" in shown.text and "<script>'" not in shown.text
        assert "made\\u202egnp.exe" in shown.text and "\u202e" not in shown.text
        form = f"{page}{path.rpartition('/')[2]}/permissions/{asked['id']}"
        deny = {"decision": "deny", "message": "not today"}
        assert alice.post(form, data=deny).status_code == 403, "by another's page"
        assert admin.post(form, data=deny, headers=ours).status_code == 403
        assert alice.post(form, data={"decision": "perhaps"}, headers=ours).status_code == 422
        assert alice.post(form, data=deny, headers=ours).status_code == 303
        done = ended(alice, path)
        assert done["decisions"][0]["message"] == "not today" and done["result"]["artifacts"] == []
        assert "denied by alice: Bash" in alice.get(page + done["id"]).text


@as_root
def test_a_worker_that_is_killed_lets_nothing_run(
    start: Callable[..., Invoker], settings: dict[str, Any], redis_of_its_own: RedisProcess
) -> None:
    own = settings | {"redis_url": redis_of_its_own.url, "runs_redis_url": redis_of_its_own.url}
    server, worker = start(**own), start(**own, worker="embedded")
    with client(server, "alice", **BASH) as alice:
        path = create(alice, bash("touch made.txt"))
        asked = asked_by(alice, path)
        os.kill(worker.pid, signal.SIGKILL)
        refused = alice.post(f"{path}/permissions/{asked['id']}", json={"decision": "allow"})
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        start(**own, worker="embedded", state_dir=worker.state, uid_base=worker.uid_base)
        failed = ended(alice, path)
        assert failed["state"] == "failed" and failed["error"]["type"].endswith("worker-lost")
        assert failed["waiting_for_approval"] == [] and failed["error"]["artifacts"] == []
        assert alice.post(f"{path}/permissions/{asked['id']}", json={"decision": "allow"}).status_code == 404


async def test_nobody_runs_it(store: Store) -> None:  # noqa: F811 the fixture
    with pytest.raises(Problem) as refused:
        await calls.decide(store, job(), "perm_0", PermissionAnswer(decision="allow"), "alice")
    assert refused.value.status == 503 and not await store.redis.keys("*reply*")


def test_the_record_of_another_release_has_no_questions() -> None:
    assert json.loads(job().view("").model_dump_json())["waiting_for_approval"] == []
