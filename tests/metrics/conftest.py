"""A gateway with every plugin that counts, in front of a cheap upstream: real plugin server, minikong for Kong."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import httpx
import jwt
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kong_claude.environment import variable
from tests.support.ports import free_port as free_port
from tests.support.processes import command_line
from tests.support.waiting import HANG_S

ROOT = Path(__file__).resolve().parents[2]
SECRET = "0123456789abcdef0123456789abcdef"
TOKEN_SECRET = "abcdefghijklmnopqrstuvwxyz012345"
NAMES = ("claude-jwt-claims", "claude-rate-tiers", "claude-prompt-context", "claude-gateway", "claude-metrics")
ISSUER = {"issuer": "test", "algorithms": ["HS256"], "secret": TOKEN_SECRET}
JWT = {"issuers": [ISSUER], "audience": ["claude"], "rules": [{"claim": "roles", "any_of": ["run"]}]}
TIERS = [{"name": "free", "minute": 3}, {"name": "pro", "minute": 1_000_000}]
Sample = tuple[str, frozenset[tuple[str, str]]]


def token(subject: str, *, role: str = "run", tier: str = "pro") -> str:
    now = int(time.time())
    claims = {"iss": "test", "aud": "claude", "sub": subject, "roles": [role], "tier": tier, "exp": now + 3600}
    return jwt.encode(claims, TOKEN_SECRET, algorithm="HS256")


class Upstream(asyncio.Protocol):
    """Answers like the invoker: with a model, its cost and tokens; `/stream` event by event; `/hang` never."""

    hung: ClassVar[set[bytes]] = set()  # what came to /hang: path and query

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.seen = transport, b""

    def data_received(self, data: bytes) -> None:
        self.seen += data
        while True:
            head, end, body = self.seen.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
            if not end or len(body) < length:
                return
            self.seen = body[length:]
            path = head.split(b" ")[1]
            if b"/stream" in path:
                asyncio.get_running_loop().create_task(self.stream())
            elif b"/hang" in path:
                self.hung.add(path)
            else:
                self.transport.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Claude-Model: haiku\r\n"
                    b"X-Claude-Cost-USD: 0.25\r\nX-Claude-Input-Tokens: 10\r\nX-Claude-Output-Tokens: 4\r\n"
                    b"X-Claude-Run: run_0123456789abcdef01234567\r\nContent-Length: 3\r\n\r\n{}\n"
                )

    async def stream(self) -> None:
        self.transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(3):
            self.transport.write(b"8\r\ndata: 1\n\r\n")
            await asyncio.sleep(0.01)
        self.transport.write(b"0\r\n\r\n")


@dataclass
class Stack:
    url: str
    port: int
    metrics_url: str
    log: Path
    process: subprocess.Popen[bytes]

    def text(self) -> str:
        return httpx.get(self.metrics_url, timeout=HANG_S).text

    def samples(self) -> dict[Sample, float]:
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.text())
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        return self.samples().get((name, frozenset(labels.items())), 0.0)

    def until(self, name: str, wanted: float, **labels: str) -> None:
        """Log phases come a moment after the answers."""
        deadline = time.monotonic() + HANG_S
        while (found := self.value(name, **labels)) != wanted:
            assert time.monotonic() < deadline, (name, labels, found, wanted)
            time.sleep(0.05)

    def server(self) -> psutil.Process:
        children = psutil.Process(self.process.pid).children(recursive=True)
        return next(c for c in children if "kong_claude.server" in command_line(c))


def kong_yml(upstream: int, log: Path, collector: str | None = None) -> dict[str, object]:
    gateway = {
        "attestation": {"secret": SECRET},
        "jwt_claims": JWT,
        "rate_tiers": {"policy": "local", "limit_by": "subject", "default_tier": "free", "tiers": TIERS},
    }
    access_log: dict[str, object] = {"file": str(log)}
    if collector:
        access_log |= {"url": collector, "url_style": "loki", "flush_seconds": 0.1}
    route = {
        "name": "invoke",
        "paths": ["/invoke"],
        "strip_path": False,
        "response_buffering": False,
        "plugins": [{"name": "claude-gateway", "config": gateway}],
    }
    service = {"name": "up", "url": f"http://127.0.0.1:{upstream}", "retries": 0, "routes": [route]}
    plain = {"name": "plain", "paths": ["/plain"], "strip_path": False}
    return {
        "_format_version": "3.0",
        "plugins": [{"name": "claude-metrics", "config": {"access_log": access_log}}],
        "services": [service, {"name": "free", "url": f"http://127.0.0.1:{upstream}", "routes": [plain]}],
    }


@contextlib.contextmanager
def upstream() -> Iterator[int]:
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(loop.create_server(Upstream, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield server.sockets[0].getsockname()[1]
    loop.call_soon_threadsafe(loop.stop)
    thread.join(HANG_S)


@functools.cache
def dumps() -> dict[str, Any]:
    """What the plugin server says of its plugins when it is asked: once for all gateways, which would ask for each plugin."""
    command = [sys.executable, "-m", "kong_claude.server", "--dump-all-plugins"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=HANG_S)
    return {each["Name"]: each for each in json.loads(done.stdout)}


def described(folder: Path, name: str) -> Path:
    path = folder / f"{name}.dump"
    path.write_text(json.dumps([dumps()[name]]))
    return path


@contextlib.contextmanager
def running(folder: Path, collector: str | None = None) -> Iterator[Stack]:
    with upstream() as behind:
        port, metrics, log = free_port(), free_port(), folder / "access.jsonl"
        (folder / "kong.json").write_text(json.dumps(kong_yml(behind, log, collector)))
        server = f"{sys.executable} -m kong_claude.server "
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KONG_")} | {
            "KONG_PREFIX": str(folder),
            "KONG_DECLARATIVE_CONFIG": str(folder / "kong.json"),
            "KONG_PROXY_LISTEN": f"127.0.0.1:{port}",
            "KONG_ADMIN_LISTEN": "off",
            "KONG_PLUGINS": ",".join(("bundled", *NAMES)),
            "KONG_PLUGINSERVER_NAMES": ",".join(NAMES),
        }
        for name in NAMES:
            environment[variable(name, "SOCKET")] = str(folder / "p.sock")
            environment[variable(name, "QUERY_CMD")] = shlex.join(["cat", str(described(folder, name))])
        environment["KONG_PLUGINSERVER_CLAUDE_JWT_CLAIMS_START_CMD"] = (
            f"{server} -p {shlex.quote(str(folder))} --socket-name p.sock --no-lua-style"
            f" --metrics-listen 127.0.0.1:{metrics}"
        )
        output = (folder / "minikong.log").open("wb")
        process = subprocess.Popen(
            [sys.executable, "-m", "minikong"], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        stack = Stack(f"http://127.0.0.1:{port}", port, f"http://127.0.0.1:{metrics}/metrics", log, process)
        try:
            wait_until_ready(stack)
            yield stack
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(HANG_S)
            output.close()


def wait_until_ready(stack: Stack) -> None:
    deadline = time.monotonic() + HANG_S
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(stack.metrics_url).status_code == 200 and httpx.get(stack.url + "/plain").status_code == 200:
                break
        assert stack.process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    stack.until("claude_requests_total", 1, status="200", method="GET", route="plain")


@pytest.fixture
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("k")) as started:
        yield started
