"""One TCP (or TLS) connection seen as a byte buffer to read from and a transport to write to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_HIGH_WATER = 256 * 1024  # bytes of unread input after which reading pauses


class Wire(asyncio.Protocol):
    """Collects input in `buffer` for one reader task; writing never blocks, `drain` waits for the peer to take it."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.eof = False  # the peer closed its side
        self.lost = False  # nothing can be written any more
        self.broken = False  # it ended with an error (reset), not with an orderly close
        self.on_eof: Callable[[], None] | None = None  # called once when the peer closes its side
        self._reading = True
        self._waiter: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # TCP and TLS transports are asyncio.Transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self._reading and len(self.buffer) > _HIGH_WATER:
            self._reading = False
            self.transport.pause_reading()
        self.wake()

    def eof_received(self) -> bool:
        self._ended()
        return True  # the write side stays open (TLS closes regardless)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.broken = exc is not None
        self._ended()
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def pause_writing(self) -> None:
        self._drained = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    def _ended(self) -> None:
        self.eof = True
        self.wake()
        if self.on_eof is not None:
            callback, self.on_eof = self.on_eof, None
            callback()

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def fill(self, patience: float) -> bool:
        """Waits for more input; False at the peer's end of stream or after `patience` seconds."""
        if self.eof:
            return False
        before = len(self.buffer)
        self._read_on()
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        timer = loop.call_later(patience, self.wake)
        try:
            await waiter
        finally:
            timer.cancel()
            if self._waiter is waiter:  # whoever was cancelled here must not take the next one's
                self._waiter = None
        return len(self.buffer) > before

    def taken(self) -> None:
        """Something was taken off the buffer. While nothing is read nobody notices that the peer closes its side."""
        if len(self.buffer) <= _HIGH_WATER:
            self._read_on()

    def _read_on(self) -> None:
        if not self._reading and not self.lost:
            self._reading = True
            self.transport.resume_reading()

    def write(self, data: bytes) -> None:
        if not self.lost:
            self.transport.write(data)

    async def drain(self, patience: float) -> bool:
        """Waits until the peer took enough of what was written; False if it is gone or took longer than `patience`."""
        if self._drained is not None:
            try:
                async with asyncio.timeout(patience):
                    await asyncio.shield(self._drained)
            except TimeoutError:
                return False
        return not self.lost

    def abort(self) -> None:
        """Closes at once and drops what is not sent yet."""
        self.lost = True
        self.transport.abort()
        self._ended()
