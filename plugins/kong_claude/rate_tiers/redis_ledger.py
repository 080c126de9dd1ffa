"""The ledger in Redis: one EVALSHA per verb.

redis-py makes the connections (TLS, ACL, Sentinel, Cluster, unix sockets). The hot path uses such a connection
directly, since the command machinery around it costs more than the rest of an admission: one for all in the plugin
server (`redis_pipe`), else one for each caller (`redis_pool`).
"""

from __future__ import annotations

import ssl
import threading
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

import redis
from gevent import monkey
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.exceptions import NoScriptError, RedisClusterException, RedisError, SlotNotCoveredError
from redis.retry import Retry

from claude_contract import redis_place
from claude_contract.errors import ConfigError
from claude_contract.ledger import (
    Admission,
    Admit,
    Draw,
    Drawn,
    Lease,
    Ledger,
    LedgerUnavailable,
    Peek,
    Renewal,
    Slot,
    Usage,
    calls,
)
from claude_contract.ledger.calls import Call, OutOfPeriod
from claude_contract.ledger.live import Change, Target
from claude_contract.ledger.warnings import BudgetWarning
from claude_contract.redis_place import BadPlace, Kind, Place
from kong_claude.rate_tiers.kongs import folded, in_url
from kong_claude.rate_tiers.redis_circuit import Circuit, Circuits, Quiet, is_away
from kong_claude.rate_tiers.redis_pipe import Shared
from kong_claude.rate_tiers.redis_pool import Pool
from kong_claude.rate_tiers.schema import RedisConfig

R = TypeVar("R")


class Settings(NamedTuple):
    """Where Redis is. Equal settings share connections and circuits."""

    url: str
    username: str = ""
    password: str = ""
    verify: bool = True
    ca_file: str = ""
    timeout: float = 0.5  # seconds, for each step: connecting, one answer
    sentinel_username: str = ""
    sentinel_password: str = ""
    server_name: str = ""  # that the certificate has, where it is not the host's

    def __repr__(self) -> str:
        return f"Settings({urlsplit(self.url).scheme})"

    @classmethod
    def from_config(cls, config: RedisConfig) -> Settings:
        """Raises ConfigError."""
        config = folded(config)
        url, host = config.redis_url, config.redis_host
        if not url and not host:
            raise ConfigError("redis_url", "is empty (an unresolved vault reference?)")
        if config.redis_server_name and url and "+" in urlsplit(url).scheme:
            raise ConfigError(
                "redis_server_name", "is for one Redis: Sentinels and a Cluster name their nodes themselves"
            )
        if config.redis_ca_file and not Path(config.redis_ca_file).is_file():
            raise ConfigError("redis_ca_file", "is not there, or no file")
        sentinel = (config.redis_sentinel_username or "", config.redis_sentinel_password or "")
        if any(sentinel) and "+sentinel" not in (url or ""):
            name = "redis_sentinel_username" if sentinel[0] else "redis_sentinel_password"
            raise ConfigError(name, "needs a redis_url of redis+sentinel://")
        if not url:
            scheme = "rediss" if config.redis_ssl else "redis"
            url = f"{scheme}://{in_url(host or '')}:{config.redis_port}/{config.redis_database}"
        return cls(
            url,
            config.redis_username or "",
            config.redis_password or "",
            config.redis_ssl_verify,
            config.redis_ca_file or "",
            config.timeout_ms / 1000,
            *sentinel,
            config.redis_server_name or "",
        )

    def place(self) -> Place:
        """What the URL says, and the other fields before it. Raises BadPlace."""
        place = Place.parse(self.url)
        both: dict[str, Any] = {
            "socket_timeout": self.timeout,
            "socket_connect_timeout": self.timeout,
            "retry": Retry(NoBackoff(), 0),
            "driver_info": None,  # saves two round trips per connection
        }
        if place.tls and not self.verify:
            both |= {"ssl_cert_reqs": ssl.CERT_NONE, "ssl_check_hostname": False}
        if place.tls and self.ca_file:
            both["ssl_ca_certs"] = self.ca_file
        name = {"server_name": self.server_name} if place.tls else {}
        users = {"username": self.username, "password": self.password}
        sentinels = {"username": self.sentinel_username, "password": self.sentinel_password}
        return place.but(both | _given(users | name), both | _given(sentinels))


class Transport(Protocol):
    """The way of a call to Redis. May be used by many threads or greenlets at once."""

    def run(self, call: Call[Any]) -> Any:
        """Redis' reply. Raises RedisError, RedisClusterException, OSError."""

    def node(self, call: Call[Any]) -> str:
        """The name of the node that will be asked."""

    def nodes(self) -> list[str]:
        """The names of all nodes."""

    def close(self) -> None: ...


def _transport(place: Place, timeout: float) -> Transport:
    if place.kind is Kind.CLUSTER:
        return _Cluster(place, timeout)
    connect = redis_place.pool(place).make_connection
    return Pool(connect) if place.tls or not in_greenlets() else Shared(connect, timeout)


def in_greenlets() -> bool:
    """True in the plugin server; kong-pdk's own runs plugins in threads, where they could not share a connection."""
    return bool(monkey.is_module_patched("socket"))


