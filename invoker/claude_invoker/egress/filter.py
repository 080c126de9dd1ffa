"""The filter: `python -I -m claude_invoker.egress.filter UID DESCRIPTOR`, started by `filters.Filters`.

It takes listeners, each from the network of one run, and answers CONNECT on them. It reads what hostile programs send,
so it is a process of its own, with a user id of its own and without privileges, and holds no secret.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import contextlib
import ctypes
import encodings.idna  # noqa: F401 -- asyncio's, when it first looks a name up: see `become`
import os
import re
import resource
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from claude_contract.destinations import Destination
from claude_invoker.egress import addresses, wire
from claude_invoker.egress.wire import Moved, Order, Visit
from claude_invoker.isolation.box import least

MAX_HEAD = 8192  # bytes of a request
HEAD_S, RESOLVE_S, CONNECT_S, IDLE_S = 10.0, 10.0, 10.0, 120.0
MAX_ADDRESSES = 4
"""Of a name that are called, one after the other: whoever owns a name could give it a thousand."""
MAX_OPEN = 64
"""Connections of a run at once."""
MAX_ASKED = 2000
"""Connections of a run in all, refused ones included: each is a line in the invoker's log, and takes all runs' time."""
MAX_LOOKED_UP = 4
"""Names of a run that are looked up at once: one may take as long as whoever serves its zone wants."""
_LOOKING = 64
"""And of all runs: threads."""
_CHUNK = 1 << 17  # bytes; a connection holds a few of them
_REPORT = 1 << 20  # bytes after which a connection says what it has moved
_PR_SET_NO_NEW_PRIVS = 38
_CONNECT = re.compile(rb"CONNECT ([A-Za-z0-9._-]{1,253}):([0-9]{1,5}) HTTP/1\.[01]\r\n")

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Host and port to addresses. Raises OSError."""
Public = Callable[[list[str]], bool]


class Refused(Exception):
    """A request that is not let through: `status` and why, in words for whoever sees the run's output."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class UsedUp(Exception):
    """The run has moved as many bytes as it may."""


@dataclass
class Passage:
    """What one run may still do."""

    number: int
    hosts: tuple[Destination, ...]
    max_bytes: int
    bytes_left: int
    asked: int = 0
    begun: bool = False
    server: asyncio.Server | None = None
    looking: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_LOOKED_UP))
    connections: set[asyncio.Task[None]] = field(default_factory=set)

    def admit(self, head: bytes) -> Destination:
        """Where a request wants to go. Raises Refused."""
        found = _CONNECT.match(head)
        if found is None:
            raise Refused(405, "only https gets out of a run: this proxy answers CONNECT host:port, no http:// URLs")
        wanted = Destination(found[1].decode().lower(), int(found[2]))
        if not self.begun:
            raise Refused(403, "the run has not begun")
        if not any(host.covers(wanted) for host in self.hosts):
            raise Refused(403, f"{wanted.host}:{wanted.port} is not among the hosts that the tier of this run opens")
        if self.bytes_left <= 0:
            raise Refused(403, self.used_up)
        return wanted

    @property
    def used_up(self) -> str:
        return f"this run has moved the {self.max_bytes} bytes that it may (INVOKER_EGRESS_MAX_BYTES)"


async def resolve(host: str, port: int) -> list[str]:
    """As the machine does, but for its search domains. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(f"{host}.", port, type=socket.SOCK_STREAM)
    return [str(place[0]) for *_, place in found]


