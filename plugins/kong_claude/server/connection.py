"""A connection of Kong's: reading frames, writing replies, and who owes one.

Kong never pipelines: it reads an answer before it sends again. A frame that comes while a call is open means that
Kong has given that call up (a read time-out puts the connection back into Kong's pool).
"""

from __future__ import annotations

import _socket
import logging
import time
from array import array
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import gevent

from kong_claude.server import wire
from kong_claude.server.wire import ID_LENGTH, METHOD_AT, NIL, unpack
from kong_claude.server.worker import Worker

if TYPE_CHECKING:
    from kong_claude.server.plugins import Instance, Phase

log = logging.getLogger("kong_claude.pluginserver")

RECEIVE = 448  # most frames fit, and so does the buffer into CPython's small-object allocator
RECEIVE_MORE = 8 << 10  # a client's headers; a larger buffer costs an mmap and a munmap
RECEIVE_MUCH = 1 << 20
READ, WRITE = 1, 2  # libev's
CONNECTIONS = 64  # that a sibling hands over at once
CONNECTIONS_SPACE = _socket.CMSG_SPACE(CONNECTIONS * array("i").itemsize)
LARGE_FRAME = 512 << 10  # Kong's time for a frame grows with its square: 117 ms at 1 MB


class Server(Protocol):
    """What a connection needs of the server (see `core.Server`)."""

    events: dict[bytes, Worker]
    known_events: dict[bytes, tuple[Instance, Phase]]
    connections: set[Connection]
    unfinished: set[Connection]

    def begin(self, conn: Connection, msgid: bytes, instance: Instance, phase: Phase) -> None: ...
    def dispatch(self, conn: Connection, frame: Any) -> None: ...
    def abandon(self, conn: Connection) -> None: ...
    def violation(self, conn: Connection, what: str) -> None: ...
    def internal_error(self, conn: Connection, error: Exception) -> None: ...
    def accept(self, sock: _socket.socket) -> None: ...


class Construction:
    """A call that a greenlet of the server's works for: a StartInstance in the plugin's constructor, or what was handed
    over to a sibling."""

    __slots__ = ("conn", "greenlet")

    def __init__(self, conn: Connection, greenlet: Any) -> None:
        self.conn: Connection | None = conn
        self.greenlet = greenlet


