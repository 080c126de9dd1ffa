"""The ledger in Redis: one EVALSHA per verb.

redis-py makes the connections (TLS, ACL, Sentinel, Cluster, unix sockets). The hot path uses such a connection
directly, since the command machinery around it costs more than the rest of an admission.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit
from weakref import WeakSet, WeakValueDictionary

import hiredis
import redis
from prometheus_client import Gauge
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import NoScriptError, ReadOnlyError, RedisError
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from claude_contract.errors import ConfigError
from claude_contract.ledger import Admission, Admit, Lease, Ledger, LedgerUnavailable, Peek, Renewal, Slot, Usage, calls
from claude_contract.ledger.calls import Call
from kong_claude.rate_tiers.schema import RedisConfig

MAX_IDLE = 64  # connections kept per Redis
FAILURES = 3  # in a row, then the circuit opens
COOL_DOWN = 1.0  # seconds until one call may try again


R = TypeVar("R")

_circuits: WeakSet[Circuit] = WeakSet()
Gauge("claude_redis_circuit_open", "Redis servers that are treated as away now.").set_function(
    lambda: sum(circuit.open for circuit in list(_circuits))
)


class Circuit:
    """Keeps callers from waiting for a Redis that is away: open after FAILURES in a row, one trial per COOL_DOWN."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.failures = 0
        self.next_trial_at = 0.0  # by `clock`
        _circuits.add(self)

    @property
    def open(self) -> bool:
        return self.failures >= FAILURES

    def admit(self) -> bool:
        if not self.open:
            return True
        now = self.clock()
        if now < self.next_trial_at:
            return False
        self.next_trial_at = now + COOL_DOWN
        return True

    def just_failed(self) -> bool:
        """True while a failure is news: the first few, then silence until it works again."""
        return self.failures <= FAILURES

    def succeeded(self) -> None:
        self.failures = 0

    def failed(self) -> None:
        self.failures += 1
        self.next_trial_at = self.clock() + COOL_DOWN


