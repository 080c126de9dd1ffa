"""Plays Kong towards a plugin server over its unix socket: one process, real frames, no nginx.

    with plugin_server(PLUGINS_DIR) as server, server.driver() as kong:
        instance = kong.start_instance("claude-jwt-claims", {"mark": "r1"})
        request = Request(headers={"authorization": "Bearer x"})
        event = kong.handle(instance, "access", request)
        assert event.exit is None and request.upstream_headers["x-claude-attestation"]
        kong.handle(instance, "log", request)          # the same request: ctx.shared is still there

`plugin_server(..., stock=True)` starts kong-pdk's own server instead of ours. Frames are those recorded from Kong
3.9.1: `[0, msgid, "plugin.X", [arg]]`, answered by `[1, msgid, error, result]`; a nil answer has no Data key.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import msgpack

from tests.support.waiting import HANG_S

TERMINAL = ("kong.response.exit", "kong.response.error")
STEPS = {
    "kong.request.get_headers": "plugin.StepMultiMap",
    "kong.request.get_query": "plugin.StepMultiMap",
    "kong.client.get_credential": "plugin.StepCredential",
    "kong.client.get_consumer": "plugin.StepConsumer",
    "kong.router.get_route": "plugin.StepRoute",
    "kong.router.get_service": "plugin.StepService",
    "kong.node.get_memory_stats": "plugin.StepMemoryStats",
}


class RPCError(Exception):
    """The error string of a response frame."""


@dataclass
class Exit:
    """Arguments of `kong.response.exit` (or `.error`), as they travelled; a body that is text as the JSON that it is."""

    status: int
    body: Any = None
    headers: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.body, str | bytes):
            assert self.headers["Content-Type"].startswith("application/json")
            self.body = json.loads(self.body)


@dataclass
class Event:
    """What one HandleEvent led to: its PDK calls in order, and how it ended."""

    calls: list[tuple[str, list[Any]]] = field(default_factory=list)
    exit: Exit | None = None

    @property
    def methods(self) -> list[str]:
        return [method for method, _ in self.calls]

    @property
    def ended(self) -> Exit:
        """How the plugin ended the request itself. Raises AssertionError where it let it pass."""
        assert self.exit is not None, "the plugin let the request pass"
        return self.exit


@dataclass
class Request:
    """One HTTP request as the PDK shows it, and the effects that plugins have on it.

    `answers` overrides any method by a value or a callable of the call's arguments. Header names are matched as Kong
    does: without case, `_` like `-`.
    """

    method: str = "POST"
    path: str = "/claude/invoke"
    headers: dict[str, Any] = field(default_factory=dict)
    query: dict[str, Any] = field(default_factory=dict)
    body: bytes = b""
    ip: str = "10.0.0.1"
    status: int = 200
    answers: Mapping[str, Any] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)
    upstream_headers: dict[str, Any] = field(default_factory=dict)
    removed_headers: list[str] = field(default_factory=list)
    response_headers: dict[str, Any] = field(default_factory=dict)
    upstream_body: Any = None
    log: list[tuple[str, list[Any]]] = field(default_factory=list)

    def answer(self, method: str, args: list[Any]) -> Any:
        """The value Kong would send for this call; methods it does not know are answered with nil, as by Kong."""
        if method in self.answers:
            value = self.answers[method]
            return value(*args) if callable(value) else value
        handler = _HANDLERS.get(method)
        if handler is not None:
            return handler(self, *args)
        if method.startswith("kong.log") and method != "kong.log.serialize":
            self.log.append((method, args))
        return None


def _name(name: str) -> str:
    return name.lower().replace("_", "-")


def _get_header(request: Request, name: str) -> Any:
    values = {_name(key): value for key, value in request.headers.items()}.get(_name(name))
    return values[0] if isinstance(values, list) else values


# Setters know names without case only: `x_a` is another header than `x-a` (service/set_header-name-underscore).
def _set_all(target: str) -> Callable[[Request, dict[str, Any]], None]:
    return lambda request, headers: getattr(request, target).update({k.lower(): v for k, v in headers.items()})


def _set_one(target: str) -> Callable[[Request, str, Any], None]:
    return lambda request, name, value: getattr(request, target).__setitem__(name.lower(), value)


def _clear(request: Request, name: str) -> None:
    request.removed_headers.append(name.lower())
    request.upstream_headers.pop(name.lower(), None)


_HANDLERS: dict[str, Callable[..., Any]] = {
    "kong.request.get_method": lambda r: r.method,
    "kong.request.get_path": lambda r: r.path,
    "kong.request.get_raw_path": lambda r: r.path,
    "kong.request.get_path_with_query": lambda r: r.path,
    "kong.request.get_header": _get_header,
    "kong.request.get_headers": lambda r, *_: {key.lower(): value for key, value in r.headers.items()},
    "kong.request.get_query": lambda r, *_: dict(r.query),
    "kong.request.get_query_arg": lambda r, name: r.query.get(name),
    "kong.request.get_raw_body": lambda r, *_: r.body,
    "kong.client.get_ip": lambda r: r.ip,
    "kong.client.get_forwarded_ip": lambda r: r.ip,
    "kong.response.get_status": lambda r: r.status,
    "kong.ctx.shared.get": lambda r, key: r.shared.get(key),
    "kong.ctx.shared.set": lambda r, key, value=None: r.shared.__setitem__(key, value),
    "kong.service.request.set_header": _set_one("upstream_headers"),
    "kong.service.request.add_header": _set_one("upstream_headers"),
    "kong.service.request.set_headers": _set_all("upstream_headers"),
    "kong.service.request.clear_header": _clear,
    "kong.service.request.set_raw_body": lambda r, body: setattr(r, "upstream_body", body),
    "kong.service.request.set_body": lambda r, body, *_: setattr(r, "upstream_body", body),
    "kong.response.set_header": _set_one("response_headers"),
    "kong.response.add_header": _set_one("response_headers"),
    "kong.response.set_headers": _set_all("response_headers"),
}


class Driver:
    """One Kong worker with one pooled connection to the plugin server."""

    def __init__(self, path: str | Path, timeout: float = 30.0) -> None:
        self.path = str(path)
        self.timeout = timeout
        self.msgid = 0
        self.sock: socket.socket | None = None
        self.unpacker = msgpack.Unpacker()

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    def send(self, method: str, *args: Any) -> int:
        """Write a request frame and return its msgid."""
        if self.sock is None:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(self.timeout)
            self.sock.connect(self.path)
            self.unpacker = msgpack.Unpacker(
                strict_map_key=False, unicode_errors="surrogateescape", max_buffer_size=1 << 30
            )
        self.msgid += 1
        packed = msgpack.packb([0, self.msgid, method, list(args)], unicode_errors="surrogateescape")
        self.sock.sendall(packed)
        return self.msgid

    def receive(self) -> list[Any]:
        """The next whole frame. Raises ConnectionError at end of stream, TimeoutError after `timeout`."""
        assert self.sock is not None
        while True:
            for frame in self.unpacker:
                return list(frame)
            data = self.sock.recv(1 << 18)
            if not data:
                self.close()
                raise ConnectionError("the plugin server closed the connection")
            self.unpacker.feed(data)

    def call(self, method: str, *args: Any) -> Any:
        """One RPC (`plugin.StartInstance` …); returns its result. Raises RPCError."""
        msgid = self.send(method, *args)
        while True:
            frame = self.receive()
            if frame[0] == 1:
                break
        if frame[1] != msgid:
            raise AssertionError(f"answer to {frame[1]}, expected {msgid}")
        if frame[2] is not None:
            raise RPCError(frame[2])
        return frame[3]

    def start_instance(self, name: str, config: Mapping[str, Any] | None = None) -> Any:
        """The new instance's id. `config` travels as Kong sends it: a JSON string. The suite's own plugins are on
        a service unless it says otherwise."""
        if name.startswith("claude-") and "route_id" not in (config or {}):
            config = {"service_id": "service", **(config or {})}
        return self.call("plugin.StartInstance", {"Name": name, "Config": json.dumps(config or {})})["Id"]

    def handle(self, instance: Any, phase: str, request: Request | None = None) -> Event:
        """Play one event to its end. Raises RPCError, ConnectionError, TimeoutError (Kong lets all three pass)."""
        request = request or Request()
        event = Event()
        result = self.call("plugin.HandleEvent", {"InstanceId": instance, "EventName": phase})
        event_id = result["EventId"]
        while result["Data"] != "ret":
            method, args = result["Data"]["Method"], list(result["Data"].get("Args") or ())
            event.calls.append((method, args))
            if method in TERMINAL:
                event.exit = Exit(*args)
                break
            step: dict[str, Any] = {"EventId": event_id}
            value = request.answer(method, args)
            if value is not None:
                step["Data"] = value
            result = self.call(STEPS.get(method, "plugin.Step"), step)
        return event


@dataclass
class Server:
    """A running plugin server process."""

    process: subprocess.Popen[bytes]
    socket_path: str
    log_path: str
    stock: bool = False
    timeout: float = 30.0

    def driver(self, timeout: float | None = None) -> Driver:
        return Driver(self.socket_path, timeout or self.timeout)

    @property
    def log(self) -> str:
        return Path(self.log_path).read_text(errors="replace")

    def stop(self, sig: int = signal.SIGTERM, timeout: float = 20.0) -> int:
        self.process.send_signal(sig)
        return self.process.wait(timeout)


@contextmanager
def plugin_server(
    plugins_dir: str | Path, *flags: str, stock: bool = False, env: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Run a plugin server over `plugins_dir` until the block ends: ours, or kong-pdk's with `stock=True`."""
    prefix = tempfile.mkdtemp(prefix="kc-")  # a short path: sun_path holds 107 bytes
    program = ["-c", "from kong_pdk.cli import start_server; start_server()"] if stock else ["-m", "kong_claude.server"]
    command = [sys.executable, *program, "-d", str(plugins_dir), "-p", prefix, "--socket-name", "s.sock", *flags]
    log_path = f"{prefix}/log"
    with open(log_path, "wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **(env or {})}
        )
    server = Server(process, f"{prefix}/s.sock", log_path, stock)
    try:
        _wait_until_accepting(server)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(HANG_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(prefix, ignore_errors=True)


def _wait_until_accepting(server: Server, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise RuntimeError(f"the plugin server exited with {server.process.returncode}:\n{server.log}")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(server.socket_path)
                return
            except OSError:
                time.sleep(0.02)
    raise RuntimeError(f"the plugin server did not listen within {seconds} s:\n{server.log}")
