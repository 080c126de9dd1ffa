"""Connections to services: a keep-alive pool and the reading of response heads (ngx_http_proxy_module.c)."""

from __future__ import annotations

import asyncio
import re
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from minikong.context import Headers
from minikong.http.wire import Wire

if TYPE_CHECKING:
    from minikong.conf import KongConf

_STATUS_LINE = re.compile(rb"HTTP/([1-9][0-9]{0,2})\.([0-9]{1,3}) +([0-9]{3})(?:[ .][^\r\n]*)?$")
_HEADER = re.compile(rb"([^\x00-\x20\x7f:][^\x00-\x20\x7f:]*)(?:: *([^\x00]*))?$")
_HEADER_BUFFER = 4096  # proxy_buffer_size: the whole head must fit
_IGNORED = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"transfer-encoding",
        b"content-length",
        b"x-pad",
        b"x-accel-expires",
        b"x-accel-redirect",
        b"x-accel-limit-rate",
        b"x-accel-buffering",
        b"x-accel-charset",
        b"status",
    )
)
Key = tuple[str, int, str | None]  # address, port, SNI of a TLS connection


class UpstreamFailure(Exception):
    """A try that failed: `status` for the client, `retry` if nginx passes to the next try (error, timeout)."""

    def __init__(self, status: int, reason: str, *, retry: bool) -> None:
        super().__init__(reason)
        self.status = status
        self.retry = retry


@dataclass(slots=True)
class UpstreamHead:
    """The head of a service's response."""

    status: int = 200
    line: bytes = b"200 OK"  # status and reason as sent
    raw: Headers = field(default_factory=Headers)  # all lines
    passed: Headers = field(default_factory=Headers)  # what nginx hands on to its filters
    length: int | None = None
    chunked: bool = False
    keep_alive: bool = True
    http09: bool = False  # no head at all: everything is body


class UpstreamConnection(Wire):
    def __init__(self) -> None:
        super().__init__()
        self.requests = 0
        self.idle: asyncio.TimerHandle | None = None

    def eof_received(self) -> bool:
        super().eof_received()
        return False  # a service that has ended gets no more from us

    async def read_head(self, timeout: float) -> UpstreamHead:
        """Raises UpstreamFailure (502, 504)."""
        while True:
            head = self._parse()
            if head is not None:
                return head
            if len(self.buffer) >= _HEADER_BUFFER:
                raise UpstreamFailure(502, "upstream sent too big header", retry=False)
            if not await self.fill(timeout):
                if self.eof:
                    raise UpstreamFailure(502, "upstream prematurely closed connection", retry=True)
                raise UpstreamFailure(504, "upstream timed out", retry=True)

    def _parse(self) -> UpstreamHead | None:
        buffer = self.buffer
        end = buffer.find(b"\n")
        if end < 0:
            if buffer and not b"HTTP/".startswith(buffer[:5]):
                return UpstreamHead(keep_alive=False, http09=True)
            return None
        match = _STATUS_LINE.match(bytes(buffer[:end]).removesuffix(b"\r"))
        if match is None:
            return UpstreamHead(keep_alive=False, http09=True)
        done = buffer.find(b"\r\n\r\n", max(0, end - 1)), buffer.find(b"\n\n", end)
        ends = [at for at in done if at >= 0]
        if not ends:
            return None
        head = UpstreamHead(int(match[3]), match[0].partition(b" ")[2].lstrip(b" "))
        head.keep_alive = (int(match[1]), int(match[2])) >= (1, 1)
        size = self._header_lines(head, end + 1)
        if size is None:
            return None
        if size > _HEADER_BUFFER:
            raise UpstreamFailure(502, "upstream sent too big header", retry=False)
        del buffer[:size]
        return head

    def _header_lines(self, head: UpstreamHead, at: int) -> int | None:
        buffer = self.buffer
        while True:
            end = buffer.find(b"\n", at)
            if end < 0:
                return None
            line = bytes(buffer[at:end]).rstrip(b"\r")
            at = end + 1
            if not line:
                return at
            if line.startswith(b"HTTP/"):
                continue  # IIS repeats its status line
            match = _HEADER.match(line)
            if match is None or b"\r" in line:
                raise UpstreamFailure(502, "upstream sent invalid header", retry=False)
            name, value = match[1], (match[2] or b"").rstrip(b" ")
            self._take_header(head, name, value)

    def _take_header(self, head: UpstreamHead, name: bytes, value: bytes) -> None:
        low = name.lower()
        head.raw.lines.append((name, value))
        if low not in _IGNORED:
            head.passed.lines.append((name, value))
        elif low == b"content-length":
            if head.length is not None or head.chunked or not re.fullmatch(rb"[0-9]{1,18}", value):
                raise UpstreamFailure(502, "upstream sent invalid Content-Length", retry=False)
            head.length = int(value)
        elif low == b"transfer-encoding":
            if head.length is not None or head.chunked or value.lower() != b"chunked":
                raise UpstreamFailure(502, "upstream sent invalid Transfer-Encoding", retry=False)
            head.chunked = True
        elif low == b"connection" and b"close" in value.lower():
            head.keep_alive = False


class UpstreamPool:
    """Idle connections by address, last used first."""

    def __init__(self, conf: KongConf) -> None:
        self._conf = conf
        self._idle: dict[Key, list[UpstreamConnection]] = {}
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._tls.check_hostname = False
        self._tls.verify_mode = ssl.CERT_NONE  # Kong: tls_verify off by default

    def take(self, key: Key) -> UpstreamConnection | None:
        """An idle connection, or None."""
        idle = self._idle.get(key)
        while idle:
            connection = idle.pop()
            if connection.idle is not None:
                connection.idle.cancel()
            connection.on_eof = None
            if not connection.eof and not connection.buffer:
                return connection
            connection.abort()
        return None

    async def connect(self, key: Key, timeout: float) -> UpstreamConnection:
        """Raises UpstreamFailure 502 or 504."""
        loop = asyncio.get_running_loop()
        host, port, sni = key
        try:
            async with asyncio.timeout(timeout):
                _, connection = await loop.create_connection(
                    UpstreamConnection,
                    host,
                    port,
                    ssl=self._tls if sni is not None else None,
                    server_hostname=sni,
                )
        except TimeoutError:
            raise UpstreamFailure(504, "upstream timed out while connecting", retry=True) from None
        except (OSError, ssl.SSLError) as error:
            raise UpstreamFailure(502, f"connect() failed: {error}", retry=True) from None
        return connection

    def release(self, key: Key, connection: UpstreamConnection) -> None:
        """Keeps a connection whose response was read to the end; closes it if it cannot be used again."""
        idle = self._idle.setdefault(key, [])
        if connection.eof or connection.buffer or len(idle) >= 512 or connection.requests >= 10000:
            connection.abort()
            return

        def drop() -> None:
            if connection in idle:
                idle.remove(connection)
            connection.abort()

        connection.on_eof = drop
        connection.idle = asyncio.get_running_loop().call_later(self._conf.upstream_keepalive_idle_timeout, drop)
        idle.append(connection)

    def close(self) -> None:
        for idle in self._idle.values():
            for connection in list(idle):
                connection.on_eof = None
                if connection.idle is not None:
                    connection.idle.cancel()
                connection.abort()
        self._idle.clear()