class Settings(NamedTuple):
    """Where Redis is. Equal settings share connections and circuit."""

    url: str
    username: str = ""
    password: str = ""
    verify: bool = True
    ca_file: str = ""
    timeout: float = 0.5  # seconds, for each step: connecting, one answer

    def __repr__(self) -> str:
        return f"Settings({urlsplit(self.url).scheme})"

    @classmethod
    def from_config(cls, config: RedisConfig) -> Settings:
        """Raises ConfigError."""
        url, host = config.redis_url, config.redis_host
        if not url and not host:
            raise ConfigError("redis_url", "is empty (an unresolved vault reference?)")
        if not url:
            scheme = "rediss" if config.redis_ssl else "redis"
            url = f"{scheme}://{host}:{config.redis_port}/{config.redis_database}"
        return cls(
            url,
            config.redis_username or "",
            config.redis_password or "",
            config.redis_ssl_verify,
            config.redis_ca_file or "",
            config.timeout_ms / 1000,
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


class RedisLedger(Ledger):
    """May be used by many threads or greenlets at once; each takes a connection of its own."""

    def __init__(self, settings: Settings) -> None:
        self.circuit = Circuit()
        self._idle: deque[Any] = deque()
        self._cluster: Callable[..., Any] | None = None
        try:
            scheme = urlsplit(settings.url).scheme
            if scheme.endswith("+cluster"):
                self._cluster = _cluster(settings)
            elif scheme.endswith("+sentinel"):
                self._connect = _sentinel_pool(settings).make_connection
            else:
                options = settings.options(tls=scheme == "rediss")
                self._connect = redis.ConnectionPool.from_url(settings.url, **options).make_connection
        except (ValueError, OSError) as error:
            raise ConfigError("redis_url", f"cannot be used: {error}") from error

    def admit(self, request: Admit) -> Admission:
        return self._ask(calls.admit(request))

    def acquire(self, lease: Lease, slot: Slot) -> Admission:
        return self._ask(calls.acquire(lease, slot))

    def renew(self, lease: Lease, ttl_ms: int) -> Renewal:
        return self._ask(calls.renew(lease, ttl_ms))

    def settle(self, lease: Lease, cost_micro_usd: int) -> bool:
        return self._ask(calls.settle(lease, cost_micro_usd))

    def release(self, lease: Lease) -> bool:
        return self._ask(calls.release(lease))

    def peek(self, request: Peek) -> Usage:
        return self._ask(calls.peek(request))

    def _ask(self, call: Call[R]) -> R:
        if not self.circuit.admit():
            raise LedgerUnavailable("Redis failed several times in a row, it is tried again in a second")
        try:
            reply = self._cluster(call) if self._cluster else self._run(call)
        except (RedisError, OSError) as error:
            unreadable = calls.unreadable(error, call)
            if unreadable is not None:  # Redis is well: this is one subject's matter
                self.circuit.succeeded()
                raise unreadable from error
            self.circuit.failed()
            raise LedgerUnavailable(f"{type(error).__name__}: {error}") from error
        self.circuit.succeeded()
        return call.parse(reply)

    def _run(self, call: Call[Any]) -> Any:
        try:
            connection = self._idle.pop()
        except IndexError:
            return self._exchange(self._new(), call)
        try:
            return self._exchange(connection, call)
        except RedisError as error:
            if not _another_may_work(error):
                raise
            self.close()
            return self._exchange(self._new(), call)

    def _new(self) -> Any:
        connection = self._connect()
        connection.connect()  # for Sentinel this asks who the master is
        return connection

    def _exchange(self, connection: Any, call: Call[Any]) -> Any:
        try:
            connection.send_packed_command((_packed(call.command()),), check_health=False)
            try:
                reply = connection.read_response()
            except NoScriptError:
                connection.send_packed_command((_packed(call.full_command()),), check_health=False)
                reply = connection.read_response()
        except BaseException:
            connection.disconnect()
            raise
        if len(self._idle) < MAX_IDLE:
            self._idle.append(connection)
        else:
            connection.disconnect()
        return reply

    def close(self) -> None:
        """Closes idle connections."""
        while True:
            try:
                self._idle.pop().disconnect()
            except IndexError:
                return


_packed: Callable[[tuple[str | int | bytes, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]


def _another_may_work(error: RedisError) -> bool:
    """The connection died while idle (Redis restarted), or a master became a replica; so did the others' then.

    Nothing was written in either case that a repetition could double: a lease has its id, and a script that may not
    write fails at its first write. Only a window may count a request twice whose answer was lost.
    """
    if isinstance(error, redis.TimeoutError):
        return False
    return isinstance(error, redis.ConnectionError | ReadOnlyError) or "READONLY" in str(error)


def _hosts(url: str) -> tuple[list[tuple[str, int]], list[str], str, str]:
    """(host, port) of each, path segments, user and password of redis+sentinel:// and redis+cluster:// URLs."""
    parts = urlsplit(url)
    user_info, _, hosts = parts.netloc.rpartition("@")
    user, _, password = user_info.partition(":")
    nodes = []
    for node in hosts.split(","):
        host, _, port = node.rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError("each node must be host:port")
        nodes.append((host.strip("[]"), int(port)))
    return nodes, [unquote(s) for s in parts.path.split("/") if s], unquote(user), unquote(password)


def _with_user(settings: Settings, user: str, password: str) -> Settings:
    return settings._replace(username=settings.username or user, password=settings.password or password)


def _sentinel_pool(settings: Settings) -> Any:
    nodes, path, user, password = _hosts(settings.url)
    if not path:
        raise ValueError("the path must name the Sentinel's service")
    tls = settings.url.startswith("rediss")
    options = _with_user(settings, user, password).options(tls)
    asking = {n: v for n, v in settings.options(tls).items() if n not in ("username", "password")}
    sentinel = Sentinel(nodes, sentinel_kwargs={**asking, "ssl": True} if tls else asking)
    database = int(path[1]) if len(path) > 1 else 0
    return SentinelConnectionPool(path[0], sentinel, ssl=tls, db=database, **options)


def _cluster(settings: Settings) -> Callable[[Call[Any]], Any]:
    """Made on first use: the client asks the nodes for the slots, and Redis may be away when Kong starts."""
    nodes, _, user, password = _hosts(settings.url)
    tls = settings.url.startswith("rediss")
    options = _with_user(settings, user, password).options(tls)
    lock = threading.Lock()
    made: list[RedisCluster] = []

    def client() -> RedisCluster:
        if made:
            return made[0]
        if not lock.acquire(timeout=settings.timeout):  # nobody waits for more than one attempt
            raise redis.TimeoutError("another request is connecting to the cluster")
        try:
            if not made:
                made.append(
                    RedisCluster(
                        startup_nodes=[ClusterNode(host, port) for host, port in nodes],
                        ssl=tls,
                        **{n: v for n, v in options.items() if n not in ("retry", "driver_info")},
                        retry=Retry(NoBackoff(), 1),
                    )
                )
            return made[0]
        finally:
            lock.release()

    def run(call: Call[Any]) -> Any:
        try:
            return client().execute_command(*call.command())
        except NoScriptError:
            return client().execute_command(*call.full_command())

    return run


_shared: WeakValueDictionary[Settings, RedisLedger] = WeakValueDictionary()
_shared_lock = threading.Lock()


def shared(settings: Settings) -> RedisLedger:
    """The one ledger for these settings: Kong makes new instances with every configuration. Raises ConfigError."""
    with _shared_lock:
        ledger = _shared.get(settings)
        if ledger is None:
            ledger = _shared[settings] = RedisLedger(settings)
        return ledger
