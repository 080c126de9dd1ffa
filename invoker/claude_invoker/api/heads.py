"""A time and a size limit for the heads of requests: uvicorn has none, so that a client could hold a connection, or
fill our memory, by never ending one."""

from __future__ import annotations

import asyncio
from typing import Any

from claude_invoker.api.lending import Lendable

MAX_HEAD = 64 * 1024
"""Bytes; a gateway's attestation and all other headers have some 8,000."""


class _Bounded(Lendable):
    head_s = 0.0

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._late: asyncio.TimerHandle | None = None
        self._head = 0

    @property
    def _in_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._late is not None:
            self._head += len(data)
            if self._head > MAX_HEAD:
                self._close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._late is None:
            self._wait()

    def on_headers_complete(self) -> None:
        self._done()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._done()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._head = 0
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


def heads_within(head_s: float) -> type[Lendable]:
    """uvicorn's protocol, with a limit of so many seconds from a connection's beginning, or the first byte of a further
    request, to the end of the head. Then the connection is closed, as it is where a head has more than `MAX_HEAD`."""
    return type("BoundedHeads", (_Bounded,), {"head_s": head_s})
