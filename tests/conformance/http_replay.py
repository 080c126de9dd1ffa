"""Raw HTTP on both sides of a gateway: a client that sends recorded bytes, a service that plays recorded answers.

Both note what they saw in the encoding of the recorded data (its README, "HTTP encoding").
"""

from __future__ import annotations

import asyncio
import base64
import re
import socket
import ssl
import struct
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

DEFAULT = "HTTP/1.1 200 OK\r\nServer: up/1.0\r\nContent-Type: text/plain\r\nX-Up: yes\r\nContent-Length: 3\r\n\r\nup\n"
_TOKEN = re.compile(r"\{\{(\w+)(:\d+)?\}\}")


def part_bytes(part: Any) -> bytes:
    """The bytes of one part of a recorded request or answer."""
    if isinstance(part, str):
        return part.encode()
    if "b64" in part:
        return base64.b64decode(part["b64"])
    if "rep" in part:
        unit, times = part["rep"]
        return str(unit).encode() * int(times)
    rep = part["chunked_rep"]
    chunk = rep["byte"].encode() * rep["chunk_size"]
    return (b"%x\r\n%b\r\n" % (len(chunk), chunk)) * int(rep["chunks"]) + b"0\r\n\r\n"


def text(data: bytes) -> Any:
    """Bytes in the encoding: a string, or {"b64"} if they are not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(data).decode()}


@dataclass
class Message:
    """One HTTP message cut out of a byte stream."""

    value: dict[str, Any]
    size: int
    complete: bool


def read_message(data: bytes, *, closed: bool, bodyless: bool = False) -> Message | None:
    """The message at the start of `data`; None if its head is not complete."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    first, *lines = data[:end].split(b"\r\n")
    headers = []
    for line in lines:
        name, _, content = line.partition(b":")
        headers.append([text(name), text(content.removeprefix(b" "))])
    value: dict[str, Any] = {"start": text(first), "headers": headers}
    is_request = not first.startswith(b"HTTP/")
    low = [(str(n).lower(), str(v).strip().lower()) for n, v in headers]
    at = end + 4
    status = 0 if is_request else int(first.split(b" ")[1])
    if not is_request and (bodyless or status < 200 or status in (204, 304)):
        return Message(value | {"framing": "none", "body": ""}, at, True)
    if ("transfer-encoding", "chunked") in low:
        return _chunked(data, at, value, closed=closed)
    lengths = [v for n, v in low if n == "content-length"]
    if lengths:
        size = int(lengths[0])
        body = data[at : at + size]
        whole = len(body) == size
        framing = "length" if whole else "length-truncated"
        return Message(value | {"framing": framing, "body": text(body)}, at + len(body), whole or closed)
    if is_request:
        return Message(value | {"framing": "none", "body": ""}, at, True)
    return Message(value | {"framing": "close", "body": text(data[at:])}, len(data), closed)


def _chunked(data: bytes, at: int, value: dict[str, Any], *, closed: bool) -> Message:
    body = b""
    sizes: list[int] = []
    while True:
        end = data.find(b"\r\n", at)
        size = int(data[at:end].split(b";")[0], 16) if end >= 0 else -1
        if end < 0 or len(data) < end + 4 + size:
            rest = data[end + 2 : end + 2 + max(size, 0)] if end >= 0 else b""
            cut = {"framing": "chunked-truncated", "body": text(body + rest)}
            return Message(value | cut, len(data), closed)
        if size == 0:
            whole = {"framing": "chunked", "body": text(body), "chunks": sizes}
            return Message(value | whole, end + 4, True)
        body += data[end + 2 : end + 2 + size]
        sizes.append(size)
        at = end + 4 + size


