"""Connections to Redis that are used by one caller at a time: for threads, and where the connection is encrypted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import hiredis
import redis
from redis.exceptions import MasterDownError, NoScriptError, ReadOnlyError, RedisError

from claude_contract.ledger.calls import Call

MAX_IDLE = 64  # connections kept per Redis

packed: Callable[[tuple[str | int | bytes, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]


class Pool:
    """`connect` makes a redis-py connection."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._idle: deque[Any] = deque()

    def run(self, call: Call[Any]) -> Any:
        """Redis' reply. Raises RedisError, OSError."""
        try:
            connection = self._idle.pop()
        except IndexError:
            return self._exchange(self._new(), call)
        try:
            return self._exchange(connection, call)
        except RedisError as error:
            if not another_may_work(error):
                raise
            self.close()
            return self._exchange(self._new(), call)

    def _new(self) -> Any:
        connection = self._connect()
        connection.connect()  # for Sentinel this asks who the master is
        return connection

    def _exchange(self, connection: Any, call: Call[Any]) -> Any:
        try:
            connection.send_packed_command((packed(call.command()),), check_health=False)
            try:
                reply = connection.read_response()
            except NoScriptError:
                connection.send_packed_command((packed(call.full_command()),), check_health=False)
                reply = connection.read_response()
        except BaseException:
            connection.disconnect()
            raise
        if len(self._idle) < MAX_IDLE:
            self._idle.append(connection)
        else:
            connection.disconnect()
        return reply

    def node(self, call: Call[Any]) -> str:
        """There is one only."""
        return ""

    def nodes(self) -> list[str]:
        return []

    def close(self) -> None:
        """Closes idle connections."""
        while True:
            try:
                self._idle.pop().disconnect()
            except IndexError:
                return


def another_may_work(error: RedisError) -> bool:
    """The connection died while idle (Redis restarted), or a master became a replica; so did the others' then.

    Nothing was written in either case that a repetition could double: a lease has its id, and a script that may not
    write fails at its first write. Only a window may count a request twice whose answer was lost.
    """
    if isinstance(error, redis.TimeoutError):
        return False
    not_master = isinstance(error, ReadOnlyError | MasterDownError) or "READONLY" in str(error)
    return not_master or isinstance(error, redis.ConnectionError)
