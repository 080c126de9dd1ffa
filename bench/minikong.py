"""minikong's own cost: plain requests per second, and what it adds before the first event of a stream.

`python -m bench.minikong [seconds]`: gateway, service and driver are three processes. Keys: `rps_plain` (32
connections), `sse_added_ms_p50` (first event through the gateway minus first event from the service, interleaved).
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import cast

import uvloop

from bench.machine import machine

_PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nup\n"
_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_EVENT = b"9\r\ndata: 1\n\n\r\n"
_CONNECTIONS = 32


class _Service(asyncio.Protocol):
    """Answers at once; /sse sends its first event with the head and ends the stream 5 ms later."""

    transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        if b" /sse " not in data:
            self.transport.write(_PLAIN)
            return
        self.transport.write(_STREAM + _EVENT)
        loop = asyncio.get_running_loop()
        loop.call_later(0.005, self.transport.write, b"0\r\n\r\n")


class _Client(asyncio.Protocol):
    """Sends `request` again as soon as its answer is complete."""

    transport: asyncio.WriteTransport

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.answers = 0
        self.running = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"up\n"):
            self.answers += 1
            if self.running:
                self.transport.write(self.request)


def _request(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: bench.test\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n".encode()


async def _plain(port: int, seconds: float) -> float:
    """Answers per second over all connections."""
    loop = asyncio.get_running_loop()
    clients = []
    for _ in range(_CONNECTIONS):
        _, client = await loop.create_connection(lambda: _Client(_request("/plain")), "127.0.0.1", port)
        clients.append(client)
    await asyncio.sleep(0.5)
    before, started = sum(c.answers for c in clients), time.perf_counter()
    await asyncio.sleep(seconds)
    rate = (sum(c.answers for c in clients) - before) / (time.perf_counter() - started)
    for client in clients:
        client.running = False
        client.transport.abort()
    return rate


async def _first_event(port: int) -> float:
    """Milliseconds from the request to the first event, on a new connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    started = time.perf_counter()
    writer.write(_request("/sse"))
    await reader.readuntil(b"data: 1\n\n")
    elapsed = (time.perf_counter() - started) * 1000
    await reader.readuntil(b"0\r\n\r\n")
    writer.close()
    return elapsed


async def _drive(gateway: int, service: int, seconds: float) -> dict[str, float | str]:
    rate = await _plain(gateway, seconds)
    print(f"plain: {rate:.0f} requests/s", file=sys.stderr)
    direct, through = [], []
    for _ in range(200):
        direct.append(await _first_event(service))
        through.append(await _first_event(gateway))
    added = statistics.median(through) - statistics.median(direct)
    print(f"first event: {statistics.median(direct):.2f} ms direct, +{added:.2f} ms", file=sys.stderr)
    return {"rps_plain": round(rate, 1), "sse_added_ms_p50": round(added, 3), "machine": machine()}


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(_Service, "127.0.0.1", 0)
    print(f"service on 127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


_CONFIG = """
_format_version: "3.0"
services:
- name: bench
  url: http://127.0.0.1:{port}
  routes:
  - {{name: plain, paths: [/], strip_path: false}}
"""


def _start(*command: str, until: str) -> tuple[subprocess.Popen[str], int]:
    """A child process and the port at the end of its first line (stdout or stderr) that has `until` in it."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    shown = []
    for line in process.stdout:
        if until in line:
            return process, int(line.strip().rpartition(":")[2])
        shown.append(line)
    raise SystemExit(f"{' '.join(command)} does not start:\n{''.join(shown)}")


def main(argv: list[str]) -> int:
    if argv == ["service"]:
        uvloop.run(_serve())
        return 0
    seconds = float(argv[0]) if argv else 8.0
    service, port = _start("-m", "bench.minikong", "service", until="service on")
    try:
        with tempfile.TemporaryDirectory() as folder:
            config = Path(folder, "kong.yml")
            config.write_text(_CONFIG.format(port=port))
            listen = ["--proxy-listen", "127.0.0.1:0", "--admin-listen", "off"]
            command = ["-m", "minikong", "--config", str(config), *listen]
            gateway, own_port = _start(*command, until="proxy listening on http://")
            try:
                result = uvloop.run(_drive(own_port, port, seconds))
            finally:
                gateway.terminate()
                gateway.wait(10)
    finally:
        service.terminate()
        service.wait(10)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
