"""One table of errors for both sides: what the invoker says, and what the gateway's `claude-errors` says for what never
comes that far. On minikong, or with KONG=… on a real Kong."""

from __future__ import annotations

import contextlib
import json
import os
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from claude_invoker.api.languages import Language, anthropic_type, language_of, openai_type, said
from claude_invoker.dashboard.guard import HEADERS
from claude_invoker.problem import Problem
from kong_claude.guard import LUA_PATH, LUA_PLUGINS
from minikong.pytest_plugin import MiniKong
from tests.pair.gateways import Upstream, gateway
from tests.support.waiting import HANG_S

STATUSES = (400, 401, 402, 403, 404, 405, 409, 413, 415, 422, 429, 431, 500, 501, 502, 503, 504, 507, 529)
ANTHROPIC, OPENAI, GRAPHQL = "/claude/v1/messages", "/claude/v1/chat/completions", "/claude/graphql"


class _Breaks(socketserver.StreamRequestHandler):
    """Takes a request and says nothing, or (for `/own`) answers with an error of its own."""

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            asked = self.rfile.readline()
            while self.rfile.readline() not in (b"\r\n", b""):
                pass
            if b"own" in asked:
                body = b'{"own": 1}'
                self.wfile.write(b"HTTP/1.1 429 No\r\nContent-Length: %d\r\nX-Own: 1\r\n\r\n%b" % (len(body), body))


def _route(name: str, path: str, *plugins: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "paths": [path], "strip_path": False, "plugins": [*plugins]}


TOO_MANY = {"message": "too many", "limit": "concurrent", "allowed": 4}


EVIL = "<script>alert('1')</script>&\""


def _ends(status: int) -> dict[str, Any]:
    return {"name": "request-termination", "config": {"status_code": status, "message": f"because of {status}"}}


def _says(status: int, body: dict[str, Any]) -> dict[str, Any]:
    config = {"status_code": status, "content_type": "application/json", "body": json.dumps(body)}
    return {"name": "request-termination", "config": config}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Breaks)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    ending = [_route(f"e{s}", f"~/claude/v1/(messages|chat/completions)/{s}$", _ends(s)) for s in STATUSES]
    config: dict[str, Any] = {
        "_format_version": "3.0",
        "plugins": [
            {"name": "correlation-id", "config": {"header_name": "X-Request-Id", "echo_downstream": True}},
            {"name": "claude-errors"},
        ],
        "services": [
            {
                "name": "breaks",
                "url": f"http://127.0.0.1:{server.server_address[1]}",
                "retries": 0,
                "routes": [
                    *ending,
                    _route("broken", "~/claude/v1/(messages|chat/completions)/(broken|own)$"),
                    _route("busy", "~/claude/v1/(messages|chat/completions)/busy$", _says(429, TOO_MANY)),
                    _route("other", "~/claude/other$", _ends(403)),
                    *(_route(f"d{s}", f"~/claude/dashboard/{s}$", _ends(s)) for s in STATUSES),
                    _route("d-evil", "~/claude/dashboard/evil$", _says(403, {"message": EVIL})),
                    _route("d-guarded", "~/claude/dashboard/unguarded$", {"name": "claude-guard"}),
                    _route("d-own", "~/claude/dashboard/own$"),
                    # One path for all: a header says what is to happen.
                    *(
                        {**_route(f"g{s}", "~/claude/graphql$", _ends(s)), "headers": {"x-do": [str(s)]}}
                        for s in STATUSES
                    ),
                    {**_route("g-busy", "~/claude/graphql$", _says(429, TOO_MANY)), "headers": {"x-do": ["busy"]}},
                    {**_route("g-broken", "~/claude/graphql$"), "headers": {"x-do": ["broken"]}},
                    {
                        **_route("g-guarded", "~/claude/graphql$", {"name": "claude-guard"}),
                        "headers": {"x-do": ["unguarded"]},
                    },
                    {**_route("unguarded", "~/claude/v1/messages/unguarded$", {"name": "claude-guard"})},
                ],
            },
            {
                "name": "away",
                "url": "http://127.0.0.1:9",
                "retries": 0,
                "routes": [
                    _route("away", "~/claude/v1/(messages|chat/completions)/away$"),
                    {**_route("g-away", "~/claude/graphql$"), "headers": {"x-do": ["away"]}},
                ],
            },
        ],
    }
    with _kong(config, tmp_path_factory.mktemp("errors")) as url, httpx.Client(base_url=url, timeout=HANG_S) as client:
        yield client
    server.shutdown()
    server.server_close()


@contextlib.contextmanager
def _kong(config: dict[str, Any], directory: Path) -> Iterator[str]:
    """Its URL."""
    if os.environ.get("KONG"):
        with gateway(config, Upstream(), f"{LUA_PATH};;", directory / "log") as running:
            yield f"http://127.0.0.1:{running.port}"
        return
    installed = {"plugins": ",".join(("bundled", *LUA_PLUGINS)), "lua_package_path": f"{LUA_PATH};;"}
    made = MiniKong(json.dumps(config), [], installed)
    yield made.base_url
    made.stop()


