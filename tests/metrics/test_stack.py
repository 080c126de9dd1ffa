"""The whole stack, as `kong-claude up` starts it, with an access log and an OTLP receiver: what shows, what must not."""

from __future__ import annotations

import http.server
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from kong_claude import PLUGINS
from tests.e2e.conftest import ROOT, Gateway, standing
from tests.support.waiting import HANG_S

pytestmark = [pytest.mark.xdist_group("metrics-stack"), pytest.mark.timeout(240)]
CANARY = "canary-7f3a91"
TRACE = "0af7651916cd43dd8448eb211c80319c"


@dataclass
class Receiver:
    spans: list[Any] = field(default_factory=list)
    url: str = ""

    def wait(self, number: int) -> list[Any]:
        deadline = time.monotonic() + HANG_S
        while len(self.spans) < number:
            assert time.monotonic() < deadline, self.spans
            time.sleep(0.1)
        return self.spans


@pytest.fixture(scope="module")
def otlp() -> Iterator[Receiver]:
    received = Receiver()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            message = ExportTraceServiceRequest.FromString(body)
            received.spans += [s for r in message.resource_spans for scope in r.scope_spans for s in scope.spans]
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    received.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield received
    server.shutdown()


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
        deadline = time.monotonic() + HANG_S
        while client.get(location).json()["state"] not in ("done", "failed"):
            assert time.monotonic() < deadline
            time.sleep(0.2)
    waited, job = sorted(otlp.wait(2), key=lambda span: len(span.links))
    assert waited.name == job.name == "invoke_agent claude"
    assert waited.trace_id.hex() == TRACE
    assert waited.parent_span_id.hex() == "b7ad6b7169203331"
    assert job.trace_id.hex() != TRACE
    assert [link.trace_id.hex() for link in job.links] == [TRACE]
    named = {a.key: a.value for a in waited.attributes}
    assert named["gen_ai.operation.name"].string_value == "invoke_agent"
    assert named["gen_ai.usage.output_tokens"].int_value > 0
    assert named["claude.tier"].string_value == "pro"
    line = next(entry for entry in logged(whole.home, 1) if entry["route"] == "claude-invoke")
    assert line["trace_id"] == TRACE


def test_the_first_request_and_one_that_a_plugin_answers_have_subject_and_tier(whole: Gateway) -> None:
    """The first log phase starts claude-metrics, after its request; and /claude/limits goes nowhere."""
    first = logged(whole.home, 1)[0]
    assert (first["subject"], first["tier"]) == ("ada", "pro")
    with whole.client("lia", "--tier", "free") as client:
        assert client.get("/claude/limits").status_code == 200
        with whole.client("root", "--role", "admin") as admin:
            deadline = time.monotonic() + HANG_S
            while 'claude_tier_requests_total{route="claude-limits",tier="free"} 1.0' not in (
                shown := admin.get("/claude/metrics").text
            ):
                assert time.monotonic() < deadline, shown
                time.sleep(0.1)
    lines = [e for e in logged(whole.home, 1) if e["route"] == "claude-limits"]
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
    everywhere = {"metrics": shown, "spans": str(otlp.spans)}
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