class Service:
    """A service that answers from a script, in the order requests arrive; DEFAULT when the script is used up."""

    def __init__(self) -> None:
        self.script: deque[Any] = deque()
        self.seen: list[dict[str, Any]] = []
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        data = b""
        began = 0.0
        arrivals: list[list[Any]] = []
        entry: dict[str, Any] | None = None
        try:
            while True:
                piece = await reader.read(1 << 20)
                if not piece:
                    return
                now = time.monotonic()
                if not data:
                    began, arrivals, entry = now, [], {}
                    self.seen.append(entry)
                data += piece
                arrivals.append([int((now - began) * 1000), len(piece)])
                assert entry is not None
                try:
                    message = read_message(data, closed=False)
                except ValueError:
                    message = None
                if message is None:
                    entry["partial"] = text(data)
                    continue
                entry.clear()
                entry.update({"received": message.value, "arrivals_ms": arrivals})
                if not message.complete:
                    continue
                data = data[message.size :]
                if not await self._answer(writer):
                    return
        except (ConnectionError, asyncio.CancelledError):  # a service that is stopped says nothing
            return
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter) -> bool:
        steps = self.script.popleft() if self.script else [DEFAULT]
        for step in steps:
            if isinstance(step, int | float):
                await asyncio.sleep(step)
            elif step == "close":
                return False
            elif step == "hang":
                await asyncio.sleep(30)
                return False
            else:
                writer.write(part_bytes(step))
                await writer.drain()
        return True


@dataclass
class Seen:
    """What the client saw of one exchange."""

    responses: list[dict[str, Any]] = field(default_factory=list)
    interim: list[dict[str, Any]] = field(default_factory=list)
    rest: bytes = b""
    closed: bool = False
    reset: bool = False
    tls_error: str | None = None
    arrivals: list[list[int]] = field(default_factory=list)


async def play(
    request: list[Any],
    port: int,
    *,
    expect: int,
    until_closed: bool,
    patience: float,
    tls: bool = False,
    sni: str | None = None,
    client_ip: str | None = None,
) -> Seen:
    """Sends the parts of `request`, reads until `expect` responses are complete (or the gateway closes)."""
    seen = Seen()
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1",
            port,
            ssl=context,
            server_hostname=(sni or "") if tls else None,
            local_addr=(client_ip, 0) if client_ip else None,
        )
    except ssl.SSLError as error:
        seen.tls_error = (error.reason or str(error)).upper().replace(" ", "_")
        return seen
    except ConnectionError as error:
        seen.tls_error = type(error).__name__
        return seen
    methods: list[bytes] = []
    sender = asyncio.create_task(_send(request, writer, methods))
    data = bytearray()
    began = time.monotonic()
    try:
        while not seen.closed:
            try:
                async with asyncio.timeout(patience):
                    piece = await reader.read(1 << 20)
            except TimeoutError:
                break
            except ConnectionError:
                seen.closed = seen.reset = True
                break
            if piece:
                seen.arrivals.append([int((time.monotonic() - began) * 1000), len(piece)])
            seen.closed = not piece
            data += piece
            _cut(data, seen, methods, closed=seen.closed, limit=expect)
            if len(seen.responses) >= expect and not until_closed and sender.done() and not data:
                break
            if expect and len(seen.responses) >= expect and not until_closed:
                patience = min(patience, 0.3)
        _cut(data, seen, methods, closed=seen.closed, limit=expect)
        if not data.startswith(b"HTTP/") or len(seen.responses) < expect or expect == 0:
            seen.rest = bytes(data)  # the recording stopped at the last response it waited for
    finally:
        sender.cancel()
        writer.close()
    return seen


async def _send(request: list[Any], writer: asyncio.StreamWriter, methods: list[bytes]) -> None:
    """Sends the parts; what is not separated by a pause goes out in one write, as it was recorded."""
    joined = bytearray()

    def flush() -> None:
        if joined:
            methods.extend(re.findall(rb"(?:^|(?<=\n))([A-Z]+) \S+ HTTP/1", bytes(joined)))
            writer.write(bytes(joined))
            joined.clear()

    for part in request:
        if isinstance(part, dict) and "sleep_s" in part:
            flush()
            await asyncio.sleep(part["sleep_s"])
        elif isinstance(part, dict) and part.get("action") == "eof":
            flush()
            writer.write_eof()
        elif isinstance(part, dict) and part.get("action") == "abort":
            flush()
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return
        else:
            joined += part_bytes(part)
    flush()


