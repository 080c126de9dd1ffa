"""A client's connection that is lent to another process, which writes a request's answer on it.

Meanwhile uvicorn goes on reading, so that it knows when the client leaves. Then the connection ends: it may be a
gateway's, and the next request on it anybody's, which is nothing for a process that has had it.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

_EXTENSION = "claude_invoker.connection"


class Lendable(HttpToolsProtocol):
    """Uvicorn's protocol, each request of which brings its connection (`connection_of`)."""

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self.scope["extensions"] = {_EXTENSION: Connection(self.cycle)}  # type: ignore[dict-item]

    def send_400_response(self, msg: str) -> None:
        """Of what is no request. Where an answer is under way it would stand in the middle of that: its client has left
        then, for all that is known."""
        cycle = self.cycle
        if self.pipeline or (cycle is not None and cycle.response_started and not cycle.response_complete):
            self.transport.close()
        else:
            super().send_400_response(msg)


class Connection:
    """Of one request, whose turn to be answered has come."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    async def lend(self) -> int:
        """A descriptor of it, the caller's own, once all that was written before is out. From now on nothing is written
        here, unless it is `unused`. Raises OSError where the client has left."""
        transport = self._cycle.transport
        while transport.get_write_buffer_size() and not transport.is_closing():
            await asyncio.sleep(0.01)  # the answer before this one, which its client has not read yet
        descriptor = os.dup(transport.get_extra_info("socket").fileno())
        self._cycle.response_started = True
        return descriptor

    def end(self) -> None:
        """The answer is over, whether or not it has its end."""
        self._cycle.disconnected = True
        self._cycle.transport.close()

    def unused(self) -> None:
        """Nothing was written on it: it is answered as ever."""
        self._cycle.response_started = False


def connection_of(scope: Scope) -> Connection:
    """Of a request that `Lendable` has read."""
    found: Any = scope["extensions"][_EXTENSION]
    assert isinstance(found, Connection)
    return found