class RedisLedger(Ledger):
    """May be used by many threads or greenlets at once."""

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigError."""
        self.circuits = Circuits()
        self._quiet = Quiet()
        try:
            place = settings.place()
        except BadPlace as error:
            raise ConfigError("redis_url", str(error)) from None
        self._transport = _transport(place, settings.timeout)
        self.one_node = place.kind is not Kind.CLUSTER

    def admit(self, request: Admit) -> Admission:
        try:
            return self._ask(calls.admit(request, one_node=self.one_node))
        except OutOfPeriod as error:
            return self._ask(calls.admit(request, error.now_ms, one_node=self.one_node))

    def acquire(self, lease: Lease, slot: Slot, tier: str = "") -> Admission:
        return self.admit(calls.to_acquire(lease, slot, tier))

    def renew(self, lease: Lease, ttl_ms: int) -> Renewal:
        return self._ask(calls.renew(lease, ttl_ms))

    def draw(self, lease: Lease, slot: Slot, draw: Draw) -> Drawn:
        try:
            return self._ask(calls.draw(lease, slot, draw, one_node=self.one_node))
        except OutOfPeriod as error:
            return self._ask(calls.draw(lease, slot, draw, error.now_ms, one_node=self.one_node))

    def settle(self, lease: Lease, cost_micro_usd: int, *, final: bool = True) -> bool:
        return self._ask(calls.settle(lease, cost_micro_usd, final=final))

    def release(self, lease: Lease) -> bool:
        return self._ask(calls.release(lease))

    def peek(self, request: Peek) -> Usage:
        try:
            return self._ask(calls.peek(request, one_node=self.one_node))
        except OutOfPeriod as error:
            return self._ask(calls.peek(request, error.now_ms, one_node=self.one_node))

    def change(self, key: str, target: Target, made: Change | None, line: bytes) -> bool:
        """See `calls.change`. Raises LedgerUnavailable, OverflowError."""
        return self._ask(calls.change(key, target, made, line))

    def changes(self, key: str) -> dict[str, Change]:
        """Those that hold now, by field. Raises LedgerUnavailable."""
        return self._ask(calls.changes(key))

    def report(self, line: bytes) -> bool:
        """See `calls.report`. Raises LedgerUnavailable."""
        return self._ask(calls.report(line))

    def news(self) -> bool:
        """True where a failure is to be logged: once a second."""
        return self._quiet.may_speak()

    def tell(self, warning: BudgetWarning) -> bool:
        return self._ask(calls.tell(warning))

    def _ask(self, call: Call[R]) -> R:
        circuit = self._circuit(call)
        if not circuit.admit():
            raise LedgerUnavailable("Redis failed several times in a row, it is tried again in a second")
        try:
            reply = self._transport.run(call)
        except (RedisError, RedisClusterException, OSError) as error:
            unreadable = calls.unreadable(error, call)
            if unreadable is None and is_away(error):
                circuit.failed()
            else:  # an answer: Redis is well, this is the matter of who asked
                circuit.succeeded()
            raise unreadable or LedgerUnavailable(f"{type(error).__name__}: {error}") from error
        circuit.succeeded()
        return call.parse(reply)

    def _circuit(self, call: Call[Any]) -> Circuit:
        return self.circuits.of(self._transport.node(call), self._transport.nodes)

    def close(self) -> None:
        """Closes what is open; it is opened again where it is needed."""
        self._transport.close()


def _given(options: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in options.items() if value}


class _Cluster:
    """redis-py's cluster client. Made on first use: it asks the nodes for the slots, and Redis may be away when Kong
    starts."""

    def __init__(self, place: Place, timeout: float) -> None:
        self._place = place.but({"retry": Retry(NoBackoff(), 1)}, {})
        self._timeout = timeout
        self._lock = threading.Lock()
        self._made: RedisCluster | None = None

    def run(self, call: Call[Any]) -> Any:
        client = self._made or self._make()
        try:
            return client.execute_command(*call.command())
        except NoScriptError:
            return client.execute_command(*call.full_command())

    def node(self, call: Call[Any]) -> str:
        """ "" for the Cluster as a whole, as long as its nodes are not known."""
        if self._made is None:
            return ""
        try:
            node = self._made.get_node_from_key(call.keys[0])
        except SlotNotCoveredError:
            node = None
        return node.name if node is not None else ""

    def nodes(self) -> list[str]:
        return [node.name for node in self._made.get_nodes()] if self._made else []

    def _make(self) -> RedisCluster:
        if not self._lock.acquire(timeout=self._timeout):  # nobody waits for more than one attempt
            raise redis.TimeoutError("another request is connecting to the cluster")
        try:
            if self._made is None:
                self._made = redis_place.client(self._place)
            return self._made
        finally:
            self._lock.release()

    def close(self) -> None:
        """The client keeps its connections: other instances use it."""


_shared: WeakValueDictionary[Settings, RedisLedger] = WeakValueDictionary()
_shared_lock = threading.Lock()


def shared(settings: Settings) -> RedisLedger:
    """The one ledger for these settings: Kong makes new instances with every configuration. Raises ConfigError."""
    with _shared_lock:
        ledger = _shared.get(settings)
        if ledger is None:
            ledger = _shared[settings] = RedisLedger(settings)
        return ledger
