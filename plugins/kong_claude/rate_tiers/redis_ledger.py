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
from urllib.parse import unquote, urlsplit
from weakref import WeakValueDictionary

import redis
from gevent import monkey
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import NoScriptError, RedisClusterException, RedisError, SlotNotCoveredError
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

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

    def __repr__(self) -> str:
        return f"Settings({urlsplit(self.url).scheme})"

    @classmethod
    def from_config(cls, config: RedisConfig) -> Settings:
        """Raises ConfigError."""
        url, host = config.redis_url, config.redis_host
        if not url and not host:
            raise ConfigError("redis_url", "is empty (an unresolved vault reference?)")
        if config.redis_ca_file and not Path(config.redis_ca_file).is_file():
            raise ConfigError("redis_ca_file", "is not there, or no file")
        sentinel = (config.redis_sentinel_username or "", config.redis_sentinel_password or "")
        if any(sentinel) and "+sentinel" not in (url or ""):
            name = "redis_sentinel_username" if sentinel[0] else "redis_sentinel_password"
            raise ConfigError(name, "needs a redis_url of redis+sentinel://")
        if not url:
            scheme = "rediss" if config.redis_ssl else "redis"
            url = f"{scheme}://{_in_url(host or '')}:{config.redis_port}/{config.redis_database}"
        return cls(
            url,
            config.redis_username or "",
            config.redis_password or "",
            config.redis_ssl_verify,
            config.redis_ca_file or "",
            config.timeout_ms / 1000,
            *sentinel,
        )

    def options(self, tls: bool) -> dict[str, Any]:
        """Keyword arguments of a redis-py connection."""
        options: dict[str, Any] = {
            "socket_timeout": self.timeout,
            "socket_connect_timeout": self.timeout,
            "retry": Retry(NoBackoff(), 0),
            "driver_info": None,  # saves two round trips per connection
        }
        if self.username:
            options["username"] = self.username
        if self.password:
            options["password"] = self.password
        if tls:
            options["ssl_cert_reqs"] = ssl.CERT_REQUIRED if self.verify else ssl.CERT_NONE
            options["ssl_check_hostname"] = self.verify
            if self.ca_file:
                options["ssl_ca_certs"] = self.ca_file
        return options


class Transport(Protocol):
    """The way of a call to Redis. May be used by many threads or greenlets at once."""

    def run(self, call: Call[Any]) -> Any:
        """Redis' reply. Raises RedisError, RedisClusterException, OSError."""

    def node(self, call: Call[Any]) -> str:
        """The name of the node that will be asked."""

    def nodes(self) -> list[str]:
        """The names of all nodes."""

    def close(self) -> None: ...


def _transport(settings: Settings) -> Transport:
    """Raises BadPlace, ValueError, OSError."""
    scheme = urlsplit(settings.url).scheme
    if scheme.endswith("+cluster"):
        return _Cluster(settings)
    tls = scheme.startswith("rediss")
    if scheme.endswith("+sentinel"):
        connect = _sentinel_pool(settings).make_connection
    else:
        connect = redis.ConnectionPool.from_url(settings.url, **settings.options(tls)).make_connection
    return Pool(connect) if tls or not in_greenlets() else Shared(connect, settings.timeout)


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
            self._transport = _transport(settings)
        except BadPlace as error:
            raise ConfigError("redis_url", str(error)) from None
        except (ValueError, OSError):
            # The text of the error could hold the URL with its password.
            raise ConfigError("redis_url", "is not a URL of Redis that can be used") from None
        self.one_node = "+cluster" not in urlsplit(settings.url).scheme

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


class BadPlace(ValueError):
    """A URL that cannot be used; the text has nothing of it."""


def _in_url(host: str) -> str:
    """An IPv6 address stands in brackets in a URL."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _hosts(url: str) -> tuple[list[tuple[str, int]], list[str], str, str]:
    """(host, port) of each, path segments, user and password of redis+sentinel:// and redis+cluster:// URLs."""
    parts = urlsplit(url)
    user_info, _, hosts = parts.netloc.rpartition("@")
    user, _, password = user_info.partition(":")
    nodes = []
    for node in hosts.split(","):
        host, _, port = node.rpartition(":")
        if not host or not port.isdecimal():
            raise BadPlace("must name each node as host:port")
        nodes.append((host.strip("[]"), int(port)))
    return nodes, [unquote(s) for s in parts.path.split("/") if s], unquote(user), unquote(password)


def _with_user(settings: Settings, user: str, password: str) -> Settings:
    return settings._replace(username=settings.username or user, password=settings.password or password)


def _sentinel_pool(settings: Settings) -> Any:
    nodes, path, user, password = _hosts(settings.url)
    if not path:
        raise BadPlace("must name the Sentinel's service in its path")
    tls = settings.url.startswith("rediss")
    options = _with_user(settings, user, password).options(tls)
    asking = settings._replace(username=settings.sentinel_username, password=settings.sentinel_password).options(tls)
    sentinel = Sentinel(nodes, sentinel_kwargs={**asking, "ssl": True} if tls else asking)
    if len(path) > 1 and not path[1].isdecimal():
        raise BadPlace("must have a number as its database")
    database = int(path[1]) if len(path) > 1 else 0
    return SentinelConnectionPool(path[0], sentinel, ssl=tls, db=database, **options)


class _Cluster:
    """redis-py's cluster client. Made on first use: it asks the nodes for the slots, and Redis may be away when Kong
    starts."""

    def __init__(self, settings: Settings) -> None:
        self._nodes, _, user, password = _hosts(settings.url)
        self._tls = settings.url.startswith("rediss")
        self._options = _with_user(settings, user, password).options(self._tls)
        self._timeout = settings.timeout
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
                self._made = RedisCluster(
                    startup_nodes=[ClusterNode(host, port) for host, port in self._nodes],
                    ssl=self._tls,
                    **{n: v for n, v in self._options.items() if n not in ("retry", "driver_info")},
                    retry=Retry(NoBackoff(), 1),
                )
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
