"""Two gateways on one kong.yml, one with Kong's Lua half of our plugins and one without, and the upstream of both.

minikong, or with KONG=… a real Kong.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import socket
import socketserver
import subprocess
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import jwt

from kong_claude.guard import LUA_PATH, PAIR_PATH
from kong_claude_local.supervise import Supervisor
from tests.gateway.runners import SECRET
from tests.support.gateway import gateway_alone
from tests.support.waiting import HANG_S

ADDRESS = "127.0.0.1"
UNCOUNTED = "uncounted"  # user agent of requests of which there may be more at one gateway than at the other
CURL_STREAM = 92
# What is another one for every request, or tells the time.
NEW = re.compile(r"^(date|via|server|x-kong-.*|x-request-id|kong-request-id|x-forwarded-port|host)$", re.IGNORECASE)
TIMES = re.compile(r"\bt=\d+")
CHANGING = ("request_id", "reset_s", "retry_after")
CLAIMS_NEW = ("jti", "iat", "exp", "rid", "lease", "rte")


class Upstream(socketserver.ThreadingTCPServer):
    """Answers 200 and remembers what came, by the header X-Case."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__((ADDRESS, 0), _Answer)
        self.seen: dict[str, tuple[bytes, bytes]] = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class _Answer(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while head := read_head(cast(io.BufferedReader, self.rfile)):
                body = read_body(cast(io.BufferedReader, self.rfile), head)
                case = re.search(rb"\r\nx-case: ([^\r]+)", head, re.IGNORECASE)
                if case:
                    cast(Upstream, self.server).seen[case[1].decode()] = (head, body)
                silent = head.startswith(b"HEAD ")
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n" + (b"" if silent else b"up\n"))


def read_head(stream: io.BufferedReader) -> bytes:
    head = b""
    while line := stream.readline():
        head += line
        if line == b"\r\n":
            break
    return head


def read_body(stream: io.BufferedReader, head: bytes, bodiless: bool = False) -> bytes:
    if bodiless:
        return b""
    if re.search(rb"\r\ntransfer-encoding: *chunked", head, re.IGNORECASE):
        body = b""
        while size := int(stream.readline().split(b";")[0], 16):
            body += stream.read(size)
            stream.readline()
        stream.readline()
        return body
    length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    return stream.read(int(length[1])) if length else b""


@dataclass
class Gateway:
    """One of the two."""

    port: int
    http2_port: int  # of a real Kong; minikong has no HTTP/2
    metrics_port: int
    upstream: Upstream
    log: Path
    supervisor: Supervisor
    directory: Path
    answered: int = field(default=0)

    def send(self, case: str, raw: bytes, answers: int = 1) -> list[dict[str, Any]]:
        """The answers to `raw` on one connection, and what of it reached the upstream. `raw` names its case by `@CASE@`,
        in each of its requests."""
        self.answered += 1
        own = f"{case}-{self.answered}"
        raw = raw.replace(b"@CASE@", own.encode())
        found: list[dict[str, Any]] = []
        with socket.create_connection((ADDRESS, self.port), timeout=HANG_S) as client:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before it was read
                client.sendall(raw)
            stream = client.makefile("rb")
            while len(found) < answers:
                head = read_head(stream)
                if not head:
                    found.append({"status": 0})
                    break
                status = int(head.split()[1])
                if status == 100:
                    found.append({"status": 100})
                    answers += 1
                    continue
                body = body_of(read_body(stream, head, bodiless=raw.startswith(b"HEAD ")))
                # A document that tells the time may be a digit longer.
                shown = [h for h in headers(head) if not (isinstance(body, dict) and h[0] == "Content-Length")]
                found.append({"status": status, "headers": shown, "body": body})
        found.append({"upstream": self.reached(own)})
        return found

    def send_http2(self, case: str, raw: bytes, length: bool = True) -> list[dict[str, Any]] | None:
        """As `send`, the same request in HTTP/2 without TLS; `length`: with Content-Length, which a body need not have
        there. None: the answer came while curl was still sending, so that it dropped it."""
        self.answered += 1
        own = f"{case}-{self.answered}"
        head, _, body = raw.replace(b"@CASE@", own.encode()).partition(b"\r\n\r\n")
        (method, target, _), *given = (head.split(b"\r\n")[0].split(b" "), *head.split(b"\r\n")[1:])
        command = [b"curl", b"-sS", b"-i", b"--http2-prior-knowledge", b"--path-as-is", b"-A", UNCOUNTED.encode()]
        command += [b"--head"] if method == b"HEAD" else [b"-X", method]
        for line in given:
            name, _, value = line.partition(b":")
            if name != b"Content-Length":
                command += [b"-H", line if value.strip() else name + b";"]
        if b"\r\nContent-Length:" in head:
            command += [b"--data-binary", b"@-", *([] if length else [b"-H", b"Content-Length:"])]
        url = f"http://{ADDRESS}:{self.http2_port}".encode() + target
        done = subprocess.run([*command, url], input=body, capture_output=True, timeout=HANG_S)
        if done.returncode == CURL_STREAM:
            return None
        assert done.returncode == 0, done.stderr
        answer, _, content = done.stdout.partition(b"\r\n\r\n")
        version, status, *_ = answer.split()
        assert version == b"HTTP/2", answer
        shown = [h for h in headers(answer) if h[0] != "content-length"]
        return [
            {"status": int(status), "headers": shown, "body": body_of(content)},
            {"upstream": self.reached(own)},
        ]

    def reached(self, case: str) -> dict[str, Any] | None:
        """What of it came to the upstream."""
        seen = self.upstream.seen.pop(case, None)
        return None if seen is None else came(*seen)

    def events(self, plugin: str, phase: str) -> tuple[int, int]:
        """How many events of the plugin in that phase there were since the start, and how many calls they made."""
        with urllib.request.urlopen(f"http://{ADDRESS}:{self.metrics_port}/metrics", timeout=HANG_S) as answer:
            text = answer.read().decode()
        labels = f'{{phase="{phase}",plugin="{plugin}"}}'
        found = {f"{line.split()[0]}": float(line.split()[1]) for line in text.splitlines() if labels in line}
        names = ("pluginserver_event_seconds_count", "pluginserver_event_calls_total")
        events, calls = [int(found[name + labels]) for name in names]
        return events, calls


def headers(head: bytes) -> list[tuple[str, str]]:
    """All of a head's headers that can be compared, sorted."""
    pairs = [line.partition(b":") for line in head.split(b"\r\n")[1:] if line]
    shown = []
    for raw_name, _, raw_value in pairs:
        name, value = raw_name.decode("latin-1"), raw_value.strip().decode("latin-1")
        if NEW.match(name):
            continue
        if name.lower() in ("ratelimit-reset", "retry-after"):
            value = "new"
        if name.lower() == "x-claude-attestation" and value.count(".") == 2:
            value = json.dumps(attested(value), sort_keys=True)
        shown.append((name, re.sub(r"-\d+$", "", value) if name.lower() == "x-case" else TIMES.sub("t=", value)))
    return sorted(shown)


def attested(header: str) -> Any:
    claims = jwt.decode(header, SECRET, algorithms=["HS256"], audience="claude-invoker")
    return {name: "new" if name in CLAIMS_NEW else value for name, value in claims.items()}


def body_of(raw: bytes) -> Any:
    try:
        document = json.loads(raw)
    except ValueError:
        return re.sub(rb"request_id: \w+", b"request_id: new", raw)
    return normal(document)


def normal(value: Any) -> Any:
    if isinstance(value, dict):
        # In order: Kong's JSON has none.
        return {k: "new" if k in CHANGING else normal(value[k]) for k in sorted(value)}
    return [normal(item) for item in value] if isinstance(value, list) else value


def came(head: bytes, body: bytes) -> dict[str, Any]:
    return {"line": head.split(b"\r\n")[0], "headers": headers(head), "body": body}


@contextmanager
def gateway(config: dict[str, Any], upstream: Upstream, lua_path: str, access_log: Path) -> Iterator[Gateway]:
    def more(given: Mapping[str, str], proxy: int, spare: int) -> dict[str, str]:
        # One worker: each learns by itself what a plugin asks.
        http2 = {"KONG_PROXY_LISTEN": f"{ADDRESS}:{proxy}, {ADDRESS}:{spare} http2"} if os.environ.get("KONG") else {}
        return {"KONG_LUA_PACKAGE_PATH": lua_path, **http2}

    with gateway_alone(json.dumps(config).replace("@LOG@", str(access_log)), more) as alone:
        ports = alone.proxy, alone.spare, alone.metrics
        yield Gateway(*ports, upstream, access_log, alone.supervisor, alone.directory)


@contextmanager
def both(config: dict[str, Any], logs: Path) -> Iterator[tuple[Gateway, Gateway]]:
    """Single calls and the pair. `config` names each one's access log by @LOG@, and the upstream's port by 1."""
    upstream = Upstream()
    text = json.dumps(config).replace("http://upstream", f"http://{ADDRESS}:{upstream.port}")
    made = json.loads(text)
    try:
        with (
            gateway(made, upstream, f"{LUA_PATH};;", logs / "single.log") as single,
            gateway(made, upstream, f"{PAIR_PATH};{LUA_PATH};;", logs / "pair.log") as pair,
        ):
            yield single, pair
    finally:
        upstream.shutdown()
        upstream.server_close()
