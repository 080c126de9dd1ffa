"""asyncio's clients of Redis, wherever it is: a server, what Sentinels call the master, or a Cluster.

A connection to a server that says that it is not the master, or not any more, is closed: a managed Redis fails over by
what its name leads to, and whoever kept his connection would be answered READONLY for ever. Nothing has been done then,
so that it may be asked again.
"""

from __future__ import annotations

import asyncio
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from claude_contract.redis_place import Kind, Place

_CONNECT_S = 2.0
_ELSEWHERE = (AskError, ClusterDownError, ReadOnlyError, TryAgainError)
"""Those of redis-py that say so by their class, with MOVED and MASTERDOWN."""


def client(url: str, **options: Any) -> Any:
    """For any keys, one at a time or of one hash tag. `options` are redis-py's. Raises BadPlace."""
    place = _place(url, options)
    if place.kind is Kind.CLUSTER:
        nodes = [ClusterNode(host, port) for host, port in place.nodes]
        return _Cluster(startup_nodes=nodes, ssl=place.tls, **place.options)
    return Redis.from_pool(_pool(place))


class _Cluster(RedisCluster):
    """Says that it cannot be reached as other clients do: RedisClusterException is no RedisError, so that whoever waits
    for a server that is away would fail over a Cluster that is."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().execute_command(*args, **options)
        except RedisClusterException as error:
            raise RedisConnectionError(str(error)) from error


def client_of(url: str, key: str, **options: Any) -> Redis:
    """For keys that have the hash tag of `key`: may also block, subscribe, and pipe. `options` are redis-py's. Raises
    BadPlace."""
    place = _place(url, options)
    if place.kind is not Kind.CLUSTER:
        return Redis.from_pool(_pool(place))
    connection = _SlotSSLConnection if place.tls else _SlotConnection
    return Redis.from_pool(ConnectionPool(connection, owner=_Owner(place, key), **place.options))


def _place(url: str, options: dict[str, Any]) -> Place:
    connecting = {"socket_connect_timeout": _CONNECT_S}
    return Place.parse(url).but(connecting | options, {**connecting, "socket_timeout": _CONNECT_S})


def _pool(place: Place) -> ConnectionPool:
    options: dict[str, Any] = dict(place.options)
    if place.kind is Kind.SENTINEL:
        sentinel = Sentinel(list(place.nodes), sentinel_kwargs=place.of_sentinels(Retry(NoBackoff(), 1)))
        managed = _ManagedSSLConnection if place.tls else _ManagedConnection
        return SentinelConnectionPool(place.service, sentinel, connection_class=managed, **options)
    if "path" in options:
        return ConnectionPool(UnixDomainSocketConnection, **options)
    ((host, port),) = place.nodes
    return ConnectionPool(_SSLConnection if place.tls else _Connection, host=host, port=port, **options)


class _Owner:
    """Which node of a Cluster has the keys with the hash tag of `key`."""

    def __init__(self, place: Place, key: str) -> None:
        self._slot = key_slot(key.encode())
        self._place = place
        self._nodes = list(place.nodes)

    async def find(self) -> tuple[str, int]:
        """Host and port. Raises RedisError, OSError."""
        trouble: Exception | None = None
        for node in list(self._nodes):
            try:
                ranges = await self._ranges(node)
            except (RedisError, OSError) as error:
                trouble = error
                continue
            known = [_address(place, node) for _, _, *places in ranges for place in places]
            self._nodes = list(dict.fromkeys([*known, *self._place.nodes]))
            for first, last, master, *_ in ranges:
                if first <= self._slot <= last:
                    return _address(master, node)
            trouble = RedisConnectionError(f"no node of the Cluster serves slot {self._slot}")
        raise trouble or RedisConnectionError("the Cluster has no node")

    async def _ranges(self, node: tuple[str, int]) -> list[Any]:
        """Of slots, with who serves them: [first, last, [host, port, …], …]."""
        kind = SSLConnection if self._place.tls else Connection
        options = {**self._place.options, "retry": None, "socket_timeout": _CONNECT_S, "decode_responses": False}
        connection = kind(host=node[0], port=node[1], **options)
        try:
            await connection.connect()
            await connection.send_command("CLUSTER", "SLOTS")
            return list(await connection.read_response())
        finally:
            await connection.disconnect(nowait=True)


def _address(place: list[Any], asked: tuple[str, int]) -> tuple[str, int]:
    """No host stands for the one by which the answer was had."""
    host = (place[0] or b"").decode()
    return host if host not in ("", "?") else asked[0], int(place[1])


class _ToTheMaster(Connection):
    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)
        except ResponseError as error:
            # A script of Redis 6.2 says it within a text of its own.
            if not isinstance(error, _ELSEWHERE) and "READONLY" not in str(error):
                raise
            await self.disconnect()
            raise RedisConnectionError(f"this is not the master: {error}") from error


class _Connection(_ToTheMaster):
    pass


class _SSLConnection(_ToTheMaster, SSLConnection):
    pass


class _ManagedConnection(_ToTheMaster, SentinelManagedConnection):
    pass


class _ManagedSSLConnection(_ToTheMaster, SentinelManagedSSLConnection):
    pass


class _SlotConnection(_ToTheMaster):
    """To the node that has the keys, found anew with each connection, as Sentinel's are."""

    def __init__(self, owner: _Owner, **options: Any) -> None:
        self._owner = owner
        super().__init__(**options)

    async def connect(self) -> None:
        await self.retry.call_with_retry(self._connect_to_owner, lambda error: asyncio.sleep(0))

    async def _connect_to_owner(self) -> None:
        if not self.is_connected:
            self.host, self.port = await self._owner.find()
            await self.connect_check_health(retry_socket_connect=False)


class _SlotSSLConnection(_SlotConnection, SSLConnection):
    pass
