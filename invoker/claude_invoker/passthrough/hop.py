"""From the invoker to its metering proxy: one request on a connection of its own, and the answer as it comes.

Every piece of every stream takes this way. An HTTP client's own layers cost more for each than all else that is done
with it; what they are for (pools, redirects, TLS, names) there is none of on a socket between two processes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import cast

import httptools

from claude_invoker.passthrough.heads import Headers

_MOST_UNREAD = 256 << 10
"""Bytes of an answer that wait for a slow client here; beyond, the API waits."""


class BrokenOff(Exception):
    """The metering proxy is not there, or its answer has no end."""


class Answer(asyncio.Protocol):
    """A connection, and the answer to what is asked on it. To be closed."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Headers = []
        """Names in lower case."""
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._pieces: deque[bytes] = deque()
        self._unread = 0
        self._is_begun = False
        self._is_over = False
        self._is_lost = False
        self._news = asyncio.Event()

    async def ask(self, target: str, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        """`POST` of a body, whose length is added; returns when the answer's head is there. Raises BrokenOff."""
        lines = [
            b"POST %b HTTP/1.1" % target.encode("latin-1"),
            b"connection: close",
            b"content-length: %d" % len(body),
        ]
        lines += [b"%b: %b" % header for header in headers]
        head = b"\r\n".join(lines)
        if head.count(b"\n") != len(lines) - 1 or head.count(b"\r") != len(lines) - 1:
            raise BrokenOff  # a line in a header: no server lets it come so far
        if self._transport is not None:
            self._transport.writelines([head, b"\r\n\r\n", body])
        while not self._is_begun:
            await self._next()

    async def pieces(self) -> AsyncIterator[bytes]:
        """As they were sent, none merged with another. Raises BrokenOff."""
        while True:
            while self._pieces:
                piece = self._pieces.popleft()
                self._unread -= len(piece)
                if self._transport is not None and self._unread <= _MOST_UNREAD and not self._transport.is_reading():
                    self._transport.resume_reading()
                yield piece
            if self._is_over:
                return
            await self._next()

    def close(self) -> None:
        self._is_lost = True
        if self._transport is not None:
            self._transport.abort()

    async def _next(self) -> None:
        if self._is_lost:
            raise BrokenOff
        self._news.clear()
        await self._news.wait()

    # What the transport says.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()
        if self._unread > _MOST_UNREAD and self._transport is not None and not self._is_lost:
            self._transport.pause_reading()
        self._news.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost, self._transport = True, None
        self._news.set()

    # What the parser says.

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._is_begun = True

    def on_body(self, piece: bytes) -> None:
        self._unread += len(piece)
        self._pieces.append(piece)

    def on_message_complete(self) -> None:
        self._is_over = True


async def connect(socket: Path) -> Answer:
    """To be asked once. Raises BrokenOff."""
    try:
        _, answer = await asyncio.get_running_loop().create_unix_connection(Answer, str(socket))
    except OSError as error:
        raise BrokenOff from error
    return answer
