"""Requests whose answers the proxy writes itself on the client's connection: how the invoker hands them over.

Each piece of an answer that went by the invoker would be read and written once more, by another process that has to be
woken for it. The connection is open in both while the answer lasts, and ends with it: the proxy alone writes, and the
invoker alone reads, so that it knows when its client leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from claude_invoker.metering.heads import Headers, to_client
from claude_invoker.metering.wire import MAX_PACKET, Answered, Handed, Open

_ENCODE = msgspec.msgpack.Encoder().encode
_DECODE = msgspec.msgpack.Decoder(Handed).decode
_BREAKS = re.compile(rb"[\r\n\0]")
"""What no parser lets through, and would be a line of its own."""


class NotHanded(Exception):
    """The proxy has not got it."""


class Lost(Exception):
    """The proxy has ended; something may have been written on the connection."""


@dataclass(frozen=True)
class Request:
    """One that is handed over, and where its answer goes."""

    path: str
    query: bytes
    headers: Headers
    """As they go on to the API."""
    body: bytes
    connection: int
    """A descriptor of the client's connection, the caller's own: no other connection gets its number meanwhile."""
    request_id: str
    """The gateway's; empty where there is none."""


def pair() -> tuple[socket.socket, socket.socket]:
    """The invoker's end, and the proxy's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


class Hands:
    """The invoker's side, to one proxy."""

    def __init__(self, ours: socket.socket) -> None:
        self._socket = ours
        self._turn = asyncio.Lock()
        self._waiting: dict[int, asyncio.Future[Answered]] = {}
        self._untaken: dict[str, asyncio.Event] = {}
        """Of runs that were handed over and that the proxy has not read yet: what is said of them by the other way may
        come before."""
        self._is_lost = False

    async def give(self, account: Open, asked: Request) -> asyncio.Future[Answered]:
        """Returns when it is handed over; what it returns is done when the answer is over, or fails with Lost. Raises
        NotHanded."""
        message = Handed(account, asked.path, asked.query, tuple(asked.headers), asked.request_id)
        answered: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        self._waiting[account.id], self._untaken[account.run] = answered, asyncio.Event()
        try:
            await self._send(_ENCODE(message), asked.connection, asked.body)
        except BaseException:
            self.taken(account.run)
            del self._waiting[account.id]
            raise
        return answered

    def taken(self, run: str) -> None:
        if (event := self._untaken.pop(run, None)) is not None:
            event.set()

    async def until_taken(self, run: str) -> None:
        """Returns once the proxy knows what was handed over of this run, or is no more."""
        if (event := self._untaken.get(run)) is not None:
            await event.wait()

    def heard(self, message: Answered) -> None:
        answered = self._waiting.pop(message.id, None)
        if answered is not None and not answered.done():
            answered.set_result(message)

    def lost(self) -> None:
        """The proxy is no more."""
        self._is_lost = True
        if self._turn.locked():  # who waits for room there wakes up, and closes it
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        else:
            self._socket.close()
        for run in list(self._untaken):
            self.taken(run)
        for answered in self._waiting.values():
            if not answered.done():
                answered.set_exception(Lost("the metering proxy has ended"))
                answered.exception()  # whoever waits for it is told; nobody has to

    async def _send(self, packet: bytes, connection: int, body: bytes) -> None:
        """Raises NotHanded."""
        if len(packet) > MAX_PACKET:
            raise NotHanded("the request's head is too large")
        try:
            content = os.memfd_create("body", os.MFD_CLOEXEC)
            try:
                with open(content, "wb", closefd=False) as file:
                    file.write(body)
                await self._send_all(packet, [connection, content])
            finally:
                os.close(content)
        except OSError as error:
            raise NotHanded("the metering proxy does not take it") from error

    async def _send_all(self, packet: bytes, descriptors: list[int]) -> None:
        """Raises OSError."""
        async with self._turn:
            try:
                while not self._is_lost:
                    try:
                        socket.send_fds(self._socket, [packet], descriptors)
                        return
                    except BlockingIOError:
                        await _writable(self._socket)
            finally:
                if self._is_lost:
                    self._socket.close()
        raise BrokenPipeError


@dataclass(frozen=True)
class Arrived:
    """What has been handed over, in the proxy."""

    message: Handed
    connection: Connection
    body: bytes


def take(theirs: socket.socket, each: Callable[[Arrived], None], untaken: Callable[[Handed], None]) -> None:
    """Calls `each` for whatever is handed over, from now on; `untaken` for that whose connection or body has not come
    with it, since this process has as many open as it may."""

    def ready() -> None:
        try:
            packet, descriptors, _, _ = socket.recv_fds(theirs, MAX_PACKET, 2, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        if not packet:  # the invoker is no more
            loop.remove_reader(theirs)
            return
        message = _DECODE(packet)
        if len(descriptors) < 2:
            for descriptor in descriptors:
                os.close(descriptor)
            untaken(message)
            return
        connection, content = descriptors
        with open(content, "rb") as file:
            file.seek(0)
            body = file.read()
        each(Arrived(message, Connection(socket.socket(fileno=connection), message), body))

    loop = asyncio.get_running_loop()
    loop.add_reader(theirs, ready)


class Connection:
    """On which an answer is written, as ASGI has it. To be closed."""

    def __init__(self, connection: socket.socket, message: Handed) -> None:
        self._socket = connection
        self._request_id = message.request_id.encode()
        self._is_chunked = True
        self._is_whole = False
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the client has left."""

    def left(self) -> None:
        if not self.gone.done():
            self.gone.set_result(None)

    async def send(self, message: dict[str, Any]) -> None:
        """A message of ASGI's. Nothing is held back: each is written before this returns, or the client has left."""
        if message["type"] == "http.response.start":
            await self._write(self._head(message["status"], message["headers"]))
            return
        body, is_last = message.get("body", b""), not message.get("more_body")
        if self._is_chunked:
            body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + (b"0\r\n\r\n" if is_last else b"")
        await self._write(body)
        self._is_whole = is_last and not self.gone.done()

    def _head(self, status: int, given: Headers) -> bytes:
        """With the API's own name of the request, else the gateway's."""
        headers = to_client(given)
        names = {name for name, _ in headers}
        self._is_chunked = b"content-length" not in names
        if self._is_chunked:
            headers.append((b"transfer-encoding", b"chunked"))
        if self._request_id and b"request-id" not in names:
            headers.append((b"request-id", self._request_id))
        headers.append((b"connection", b"close"))
        lines = [b"%b: %b\r\n" % header for header in headers if not _BREAKS.search(b"%b%b" % header)]
        return b"HTTP/1.1 %d \r\n%b\r\n" % (status, b"".join(lines))

    async def _write(self, data: bytes) -> None:
        while data and not self.gone.done():
            try:
                data = data[self._socket.send(data) :]  # nothing is left, but for who does not read
            except BlockingIOError:
                await _writable(self._socket)
            except OSError:
                self.left()

    def close(self) -> bool:
        """Whether the answer has its end."""
        self._socket.close()
        return self._is_whole


async def _writable(to: socket.socket) -> None:
    """Returns when there is room."""
    loop = asyncio.get_running_loop()
    room = asyncio.Event()
    loop.add_writer(to, room.set)
    try:
        await room.wait()
    finally:
        loop.remove_writer(to)
