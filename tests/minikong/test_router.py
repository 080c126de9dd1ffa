"""Routing: who wins, what becomes of the path, and Lua's sort."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minikong.entities import Config, Route, Service
from minikong.router import Match, Router, lua_sort, request_path, split_port


def _router(*routes: Route, service_path: str | None = None) -> Router:
    service = Service("s", "up", "up.test", path=service_path)
    for route in routes:
        route.service_id = "s"
    return Router(Config(services={"s": service}, routes={r.id: r for r in routes}))


def _match(router: Router, target: str, method: str = "GET", host: str | None = "h", **headers: str) -> Match | None:
    lines = {name.replace("_", "-"): [value] for name, value in headers.items()}
    return router.match(method, target.encode(), host, "http", None, lines)


def _winner(router: Router, target: str, method: str = "GET", host: str | None = "h", **headers: str) -> str | None:
    found = _match(router, target, method, host, **headers)
    return found.route.name if found else None


@pytest.mark.parametrize(
    ("target", "winner"),
    [
        ("/a", "a"),
        ("/a/", "a"),
        ("/ab", "a"),  # a prefix, not a segment
        ("/a/b/c", "ab"),
        ("/x/12", "regex"),
        ("/x/ab", None),
        ("/y/x/12", None),  # regexes start at the beginning
        ("/a?x=/a/b", "a"),
        ("/./a/../a//b", "ab"),
        ("/%61/b", "ab"),
        ("/a%2Fb", "a"),  # an encoded slash is none
    ],
)
def test_paths(target: str, winner: str | None) -> None:
    router = _router(
        Route("1", "a", paths=["/a"]),
        Route("2", "ab", paths=["/a/b"]),
        Route("3", "regex", paths=[r"~/x/\d+"]),
    )
    assert _winner(router, target) == winner


def test_more_kinds_of_rules_win_over_a_longer_path() -> None:
    router = _router(
        Route("1", "long", paths=["/a/b/c"]),
        Route("2", "host", hosts=["h"], paths=["/a"]),
        Route("3", "all", hosts=["h"], paths=["/"], methods=["PUT"]),
    )
    assert _winner(router, "/a/b/c") == "host"
    assert _winner(router, "/a/b/c", host="other") == "long"
    assert _winner(router, "/a", "PUT") == "all"
    assert _winner(router, "/b", host=None) is None


@pytest.mark.parametrize(
    ("host", "winner"),
    [
        ("api.test", "plain"),
        ("api.test:8000", "plain"),
        ("API.test", None),  # nginx lowers $host, Kong's router does not
        ("x.api.test", "left"),
        ("a.b.api.test:81", "left"),
        ("api.org", "right"),
        ("port.test:9000", "port"),
        ("port.test", None),
        ("other", None),
    ],
)
def test_hosts(host: str, winner: str | None) -> None:
    router = _router(
        Route("1", "plain", hosts=["api.test"]),
        Route("2", "left", hosts=["*.api.test"]),
        Route("3", "right", hosts=["api.*"]),
        Route("4", "port", hosts=["port.test:9000"]),
    )
    assert _winner(router, "/", host=host) == winner


def test_headers_need_every_name_and_any_value() -> None:
    router = _router(
        Route("1", "one", headers={"X-V": ["a", "b"]}),
        Route("2", "two", headers={"X-V": ["a"], "X-W": ["c"]}),
        Route("3", "pattern", headers={"X-P": ["~*^r[0-9]+$"]}),
    )
    assert _winner(router, "/", x_v="B") == "one"
    assert _winner(router, "/", x_v="a", x_w="c") == "two"
    assert _winner(router, "/", x_p="R1") == "pattern"
    assert _winner(router, "/", x_v="z") is None


# (service path, strip_path, route path, request, upstream) as Kong's documentation of path_handling v0 has them.
@pytest.mark.parametrize(
    ("service", "strip", "route", "request_", "upstream"),
    [
        ("/s", False, "/fv0", "/fv0/req", "/s/fv0/req"),
        ("/s", True, "/tv0", "/tv0/req", "/s/req"),
        ("/s", True, "/tv0/", "/tv0/req", "/s/req"),
        ("/s/", True, "/tv0", "/tv0/req", "/s/req"),
        ("/s", True, "/tv0", "/tv0", "/s"),
        ("/s", True, "/tv0", "/tv0/", "/s/"),
        ("/s/", True, "/tv0", "/tv0", "/s"),
        (None, True, "/tv0", "/tv0", "/"),
        (None, False, "/", "/", "/"),
        (None, True, "/t", "/tail", "/ail"),
    ],
)
def test_upstream_path_v0(service: str | None, strip: bool, route: str, request_: str, upstream: str) -> None:
    router = _router(Route("1", "r", paths=[route], strip_path=strip), service_path=service)
    found = _match(router, request_)
    assert found is not None
    assert found.upstream_path == upstream


def test_captures_and_what_strip_path_leaves() -> None:
    router = _router(Route("1", "r", paths=["~/repos/(?<owner>[^/]+)/([^/]+)"]))
    found = _match(router, "/repos/me/mine/tail")
    assert found is not None
    assert found.captures == {0: "/repos/me/mine/tail", 1: "me", 2: "mine", "owner": "me"}
    assert (found.prefix, found.upstream_path) == ("/repos/me/mine", "/tail")


def test_dots_after_the_prefix_do_not_climb() -> None:
    router = _router(Route("1", "r", paths=["/a"]))
    for target in ("/a../b", "/a..", "/a./b"):
        found = _match(router, target)
        assert found is not None
        assert ".." not in (found.upstream_path or "")


def test_disabled_services_have_no_routes() -> None:
    config = Config(
        services={"s": Service("s", "off", "h", enabled=False)},
        routes={"1": Route("1", "r", service_id="s", paths=["/"])},
    )
    assert Router(config).match("GET", b"/", "h", "http", None, {}) is None


@pytest.mark.parametrize(
    ("name", "default", "parts"),
    [
        ("h", 80, ("h", "h:80")),
        ("h:81", 80, ("h", "h:81")),
        ("h:", 80, ("h", "h:80")),
        ("h:x", 80, ("h:x", "[h:x]:80")),
        ("[::1]", 80, ("::1", "[::1]:80")),
        ("[::1]:81", 80, ("::1", "[::1]:81")),
    ],
)
def test_split_port(name: str, default: int, parts: tuple[str, str]) -> None:
    assert split_port(name, default) == parts


@given(st.lists(st.integers()))
def test_lua_sort_sorts(items: list[int]) -> None:
    wanted = sorted(items)
    lua_sort(items, lambda a, b: a < b)
    assert items == wanted


@given(st.lists(st.tuples(st.integers(0, 3), st.integers())))
def test_lua_sort_keeps_every_element(items: list[tuple[int, int]]) -> None:
    before = sorted(items)
    lua_sort(items, lambda a, b: a[0] < b[0])
    assert sorted(items) == before
    assert [key for key, _ in items] == sorted(key for key, _ in before)


@given(st.binary(max_size=60))
def test_any_target_routes_or_not_but_never_raises(target: bytes) -> None:
    router = _router(Route("1", "r", paths=["/a", "~/b/(?<x>.*)"]), Route("2", "h", hosts=["*.x"]))
    path = request_path(target)
    assert "//" not in path
    router.match("GET", target, "\udcff", "http", None, {})
