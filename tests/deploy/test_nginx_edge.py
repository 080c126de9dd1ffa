"""deploy/nginx/nginx.conf in a real nginx: TLS, HTTP/2, forwarded headers, the limit, streams, the log."""

from __future__ import annotations

import http.server
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.edge import Edge, edge_before
from tests.support.waiting import HANG_S, wait_for

ROOT = Path(__file__).resolve().parents[2]


class Behind(http.server.BaseHTTPRequestHandler):
    """Stands where Kong stands: echoes the headers, or streams three events half a second apart."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path.startswith("/stream"):
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            for number in range(3):
                self.wfile.write(f"data: {number}\n\n".encode())
                self.wfile.flush()
                time.sleep(0.4)
            self.close_connection = True
            return
        body = json.dumps({name.lower(): value for name, value in self.headers.items()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    behind = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Behind)
    threading.Thread(target=behind.serve_forever, daemon=True).start()
    try:
        with edge_before(f"127.0.0.1:{behind.server_port}", tmp_path) as running:
            yield running
    finally:
        behind.shutdown()
        behind.server_close()


def test_the_health_check_asks_nginx_alone(edge: Edge) -> None:
    """What docker-compose.yml asks: neither Kong is asked nor the log written, and nobody outside reaches it."""
    assert "http://127.0.0.1:8081/" in (ROOT / "docker-compose.yml").read_text()
    assert httpx.get(f"http://127.0.0.1:{edge.health}/").status_code == 200
    with edge.client() as client:
        assert client.get("/asked").status_code == 200
    lines = wait_for(lambda: edge.log.read_text().splitlines(), what="the access log")
    assert [json.loads(line)["request"].split()[1] for line in lines] == ["/asked"]


def handshake(edge: Edge, version: ssl.TLSVersion) -> tuple[str | None, str | None]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    context.set_alpn_protocols(["h2", "http/1.1"])
    with socket.create_connection(("127.0.0.1", edge.port)) as raw, context.wrap_socket(raw) as tls:
        return tls.version(), tls.selected_alpn_protocol()


def test_tls_1_2_and_1_3_with_http2_and_nothing_older(edge: Edge) -> None:
    assert handshake(edge, ssl.TLSVersion.TLSv1_2) == ("TLSv1.2", "h2")
    assert handshake(edge, ssl.TLSVersion.TLSv1_3) == ("TLSv1.3", "h2")
    with pytest.raises((ssl.SSLError, OSError)):
        handshake(edge, ssl.TLSVersion.TLSv1_1)


def test_forwarded_headers_are_the_edges_own(edge: Edge) -> None:
    with edge.client() as client:
        forged = {"X-Forwarded-For": "1.2.3.4", "X-Forwarded-Proto": "gopher", "X-Real-IP": "1.2.3.4"}
        # By which oauth2-proxy, which believes the edge, asks itself whether a page is public.
        forged["X-Forwarded-Uri"] = "/claude/dashboard/login"
        seen = client.get("/", headers={**forged, "Host": "claude.example"}).json()
    assert seen["x-forwarded-for"] == "127.0.0.1"
    assert seen["x-forwarded-proto"] == "https"
    assert seen["x-forwarded-host"] == "claude.example"
    assert "x-forwarded-uri" not in seen
    assert len(seen["x-request-id"]) == 32


def test_the_32nd_request_of_a_burst_is_refused(edge: Edge) -> None:
    with edge.client() as client:
        started = time.monotonic()
        answers: list[int] = []
        while 429 not in answers and len(answers) < 1000:  # on a slow machine places come back meanwhile
            answers.append(client.get("/").status_code)
        earned = int((time.monotonic() - started) * 10) + 1
    passed = answers.count(200)
    assert answers[:21] == [200] * 21
    assert 21 <= passed <= 21 + earned
    assert set(answers) == {200, 429}, "the limit was never reached"


def test_events_leave_one_by_one(edge: Edge) -> None:
    arrivals = []
    with edge.client() as client, client.stream("GET", "/stream") as answer:
        for line in answer.iter_lines():
            if line.startswith("data:"):
                arrivals.append(time.monotonic())
    assert len(arrivals) == 3
    assert arrivals[2] - arrivals[0] > 0.5


def test_plain_http_is_sent_to_https(edge: Edge) -> None:
    answer = httpx.get(f"http://127.0.0.1:{edge.plain}/claude/invoke?x=1", headers={"Host": "claude.example"})
    assert (answer.status_code, answer.headers["location"]) == (308, "https://claude.example/claude/invoke?x=1")


def test_the_log_is_json_and_holds_no_query(edge: Edge) -> None:
    with edge.client() as client:
        client.get(
            "/claude/runs/1?jwt=canary-token",
            headers={"User-Agent": 'a"b\\c\x1b[31m', "Referer": "https://x/?t=canary"},
        )
    deadline = time.monotonic() + HANG_S
    while not edge.log.read_text().endswith("\n"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (line,) = edge.log.read_text().splitlines()
    entry = json.loads(line)
    assert entry["status"] == 200
    assert entry["request"] == "GET /claude/runs/1 HTTP/1.1"
    assert "canary" not in line
    assert "\x1b" not in line