@pytest.mark.parametrize("status", STATUSES)
def test_gateway_and_invoker_say_the_same(api: httpx.Client, status: int) -> None:
    problem = Problem(status, "internal", f"because of {status}")
    got = api.post(f"{ANTHROPIC}/{status}")
    told = said(problem, "anthropic", got.headers["x-request-id"])
    assert got.status_code == told.status
    expected = dict(told.body)
    expected["error"] = {"type": anthropic_type(told.status), "message": f"because of {status}"}
    assert got.json() == expected
    assert got.headers["request-id"] == got.headers["x-request-id"] == got.json()["request_id"]
    assert got.headers["content-type"] == "application/json"
    assert got.headers.get("x-should-retry") == ("false" if status == 401 else None)
    got = api.post(f"{OPENAI}/{status}")
    told = said(problem, "openai", "")
    assert got.status_code == told.status
    assert got.json() == {
        "error": {"message": f"because of {status}", "type": openai_type(told.status), "param": None, "code": None}
    }
    # What the invoker has beside it is the cause's name, and in OpenAI's shape the field's.
    assert told.body["error"] == got.json()["error"] | {"code": "internal"}


def test_both_clients_are_told_which_limit_it_was(api: httpx.Client) -> None:
    for path, language in ((ANTHROPIC, "anthropic"), (OPENAI, "openai")):
        told = said(Problem(429, "busy", "too many", extra={"limit": "concurrent", "allowed": 4}), language, "")  # type: ignore[arg-type]
        for error in (api.post(f"{path}/busy").json()["error"], told.body["error"]):
            assert (error["message"], error["type"]) == ("too many", "rate_limit_error")
            assert error["details"].items() >= {"limit": "concurrent", "allowed": 4}.items()


@pytest.mark.parametrize(
    ("path", "headers", "language"),
    [
        ("/claude/v1/messages", {}, "anthropic"),
        ("/claude/v1/messages/count_tokens", {}, "anthropic"),
        ("/claude/v1/models", {}, "openai"),
        ("/claude/v1/models", {"anthropic-version": "2023-06-01"}, "anthropic"),
        ("/claude/v1/messages.txt", {}, "openai"),
        ("/claude/v1/nothing", {"anthropic-version": "2023-06-01"}, "anthropic"),
        ("/claude/v1", {"anthropic-version": "2023-06-01"}, "problem"),
        ("/claude/v1beta/x", {}, "problem"),
        ("/claude/repos/v1/messages/invoke", {}, "problem"),
        ("/elsewhere", {"anthropic-version": "2023-06-01"}, "problem"),
    ],
)
def test_who_is_spoken_to_is_found_alike(
    api: httpx.Client, path: str, headers: dict[str, str], language: Language
) -> None:
    assert language_of(path, headers, "/claude") == language
    got = api.get(f"{path}?q=/claude/v1/messages", headers=headers)
    assert got.status_code == 404
    body = got.json()
    found = "anthropic" if body.get("type") == "error" else "openai" if "error" in body else "problem"
    assert (found, "message" in body) == (language, language == "problem")


KINDS: dict[int, str] = {
    400: "bad-request", 401: "unauthenticated", 403: "forbidden", 404: "not-found", 405: "method-not-allowed",
    413: "too-large", 422: "invalid", 429: "limited", 503: "busy", 504: "timeout",
}  # fmt: skip


@pytest.mark.parametrize("status", STATUSES)
def test_graphql_is_told_its_own(api: httpx.Client, status: int) -> None:
    """With the code that the invoker gives a problem of that status, where no plugin says why."""
    kind = KINDS.get(status, "internal")
    got = api.post(GRAPHQL, headers={"x-do": str(status)})
    told = said(Problem(status, kind, f"because of {status}"), "graphql", "")
    assert (got.status_code, got.headers["content-type"]) == (told.status, told.media_type)
    ((error,), (ours,)) = got.json()["errors"], told.body["errors"]
    assert got.json().keys() == told.body.keys() and error["message"] == ours["message"]
    extensions = {"code": kind, "status": status, "request_id": got.headers["x-request-id"]}
    assert error["extensions"] == extensions and ours["extensions"].items() >= {"code": kind, "status": status}.items()


@pytest.mark.parametrize(
    ("what", "status", "more"),
    [
        ("busy", 429, {"code": "limited", "limit": "concurrent", "allowed": 4}),
        ("away", 502, {"code": "internal"}),
        ("broken", 502, {"code": "internal"}),
        ("unguarded", 503, {"code": "busy"}),
        ("nothing of these", 404, {"code": "not-found"}),
    ],
)
def test_graphql_is_told_its_own_by_whoever_refuses(
    api: httpx.Client, what: str, status: int, more: dict[str, Any]
) -> None:
    got = api.post(GRAPHQL, headers={"x-do": what})
    assert got.status_code == status
    (error,) = got.json()["errors"]
    assert error["message"] and error["extensions"].items() >= (more | {"status": status}).items(), error
    longer = api.post(f"{GRAPHQL}/more")
    assert longer.json().keys() == {"message", "request_id"}, "no path of ours: as Kong says it"


