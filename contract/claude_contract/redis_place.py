"""Where Redis is, as one URL says it, for all who ask it: a server, the Sentinels that know the server, or a Cluster.

    redis://user:password@host:6379/0      rediss://… (TLS)      unix:///path/to/socket?db=0
    redis+sentinel://user:password@host:26379,host:26379/service/0?sentinel_password=…
    redis+cluster://user:password@host:7000,host:7001

The parameters behind `?` are those of redis-py's URLs. With `rediss` the server's certificate is always verified,
unless `ssl_cert_reqs=none` says otherwise: `ssl_ca_certs` is the file of who signs it, `ssl_certfile` and `ssl_keyfile`
are the client's own. Sentinels are sent `sentinel_username` and `sentinel_password`, never those of Redis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any
from urllib.parse import unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.connection import URL_QUERY_ARGUMENT_PARSERS, parse_url
from redis.exceptions import RedisClusterException
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

_OF_SENTINEL = ("sentinel_username", "sentinel_password")
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_OF_TLS = (*_FILES, "ssl_cert_reqs", "ssl_check_hostname", "ssl_ca_path", "ssl_ciphers", "ssl_password")
_OTHERS = ("username", "password", "path", "client_name", "protocol", *URL_QUERY_ARGUMENT_PARSERS)


class BadPlace(ValueError):
    """A URL that cannot be used. Of the URL the text has names of parameters and files at most."""


class Kind(Enum):
    SERVER = "server"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True)
class Place:
    """`str` and `repr` are without secrets."""

    kind: Kind
    nodes: tuple[tuple[str, int], ...]
    """Host and port of the server, of each Sentinel, or of those nodes of the Cluster that are asked for the others."""
    tls: bool = False
    service: str = ""
    """What the Sentinels call the master."""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Keyword arguments of a redis-py connection to Redis, but for host and port."""
    asking: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The same of a connection to a Sentinel."""

    @classmethod
    def parse(cls, url: str) -> Place:
        """Raises BadPlace."""
        try:
            return _parse(url)
        except BadPlace:
            raise
        except ValueError:
            # The text of the error could hold the URL with its password.
            raise BadPlace("is not a URL of Redis that can be used") from None

    def but(self, options: Mapping[str, Any], asking: Mapping[str, Any]) -> Place:
        """With other credentials, time-outs and the like, for Redis and for its Sentinels."""
        return replace(self, options={**self.options, **options}, asking={**self.asking, **asking})

    def of_sentinels(self, once: Any) -> dict[str, Any]:
        """Keyword arguments of a connection to a Sentinel. `once`: redis-py's retry, of threads or of asyncio, that
        tries once more and does not wait: where one does not answer the next is asked, not the same for seconds."""
        return {"retry": once, **self.asking, **({"ssl": True} if self.tls else {})}

    def __str__(self) -> str:
        if "path" in self.options:
            return f"Redis at {self.options['path']}"
        at = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.nodes)
        return {
            Kind.SERVER: f"Redis at {at}",
            Kind.SENTINEL: f"Redis {self.service} of the Sentinels at {at}",
            Kind.CLUSTER: f"the Redis Cluster at {at}",
        }[self.kind]


class _Named(redis.SSLConnection):
    """Wants the certificate of another name than the host's, which redis-py has no setting for."""

    def __init__(self, *, server_name: str, **options: Any) -> None:
        super().__init__(**options)
        self._server_name = server_name

    def _wrap_socket_with_ssl(self, sock: Any) -> Any:
        host, self.host = self.host, self._server_name
        try:
            return super()._wrap_socket_with_ssl(sock)  # type: ignore[no-untyped-call]
        finally:
            self.host = host


def pool(place: Place, of: type[redis.ConnectionPool] = redis.ConnectionPool, **bounds: Any) -> redis.ConnectionPool:
    """Connections of redis-py, for threads. Not for a Cluster. `of`: the class of a server's, with its `bounds`."""
    options: dict[str, Any] = dict(place.options)
    if place.kind is Kind.SENTINEL:
        sentinel = Sentinel(list(place.nodes), sentinel_kwargs=place.of_sentinels(Retry(NoBackoff(), 1)))
        return SentinelConnectionPool(place.service, sentinel, ssl=place.tls, **options)
    if "path" in options:
        return of(connection_class=redis.UnixDomainSocketConnection, **bounds, **options)
    ((host, port),) = place.nodes
    tls = _Named if "server_name" in options else redis.SSLConnection
    connection = tls if place.tls else redis.Connection
    return of(connection_class=connection, host=host, port=port, **bounds, **options)


