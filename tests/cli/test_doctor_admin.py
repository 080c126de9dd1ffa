"""`kong-claude doctor --admin-url`: what a running Kong shows of its settings is examined, the rest is not called wrong."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from kong_claude import PLUGINS
from kong_claude.cli.main import main
from kong_claude.doctor import admin, probe, rules
from kong_claude.doctor.settings import Settings, of_environment
from kong_claude.problem import Problem
from tests.support.gateway import gateway_alone

ROOT = Path(__file__).resolve().parents[2]
SAID = json.loads((Path(__file__).parent / "data" / "kong-root.json").read_text())
"""Some of what Kong 3.9.3 answered to `GET /`; with another who started its plugin server."""
EMPTY: dict[str, Any] = {"data": [], "next": None}
READ_TIMEOUT = "KONG_NGINX_HTTP_LUA_SOCKET_READ_TIMEOUT"
Answers = Mapping[str, tuple[int, Any]]


@contextmanager
def api(answers: Answers) -> Iterator[str]:
    """An Admin API that gives these answers; lists of entities are empty where there is none."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            kinds = ("/services", "/routes", "/plugins", "/upstreams", "/consumers")
            status, body = answers.get(path, (200, EMPTY) if path in kinds else (404, {"message": "Not found"}))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def changed(**settings: Any) -> Answers:
    return {"/": (200, {**SAID, "configuration": {**SAID["configuration"], **settings}})}


GATEWAY = {"name": "claude-gateway", "config": {"jwt_claims": {"issuers": [{"issuer": "kong-claude-dev"}]}}}
IN_USE: Answers = {
    "/services": (200, {"data": [{"id": "s", "name": "s", "host": "invoker", "port": 8100}], "next": None}),
    "/routes": (200, {"data": [{"id": "r", "name": "r", "service": {"id": "s"}, "tags": None}], "next": None}),
    "/plugins": (
        200,
        {"data": [{"id": "p", "route": {"id": "r"}, "service": None, "consumer": None, **GATEWAY}], "next": None},
    ),
}
ROOTS = [
    ("as it should be", {}, set()),
    ("patient", {"nginx_http_lua_socket_read_timeout": "60s"}, {"unbounded-timeout"}),
    ("small buffer", {"nginx_http_client_body_buffer_size": "8k"}, {"small-body-buffer"}),
    ("no server", {"pluginserver_names": []}, {"no-pluginserver"}),
    ("whole dump", {"pluginserver_claude_gateway_query_cmd": "x --dump-all-plugins"}, {"wrong-dump"}),
    ("stock server", {"pluginserver_claude_gateway_start_cmd": "kong-python-pluginserver"}, {"stock-pluginserver"}),
    ("all addresses", {"proxy_listen": ["0.0.0.0:8000", "[::1]:8443 ssl"]}, {"development-issuer"}),
    ("no names", {"plugins": ["bundled"]}, {"not-enabled"}),
]


@pytest.mark.parametrize(("settings", "found"), [row[1:] for row in ROOTS], ids=[row[0] for row in ROOTS])
def test_the_settings_that_kong_shows_are_examined(settings: dict[str, Any], found: set[str]) -> None:
    with api({**IN_USE, **changed(**settings)}) as url:
        seen = admin.from_admin(url, Settings())
    # Whether the secrets are there nobody can see; and no guard is there at all.
    assert {opening.rule for opening in rules.examine(seen)} - {"no-guard"} == found


@pytest.mark.parametrize(
    "root",
    [
        (500, {"message": "An unexpected error occurred"}),
        (403, {"message": "Forbidden"}),
        (200, {"version": "3.9.1", "configuration": {"database": "off"}}),
        (200, {"configuration": None}),
        (200, {"configuration": {"plugins": "bundled"}}),
    ],
    ids=["a worker that started a plugin server", "forbidden", "an older minikong", "nothing", "something else"],
)
def test_settings_that_are_not_shown_are_not_called_wrong(root: tuple[int, Any]) -> None:
    with api({**IN_USE, "/": root}) as url:
        seen = admin.from_admin(url, Settings())
        assert {opening.rule for opening in rules.examine(seen)} == {"no-guard"}
        assert not seen.settings.shows(READ_TIMEOUT)
        control = admin.from_admin(url, of_environment({"KONG_PLUGINS": "bundled,claude-gateway"}))
        assert {"unbounded-timeout", "no-pluginserver"} < {opening.rule for opening in rules.examine(control)}