def _cut(data: bytearray, seen: Seen, methods: list[bytes], *, closed: bool, limit: int) -> None:
    while data.startswith(b"HTTP/") and (len(seen.responses) < limit or limit == 0):
        number = len(seen.responses)
        bodyless = number < len(methods) and methods[number] == b"HEAD"
        message = read_message(bytes(data), closed=closed, bodyless=bodyless)
        if message is None or not message.complete:
            return
        del data[: message.size]
        if re.match(r"HTTP/1\.\d 1\d\d", message.value["start"]):
            seen.interim.append(message.value | {"interim": True})
        else:
            seen.responses.append(message.value)


class Bindings:
    """The values of {{request_id:n}} and its like in one exchange: the same name is the same value everywhere."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}

    def problem(self, got: Any, want: Any, path: str) -> str | None:
        """Where `got` differs from `want`, or None."""
        if isinstance(want, dict):
            return self._dict(got, want, path)
        if isinstance(want, list):
            if not isinstance(got, list) or len(got) != len(want):
                return f"{path}: got {short(got)}, want {short(want)}"
            for index, (g, w) in enumerate(zip(got, want, strict=True)):
                if (found := self.problem(g, w, f"{path}[{index}]")) is not None:
                    return found
            return None
        if isinstance(want, str) and "{{" in want:
            return self._text(got, want, path)
        return None if got == want else f"{path}: got {short(got)}, want {short(want)}"

    def _dict(self, got: Any, want: dict[str, Any], path: str) -> str | None:
        if "$volatile" in want:
            return None
        if "rep" in want:
            want_text = want["rep"][0] * want["rep"][1]
            return None if got == want_text else f"{path}: got {short(got)}, want {short(want)}"
        if not isinstance(got, dict) or got.keys() != want.keys():
            return f"{path}: got {short(got)}, want {short(want)}"
        for key, inner in want.items():
            if (found := self.problem(got[key], inner, f"{path}.{key}")) is not None:
                return found
        return None

    def _text(self, got: Any, want: str, path: str) -> str | None:
        wrong = f"{path}: got {short(got)}, want {short(want)}"
        if not isinstance(got, str):
            return wrong
        names: list[str] = []
        pattern = ""
        at = 0
        for token in _TOKEN.finditer(want):
            pattern += re.escape(want[at : token.start()])
            pattern += {"request_id": "([0-9a-f]{32})", "int": "([0-9]+)"}.get(token[1], "(.+?)")
            names.append(token[0] if token[1] == "request_id" else "")
            at = token.end()
        match = re.fullmatch(pattern + re.escape(want[at:]), got, re.S)
        if match is None:
            return wrong
        for name, value in zip(names, match.groups(), strict=True):
            if name and self._values.setdefault(name, value) != value:
                return f"{path}: {name} is {value} here and {self._values[name]} elsewhere"
        return None


def message_problem(bindings: Bindings, got: dict[str, Any], want: dict[str, Any], path: str) -> str | None:
    """Compares two HTTP messages; `header_order: "varies"` leaves only the order of equal names."""
    want = {key: value for key, value in want.items() if key not in ("header_order", "arrivals_ms")} | {
        "headers": want["headers"]
    }
    got = {key: value for key, value in got.items() if key != "arrivals_ms"}
    return bindings.problem(got, want, path)


def ordered(got: dict[str, Any], want: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both messages with headers sorted by name if Kong's own order is not fixed."""
    if want.get("header_order") != "varies":
        return got, want

    def by_name(message: dict[str, Any]) -> dict[str, Any]:
        return message | {"headers": sorted(message["headers"], key=lambda line: str(line[0]).lower())}

    return by_name(got), by_name(want)


def short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) < 900 else f"{shown[:600]}…{shown[-200:]}"
