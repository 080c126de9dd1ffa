"""Where Redis is, read off a URL: what each part of one means, and what of it is never told."""

from __future__ import annotations

from typing import Any

import pytest
from redis.sentinel import SentinelConnectionPool, SentinelManagedSSLConnection

from claude_contract.redis_place import BadPlace, Kind, Place, pool

READ: tuple[tuple[str, Kind, tuple[tuple[str, int], ...], dict[str, Any], str], ...] = (
    ("redis://", Kind.SERVER, (("localhost", 6379),), {}, "Redis at localhost:6379"),
    ("redis://h:7/3", Kind.SERVER, (("h", 7),), {"db": 3}, "Redis at h:7"),
    (
        "redis://u:p%40w@[::1]:7?socket_timeout=1.5",
        Kind.SERVER,
        (("::1", 7),),
        {"username": "u", "password": "p@w", "socket_timeout": 1.5},
        "Redis at [::1]:7",
    ),
    ("unix:///run/r.sock?db=2", Kind.SERVER, (), {"path": "/run/r.sock", "db": 2}, "Redis at /run/r.sock"),
    (
        "redis+sentinel://u:w@a:1,[::2]:2/my%20own/4?sentinel_password=s&socket_timeout=2",
        Kind.SENTINEL,
        (("a", 1), ("::2", 2)),
        {"username": "u", "password": "w", "db": 4, "socket_timeout": 2.0},
        "Redis my own of the Sentinels at a:1,[::2]:2",
    ),
    ("redis+sentinel://a:1/m", Kind.SENTINEL, (("a", 1),), {}, "Redis m of the Sentinels at a:1"),
    (
        "redis+cluster://:w@a:1,b:2/0",
        Kind.CLUSTER,
        (("a", 1), ("b", 2)),
        {"password": "w"},
        "the Redis Cluster at a:1,b:2",
    ),
    ("redis+cluster://a:1", Kind.CLUSTER, (("a", 1),), {}, "the Redis Cluster at a:1"),
)


@pytest.mark.parametrize(("url", "kind", "nodes", "options", "text"), READ, ids=[url for url, *_ in READ])
def test_what_a_url_says(
    url: str, kind: Kind, nodes: tuple[tuple[str, int], ...], options: dict[str, Any], text: str
) -> None:
    place = Place.parse(url)
    assert (place.kind, place.nodes, dict(place.options), place.tls) == (kind, nodes, options, False)
    assert str(place) == text
    for told in (str(place), repr(place)):
        assert "w@" not in told and "p@w" not in told and "'w'" not in told
    if kind is not Kind.SERVER or nodes:
        assert Place.parse(url.replace("redis", "rediss", 1)).tls


def test_sentinels_are_asked_with_what_is_theirs() -> None:
    """Their own password and name, the same time-outs and certificates, and never what is Redis's."""
    url = "rediss+sentinel://u:w@a:1/m?sentinel_username=su&sentinel_password=sp&socket_timeout=2&ssl_cert_reqs=none"
    place = Place.parse(url)
    theirs = {"username": "su", "password": "sp", "socket_timeout": 2.0, "ssl_cert_reqs": "none"}
    assert dict(place.asking) == theirs
    assert place.of_sentinels("once") == {"retry": "once", **theirs, "ssl": True}
    assert Place.parse("redis+sentinel://:w@a:1/m").of_sentinels("once") == {"retry": "once"}
    assert dict(place.options) == {"username": "u", "password": "w", "socket_timeout": 2.0, "ssl_cert_reqs": "none"}


def test_a_password_of_sentinels_is_not_shown() -> None:
    assert "s3cret" not in repr(Place.parse("redis+sentinel://a:1/m?sentinel_password=s3cret"))


@pytest.mark.parametrize("nodes", ["", ":1", "a", "a:", "a:x", "a:1,", "a:1,b"])
def test_each_node_has_a_host_and_a_port(nodes: str) -> None:
    with pytest.raises(BadPlace, match="must name each node as host:port"):
        Place.parse(f"redis+sentinel://{nodes}/m")


@pytest.mark.parametrize(
    "given",
    [
        *("ssl_ca_certs=/dev/null", "ssl_certfile=/dev/null", "ssl_keyfile=/dev/null", "ssl_cert_reqs=none"),
        *("ssl_check_hostname=false", "ssl_ca_path=/etc/ssl", "ssl_ciphers=HIGH", "ssl_password=p"),
    ],
)
def test_what_is_of_tls_is_for_tls_alone(given: str) -> None:
    name = given.partition("=")[0]
    assert name in Place.parse(f"rediss://h?{given}").options
    with pytest.raises(BadPlace, match=f"has {name}, which is for rediss:// only"):
        Place.parse(f"redis://h?{given}")


@pytest.mark.parametrize("given", ["client_name=gateway", "protocol=2", "health_check_interval=5"])
def test_what_else_a_connection_may_have(given: str) -> None:
    assert given.partition("=")[0] in Place.parse(f"redis://h?{given}").options


def test_the_master_is_asked_of_the_sentinels() -> None:
    made = pool(Place.parse("rediss+sentinel://:w@a:1,b:2/m"))
    assert isinstance(made, SentinelConnectionPool)
    assert made.service_name == "m" and made.connection_kwargs["password"] == "w"
    assert made.connection_class is SentinelManagedSSLConnection
    asked = [each.connection_pool.connection_kwargs for each in made.sentinel_manager.sentinels]
    assert [(each["host"], each["port"]) for each in asked] == [("a", 1), ("b", 2)]
    assert all(each.get("password") is None for each in asked)


def test_with_other_credentials() -> None:
    place = Place.parse("redis://u:w@h?db=1").but({"password": "new"}, {"socket_timeout": 1})
    assert dict(place.options) == {"username": "u", "password": "new", "db": 1}
    assert dict(place.asking) == {"socket_timeout": 1}


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("redis://u:w@h:7/3", {"host": "h", "port": 7, "db": 3, "username": "u", "password": "w"}),
        ("rediss://h?ssl_check_hostname=false", {"host": "h", "port": 6379, "ssl_check_hostname": False}),
        ("unix:///r.sock", {"path": "/r.sock"}),
    ],
)
def test_connections_are_made_to_it(url: str, wanted: dict[str, Any]) -> None:
    made = pool(Place.parse(url), max_connections=3)
    assert made.max_connections == 3
    assert wanted.items() <= made.connection_kwargs.items()
    kind = {"redis": "Connection", "rediss": "SSLConnection", "unix": "UnixDomainSocketConnection"}
    assert made.connection_class.__name__ == kind[url.partition(":")[0]]


def test_the_certificate_of_another_name_is_wanted_where_one_is_named() -> None:
    place = Place.parse("rediss://h").but({"server_name": "other"}, {})
    assert pool(place).connection_class.__name__ == "_Named"
    made: Any = pool(place).make_connection()
    assert (made.host, made.port, made._server_name) == ("h", 6379, "other")
