"""A token, a prompt, an answer: the promises of the README, through every part."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.conftest import Gateway, knocking
from tests.support.waiting import HANG_S

pytestmark = [pytest.mark.xdist_group("e2e"), pytest.mark.timeout(240)]
PROMPT = {"prompt": "hi", "system": "Be brief."}


def system_text(entry: dict[str, object]) -> str:
    system = entry["system"]
    if isinstance(system, str):
        return system
    assert isinstance(system, list)
    return "".join(block["text"] for block in system)


def test_a_prompt_is_answered_and_carries_the_gateways_words(gateway: Gateway) -> None:
    before = len(gateway.record())
    with gateway.client("alice", "--tier", "pro") as client:
        answer = client.post("/claude/invoke", json=PROMPT, headers={"X-Repo": "org/app", "X-Branch": "main"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["result"]
    assert answer.headers["x-claude-model"]
    assert float(answer.headers["x-response-time"]) > 0
    assert answer.headers["x-ratelimit-limit-minute"] == "60"
    assert int(answer.headers["x-ratelimit-remaining-minute"]) < 60
    texts = [system_text(entry) for entry in gateway.record()[before:] if entry.get("system")]
    ours = next(text for text in texts if "Be brief." in text)
    head = ours[ours.index("You are a code review assistant. ") :]
    assert head.startswith("You are a code review assistant. Be brief.")
    assert "org/app" in ours
    assert "main" in ours


@pytest.mark.parametrize("path", ["/claude/repos/org/app/invoke"])
def test_the_repository_may_stand_in_the_path(gateway: Gateway, path: str) -> None:
    before = len(gateway.record())
    with gateway.client("repo-caller", "--tier", "pro") as client:
        answer = client.post(path, json=PROMPT)
    assert answer.status_code == 200, answer.text
    assert any("org/app" in json.dumps(entry) for entry in gateway.record()[before:])


def test_an_address_may_be_written_in_any_form(gateway: Gateway) -> None:
    """Kong decodes and merges what the route matches: the attestation is of what the invoker gets."""
    tools = f"[[tool Write {json.dumps({'file_path': 'a b/ü_1.md', 'content': 'here'})}]]"
    with gateway.client("writer", "--tier", "pro") as client:
        run = client.post("/claude/invoke", json={"prompt": tools}).json()["id"]
        for path in (
            f"/claude/runs/{run}",
            f"/claude/runs/{run.replace('_', '%5f')}",
            f"/claude//runs/./{run}",
            f"/claude/jobs/../runs/{run}",
            f"/claude/runs/{run}/artifacts/a%20b/%c3%bc_1.md",
            f"/claude/runs/{run}/artifacts/a%20b/%C3%BC%5f1.md",
        ):
            # As it stands: a client's library would write it in its normal form.
            address = httpx.URL(gateway.url).copy_with(raw_path=path.encode())
            assert client.request("GET", address).status_code == 200, path
            assert client.request("HEAD", address).status_code == 200, path
        assert client.get(httpx.URL(gateway.url).copy_with(raw_path=b"/claude/runs/%2e%2e/jobs")).status_code in (
            200,
            404,
        )


def test_a_repeated_request_is_one_run_and_is_paid_once(gateway: Gateway) -> None:
    """By the key in the request, though the gateway attests each one anew."""
    key = {"Idempotency-Key": secrets.token_hex(8)}
    with gateway.client("repeater", "--tier", "pro") as client:
        first, again = (client.post("/claude/invoke", json=PROMPT, headers=key) for _ in range(2))
        assert (first.status_code, again.status_code) == (200, 200), again.text
        assert again.json() == first.json()
        assert "idempotent-replayed" not in first.headers and again.headers["idempotent-replayed"] == "true"
        other = client.post("/claude/invoke", json={"prompt": "another"}, headers=key)
        assert other.status_code == 422, other.text


def test_refusals(gateway: Gateway) -> None:
    with gateway.client() as nobody, gateway.client("bob", "--no-role") as roleless, gateway.client("eve") as eve:
        missing = nobody.post("/claude/invoke", json=PROMPT)
        assert missing.status_code == 401
        assert missing.headers["www-authenticate"].startswith("Bearer")
        assert set(missing.json()) == {"message", "request_id"}
        assert roleless.post("/claude/invoke", json=PROMPT).status_code == 403
        broken = eve.post("/claude/invoke", content=b"not json", headers={"Content-Type": "application/json"})
        assert broken.status_code == 400, broken.text
        problem = nobody.post("/claude/invoke", json=PROMPT, headers={"Accept": "application/problem+json"})
        assert problem.headers["content-type"].startswith("application/problem+json")


def test_over_the_limit(gateway: Gateway) -> None:
    # A subject of this run's own: another run on the same stack would meet what this one has used.
    with gateway.client(f"greedy-{secrets.token_hex(4)}", "--tier", "free") as client:
        # Not JSON: the run is refused at once, but the gateway has counted the request.
        for _ in range(10):
            assert client.post("/claude/invoke", content=b"x").status_code != 429
        refused = client.post("/claude/invoke", json=PROMPT)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert "minute" in refused.text


def test_events_arrive_one_by_one(gateway: Gateway) -> None:
    arrivals: list[float] = []
    with gateway.client("streamer", "--tier", "pro") as client:
        request = {"prompt": "slow: tell me a long story", "system": "Be brief."}
        with client.stream("POST", "/claude/invoke", json=request, headers={"Accept": "text/event-stream"}) as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            for line in answer.iter_lines():
                if line == "event: content_block_delta":
                    arrivals.append(time.monotonic())
    # The stand-in spreads a slow answer over more than a second; a buffering hop would deliver it at once.
    assert len(arrivals) > 3
    assert arrivals[-1] - arrivals[0] > 0.5


def test_a_job_is_accepted_and_done(gateway: Gateway) -> None:
    with gateway.client("worker-bee", "--tier", "pro") as client:
        accepted = client.post("/claude/jobs", json=PROMPT)
        assert accepted.status_code == 202, accepted.text
        location = accepted.headers["location"]
        assert location.startswith("/claude/jobs/")
        deadline = time.monotonic() + HANG_S
        while (job := client.get(location).json())["state"] not in ("done", "failed"):
            assert time.monotonic() < deadline, job
            time.sleep(0.2)
        assert job["state"] == "done", job
        assert "result" in json.dumps(job)
    with gateway.client("somebody-else", "--tier", "pro") as client:
        assert client.get(location).status_code == 404


def test_limits_are_reported(gateway: Gateway) -> None:
    with gateway.client("counter", "--tier", "pro") as client:
        report = client.get("/claude/limits")
    assert report.status_code == 200, report.text
    assert report.json()["tier"] == "pro"


def test_metrics_show_what_happened(gateway: Gateway) -> None:
    with gateway.client() as nobody:
        nobody.post("/claude/invoke", json=PROMPT)
    with gateway.client("alice") as plain, gateway.client("root", "--role", "admin") as admin:
        assert plain.get("/claude/metrics").status_code == 403
        deadline = time.monotonic() + HANG_S
        while True:
            text = admin.get("/claude/metrics").text
            if 'claude_requests_total{method="POST",route="claude-invoke",status="401"}' in text:
                break
            assert time.monotonic() < deadline, text[:2000]
            time.sleep(0.2)
    assert "claude_request_duration_seconds_bucket" in text
    assert "claude_active_connections" in text


@pytest.mark.parametrize("path", ["/invoke", "/claude/invoke", "/jobs", "/runs/x", "/claude/dashboard"])
def test_past_the_gateway_there_is_nothing(gateway: Gateway, path: str) -> None:
    answers = [
        httpx.post(gateway.invoker + path, json=PROMPT),
        httpx.post(gateway.invoker + path, json=PROMPT, headers={"Authorization": f"Bearer {gateway.token()}"}),
        httpx.post(gateway.invoker + path, json=PROMPT, headers={"X-Claude-Attestation": gateway.token()}),
    ]
    assert {answer.status_code for answer in answers} <= {401, 405}
    assert answers[0].status_code == 401 or path != "/invoke"


def served_again(answered: list[int]) -> bool:
    """A token was looked at after the outage, which has been seen: not by the server that was killed."""
    return 503 in answered and 401 in answered[answered.index(503) :]


def test_a_killed_plugin_server_lets_nobody_in(gateway: Gateway) -> None:
    with knocking(gateway) as answered:
        for _ in range(3):
            time.sleep(0.7)
            servers = gateway.processes("kong-claude-pluginserver")
            assert servers
            for server in servers:
                server.kill()
        killed = len(answered)
        deadline = time.monotonic() + HANG_S
        while not served_again(answered[killed:]) and time.monotonic() < deadline:
            time.sleep(0.2)
    assert set(answered) <= {401, 500, 503}, set(answered)
    assert served_again(answered[killed:])
    with gateway.client("after-the-kill", "--tier", "pro") as client:
        assert client.post("/claude/invoke", json=PROMPT).status_code == 200


def test_a_body_in_chunks_is_bounded_too(gateway: Gateway) -> None:
    """Nobody has said how long it is; 9 MB reached the invoker. Kong itself answers 500 for what lies on its disk."""

    def chunks(total: int) -> Iterator[bytes]:
        yield b'{"prompt": "hi", "system": "'
        for _ in range(total >> 16):
            yield b"x" * (1 << 16)
        yield b'"}'

    with gateway.client("chunky", "--tier", "pro") as client:
        headers = {"Content-Type": "application/json"}
        small = client.post("/claude/invoke", content=chunks(1 << 16), headers=headers)
        assert small.status_code == 200, small.text
        large = client.post("/claude/invoke", content=chunks(9 << 20), headers=headers)
        assert large.status_code in (413, 500), large.text
        assert "X-Claude-Run" not in large.headers


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/claude/invoke/x"), ("POST", "/claude/invoke/"), ("POST", "/claude/jobs/x")]
)
def test_a_path_that_leads_nowhere_takes_no_place(gateway: Gateway, method: str, path: str) -> None:
    """A prefix route let these pass, and their lease stayed taken until it lapsed."""
    with gateway.client("lost", "--tier", "pro") as client:
        assert client.request(method, path, json=PROMPT).status_code == 404
        report = client.get("/claude/limits").json()
    assert report["concurrent"]["running"] == 0


def test_what_a_stranger_posts_to_the_login_hurts_nobody(gateway: Gateway) -> None:
    """A form of eleven fields was a 500, with which the invoker closes its connection: Kong, which shares connections,
    answered others with 502."""
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin"}
    with gateway.client() as stranger, gateway.client("victim", "--tier", "team") as victim:
        for _ in range(12):
            posted = stranger.post("/claude/dashboard/login", content=b"&" * 11, headers=headers)
            assert posted.status_code in (400, 429), posted.text
            assert victim.get("/claude/jobs").status_code == 200
        assert stranger.get("/claude/dashboard/login").status_code in (200, 429)
