"""minikong's own cost: requests per second, and what it adds before the first event of a stream.

`python -m bench.minikong [seconds]`: gateway, service (with a plugin server) and driver are three processes. Keys:
`rps_plain` (32 connections), `rps_plugin` (the same with one external plugin that makes three PDK calls),
`events_bare` (such events per second when the driver itself speaks to the plugin server over 32 connections),
`sse_added_ms_p50` (first event through the gateway minus first event from the service, interleaved).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import msgpack
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


class _PluginServer(asyncio.Protocol):
    """Asks three things in each access event, then lets it go."""

    CALLS = (
        {"Method": "kong.request.get_header", "Args": ["authorization"]},
        {"Method": "kong.request.get_path", "Args": []},
        {"Method": "kong.ctx.shared.set", "Args": ["mark", "bench"]},
        "ret",
    )
    _ids = itertools.count(1)
    _open: dict[int, int] = {}  # noqa: RUF012 -- shared by all connections: an event wanders over them
    transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)
        self.frames = msgpack.Unpacker(raw=False)

    def data_received(self, data: bytes) -> None:
        self.frames.feed(data)
        for _, msgid, method, arguments in self.frames:
            result = {"Name": "bench", "Id": 1} if method == "plugin.StartInstance" else self._event(arguments[0])
            self.transport.write(msgpack.packb([1, msgid, None, result]))

    def _event(self, argument: dict[str, Any]) -> dict[str, Any]:
        event = argument.get("EventId")
        if event is None:
            event = next(self._ids)
            self._open[event] = 0
        step = self._open.pop(event)
        if step < 3:
            self._open[event] = step + 1
        return {"EventId": event, "Data": self.CALLS[step]}


class _Driver(asyncio.Protocol):
    """Drives the plugin server as Kong would: one event after the other."""

    transport: asyncio.WriteTransport
    events = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)
        self.frames = msgpack.Unpacker(raw=False)
        self.msgid = 0
        self._send("plugin.HandleEvent", {"InstanceId": 1, "EventName": "access"})

    def _send(self, method: str, argument: dict[str, Any]) -> None:
        self.msgid += 1
        self.transport.write(msgpack.packb([0, self.msgid, method, [argument]]))

    def data_received(self, data: bytes) -> None:
        self.frames.feed(data)
        for _, _, _, result in self.frames:
            if result["Data"] == "ret":
                self.events += 1
                self._send("plugin.HandleEvent", {"InstanceId": 1, "EventName": "access"})
            else:
                self._send("plugin.Step", {"EventId": result["EventId"], "Data": "an answer"})


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


async def _bare(socket: str, seconds: float) -> float:
    """Events per second of the plugin server alone."""
    loop = asyncio.get_running_loop()
    drivers = [(await loop.create_unix_connection(_Driver, socket))[1] for _ in range(_CONNECTIONS)]
    await asyncio.sleep(0.3)
    before, started = sum(d.events for d in drivers), time.perf_counter()
    await asyncio.sleep(seconds)
    rate = (sum(d.events for d in drivers) - before) / (time.perf_counter() - started)
    for driver in drivers:
        driver.transport.abort()
    return rate


async def _answers(port: int, path: str, seconds: float) -> float:
    """Answers per second over all connections."""
    loop = asyncio.get_running_loop()
    clients = []
    for _ in range(_CONNECTIONS):
        _, client = await loop.create_connection(lambda: _Client(_request(path)), "127.0.0.1", port)
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


async def _drive(gateway: int, service: int, socket: str, seconds: float) -> dict[str, float | str]:
    rate = await _answers(gateway, "/plain", seconds)
    print(f"plain: {rate:.0f} requests/s", file=sys.stderr)
    plugin = await _answers(gateway, "/plugin", seconds / 2)
    bare = await _bare(socket, seconds / 4)
    print(f"with a plugin: {plugin:.0f} requests/s; its server alone: {bare:.0f} events/s", file=sys.stderr)
    direct, through = [], []
    for _ in range(200):
        direct.append(await _first_event(service))
        through.append(await _first_event(gateway))
    added = statistics.median(through) - statistics.median(direct)
    print(f"first event: {statistics.median(direct):.2f} ms direct, +{added:.2f} ms", file=sys.stderr)
    return {
        "rps_plain": round(rate, 1),
        "rps_plugin": round(plugin, 1),
        "events_bare": round(bare, 1),
        "sse_added_ms_p50": round(added, 3),
        "machine": machine(),
    }


async def _serve(socket: str) -> None:
    await asyncio.get_running_loop().create_unix_server(_PluginServer, socket)
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
  - {{name: plugin, paths: [/plugin], plugins: [{{name: bench}}]}}
"""
_DUMP = [
    {
        "Name": "bench",
        "Phases": ["access"],
        "Priority": 1,
        "Version": "1.0.0",
        "Schema": {"name": "bench", "fields": [{"config": {"type": "record", "fields": []}}]},
    }
]


def _start(*command: str, until: str, **settings: str) -> tuple[subprocess.Popen[str], int]:
    """A child process and the port at the end of its first line (stdout or stderr) that has `until` in it."""
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {f"KONG_{name.upper()}": value for name, value in settings.items()},
    )
    assert process.stdout is not None
    shown = []
    for line in process.stdout:
        if until in line:
            return process, int(line.strip().rpartition(":")[2])
        shown.append(line)
    raise SystemExit(f"{' '.join(command)} does not start:\n{''.join(shown)}")


def main(argv: list[str]) -> int:
    if argv[:1] == ["service"]:
        uvloop.run(_serve(argv[1]))
        return 0
    seconds = float(argv[0]) if argv else 8.0
    with tempfile.TemporaryDirectory() as folder:
        socket, config, dump = (str(Path(folder, name)) for name in ("s.sock", "kong.yml", "dump.json"))
        service, port = _start("-m", "bench.minikong", "service", socket, until="service on")
        try:
            Path(config).write_text(_CONFIG.format(port=port))
            Path(dump).write_text(json.dumps(_DUMP))
            gateway, own_port = _start(
                *("-m", "minikong", "--config", config, "--proxy-listen", "127.0.0.1:0", "--admin-listen", "off"),
                until="proxy listening on http://",
                plugins="bundled,bench",
                pluginserver_names="bench",
                pluginserver_bench_socket=socket,
                pluginserver_bench_query_cmd=f"cat {dump}",
            )
            try:
                result = uvloop.run(_drive(own_port, port, socket, seconds))
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
