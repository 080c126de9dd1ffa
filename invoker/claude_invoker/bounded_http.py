"""A time and a size limit for what of a request is no body, heads above all: uvicorn has none, so that a client could
hold a connection, or fill our memory, by never ending one."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD = 64 * 1024
"""Bytes; a gateway's attestation and all other headers have some 8,000."""


class _Bounded(HttpToolsProtocol):
    head_s = 0.0

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._late: asyncio.TimerHandle | None = None
        self._is_coming = False
        """Whether a request is, or its head may."""
        self._grew = False
        """Whether something of a request came to its end in this piece: a head, a chunk of a body, all of it."""
        self._size = 0
        """Bytes in which nothing did."""

    @property
    def _in_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._is_coming = True
        self._wait()

    def data_received(self, data: bytes) -> None:
        self._grew = False
        super().data_received(data)
        self._size = 0 if self._grew or not self._is_coming else self._size + len(data)
        if self._size > MAX_HEAD and not self.transport.is_closing():
            self.transport.close()  # also while an answer is under way: it would be kept until that is over

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._late is None:
            self._wait()
            self._is_coming = self._grew = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._late is not None:  # else a trailer, which nobody here asks for
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._done()
        self._grew = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._grew = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_coming = False
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._done()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._late = self.loop.call_later(self.head_s, self._close)

    def _done(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _close(self) -> None:
        if self._in_request:  # a client that sends ahead: first the answer that it waits for
            self._wait()
        elif not self.transport.is_closing():
            self.transport.close()


def heads_within(head_s: float, protocol: type[HttpToolsProtocol] = HttpToolsProtocol) -> type[HttpToolsProtocol]:
    """uvicorn's protocol, or one that is made of it, with a limit of so many seconds from a connection's beginning, or
    the first byte of a further request, to the end of the head. Then the connection is closed, as it is where a head,
    or what stands behind a body, has more than `MAX_HEAD`."""
    return type("BoundedHeads", (_Bounded, protocol), {"head_s": head_s})