class Connection:
    """One accepted connection. `call` is who was last called on it; while `call.conn` is this connection, an answer
    is owed to Kong, or to the `sibling` that hands Kong's words over."""

    __slots__ = (
        "_reader",
        "_sock",
        "_unsent",
        "_writer",
        "backlog",
        "call",
        "closed",
        "decoder",
        "send",
        "server",
        "sibling",
        "since",
    )

    def __init__(self, server: Server, sock: _socket.socket, sibling: bool = False) -> None:
        self.server = server
        self.sibling = sibling
        self.call: Worker | Construction | None = None
        self.closed = False
        self.decoder: wire.Decoder | None = None
        self.backlog: deque[Any] = deque()  # frames of a peer that pipelines, in order
        self.since = 0.0  # when a frame stayed incomplete or a write unfinished
        self.send = sock.send
        self._sock = sock
        self._unsent = memoryview(b"")
        self._writer: Any = None
        self._reader = gevent.get_hub().loop.io(sock.fileno(), READ)
        self._reader.start(self._reading())

    @property
    def busy(self) -> bool:
        """An answer is owed, or not yet written to its end."""
        return (self.call is not None and self.call.conn is self) or self._writer is not None

    def _reading(self) -> Callable[[], None]:
        """The callback for a readable socket, with what it needs at hand."""
        server = self.server
        receive = self._received_with_connections if self.sibling else self._sock.recv
        events, known_events, begin = server.events, server.known_events, server.begin
        request, steps, value_first, id_first, id_only, data_part = (
            wire.REQUEST,
            wire.STEPS,
            wire.VALUE_FIRST,
            wire.ID_FIRST,
            wire.ID_ONLY,
            wire.DATA,
        )
        before_value, before_id, data_length = len(value_first), len(id_first), len(data_part)
        before_number = before_id - len(wire.EVENT_ID)
        first = RECEIVE

        def readable() -> None:
            nonlocal first
            data = b""
            try:
                data = receive(first)
                if len(data) == first:
                    first = RECEIVE_MORE  # whoever sends long frames sends more of them
                    data += receive(RECEIVE_MORE)
                    if len(data) >= 2 * RECEIVE_MORE:
                        data += receive(RECEIVE_MUCH)
            except (BlockingIOError, InterruptedError):
                if not data:
                    return
            except OSError:
                data = b""
            if not data:
                self.close()
                return
            try:
                if self.decoder is None and len(data) > ID_LENGTH:
                    at = METHOD_AT[data[2]]
                    worker = events.get(data[-ID_LENGTH:])
                    packed = b""  # the one value of a Step; empty: to be decoded as a whole
                    if worker is not None:
                        after = at + 1 + (data[at] & 31)  # of the method, a short string
                        if data[at:after] in steps:
                            if data[after : after + before_value] == value_first:
                                packed = data[after + before_value : -ID_LENGTH]
                            elif data[after:-ID_LENGTH] == id_only:
                                packed = NIL
                    elif (known := known_events.get(data[at:])) is not None:
                        if data.startswith(request) and not self.busy:
                            begin(self, data[2:at], *known)
                            return
                    else:
                        after = at + 1 + (data[at] & 31)
                        if data[at:after] in steps and data[after : after + before_id] == id_first:
                            after_id = after + before_number + ID_LENGTH
                            worker = events.get(data[after + before_number : after_id])
                            if data[after_id : after_id + data_length] == data_part:
                                packed = data[after_id + data_length :]
                    if packed and worker is not None and worker.conn is None and (self.call is worker or not self.busy):
                        try:
                            answer = unpack(packed)
                        except Exception:  # noqa: S110 - not one whole value: decoded below
                            pass
                        else:
                            worker.msgid = data[2:at]
                            worker.conn = self
                            self.call = worker
                            worker.switch(answer)
                            return
                self._decode(data)
            except Exception as error:
                server.internal_error(self, error)

        return readable

    def _received_with_connections(self, size: int) -> bytes:
        """A sibling's words, and Kong's connections that it hands over with them. Raises OSError."""
        data, passed, _, _ = self._sock.recvmsg(size, CONNECTIONS_SPACE)
        for level, kind, packed in passed:
            if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                numbers = array("i")
                numbers.frombytes(packed[: len(packed) - len(packed) % numbers.itemsize])
                for number in numbers:
                    self.server.accept(_socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, number))
        return data

    @property
    def at_rest(self) -> bool:
        """Kong's, with nothing come and nothing owed: another process can go on with it."""
        return not (self.sibling or self.busy or self.backlog or self.closed) and self.decoder is None

    def pause(self) -> int:
        """Reads no further until `resume`. Returns the descriptor."""
        self._reader.stop()
        return self._sock.fileno()

    def resume(self) -> None:
        if not self.closed:
            self._reader.start(self._reading())

    def _decode(self, data: bytes) -> None:
        """Any other frame, whole, in pieces, or several at once; and garbage."""
        if self.decoder is None:
            try:
                frame = unpack(data)
            except Exception:
                self.decoder = wire.Decoder()
                self.since = time.monotonic()
                self.server.unfinished.add(self)
            else:
                if not self.backlog and not self.busy and not self.closed:  # nearly always
                    self.server.dispatch(self, frame)
                    return
                self.backlog.append(frame)
        if self.decoder is not None:
            try:
                self.backlog.extend(self.decoder.feed(data))
            except Exception as error:
                self.server.violation(self, f"malformed frame: not MessagePack ({type(error).__name__})")
                return
            if self.decoder.empty:
                self.decoder = None
                if self._writer is None:
                    self.server.unfinished.discard(self)
        if self.busy and self.backlog:
            self.server.abandon(self)
        self.pump()

    def pump(self) -> None:
        """Handles waiting frames, one call after the other."""
        while self.backlog and not self.busy and not self.closed:
            self.server.dispatch(self, self.backlog.popleft())

    def reply(self, frame: bytes) -> None:
        """Sends a whole frame, whoever owes it."""
        try:
            sent = self.send(frame)
        except OSError as error:
            sent = self.not_sent(error)
        if sent != len(frame) or self.backlog:
            self.sent_some(frame, sent)

    def not_sent(self, error: OSError) -> int:
        """0 when the socket is full, -1 when it is gone: then the connection will be closed."""
        if isinstance(error, BlockingIOError):
            return 0
        # Closing may end other greenlets, which only the hub may do.
        gevent.get_hub().loop.run_callback(self.close)
        return -1

    def sent_some(self, frame: bytes, sent: int) -> None:
        """What remains to do after a send: the rest of the frame, frames that wait."""
        loop = gevent.get_hub().loop
        if 0 <= sent < len(frame) and not self.closed:
            self.call = None
            self._unsent = memoryview(frame)[sent:]
            self.since = time.monotonic()
            self.server.unfinished.add(self)
            self._writer = loop.io(self._sock.fileno(), WRITE)
            self._writer.start(self._writable)
            if len(frame) > LARGE_FRAME:
                log.warning("a frame of %d bytes to Kong: it blocks Kong's worker for a while", len(frame))
        if self.backlog:
            loop.run_callback(self.pump)

    def _writable(self) -> None:
        try:
            sent = self.send(self._unsent)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        self._unsent = self._unsent[sent:]
        if not self._unsent:
            self._stop_writing()
            if self.decoder is None:
                self.server.unfinished.discard(self)
            self.pump()

    def _stop_writing(self) -> None:
        if self._writer is not None:
            self._writer.stop()
            self._writer.close()
            self._writer = None
            self._unsent = memoryview(b"")

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._stop_writing()
        self._reader.stop()
        self._reader.close()
        self._sock.close()
        self.server.connections.discard(self)
        self.server.unfinished.discard(self)
        self.backlog.clear()
        self.decoder = None
        self.server.abandon(self)
