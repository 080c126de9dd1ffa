"""MessagePack-RPC to plugin servers, as Kong's mp_rpc.lua speaks it over OpenResty's cosockets.

Every call takes a connection from the socket's pool (last in, first out), sends one request and waits for
one reply; then the connection goes back. What goes wrong is Kong's to answer for, not ours: a closed
connection, an error reply and a time-out let the request pass, a reply that breaks the protocol is a Lua
error (500). Sources: kong/runloop/plugin_servers/rpc/mp_rpc.lua 3.9.1, lua-nginx-module's cosocket pool.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, cast

import msgpack

from minikong.luavalue import LuaError, from_msgpack, lua_type, pack

CHUNK = 4096  # bytes that Kong reads at once (receiveany)
REQUEST, RESPONSE, NOTIFICATION = 0, 1, 2


class _Connection(asyncio.Protocol):
    """One connection; `incoming` collects what arrives while a call waits."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.transport: asyncio.Transport | None = None
        self.waiter: asyncio.Future[bytes | None] | None = None
        self.incoming = bytearray()
        self.closed = False
        self.in_call = False
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        if not self.in_call:  # nginx closes a pooled connection on which something arrives
            self.pool.forget(self)
            self.close()
            return
        self.incoming += data
        self._wake()

    def eof_received(self) -> bool:
        self.closed = True
        self._wake()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.pool.forget(self)
        self._wake()

    def _wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def close(self) -> None:
        self.closed = True
        if self.transport is not None:
            self.transport.close()

    async def receive(self, deadline: float) -> bytes | None:
        """Up to CHUNK bytes; None at the end of the stream or when `deadline` (loop time) has passed."""
        if not self.incoming:
            if self.closed:
                return None
            loop = asyncio.get_running_loop()
            self.waiter = loop.create_future()
            timer = loop.call_at(deadline, self._wake)
            try:
                await self.waiter
            finally:
                timer.cancel()
                self.waiter = None
            if not self.incoming:
                return None
        chunk = bytes(self.incoming[:CHUNK])
        del self.incoming[:CHUNK]
        return chunk


class Pool:
    """The connections to one socket path, shared by every plugin on it (lua_socket_pool_size)."""

    def __init__(self, path: str, size: int = 256, connect_timeout: float = 60.0, idle: float = 60.0) -> None:
        self.path = path
        self.size = size
        self.connect_timeout = connect_timeout
        self.idle = idle
        self.free: list[_Connection] = []

    async def take(self) -> _Connection:
        """A connection. Raises OSError (the text of `ngx.socket.connect`'s error as its argument)."""
        now = time.monotonic()
        while self.free:
            connection = self.free.pop()
            if connection.closed:
                continue
            if now - connection.idle_since > self.idle:
                connection.close()
                continue
            connection.in_call = True
            return connection
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.connect_timeout):
                _, connection = await loop.create_unix_connection(lambda: _Connection(self), self.path)
        except FileNotFoundError:
            raise OSError("no such file or directory") from None
        except ConnectionRefusedError:
            raise OSError("connection refused") from None
        except TimeoutError:
            raise OSError("timeout") from None
        except PermissionError:
            raise OSError("permission denied") from None
        connection.in_call = True
        return connection

    def put_back(self, connection: _Connection) -> None:
        """`setkeepalive`: also after a time-out, whose reply may still come."""
        connection.in_call = False
        connection.incoming.clear()
        if connection.closed:
            return
        connection.idle_since = time.monotonic()
        if len(self.free) >= self.size:
            self.free.pop(0).close()
        self.free.append(connection)

    def forget(self, connection: _Connection) -> None:
        if connection in self.free:
            self.free.remove(connection)

    def close(self) -> None:
        for connection in self.free[:]:
            connection.close()
        self.free.clear()


class Rpc:
    """One plugin's side of the protocol: its msgid counter and the pid it was told (`serverPid`)."""

    def __init__(
        self,
        pool: Pool,
        read_timeout: float,
        on_notification: Callable[[Rpc, Any, Any], None],
        log: Callable[[str, str], None],
    ) -> None:
        self.pool = pool
        self.read_timeout = read_timeout  # seconds (nginx_http_lua_socket_read_timeout)
        self.on_notification = on_notification
        self.log = log
        self.msg_id = 0
        self.server_pid: float | None = None

    async def call(
        self, method: bytes, argument: bytes, notified: Callable[[Rpc, Any, Any], None] | None = None
    ) -> tuple[Any, Any]:
        """One call with one packed argument: (result, None) or (None, error), as Kong's `Rpc:call`. `notified`: who
        gets the notifications in front of the reply, if not `on_notification`.

        Raises LuaError where Kong's code raises: a reply that is none of the protocol's.
        """
        self.msg_id += 1
        msg_id = self.msg_id
        try:
            connection = await self.pool.take()
        except OSError as error:
            text = str(error.args[0])
            self.log("err", f"trying to connect: {text}")
            return None, text.encode()
        done = False
        try:
            assert connection.transport is not None
            connection.transport.write(b"\x94\x00" + pack(msg_id) + pack(method) + b"\x91" + argument)
            outcome = await self._reply(connection, msg_id, notified or self.on_notification)
            done = True
            return outcome
        finally:
            if done:
                self.pool.put_back(connection)
            else:
                connection.close()

    async def _reply(
        self, connection: _Connection, msg_id: int, notified: Callable[[Rpc, Any, Any], None]
    ) -> tuple[Any, Any]:
        loop = asyncio.get_running_loop()
        unpacker = msgpack.Unpacker(raw=True, strict_map_key=False, max_buffer_size=0)
        fed = consumed = 0
        while True:
            try:
                frame = unpacker.unpack()
                consumed = unpacker.tell()
            except msgpack.OutOfData:
                chunk = await connection.receive(loop.time() + self.read_timeout)
                if chunk is None:
                    if fed > consumed:
                        raise LuaError("missing bytes") from None
                    return None, b"no data"
                fed += len(chunk)
                unpacker.feed(chunk)
                continue
            except (ValueError, TypeError, msgpack.UnpackException) as error:
                raise LuaError(f"unpack: {error}") from None
            if not isinstance(frame, list | dict):
                raise LuaError(f"attempt to index local 'data' (a {lua_type(from_msgpack(frame))} value)")
            if not isinstance(frame, list):
                frame = [frame.get(i) for i in range(1, 5)]
            frame += [None] * (4 - len(frame))
            if frame[0] == NOTIFICATION and not isinstance(frame[0], bool):
                notified(self, frame[1], frame[2])
                continue
            if frame[0] != RESPONSE or isinstance(frame[0], bool):
                raise LuaError("RPC response expected from Go plugin server")
            if frame[1] != msg_id or isinstance(frame[1], bool):
                raise LuaError("unexpected RPC response ID from Go plugin server")
            if frame[2] is not None:
                return None, from_msgpack(frame[2])
            return from_msgpack(frame[3]), None