class Filter:
    """Serves until the invoker closes `control`."""

    def __init__(self, control: socket.socket, resolve: Resolve, public: Public) -> None:
        self._control = control
        self._resolve = resolve
        self._public = public
        self._passages: dict[int, Passage] = {}
        self._telling = asyncio.Lock()

    async def serve(self) -> None:
        """Raises nothing that the invoker could not have caused."""
        over = asyncio.Event()
        loop = asyncio.get_running_loop()

        def heard() -> None:
            packet, descriptors, *_ = socket.recv_fds(self._control, wire.MAX_PACKET, 1)
            if not packet:
                loop.remove_reader(self._control)
                over.set()
                return
            order = wire.decode(packet)
            assert isinstance(order, Order)
            self._obey(order, descriptors)

        loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(_LOOKING))
        self._control.setblocking(False)
        loop.add_reader(self._control, heard)
        await over.wait()

    def _obey(self, order: Order, descriptors: list[int]) -> None:
        if order.verb == "open":
            passage = Passage(order.passage, order.hosts, order.max_bytes, order.max_bytes)
            self._passages[order.passage] = passage
            listener = socket.socket(fileno=descriptors[0])
            opening = asyncio.create_task(self._open(passage, listener))
            passage.connections.add(opening)
            opening.add_done_callback(passage.connections.discard)
        elif order.verb == "begin":
            self._passages[order.passage].begun = True
        elif (closed := self._passages.pop(order.passage, None)) is not None:
            if closed.server is not None:
                closed.server.close()
            for connection in closed.connections:
                connection.cancel()

    async def _open(self, passage: Passage, listener: socket.socket) -> None:
        passage.server = await asyncio.start_server(
            lambda reader, writer: self._accepted(passage, reader, writer), sock=listener, limit=_CHUNK
        )

    def _accepted(self, passage: Passage, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passage.asked += 1
        if passage.asked > MAX_ASKED and passage.server is not None:
            passage.server.close()  # from now on the kernel refuses: this one hears why, and nobody waits for others
        if len(passage.connections) >= 2 * MAX_OPEN:  # nor as many that wait for an answer
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(passage, reader, writer))
        passage.connections.add(task)
        task.add_done_callback(passage.connections.discard)

    async def _serve(self, passage: Passage, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a run."""
        try:
            # Read in any case: what is left unread would break the connection before the answer is there.
            head = await _head(reader)
            if passage.asked > MAX_ASKED:
                raise Refused(429, f"this run has asked for {MAX_ASKED} connections, which is all that it gets")
            if len(passage.connections) > MAX_OPEN:
                raise Refused(429, f"this run has {MAX_OPEN} connections open, which is as many as it gets at once")
            wanted = passage.admit(head)
            there, into = await self._dial(passage, wanted)
            try:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await self._relay(passage, (reader, writer), (there, into))
            finally:
                into.transport.abort()
        except Refused as refusal:
            if passage.asked <= MAX_ASKED:
                await self._tell(Visit(passage.number, "", refusal=str(refusal)))
            writer.write(_answer(refusal))
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(HEAD_S):
                    writer.close()
                    await writer.wait_closed()
        except (UsedUp, OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the connection breaks
        finally:
            writer.transport.abort()

    async def _dial(self, passage: Passage, wanted: Destination) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to what the host's name means now: looked up once, and the address that was looked at is the one
        that is called. Raises Refused."""
        name = f"{wanted.host}:{wanted.port}"
        try:
            async with asyncio.timeout(RESOLVE_S):
                found = list(dict.fromkeys(await self._looked_up(passage, wanted)))
        except (OSError, TimeoutError, UnicodeError) as error:
            raise Refused(502, f"{name} is not known") from error
        if not self._public(found):
            raise Refused(403, f"{name} has an address that is not one of the internet's")
        for address in found[:MAX_ADDRESSES]:
            await self._tell(Visit(passage.number, name, address))
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(CONNECT_S):
                    return await asyncio.open_connection(address, wanted.port, limit=_CHUNK)
        raise Refused(502, f"{name} cannot be reached")

    async def _looked_up(self, passage: Passage, wanted: Destination) -> list[str]:
        """A look-up that nobody waits for any more goes on, in a thread, and counts as long. Raises OSError."""
        await passage.looking.acquire()
        looking = asyncio.ensure_future(self._resolve(wanted.host, wanted.port))

        def done(looked: asyncio.Future[list[str]]) -> None:
            passage.looking.release()
            if not looked.cancelled():
                looked.exception()  # nobody may be there any more to hear it

        looking.add_done_callback(done)
        return await asyncio.shield(looking)

    async def _relay(
        self,
        passage: Passage,
        run: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        host: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        """Until both have said all. Raises UsedUp, TimeoutError, OSError."""
        loop = asyncio.get_running_loop()
        unreported = 0

        async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal unreported
            while chunk := await reader.read(_CHUNK):
                idle.reschedule(loop.time() + IDLE_S)
                if passage.bytes_left < len(chunk):
                    passage.bytes_left = 0
                    raise UsedUp
                passage.bytes_left -= len(chunk)
                unreported += len(chunk)
                writer.write(chunk)
                await writer.drain()
                if unreported >= _REPORT:
                    moved, unreported = unreported, 0
                    await self._tell(Moved(passage.number, moved))
            writer.write_eof()

        try:
            async with asyncio.timeout(IDLE_S) as idle, asyncio.TaskGroup() as both:
                both.create_task(pump(run[0], host[1]))
                both.create_task(pump(host[0], run[1]))
        except* UsedUp:
            await self._tell(Visit(passage.number, "", refusal=passage.used_up))
        except* OSError:
            pass
        finally:
            if unreported:
                await self._tell(Moved(passage.number, unreported))

    async def _tell(self, message: Visit | Moved) -> None:
        """Waits until the invoker has it: nothing goes out that it does not know of."""
        async with self._telling:  # the loop keeps one waiting writer for each socket
            await asyncio.get_running_loop().sock_sendall(self._control, wire.encode(message))


async def _head(reader: asyncio.StreamReader) -> bytes:
    """Raises Refused, asyncio.IncompleteReadError, OSError."""
    too_long = Refused(431, f"the head of a request may have {MAX_HEAD} bytes")
    try:
        async with asyncio.timeout(HEAD_S):
            head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise too_long from None
    except TimeoutError as error:
        raise Refused(408, f"the head of a request has to come within {HEAD_S:g} s") from error
    if len(head) > MAX_HEAD:
        raise too_long
    return head


def _answer(refusal: Refused) -> bytes:
    """The reason in its first line too, which is all that most programs show."""
    text = f"{refusal}\n"
    return (
        f"HTTP/1.1 {refusal.status} {refusal}\r\ncontent-type: text/plain\r\ncontent-length: {len(text)}\r\n"
        f"connection: close\r\n\r\n{text}"
    ).encode()


def become(uid: int) -> None:
    """Gives up all that it was started with, for good; where an ordinary user has started it, it stays that user's.
    Nothing can be imported after it: Python's own files may be in a directory that others cannot enter. Raises OSError.
    """
    closed = least()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # three for each connection
    if uid != os.geteuid():
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if closed is not None:
        closed()


def main(resolve: Resolve = resolve, public: Public = addresses.all_public) -> None:
    """The parameters are there for tests, which have no names and no addresses on the internet."""
    uid, descriptor = map(int, sys.argv[1:3])
    become(uid)
    asyncio.run(Filter(socket.socket(fileno=descriptor), resolve, public).serve())


if __name__ == "__main__":
    main()