class _Cluster(RedisCluster):
    """Says that it cannot be reached as other clients do: RedisClusterException is no RedisError."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except RedisClusterException as error:
            raise redis.ConnectionError(str(error)) from error


def client(place: Place) -> Any:
    """A client of redis-py, for threads. Raises RedisError for a Cluster, which is asked for its nodes at once."""
    if place.kind is Kind.CLUSTER:
        nodes = [ClusterNode(host, port) for host, port in place.nodes]
        try:
            return _Cluster(startup_nodes=nodes, ssl=place.tls, **place.options)
        except RedisClusterException as error:
            raise redis.ConnectionError(str(error)) from error
    return redis.Redis.from_pool(pool(place))


def _parse(url: str) -> Place:
    """Raises ValueError."""
    parts = urlsplit(url)
    scheme, _, kinds = parts.scheme.partition("+")
    if scheme not in ("redis", "rediss", "unix") or kinds not in ("", "sentinel", "cluster"):
        raise BadPlace("must begin with redis://, rediss:// or unix://, or with redis+sentinel://, redis+cluster://")
    kind = Kind(kinds or "server")
    user, at, hosts = parts.netloc.rpartition("@")
    nodes, service = _nodes(hosts) if kind is not Kind.SERVER else (), ""
    if kind is Kind.SENTINEL:
        service, _, database = parts.path.strip("/").partition("/")
        if not service:
            raise BadPlace("must name the Sentinel's service in its path")
        if database and not database.isdecimal():
            raise BadPlace("must have a number as its database")
        parts = parts._replace(path=f"/{database}")
    if kind is not Kind.SERVER:  # redis-py knows one host only
        url = parts._replace(scheme=scheme, netloc=f"{user}{at}host").geturl()
    options: dict[str, Any] = dict(parse_url(url))
    options.pop("connection_class", None)
    server = (str(options.pop("host", "localhost")), int(options.pop("port", 6379)))
    if kind is Kind.CLUSTER and options.pop("db", 0):
        raise BadPlace("must name no database but 0: a Cluster has no other")
    asking = {name: options.pop(name) for name in _OF_SENTINEL if name in options}
    if asking and kind is not Kind.SENTINEL:
        raise BadPlace(f"has {next(iter(asking))}, which is for redis+sentinel:// only")
    tls = scheme == "rediss"
    _check(options, tls)
    shared = {name: value for name, value in options.items() if name in _OF_TLS or name.startswith("socket_")}
    asking = shared | {name.removeprefix("sentinel_"): value for name, value in asking.items()}
    nodes = nodes if kind is not Kind.SERVER else () if scheme == "unix" else (server,)
    return Place(kind, nodes, tls, unquote(service), options, asking)


def _nodes(hosts: str) -> tuple[tuple[str, int], ...]:
    """Of `host:port,host:port`. Raises BadPlace."""
    found = []
    for node in hosts.split(","):
        host, _, port = node.rpartition(":")
        if not host or not port.isdecimal():
            raise BadPlace("must name each node as host:port")
        found.append((host.strip("[]"), int(port)))
    return tuple(found)


def _check(options: Mapping[str, Any], tls: bool) -> None:
    """What redis-py would only say with the first connection, and not where it is written. Raises BadPlace."""
    for name in options:
        if name in _OF_TLS and not tls:
            raise BadPlace(f"has {name}, which is for rediss:// only")
        if name not in (*_OF_TLS, *_OTHERS):
            raise BadPlace(f"has the parameter {name}, which means nothing")
    for name in _FILES:
        try:
            with open(options.get(name, "/dev/null"), "rb"):
                pass
        except OSError as error:
            raise BadPlace(f"has {name}={options[name]}: {error.strerror}") from None