def test_a_prefix_is_not_needed_at_the_invoker() -> None:
    assert language_of("/v1/messages", {}, "/claude") == language_of("/v1/messages", {}, "") == "anthropic"
    assert language_of("/repos/v1/messages/invoke", {}, "") == "problem"


def test_kongs_own_errors_are_in_the_language_too(api: httpx.Client) -> None:
    away = api.post(f"{ANTHROPIC}/away")
    assert away.status_code == 502
    assert away.json()["error"]["type"] == "api_error"
    # Nobody had this request: it may be sent again.
    assert "x-should-retry" not in away.headers
    for path, kind in ((ANTHROPIC, "api_error"), (OPENAI, "server_error")):
        broken = api.post(f"{path}/broken")
        assert broken.status_code == 502
        assert broken.json()["error"]["type"] == kind
        # Somebody had it, and a run may have begun.
        assert broken.headers["x-should-retry"] == "false"
    html = api.post(f"{OPENAI}/away", headers={"Accept": "text/html"})
    assert html.json()["error"]["message"] == "the request failed with status 502"
    assert api.head(f"{ANTHROPIC}/away").headers["request-id"]


def test_the_guards_refusal_is_in_the_language_too(api: httpx.Client) -> None:
    refused = api.post(f"{ANTHROPIC}/unguarded")
    assert (refused.status_code, refused.json()["error"]["type"]) == (503, "overloaded_error")
    assert refused.headers["retry-after"] == "1"


def test_what_a_service_says_is_left_alone_and_what_is_elsewhere(api: httpx.Client) -> None:
    own = api.post(f"{ANTHROPIC}/own")
    assert (own.status_code, own.content, own.headers["x-own"]) == (429, b'{"own": 1}', "1")
    other = api.get("/claude/other")
    assert (other.status_code, other.json()) == (403, {"message": "because of 403"})


BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


@pytest.mark.parametrize("status", STATUSES)
def test_a_browser_at_the_dashboard_gets_a_page(api: httpx.Client, status: int) -> None:
    """Under the policy of the dashboard's own pages, with a way to the login where that may help."""
    got = api.get(f"/claude/dashboard/{status}", headers=BROWSER)
    assert (got.status_code, got.headers["content-type"]) == (status, "text/html; charset=utf-8")
    assert f"because of {status} ({status}, request {got.headers['x-request-id']})" in got.text
    assert ('<a href="/claude/dashboard/login">' in got.text) == (status in (401, 403))
    for name in HEADERS.keys() - {"Content-Security-Policy", "X-Frame-Options"}:
        assert got.headers[name] == HEADERS[name], name
    ours = {*HEADERS["Content-Security-Policy"].split("; ")}
    assert {*got.headers["content-security-policy"].split("; ")} <= ours | {"form-action 'none'"}
    # Its scripts, and whoever else asks, are told as before.
    for accept in ("*/*", "application/json", "text/event-stream"):
        other = api.get(f"/claude/dashboard/{status}", headers={"Accept": accept})
        assert (other.status_code, other.json()) == (status, {"message": f"because of {status}"})


def test_such_a_page_has_nothing_of_others_and_is_nowhere_else(api: httpx.Client) -> None:
    evil = api.get("/claude/dashboard/evil?<script>", headers=BROWSER)
    assert evil.status_code == 403 and "<script" not in evil.text
    assert "&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;&quot;" in evil.text
    guarded = api.get("/claude/dashboard/unguarded", headers=BROWSER)
    assert (guarded.status_code, guarded.headers["retry-after"]) == (503, "1")
    assert "<h1>That did not work</h1>" in guarded.text
    nowhere = api.get("/claude/dashboard/nowhere", headers=BROWSER)
    assert nowhere.status_code == 404 and "<h1>That did not work</h1>" in nowhere.text
    assert api.head("/claude/dashboard/401", headers=BROWSER).content == b""
    assert api.get("/claude/dashboard/own", headers=BROWSER).json() == {"own": 1}
    assert api.get("/claude/dashboards", headers=BROWSER).text.count("main") == 0
    assert api.get("/claude/other", headers=BROWSER).json() == {"message": "because of 403"}


def test_one_plugin_is_nowhere_else_in_the_way(api: httpx.Client, tmp_path: Path) -> None:
    """The control: without it the same errors are Kong's."""
    config = {"_format_version": "3.0", "services": [], "plugins": []}
    with _kong(config, tmp_path) as url:
        got = httpx.get(f"{url}{ANTHROPIC}", timeout=HANG_S)
    assert got.status_code == 404
    assert set(got.json()) == {"message", "request_id"}
