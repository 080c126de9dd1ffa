"""Lines and where they go: inert whatever a client sends, complete whatever happens to files and collectors."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from kong_claude.in_flight import Attested
from kong_claude.metrics import sinks
from kong_claude.metrics.entry import entry, render
from kong_claude.metrics.registry import Bounded
from tests.support.waiting import HANG_S

WHO = Attested(0.0, "ada", "pro", "core")
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from(["user-agent", "referer", "x-repo", "traceparent", "x-request-id", "x-claude-refusal",
                         "x-claude-cost-usd", "x-claude-input-tokens", "x-claude-model", "x-claude-run"])  # fmt: skip


def serialized(headers: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    request = {"method": "POST", "uri": "/claude/invoke?token=secret", "headers": headers or {}, "id": "ab"}
    response = {"status": 200, "headers": {}, "size": 10}
    base = {"request": request, "response": response, "latencies": {"request": 12, "proxy": 10}, "source": "upstream"}
    return base | {"started_at": 1_700_000_000_000, "client_ip": "10.0.0.1", "route": {"name": "r"}} | more


@given(st.dictionaries(names, values), st.dictionaries(names, values), values, values)
def test_any_request_is_one_line_of_ascii(asked: dict[str, Any], answered: dict[str, Any], uri: Any, ip: Any) -> None:
    table = serialized(asked, client_ip=ip, response={"status": 200, "headers": answered})
    table["request"]["uri"] = uri
    line = render(entry(table, WHO).line)
    assert line.isascii()
    assert line.endswith(b"\n")
    assert not any(byte < 32 or byte == 127 for byte in line[:-1])
    parsed = json.loads(line)
    assert set(parsed) >= {"time_local", "remote_addr", "request", "status", "body_bytes_sent", "request_time",
                           "http_referer", "http_user_agent", "request_id", "subject", "tier", "route"}  # fmt: skip
    for value in parsed.values():
        str(value).encode()  # no lone surrogate, which collectors reject


@pytest.mark.parametrize(
    ("agent", "shown"),
    [
        ('x\n{"status":200}', 'x\n{"status":200}'),
        ("\x1b[2J\x1b[31m", "\x1b[2J\x1b[31m"),
        ("caf\udcff", "caf\ufffd"),
        ("caf\ud800", "caf?"),
        ("Bearer abc.def", "[redacted]"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln", "[redacted]"),
        ("sk-ant-api03-abcdefgh", "[redacted]"),
        ("a" * 5000, "a" * 512),
    ],
)
def test_what_clients_choose(agent: str, shown: str) -> None:
    line = render(entry(serialized({"user-agent": agent}), None).line)
    assert line.count(b"\n") == 1
    assert b"\x1b" not in line
    assert json.loads(line)["http_user_agent"] == shown


def test_queries_and_unproven_identities_are_left_out() -> None:
    found = entry(serialized({"referer": "https://a/b?code=secret", "x-claude-attestation": "forged"}), None)
    assert b"secret" not in render(found.line)
    assert b"forged" not in render(found.line)
    assert (found.line["subject"], found.tier) == ("", "")
    assert found.line["request"] == "POST /claude/invoke"


def test_only_the_gateway_refuses_and_only_the_service_bills() -> None:
    headers = {"x-claude-refusal": "jwt-claims/expired", "x-claude-model": "opus", "x-claude-cost-usd": "5"}
    response = {"status": 403, "headers": headers}
    service = entry(serialized(response=response), WHO)
    assert (service.refusal, service.model, service.cost_usd) == (None, "opus", 5.0)
    gateway = entry(serialized(response=response, source="kong"), WHO)
    assert (gateway.refusal, gateway.model, gateway.cost_usd) == (("jwt-claims", "expired"), "", 0.0)


def test_labels_are_bounded() -> None:
    bounded = Bounded(3)
    assert [bounded(v) for v in ("a", "b", "c", "d", "a", "e")] == ["a", "b", "c", "other", "a", "other"]
    assert Bounded()("\udcff") == "other"


def test_a_rotated_file_loses_nothing(tmp_path: Path) -> None:
    now = [0.0]
    path = tmp_path / "access.jsonl"
    sink = sinks.File(str(path), clock=lambda: now[0])
    for number in range(30):
        now[0] += 0.4
        sink.write(b"%d\n" % number)
        if number == 9:
            path.rename(tmp_path / "access.jsonl.1")
        if number == 19:
            path.rename(tmp_path / "access.jsonl.2")
    sink.close()
    assert path.exists()
    written = [int(line) for f in tmp_path.iterdir() for line in f.read_text().splitlines()]
    assert sorted(written) == list(range(30))


def test_a_full_disk_or_missing_directory_is_counted(tmp_path: Path) -> None:
    before = dropped("file")
    sinks.File("/dev/full").write(b"x\n")
    sink = sinks.File(str(tmp_path / "nowhere" / "a"))
    sink.write(b"x\n")
    assert dropped("file") - before == 2
    (tmp_path / "nowhere").mkdir()
    sink.write(b"y\n")
    assert (tmp_path / "nowhere" / "a").read_bytes() == b"y\n"


def dropped(sink: str) -> float:
    return REGISTRY.get_sample_value("claude_access_log_dropped_total", {"sink": sink}) or 0.0


class Collector:
    def __init__(self) -> None:
        self.bodies: list[tuple[str, bytes]] = []
        self.failures = 0
        self.open = threading.Event()
        self.open.set()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.open.wait(HANG_S)
                failing = outer.failures > 0
                outer.failures -= failing
                if not failing:
                    outer.bodies.append((self.headers["content-type"], body))
                self.send_response(503 if failing else 204)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/push"


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.open.set()
    made.server.shutdown()


@pytest.mark.parametrize("style", ["loki", "ndjson"])
def test_batches_reach_a_collector_that_fails_at_first(collector: Collector, style: str) -> None:
    before = dropped("http")
    collector.failures = 1
    sink = sinks.Http(collector.url, style, 10_000, 0.05)
    for number in range(1200):
        sink.write(b'{"n":%d}\n' % number)
    sink.close()
    if style == "loki":
        streams = [json.loads(body)["streams"][0] for _, body in collector.bodies]
        lines = [line for stream in streams for _, line in stream["values"]]
        assert all(at.isdigit() for stream in streams for at, _ in stream["values"])
    else:
        lines = b"".join(body for _, body in collector.bodies).decode().splitlines()
    assert [json.loads(line)["n"] for line in lines] == list(range(1200))
    assert len(collector.bodies) < 10
    assert dropped("http") == before


def test_a_silent_collector_costs_lines_not_memory(collector: Collector) -> None:
    before = dropped("http")
    collector.open.clear()
    sink = sinks.Http(collector.url, "ndjson", 100, 0.01, batch=50)
    for number in range(5000):
        sink.write(b"%d\n" % number)
    # It never waits for the collector, which has answered nothing yet.
    assert dropped("http") - before >= 5000 - 200
    collector.open.set()
    sink.close()


def test_stdout_is_written_line_by_line() -> None:
    script = "from kong_claude.metrics.sinks import Stdout; s = Stdout(); s.write(b'a\\n'); s.write(b'b\\n')"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout == b"a\nb\n"