def test_what_is_loaded_is_known_where_the_settings_are_not() -> None:
    loaded = (200, {"enabled_plugins": ["key-auth", "claude-guard"]})
    with api({**IN_USE, "/": (500, {}), "/plugins/enabled": loaded}) as url:
        rules_found = {opening.rule for opening in rules.examine(admin.from_admin(url, Settings()))}
    assert rules_found == {"no-guard", "not-enabled"}


def test_what_kong_shows_counts_more_than_an_environment_that_may_be_anothers() -> None:
    environment = {READ_TIMEOUT: "60s", "KONG_PLUGINSERVER_OTHER_START_CMD": "x", "CLAUDE_JWT_SECRET": "y"}
    with api(changed()) as url:
        settings = admin.settings(url).over(of_environment(environment))
    assert settings.get(READ_TIMEOUT) == "5s"
    assert settings.get("KONG_PLUGINSERVER_OTHER_START_CMD") is None
    assert settings.get("CLAUDE_JWT_SECRET") == "y"
    assert settings.shows("CLAUDE_ATTESTATION_KEY", "KONG_LUA_PACKAGE_PATH")
    assert "y" not in repr(settings)


def test_a_field_of_another_release_is_none_that_is_mistyped() -> None:
    """Kong has taken it; and shows all fields that it knows, those that are not given too."""
    config = {"minute": 10, "limit_by": "ip", "of_tomorrow": None}
    plugin = {"name": "claude-rate-tiers", "id": "1", "config": config}
    with api({"/plugins": (200, {"data": [plugin], "next": None})}) as url:
        running = admin.from_admin(url, Settings())
    found = list(probe.configurations(running, PLUGINS))
    assert [each.rule for each in found] == ["unchecked"], found
    assert "of_tomorrow" in found[0].problem and "another release" in found[0].problem
    # The control: in a file it is mistyped, null or not, as Kong says itself.
    written = list(probe.configurations(replace(running, is_running=False), PLUGINS))
    assert [each.rule for each in written] == ["bad-config"] and "no such field" in written[0].problem


def test_every_page_is_read() -> None:
    first = (200, {"data": [{"id": "1"}], "next": "/more"})
    with api({"/services": first, "/more": (200, {"data": [{"id": "2"}], "next": None})}) as url:
        assert [service["id"] for service in admin.everything(url)["services"]] == ["1", "2"]


@pytest.mark.parametrize("answer", [(404, {}), (200, []), (401, {"message": "Unauthorized"})])
def test_who_is_no_admin_api_is_named(answer: tuple[int, Any]) -> None:
    with api({"/routes": answer}) as url, pytest.raises(Problem, match=f"{url} does not answer like Kong's Admin API"):
        admin.from_admin(url, Settings())


def test_the_shipped_configuration_as_it_runs_has_no_opening(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell that knows nothing of Kong but where its Admin API is; a real Kong, too, with KONG=…"""
    shipped = yaml.safe_load((ROOT / "kong.yml").read_text())
    with gateway_alone(json.dumps(shipped), lambda *_: {}) as gateway, monkeypatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("KONG_")]:
            patch.delenv(name)
        assert main(["doctor", "--admin-url", f"unix:{gateway.directory}/admin.sock", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    routes = sum(len(service["routes"]) for service in shipped["services"])
    assert (found["openings"], found["routes"]) == ([], routes + len(shipped.get("routes", [])))
    # A real Kong's only worker has started the plugin server, and so does not answer GET /.
    hidden = ["Kong's settings"] if os.environ.get("KONG") else []
    assert found["not_visible"] == [*hidden, "Kong's Lua path", "secrets"]
