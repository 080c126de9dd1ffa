"""The whole stack, as `kong-claude up` starts it, with an access log and an OTLP receiver: what shows, what must not."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kong_claude import PLUGINS
from tests.e2e.conftest import ROOT, Gateway, standing
from tests.support.otlp import Receiver, receiving
from tests.support.waiting import HANG_S, wait_for

pytestmark = [pytest.mark.xdist_group("metrics-stack"), pytest.mark.timeout(240)]
CANARY = "canary-7f3a91"
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture(scope="module")
def otlp() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, otlp: Receiver) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("whole")
    config = home / "kong.yml"
    text = (ROOT / "kong.yml").read_text()
    logged = f"- name: claude-metrics\n  config: {{access_log: {{stdout: true, file: {home}/access.jsonl}}}}\n"
    text, replaced = re.subn(r"^- name: claude-metrics(?!-).*\n", logged, text, count=1, flags=re.MULTILINE)
    assert replaced
    config.write_text(text)
    with standing(home, "--plugins-directory", str(PLUGINS), config=config, INVOKER_OTLP_ENDPOINT=otlp.url) as found:
        with found.client("ada", "--tier", "pro") as client:  # the first request, whichever test is
            assert client.get("/claude/runs").status_code == 200
        yield found


def logged(home: Path, number: int) -> list[dict[str, Any]]:
    path = home / "access.jsonl"
    deadline = time.monotonic() + HANG_S
    while not path.exists() or path.read_bytes().count(b"\n") < number:
        assert time.monotonic() < deadline, path.read_text() if path.exists() else "no file"
        time.sleep(0.1)
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_trace_goes_through_gateway_run_and_job(whole: Gateway, otlp: Receiver) -> None:
    headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
    prompt = {"prompt": "hi", "system": "Be brief."}
    with whole.client("ada", "--tier", "pro") as client:
        assert client.post("/claude/invoke", json=prompt, headers=headers).status_code == 200
        location = client.post("/claude/jobs", json=prompt, headers=headers).headers["location"]
        wait_for(lambda: client.get(location).json()["state"] in ("done", "failed"), what="the job's end")
    found = otlp.whole(TRACE, "POST /invoke", "POST /jobs", "invoke_agent claude")
    request, waited = found["POST /invoke"], found["invoke_agent claude"]
    assert (request.parent, waited.parent) == ("b7ad6b7169203331", request.id)
    assert any(span.parent == waited.id and span.name.startswith("chat ") for span in otlp.of(TRACE))
    assert waited.attributes["gen_ai.usage.output_tokens"] > 0
    assert waited.attributes["claude.tier"] == "pro"
    (job,) = wait_for(lambda: [span for span in otlp.spans if span.links], what="the job's span")
    assert job.trace != TRACE
    assert job.links == (found["POST /jobs"].id,)
    line = wait_for(
        lambda: [entry for entry in logged(whole.home, 1) if entry["route"] == "claude-invoke"], what="its line"
    )[0]
    assert line["trace_id"] == TRACE


def test_a_message_of_a_model_itself_is_a_trace(whole: Gateway, otlp: Receiver) -> None:
    trace = "1" * 32
    asked = {"model": "claude-haiku-4-5", "max_tokens": 50, "messages": [{"role": "user", "content": CANARY}]}
    with whole.client("ada", "--tier", "pro") as client:
        answer = client.post(
            "/claude/v1/messages", json=asked, headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
        )
    assert answer.status_code == 200, answer.text
    found = otlp.whole(trace, "POST /v1/messages", "chat claude-haiku-4-5")
    chat = found["chat claude-haiku-4-5"]
    assert chat.parent == found["POST /v1/messages"].id
    assert chat.attributes["gen_ai.usage.output_tokens"] == answer.json()["usage"]["output_tokens"]
    assert chat.attributes["claude.cost_usd"] > 0
    assert CANARY not in str(otlp.raw)


def test_the_first_request_and_one_that_a_plugin_answers_have_subject_and_tier(whole: Gateway) -> None:
    """The first log phase starts claude-metrics, after its request; and /claude/limits goes nowhere."""
    first = logged(whole.home, 1)[0]
    assert (first["route"], first["subject"], first["tier"]) == ("claude-runs", "ada", "pro")
    with whole.client("lia", "--tier", "free") as client:
        assert client.get("/claude/limits").status_code == 200
        with whole.client("root", "--role", "admin") as admin:
            deadline = time.monotonic() + HANG_S
            while 'claude_tier_requests_total{route="claude-limits",tier="free"} 1.0' not in (
                shown := admin.get("/claude/metrics").text
            ):
                assert time.monotonic() < deadline, shown
                time.sleep(0.1)
    lines = wait_for(lambda: [e for e in logged(whole.home, 1) if e["route"] == "claude-limits"], what="its line")
    assert [(e["subject"], e["tier"]) for e in lines] == [("lia", "free")]


def test_nothing_planted_is_seen_anywhere(whole: Gateway, otlp: Receiver) -> None:
    def planted(where: str) -> str:
        return f"{CANARY}-{where}"

    access_log = whole.home / "access.jsonl"
    before = access_log.read_bytes().count(b"\n") if access_log.exists() else 0
    with whole.client("eve", "--tier", "pro") as client:
        secret = client.headers["authorization"].removeprefix("Bearer ")
        answer = client.post(
            f"/claude/invoke?token={planted('query')}",
            json={"prompt": planted("prompt"), "system": planted("system")},
            headers={
                b"X-Repo": b"org/app",
                b"Cookie": f"claude_token={planted('cookie')}".encode(),
                b"Referer": f"https://example.org/?code={planted('referer')}".encode(),
                b"User-Agent": b'evil" sk-ant-api03-' + CANARY.encode() + b" \xff agent",
                b"X-Claude-Attestation": planted("attestation").encode(),
                b"X-Request-Id": b"a\tb" + b"x" * 10,
            },
        )
        assert answer.status_code == 200, answer.text
        client.post("/claude/invoke", content=planted("broken-json"))
        client.post(f"/claude/{'nowhere'}?{planted('404')}")
    with whole.client() as nobody:
        nobody.post("/claude/invoke", headers={"Authorization": f"Bearer {planted('bearer')}"}, json={})
        nobody.post("/claude/invoke", headers={"X-Api-Key": planted("key")}, json={})
        nobody.get("/claude/runs/x", headers={"Authorization": f"Basic {planted('basic')}"})
    lines = logged(whole.home, before + 6)
    evil = next(e for e in lines if e["subject"] == "eve" and e["status"] == 200)
    assert evil["tier"] == "pro"
    assert evil["repository"] == "org/app"
    assert evil["run_id"].startswith("run_")
    assert evil["output_tokens"] > 0
    assert evil["http_user_agent"] == 'evil" [redacted] \ufffd agent'
    assert any(e["refusal"].startswith("jwt-claims/") for e in lines)
    with whole.client("root", "--role", "admin") as admin:
        shown = admin.get("/claude/metrics").text
    shown += httpx.get(whole.invoker + "/metrics").text
    assert "claude_invoker_tokens_total" in shown
    assert "claude_invoker_queue_depth" in shown or "claude_invoker_queue_age_seconds" in shown
    everywhere = {"metrics": shown, "spans": str(otlp.raw)}
    # What reached the stand-in for the Messages API is the prompt itself, on purpose.
    data = {"standin.jsonl", "kong.yml"}
    for path in whole.home.rglob("*"):
        if path.is_file() and path.name not in data and "redis" not in path.parts:
            everywhere[str(path)] = path.read_text(errors="replace")
    assert any(name.endswith(".log") for name in everywhere)
    attested = "eyJhbGciOiJIUzI1NiIsImtpZCI6"  # {"alg":"HS256","kid": in base64url
    for name, text in everywhere.items():
        for word in (CANARY, secret, attested):
            assert word not in text, (name, text[max(0, text.index(word) - 300) : text.index(word) + 100])
    raw = (whole.home / "access.jsonl").read_bytes()
    assert raw.isascii()
    assert not any(byte < 32 for byte in raw.replace(b"\n", b""))
