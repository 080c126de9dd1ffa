"""One connection to Redis for all greenlets: what they ask in one turn of gevent's loop is sent together, and the loop
reads the answers for all of them. A connection for each caller costs an admission more than its script does.
"""

from __future__ import annotations

import _socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import gevent
import hiredis
import redis
from gevent.event import AsyncResult
from greenlet import getcurrent
from redis.connection import DefaultParser
from redis.exceptions import NoScriptError, RedisError

from claude_contract.ledger.calls import Call
from kong_claude.rate_tiers.redis_pool import another_may_work, packed

READ, WRITE = 1, 2  # libev's
RECEIVE = 1 << 16
_NOTHING = object()  # no answer yet


class Asked:
    """A command whose answer is to come. Nobody waits any more where `greenlet` is None."""

    __slots__ = ("greenlet", "reply", "since")

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.greenlet: Any = getcurrent()
        self.reply: Any = _NOTHING

    def answer(self, reply: Any) -> None:
        """From the hub only."""
        greenlet, self.greenlet = self.greenlet, None
        if greenlet is not None:
            self.reply = reply
            greenlet.switch()


class Pipe:
    """A connection whose answers come in the order of the questions. It is `retired` once one was late: then nobody
    new may ask, and it is closed when all that were asked have their answer or are late, too.

    `connection`: a redis-py connection that is connected, and not encrypted; its socket is taken over.
    `timeout` in seconds.
    """

    def __init__(self, connection: Any, timeout: float) -> None:
        given = connection._sock
        self._sock = _socket.socket(given.family, given.type, given.proto, given.detach())
        self._sock.setblocking(False)
        self._reader = hiredis.Reader(
            protocolError=redis.InvalidResponse, replyError=DefaultParser.parse_error, notEnoughData=_NOTHING
        )
        self._timeout = timeout
        self._asked: deque[Asked] = deque()
        self._unsent: list[bytes] = []
        self.retired = self._closed = self._timed = False
        hub = gevent.get_hub()
        self._loop = hub.loop
        self._to_hub: Callable[[], Any] = hub.switch
        self._readable = hub.loop.io(self._sock.fileno(), READ)
        self._readable.start(self._read)
        self._writable = hub.loop.io(self._sock.fileno(), WRITE)
        self._timer = hub.loop.timer(timeout / 4, timeout / 4, ref=False)

    def ask(self, command: bytes) -> Any:
        """The answer to a packed command. Raises RedisError."""
        if self._closed:
            raise redis.ConnectionError("the connection was closed")
        asked = Asked()
        if not self._unsent:
            self._loop.run_callback(self._flush)
        self._unsent.append(command)
        self._asked.append(asked)
        if not self._timed:
            self._timed = True
            self._timer.start(self._look)
        try:
            while asked.reply is _NOTHING:  # whatever gevent may still have scheduled for this greenlet
                self._to_hub()
        finally:
            asked.greenlet = None
        reply = asked.reply
        if isinstance(reply, RedisError):
            raise reply
        return reply

    def retire(self) -> None:
        """Takes no more questions."""
        self.retired = True
        if not self._asked:
            self._close()

    def _flush(self) -> None:
        if self._closed:
            return
        data = b"".join(self._unsent)
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._fail(f"sending: {error.strerror}")
            return
        self._unsent = [data[sent:]] if sent < len(data) else []
        if self._unsent:
            self._writable.start(self._flush)
        else:
            self._writable.stop()

    def _read(self) -> None:
        try:
            data = self._sock.recv(RECEIVE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._fail(f"receiving: {error.strerror}")
            return
        if not data:
            self._fail("Redis closed the connection")
            return
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not _NOTHING:
                if isinstance(reply, hiredis.PushNotification):
                    continue
                if not self._asked:
                    self._fail("an answer that nobody asked for")
                    return
                self._asked.popleft().answer(reply)
                if self._closed:
                    return
        except redis.InvalidResponse as error:
            self._fail(str(error))
            return
        if self.retired and not self._asked:
            self._close()

    def _look(self) -> None:
        """Ends the wait of whoever waits for too long."""
        if not self._asked:
            self._timed = False
            self._timer.stop()
            return
        limit = time.monotonic() - self._timeout
        if self._asked[0].since > limit:
            return
        self._read()  # where the loop was kept by others the answer is there
        for asked in list(self._asked):
            if asked.since <= limit:
                self.retired = True
                asked.answer(redis.TimeoutError("no answer in time"))
        if self.retired and not any(asked.greenlet for asked in self._asked):
            self._close()

    def _fail(self, problem: str) -> None:
        self._close()
        while self._asked:
            self._asked.popleft().answer(redis.ConnectionError(problem))

    def _close(self) -> None:
        self.retired = True
        if not self._closed:
            self._closed = True
            for watcher in (self._readable, self._writable, self._timer):
                watcher.stop()
                watcher.close()
            self._sock.close()


class Shared:
    """The pipe of one Redis, opened when it is needed. `connect` makes a redis-py connection."""

    def __init__(self, connect: Callable[[], Any], timeout: float) -> None:
        self._connect = connect
        self._timeout = timeout
        self._pipe: Pipe | None = None
        self._opening: AsyncResult[Pipe] | None = None

    def run(self, call: Call[Any]) -> Any:
        """Redis' reply. Raises RedisError, OSError."""
        pipe = self._pipe
        if pipe is None or pipe.retired:
            return exchange(self._open(), call)
        try:
            return exchange(pipe, call)
        except RedisError as error:
            if not another_may_work(error):
                raise
            pipe.retire()
            return exchange(self._open(), call)

    def _open(self) -> Pipe:
        """A pipe that takes questions. Nobody waits for more than one attempt, and all who wait for the same one."""
        pipe = self._pipe
        if pipe is not None and not pipe.retired:
            return pipe
        if self._opening is not None:
            opened: Pipe = self._opening.get()
            return opened
        opening = self._opening = AsyncResult()
        try:
            connection = self._connect()
            connection.connect()  # for Sentinel this asks who the master is
            pipe = self._pipe = Pipe(connection, self._timeout)
        except (RedisError, OSError) as error:
            opening.set_exception(error)
            raise
        except BaseException:
            opening.set_exception(redis.ConnectionError("the attempt to connect was ended"))
            raise
        finally:
            self._opening = None
        opening.set(pipe)
        return pipe

    def node(self, call: Call[Any]) -> str:
        """There is one only."""
        return ""

    def nodes(self) -> list[str]:
        return []

    def close(self) -> None:
        if self._pipe is not None:
            self._pipe.retire()
            self._pipe = None


def exchange(pipe: Pipe, call: Call[Any]) -> Any:
    try:
        return pipe.ask(packed(call.command()))
    except NoScriptError:
        return pipe.ask(packed(call.full_command()))
