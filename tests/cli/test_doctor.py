"""One row per opening: the mistake, made in a configuration that is otherwise sound, is named; without it nothing is."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from claude_contract.attestation import new_private_key, public_key_of
from kong_claude import PLUGINS
from kong_claude.cli.main import main
from kong_claude.doctor import admin, doubts, guards, kong, probe, rules, spelling, view
from kong_claude.doctor.guards import SUITE
from kong_claude.doctor.opening import Opening
from kong_claude.doctor.settings import Settings
from kong_claude.guard import LUA_PATH, PAIR_PATH, PAIRED, lua, named
from kong_claude.problem import Problem
from kong_claude_local import stack

ROOT = Path(__file__).resolve().parents[2]
SECRET = "q8Zr1xJ0f7VbN3kLw5TgYh2MdC9sEaPu"
KEY = new_private_key()
ENVIRONMENT = {
    "KONG_PLUGINS": "bundled,claude-gateway",
    "KONG_PLUGINSERVER_NAMES": "claude-gateway",
    "KONG_PLUGINSERVER_CLAUDE_GATEWAY_QUERY_CMD": "kong-claude-pluginserver -d p --dump claude-gateway",
    "KONG_PLUGINSERVER_CLAUDE_GATEWAY_START_CMD": "kong-claude-pluginserver -d p --event-timeout 2",
    "KONG_NGINX_HTTP_LUA_SOCKET_READ_TIMEOUT": "5s",
    "KONG_NGINX_HTTP_CLIENT_BODY_BUFFER_SIZE": "1m",
    "CLAUDE_ATTESTATION_KEY": KEY,
    "CLAUDE_JWT_SECRET": SECRET[::-1],
}
SOUND: dict[str, Any] = {
    "_format_version": "3.0",
    "services": [
        {
            "name": "claude-code-service",
            "url": "http://invoker:8100",
            "routes": [
                {
                    "name": name,
                    "paths": [f"/{name}"],
                    "plugins": [
                        {
                            "name": "claude-gateway",
                            "config": {
                                "attestation": {"private_key": "{vault://env/claude-attestation-key}"},
                                "jwt_claims": {
                                    "issuers": [
                                        {
                                            "issuer": "i",
                                            "algorithms": ["HS256"],
                                            "secret": "{vault://env/claude-jwt-secret}",
                                        }
                                    ],
                                    "audience": ["a"],
                                },
                            },
                        },
                        {"name": "post-function", "config": {"access": [lua(["claude-gateway"])]}},
                    ],
                }
                for name in ("invoke", "jobs")
            ],
        }
    ],
}


def routes(config: dict[str, Any]) -> Any:
    return config["services"][0]["routes"]


def plugin(config: dict[str, Any]) -> Any:
    return routes(config)[0]["plugins"][0]


def no_guard(c: dict[str, Any], e: dict[str, str]) -> None:
    del routes(c)[0]["plugins"][1]


def guard_switched_off(c: dict[str, Any], e: dict[str, str]) -> None:
    routes(c)[0]["plugins"][1]["enabled"] = False


def guard_of_another_route(c: dict[str, Any], e: dict[str, str]) -> None:
    routes(c)[0]["plugins"][1]["config"]["access"] = [named("jobs", ["claude-gateway"])]


def guard_for_presence_only(c: dict[str, Any], e: dict[str, str]) -> None:
    code = 'local v = kong.ctx.shared["claude_gateway"]; if not v then kong.response.exit(503) end'
    routes(c)[0]["plugins"][1]["config"]["access"] = [code]


def guard_edited(c: dict[str, Any], e: dict[str, str]) -> None:
    code = lua(["claude-gateway"]).replace("return kong.response.exit", "-- return kong.response.exit")
    routes(c)[0]["plugins"][1]["config"]["access"] = [code]


def open_sibling_route(c: dict[str, Any], e: dict[str, str]) -> None:
    routes(c).append({"name": "debug", "paths": ["/debug"]})


def open_sibling_service(c: dict[str, Any], e: dict[str, str]) -> None:
    c["services"].append(
        {"name": "other", "host": "invoker", "port": 8100, "routes": [{"name": "back", "paths": ["/back"]}]}
    )


def one_mark_for_two_routes(c: dict[str, Any], e: dict[str, str]) -> None:
    for route in routes(c):
        route["plugins"][0]["config"]["mark"] = "jobs"
        route["plugins"][1]["config"]["access"] = [named("jobs", ["claude-gateway"])]


def plugin_that_never_runs(c: dict[str, Any], e: dict[str, str]) -> None:
    for name in routes(c)[0]["plugins"]:
        name["protocols"] = ["tcp"]


def consumer_override(c: dict[str, Any], e: dict[str, str]) -> None:
    c["consumers"] = [{"username": "vip", "plugins": [{"name": "claude-gateway", "config": {"mark": "invoke"}}]}]


def gateway_and_parts(c: dict[str, Any], e: dict[str, str]) -> None:
    routes(c)[0]["plugins"].append({"name": "claude-rate-tiers", "config": {"mark": "invoke"}})


def body_changed_afterwards(c: dict[str, Any], e: dict[str, str]) -> None:
    routes(c)[0]["plugins"].append({"name": "request-transformer", "config": {}})


def mark_forged_by_lua(c: dict[str, Any], e: dict[str, str]) -> None:
    code = "kong.ctx.shared.claude_gateway = {mark = 'invoke'}"
    routes(c)[0]["plugins"].append({"name": "pre-function", "config": {"access": [code]}})


def secret_in_clear(c: dict[str, Any], e: dict[str, str]) -> None:
    plugin(c)["config"]["attestation"]["secret"] = SECRET


def shared(c: dict[str, Any], e: dict[str, str], value: str) -> None:
    """Attestations are signed with a secret that the invoker has too."""
    plugin(c)["config"]["attestation"] = {"secret": "{vault://env/claude-attestation-secret}"}
    e["CLAUDE_ATTESTATION_SECRET"] = value


def short_secret(c: dict[str, Any], e: dict[str, str]) -> None:
    shared(c, e, "short")


def guessable_secret(c: dict[str, Any], e: dict[str, str]) -> None:
    shared(c, e, "change-me" * 5)


def one_secret_for_both(c: dict[str, Any], e: dict[str, str]) -> None:
    shared(c, e, e["CLAUDE_JWT_SECRET"])


def no_read_timeout(c: dict[str, Any], e: dict[str, str]) -> None:
    del e["KONG_NGINX_HTTP_LUA_SOCKET_READ_TIMEOUT"]


def events_outlive_kongs_patience(c: dict[str, Any], e: dict[str, str]) -> None:
    e["KONG_PLUGINSERVER_CLAUDE_GATEWAY_START_CMD"] = "kong-claude-pluginserver -d p"


def default_body_buffer(c: dict[str, Any], e: dict[str, str]) -> None:
    del e["KONG_NGINX_HTTP_CLIENT_BODY_BUFFER_SIZE"]


def one_server_for_all(c: dict[str, Any], e: dict[str, str]) -> None:
    e["KONG_PLUGINSERVER_NAMES"] = "python"


def dump_of_all(c: dict[str, Any], e: dict[str, str]) -> None:
    e["KONG_PLUGINSERVER_CLAUDE_GATEWAY_QUERY_CMD"] = "kong-claude-pluginserver -d p --dump-all-plugins"


def plugin_not_enabled(c: dict[str, Any], e: dict[str, str]) -> None:
    e["KONG_PLUGINS"] = "bundled"


def public_invoker(c: dict[str, Any], e: dict[str, str]) -> None:
    c["services"][0]["url"] = "http://8.8.8.8:8100"


def invoker_trusts_all(c: dict[str, Any], e: dict[str, str]) -> None:
    e["INVOKER_TRUST"] = "open"


def gateway_that_asks_nobody(c: dict[str, Any], e: dict[str, str]) -> None:
    del plugin(c)["config"]["jwt_claims"]


def guard_displaced_by_a_more_specific_function(c: dict[str, Any], e: dict[str, str]) -> None:
    guard = routes(c)[0]["plugins"].pop()
    routes(c)[0]["plugins"].append({"name": "post-function", "config": {"access": ["kong.log.info('x')"]}})
    c["plugins"] = [{**guard, "service": "claude-code-service"}]


def open_sibling_by_an_upstream(c: dict[str, Any], e: dict[str, str]) -> None:
    c["upstreams"] = [{"name": "pool", "targets": [{"target": "invoker:8100"}]}]
    c["services"].append({"name": "other", "host": "pool", "routes": [{"name": "back", "paths": ["/back"]}]})


def open_sibling_by_a_target_without_a_port(c: dict[str, Any], e: dict[str, str]) -> None:
    """Kong adds 8000."""
    c["services"][0]["url"] = "http://invoker:8000"
    c["upstreams"] = [{"name": "pool", "targets": [{"target": "Invoker"}]}]
    c["services"].append({"name": "other", "host": "pool", "routes": [{"name": "back", "paths": ["/back"]}]})


def stream_past_the_services_plugins(c: dict[str, Any], e: dict[str, str]) -> None:
    """What is on the service runs for its HTTP routes only."""
    once_for_the_service(c, e)
    routes(c).append({"name": "raw", "protocols": ["tcp"], "destinations": [{"port": 9000}]})


def stream_with_plugins_that_say_they_run(c: dict[str, Any], e: dict[str, str]) -> None:
    stream_past_the_services_plugins(c, e)
    for entity in c["services"][0]["plugins"]:
        entity["protocols"] = ["http", "https", "tcp"]


def no_guard_where_a_function_answers(c: dict[str, Any], e: dict[str, str]) -> None:
    """A route without a service: `aws-lambda` is its upstream."""
    answer = {"name": "aws-lambda", "config": {"function_name": "reports"}}
    c["routes"] = [{"name": "reports", "paths": ["/reports"], "plugins": [copy.deepcopy(plugin(c)), answer]}]


def a_function_that_answers_before_the_guard(c: dict[str, Any], e: dict[str, str]) -> None:
    no_guard_where_a_function_answers(c, e)
    c["routes"][0]["plugins"].append(copy.deepcopy(routes(c)[0]["plugins"][1]))


def open_sibling_in_capitals(c: dict[str, Any], e: dict[str, str]) -> None:
    c["services"].append({"name": "other", "url": "http://INVOKER:8100/", "routes": [{"name": "b", "paths": ["/b"]}]})


def public_by_tag_without_any_plugin(c: dict[str, Any], e: dict[str, str]) -> None:
    routes(c).append({"name": "debug", "paths": ["/debug"], "tags": ["public"]})


def public_by_tag_without_a_guard(c: dict[str, Any], e: dict[str, str]) -> None:
    limits = {"name": "claude-rate-tiers", "config": {"mark": "login"}}
    routes(c).append({"name": "login", "paths": ["/login"], "tags": ["public"], "plugins": [limits]})


def mark_forged_in_rewrite(c: dict[str, Any], e: dict[str, str]) -> None:
    c["plugins"] = [{"name": "pre-function", "config": {"rewrite": ["kong.ctx.shared.claude_gateway = {}"]}}]


def mark_forged_before_the_guard(c: dict[str, Any], e: dict[str, str]) -> None:
    routes(c)[0]["plugins"][1]["config"]["access"].insert(0, "kong.ctx.shared.claude_gateway = {mark = 'invoke'}")


def limits_that_fail_open(c: dict[str, Any], e: dict[str, str]) -> None:
    plugin(c)["config"]["rate_tiers"] = {"on_error": "allow"}


def one_letter_secret(c: dict[str, Any], e: dict[str, str]) -> None:
    shared(c, e, "a" * 40)


def guessable_token_secret(c: dict[str, Any], e: dict[str, str]) -> None:
    e["CLAUDE_JWT_SECRET"] = "change-me" * 5


def secret_not_set(c: dict[str, Any], e: dict[str, str]) -> None:
    del e["CLAUDE_ATTESTATION_KEY"]


def answer_from_a_cache(c: dict[str, Any], e: dict[str, str]) -> None:
    routes(c)[0]["plugins"].append({"name": "proxy-cache", "config": {"strategy": "memory"}})


def redirect_for_the_service(c: dict[str, Any], e: dict[str, str]) -> None:
    c["services"][0]["plugins"] = [{"name": "redirect", "config": {"location": "https://elsewhere.example"}}]


def termination_for_all(c: dict[str, Any], e: dict[str, str]) -> None:
    c["plugins"] = [{"name": "request-termination", "config": {"status_code": 200, "body": "{}"}}]


def a_plugin_nobody_knows(c: dict[str, Any], e: dict[str, str]) -> None:
    routes(c)[0]["plugins"].append({"name": "house-cache"})


def guard_by_the_other_entity(c: dict[str, Any], e: dict[str, str]) -> None:
    routes(c)[0]["plugins"][1]["config"]["access"] = [lua(["claude-gateway"], "service")]


def installed_guard(c: dict[str, Any], **config: str) -> None:
    for route in routes(c):
        route["plugins"][1] = {"name": "claude-guard", "config": config}


def installed_guard_by_the_other_entity(c: dict[str, Any], e: dict[str, str]) -> None:
    installed_guard(c, by="service")
    e["KONG_PLUGINS"] += ",claude-guard"


def installed_guard_of_another_plugin(c: dict[str, Any], e: dict[str, str]) -> None:
    installed_guard(c, plugin="claude-jwt-claims")
    e["KONG_PLUGINS"] += ",claude-guard"


def installed_guard_not_enabled(c: dict[str, Any], e: dict[str, str]) -> None:
    installed_guard(c)


def installed_guard_for_a_consumer(c: dict[str, Any], e: dict[str, str]) -> None:
    c["consumers"] = [{"username": "vip", "plugins": [{"name": "claude-guard"}]}]


def installed_guard_and_a_mark(c: dict[str, Any], e: dict[str, str]) -> None:
    installed_guard_and_a_cache(c, e)
    plugin(c)["config"]["mark"] = "invoke"


def both_on_the_service_and_on_a_route(c: dict[str, Any], e: dict[str, str]) -> None:
    c["services"][0]["plugins"] = [copy.deepcopy(plugin(c))]


def bound_to_nothing(c: dict[str, Any], e: dict[str, str]) -> None:
    c["plugins"] = [routes(c)[0]["plugins"].pop(0)]


def no_lua_at_all(c: dict[str, Any], e: dict[str, str]) -> None:
    e["KONG_UNTRUSTED_LUA"] = "off"


def post_function_not_enabled(c: dict[str, Any], e: dict[str, str]) -> None:
    e["KONG_PLUGINS"] = "claude-gateway"


def installed_guard_and_a_cache(c: dict[str, Any], e: dict[str, str]) -> None:
    installed_guard(c)
    answer_from_a_cache(c, e)
    e["KONG_PLUGINS"] += ",claude-guard"
    e["KONG_UNTRUSTED_LUA"] = "off"


def once_for_the_service(c: dict[str, Any], e: dict[str, str]) -> None:
    """One guard and one plugin stand for all routes."""
    c["services"][0]["plugins"] = [plugin(c), {"name": "claude-guard", "config": {"by": "service"}}]
    for route in routes(c):
        del route["plugins"]
    e["KONG_PLUGINS"] += ",claude-guard"


def one_guard_for_all_routes(c: dict[str, Any], e: dict[str, str]) -> None:
    c["services"][0]["plugins"] = [routes(c)[0]["plugins"].pop()]
    del routes(c)[1]["plugins"][1]


def a_termination_that_refuses(c: dict[str, Any], e: dict[str, str]) -> None:
    routes(c)[0]["plugins"].append({"name": "request-termination", "config": {"status_code": 503}})


def marks_and_guards_of_0_1_0(c: dict[str, Any], e: dict[str, str]) -> None:
    for route in routes(c):
        route["plugins"][0]["config"]["mark"] = route["name"]
        route["plugins"][1]["config"]["access"] = [named(route["name"], ["claude-gateway"])]


SOUND_TOO = [
    installed_guard_and_a_cache,
    once_for_the_service,
    one_guard_for_all_routes,
    a_termination_that_refuses,
    marks_and_guards_of_0_1_0,
]
MISTAKES: list[tuple[str, Callable[[dict[str, Any], dict[str, str]], None]]] = [
    ("no-guard", no_guard),
    ("no-guard", guard_switched_off),
    ("wrong-mark", guard_of_another_route),
    ("no-guard", guard_for_presence_only),
    ("foreign-guard", guard_edited),
    ("no-authentication", open_sibling_route),
    ("no-authentication", open_sibling_service),
    ("shared-mark", one_mark_for_two_routes),
    ("no-authentication", plugin_that_never_runs),
    ("consumer-scope", consumer_override),
    ("doubled", gateway_and_parts),
    ("late-change", body_changed_afterwards),
    ("forged-mark", mark_forged_by_lua),
    ("secret-in-clear", secret_in_clear),
    ("weak-secret", short_secret),
    ("weak-secret", guessable_secret),
    ("shared-secret", one_secret_for_both),
    ("unbounded-timeout", no_read_timeout),
    ("late-event-timeout", events_outlive_kongs_patience),
    ("small-body-buffer", default_body_buffer),
    ("no-pluginserver", one_server_for_all),
    ("wrong-dump", dump_of_all),
    ("not-enabled", plugin_not_enabled),
    ("public-invoker", public_invoker),
    ("open-invoker", invoker_trusts_all),
    ("no-authentication", gateway_that_asks_nobody),
    ("no-guard", guard_displaced_by_a_more_specific_function),
    ("no-authentication", open_sibling_by_an_upstream),
    ("no-authentication", open_sibling_by_a_target_without_a_port),
    ("protocols", stream_past_the_services_plugins),
    ("protocols", stream_with_plugins_that_say_they_run),
    ("no-guard", no_guard_where_a_function_answers),
    ("answers-before-guard", a_function_that_answers_before_the_guard),
    ("no-authentication", open_sibling_in_capitals),
    ("no-authentication", public_by_tag_without_any_plugin),
    ("no-guard", public_by_tag_without_a_guard),
    ("forged-mark", mark_forged_in_rewrite),
    ("forged-mark", mark_forged_before_the_guard),
    ("fails-open", limits_that_fail_open),
    ("weak-secret", one_letter_secret),
    ("weak-secret", guessable_token_secret),
    ("unset-secret", secret_not_set),
    ("answers-before-guard", answer_from_a_cache),
    ("answers-before-guard", redirect_for_the_service),
    ("answers-before-guard", termination_for_all),
    ("answers-before-guard", a_plugin_nobody_knows),
    ("wrong-mark", guard_by_the_other_entity),
    ("wrong-mark", installed_guard_by_the_other_entity),
    ("refuses-all", installed_guard_of_another_plugin),
    ("not-enabled", installed_guard_not_enabled),
    ("consumer-scope", installed_guard_for_a_consumer),
    ("wrong-mark", installed_guard_and_a_mark),
    ("mixed-scope", both_on_the_service_and_on_a_route),
    ("no-scope", bound_to_nothing),
    ("untrusted-lua", no_lua_at_all),
    ("not-enabled", post_function_not_enabled),
]


def examine(config: dict[str, Any], environment: dict[str, str], tmp_path: Path) -> list[Opening]:
    path = tmp_path / "kong.yml"
    path.write_text(yaml.safe_dump(config))
    return rules.examine(view.from_file(path, environment))


def test_a_sound_configuration_has_no_hole(tmp_path: Path) -> None:
    assert examine(SOUND, ENVIRONMENT, tmp_path) == []


@pytest.mark.parametrize(("rule", "make"), MISTAKES, ids=[make.__name__ for _, make in MISTAKES])
def test_a_mistake_is_named(rule: str, make: Callable[..., None], tmp_path: Path) -> None:
    config, environment = copy.deepcopy(SOUND), dict(ENVIRONMENT)
    make(config, environment)
    assert rule in {opening.rule for opening in examine(config, environment, tmp_path)}


@pytest.mark.parametrize("make", SOUND_TOO, ids=[make.__name__ for make in SOUND_TOO])
def test_what_is_sound_too(make: Callable[..., None], tmp_path: Path) -> None:
    config, environment = copy.deepcopy(SOUND), dict(ENVIRONMENT)
    make(config, environment)
    assert examine(config, environment, tmp_path) == []


def test_the_three_apart_need_a_guard_each(tmp_path: Path) -> None:
    """What runs between two of them answers a request that the second has not seen; a guard right after each is enough."""
    config, environment = copy.deepcopy(SOUND), dict(ENVIRONMENT)
    names = ("claude-jwt-claims", "claude-rate-tiers", "claude-prompt-context")
    environment["KONG_PLUGINS"] += ",claude-guard,claude-guard-tiers,claude-guard-context"
    redirect = {"name": "redirect", "config": {"location": "https://elsewhere.example"}}
    identity = {"name": "claude-guard", "config": {"plugin": "claude-jwt-claims"}}
    config["services"][0]["routes"] = [
        {"name": "apart", "paths": ["/apart"], "plugins": [*({"name": name} for name in names), redirect, identity]}
    ]
    plugins = routes(config)[0]["plugins"]
    plugins.append({"name": "post-function", "config": {"access": [lua(list(names[1:]))]}})
    found = [(h.rule, h.problem) for h in examine(config, ENVIRONMENT | {"KONG_PLUGINS": "x"}, tmp_path)]
    before = "redirect runs between claude-rate-tiers and the post-function and can answer before it"
    assert [problem for rule, problem in found if rule == "answers-before-guard"] == [before]
    plugins[-1:] = [{"name": "claude-guard-tiers"}, {"name": "claude-guard-context"}]
    assert [h for h in examine(config, {}, tmp_path) if "guard" in h.rule or "mark" in h.rule] == []


def environment_of_compose(tmp_path: Path) -> dict[str, str]:
    environment = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["kong"]["environment"]
    # What the secrets' service makes and the entry point sets.
    secrets = {"CLAUDE_JWT_SECRET": SECRET[::-1], "CLAUDE_ATTESTATION_KEY": KEY}
    environment |= secrets | {"CLAUDE_REDIS_URL": "redis://:x@redis:6379/0"}
    # As compose fills in what is not set.
    return {k: re.sub(r"\$\{\w+:-(.*?)\}", r"\1", str(v)) for k, v in environment.items()}


def environment_of_up(tmp_path: Path) -> dict[str, str]:
    secrets = {"jwt-secret": SECRET[::-1], "attestation-key": KEY, "webhook-secret": SECRET.swapcase()}
    layout = stack.Layout(
        ROOT / "kong.yml",
        PLUGINS,
        state=tmp_path,
        run=tmp_path,
        secrets=secrets,
    )
    return dict(stack.gateway(layout).environment)


@pytest.mark.parametrize("environment_of", [environment_of_compose, environment_of_up])
def test_our_own_files_have_no_hole(environment_of: Callable[[Path], dict[str, str]], tmp_path: Path) -> None:
    seen = view.from_file(ROOT / "kong.yml", environment_of(tmp_path))
    assert [*rules.examine(seen), *probe.configurations(seen, PLUGINS)] == []
    assert len(seen.routes) == 21


@pytest.mark.parametrize("published", ["0.0.0.0", None])
def test_the_development_issuer_beyond_this_machine_is_named(published: str | None, tmp_path: Path) -> None:
    environment = environment_of_compose(tmp_path)
    environment.pop("CLAUDE_PUBLISHED_ON")
    seen = view.from_file(ROOT / "kong.yml", environment | ({"CLAUDE_PUBLISHED_ON": published} if published else {}))
    (opening,) = rules.examine(seen)
    assert (opening.rule, opening.where) == ("development-issuer", "issuer kong-claude-dev")


@pytest.mark.parametrize("stray", [{}, {"KONG_ADMIN_LISTEN": "127.0.0.1:8001", "KONG_PREFIX": "/tmp/kong"}])
def test_what_is_not_visible_is_not_called_wrong(
    stray: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A shell with a variable of Kong's is not the environment of a Kong: that had given 16 false openings."""
    for name in [name for name in os.environ if name.startswith("KONG_")]:
        monkeypatch.delenv(name)
    for name, value in stray.items():
        monkeypatch.setenv(name, value)
    assert main(["doctor", str(ROOT / "kong.yml")]) == 0
    hidden = ["Kong's settings", "Kong's Lua path", "secrets"]
    assert f"not examined, for they are not visible here: {', '.join(hidden)} (--env-file)" in capsys.readouterr().err
    assert main(["doctor", str(ROOT / "kong.yml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["not_visible"] == hidden
    (tmp_path / "kong.env").write_text(
        "".join(f"{name}={value}\n" for name, value in stray.items()) + "KONG_PLUGINS=bundled\n"
    )
    assert main(["doctor", str(ROOT / "kong.yml"), "--env-file", str(tmp_path / "kong.env")]) == 1, "control"


def test_a_shared_secret_is_no_hole_and_a_spoilt_key_is_one(tmp_path: Path) -> None:
    config, environment = copy.deepcopy(SOUND), dict(ENVIRONMENT)
    shared(config, environment, SECRET)
    assert examine(config, environment, tmp_path) == []
    seen = view.from_file(ROOT / "kong.yml", {"CLAUDE_ATTESTATION_KEY": KEY[:60]})
    found = {(opening.rule, opening.problem) for opening in probe.configurations(seen, PLUGINS)}
    assert found == {("bad-config", "is not a PEM key that can be read")}


def test_a_key_on_one_line_of_an_environment_file(tmp_path: Path) -> None:
    from kong_claude.cli.doctor import read_environment

    file = tmp_path / "kong.env"
    file.write_text("CLAUDE_ATTESTATION_KEY='" + KEY.replace("\n", "\\n") + "'\n")
    seen = view.from_file(ROOT / "kong.yml", read_environment(file))
    assert list(probe.configurations(seen, PLUGINS)) == []


def test_a_running_gateway_is_examined_by_its_socket(
    minikong: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--admin-url unix:/path`; references are shown, so that a secret in clear is seen here too."""
    monkeypatch.setenv("TOKEN_SECRET", SECRET)
    config: dict[str, Any] = {
        "_format_version": "3.0",
        "upstreams": [{"name": "pool", "targets": [{"target": "invoker:8100"}]}],
        "services": [
            {
                "name": "s",
                "url": "http://pool",
                "routes": [
                    {
                        "name": "r",
                        "paths": ["/"],
                        "plugins": [
                            {
                                "name": "claude-jwt-claims",
                                "config": {
                                    "issuers": [
                                        {"issuer": "i", "algorithms": ["HS256"], "secret": "{vault://env/token-secret}"}
                                    ],
                                    "audience": ["a"],
                                },
                            },
                            {"name": "post-function", "config": {"access": [lua(["claude-jwt-claims"])]}},
                        ],
                    }
                ],
            }
        ],
    }

    def openings(socket: Path) -> list[str]:
        kong = minikong(
            yaml.safe_dump(config),
            plugins=PLUGINS,
            admin_listen=f"unix:{socket}",
        )
        assert kong.admin_url == f"unix:{socket}"
        code = main(["doctor", "--admin-url", kong.admin_url, "--json"])
        found = [opening["rule"] for opening in json.loads(capsys.readouterr().out)["openings"]]
        assert code == bool(found)
        return found

    # The fixture serves plugins with kong-pdk's own server and Kong's defaults, and the doctor sees it.
    settings = ["unbounded-timeout", "wrong-dump", "stock-pluginserver"]
    assert openings(tmp_path / "sound") == settings
    config["services"][0]["routes"][0]["plugins"][0]["config"]["issuers"][0]["secret"] = SECRET
    assert openings(tmp_path / "in-clear") == ["secret-in-clear", *settings]
    with pytest.raises(Problem, match=r"unix:/nowhere/admin\.sock does not answer like Kong's Admin API"):
        admin.from_admin("unix:/nowhere/admin.sock", Settings())


def test_a_value_of_another_kind_is_named(tmp_path: Path) -> None:
    config = {"_format_version": "3.0", "plugins": [{"name": "claude-gateway", "config": {"jwt_claims": 1}}]}
    path = tmp_path / "kong.yml"
    path.write_text(yaml.safe_dump(config))
    assert [h.rule for h in probe.configurations(view.from_file(path, {}), PLUGINS)] == ["bad-config"]


UNKNOWN = """
_format_version: "3.0"
plugins:
- name: claude-rate-tiers
  config:
    on_eror: deny
    default_tier: free
    tiers:
    - {name: free, minute: 5}
    - name: pro
      concurent: 4
      messages: {minut: 9, minute: 9}
- name: claude-erors
- name: claude-errors
- name: whatever
"""


def test_a_name_that_nobody_knows_is_found(tmp_path: Path) -> None:
    path = tmp_path / "kong.yml"
    path.write_text(UNKNOWN)
    seen = probe.configurations(view.from_file(path, {}), PLUGINS)
    found = [(each.where.partition("config.")[2] or each.where, each.line, each.fix) for each in seen]
    assert found == [
        ("on_eror", 6, "correct its name"),
        ("tiers[2].concurent", 11, "correct its name"),
        ("tiers[2].messages.minut", 12, "correct its name"),
        ("plugin claude-erors", 13, "name claude-errors"),
    ]


def test_the_cure_for_plugins_that_are_not_enabled_enables_all_and_disables_none(tmp_path: Path) -> None:
    path = tmp_path / "kong.yml"
    names = ["claude-gateway", "claude-guard", "claude-errors", "key-auth"]
    path.write_text(yaml.safe_dump({"_format_version": "3.0", "plugins": [{"name": name} for name in names]}))
    seen = list(kong.enabled(view.from_file(path, {"KONG_PLUGINS": "bundled,claude-gateway,mine"})))
    assert [each.problem for each in seen] == ["does not name claude-errors", "does not name claude-guard"]
    assert {each.fix for each in seen} == {"bundled,claude-errors,claude-gateway,claude-guard,mine"}


def test_exit_codes_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    env = tmp_path / "env"
    one_line_each = {name: value.replace("\n", "\\n") for name, value in ENVIRONMENT.items()}
    env.write_text("".join(f"{name}={value}\n" for name, value in one_line_each.items()))
    path = tmp_path / "kong.yml"
    open_config = copy.deepcopy(SOUND)
    open_sibling_route(open_config, {})
    path.write_text(yaml.safe_dump(open_config))
    assert main(["doctor", str(path), "--env-file", str(env), "--json"]) == 1
    openings = json.loads(capsys.readouterr().out)["openings"]
    assert [opening["where"] for opening in openings] == ["route debug"]
    path.write_text(yaml.safe_dump(SOUND))
    assert main(["doctor", str(path), "--env-file", str(env)]) == 0
    capsys.readouterr()
    # What could not be tried was not found sound.
    nowhere = ["--plugins-directory", str(tmp_path)]
    assert main(["doctor", str(path), "--env-file", str(env), "--json", *nowhere]) == 1
    openings = json.loads(capsys.readouterr().out)["openings"]
    assert {opening["rule"] for opening in openings} == {"unchecked"}
    assert {opening["where"] for opening in openings} == {
        "plugin claude-gateway on route invoke",
        "plugin claude-gateway on route jobs",
    }


def test_routes_that_nothing_protects_are_said_to_be_not_examined(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = copy.deepcopy(SOUND)
    config["services"].append({"url": "http://other:80", "routes": [{"name": "shop", "paths": ["/shop"]}]})
    path = tmp_path / "kong.yml"
    path.write_text(yaml.safe_dump(config))
    env = tmp_path / "env"
    env.write_text("")
    assert main(["doctor", str(path), "--env-file", str(env)]) in (0, 1)
    assert "not examined, for no plugin of this suite protects their services: shop\n" in capsys.readouterr().err
    path.write_text(yaml.safe_dump(SOUND))
    main(["doctor", str(path), "--env-file", str(env)])
    assert "protects their services" not in capsys.readouterr().err


def test_the_block_for_a_kong_in_the_readme_has_no_opening(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "README.md").read_text()
    (command,) = re.findall(r"/kong-claude (env .*?) > ", text)
    routes = yaml.safe_load(next(b for b in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "reports" in b))
    env, path = tmp_path / "env", tmp_path / "kong.yml"
    assert main(command.split()) == 0
    env.write_text(capsys.readouterr().out)

    def examined() -> tuple[int, str]:
        service = {"name": "s", "url": "http://reports:80", **routes}
        path.write_text(yaml.safe_dump({"_format_version": "3.0", "services": [service]}))
        code = main(["doctor", str(path), "--env-file", str(env)])
        said = capsys.readouterr()
        return code, said.out + said.err

    assert examined() == (0, "1 route, 0 openings\n")
    routes["routes"][0]["plugins"].pop()
    code, said = examined()
    assert code == 1 and "no-guard: route reports" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1, 2", "kong.yml:2"),
        ("services: []", "no _format_version"),
        ("[]", "no _format_version"),
        ('_format_version: "3.0"\nservices: foo', "lists of mappings"),
        ('_format_version: "3.0"\nplugins: [1]', "lists of mappings"),
    ],
)
def test_what_is_no_configuration_is_said_with_its_line(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "kong.yml"
    path.write_text(text + "\n")
    with pytest.raises(Problem, match=said):
        view.from_file(path, {})


def test_secrets_never_appear_in_the_report(tmp_path: Path) -> None:
    config = copy.deepcopy(SOUND)
    secret_in_clear(config, {})
    assert SECRET not in repr(examine(config, ENVIRONMENT | {"CLAUDE_JWT_SECRET": SECRET}, tmp_path))


SIGNING = view.View(
    (),
    tuple(
        {"name": name, "config": {"attestation": attestation}, **more}
        for name, attestation, more in (
            ("claude-jwt-claims", {"private_key": "{vault://env/key}"}, {}),
            ("claude-rate-tiers", {"secret_file": "/key", "kid": "2", "previous_kid": "1"}, {"enabled": True}),
            ("claude-rate-tiers", {"secret": "x", "kid": "off"}, {"enabled": False}),
            ("claude-prompt-context", {"kid": "keyless"}, {}),
            ("claude-metrics", None, {}),
        )
    ),
)
"""By the keys 1 and 2."""


@pytest.mark.parametrize(
    ("status", "checks", "rules"),
    [
        (200, {"isolation": "landlock"}, ["open-invoker"]),
        (500, {"isolation": "landlock"}, ["odd-invoker"]),
        (401, {"isolation": "landlock"}, []),
        (401, {"isolation": "namespaces"}, []),
        (401, {"isolation": "user", "isolation_lacks": ["scopes: Linux 6.12"]}, ["weak-boundary"]),
        (401, {"isolation": "none"}, ["weak-boundary"]),
        (401, {}, ["weak-boundary"]),
        (401, {"isolation": "landlock", "attestation_kids": ["1", "2", "3"]}, []),
        (401, {"isolation": "landlock", "attestation_kids": ["1", "3"]}, ["unknown-key"]),
        (401, {"isolation": "landlock", "attestation_kids": []}, ["unknown-key", "unknown-key"]),
        (200, {"isolation": "landlock", "attestation_kids": []}, ["open-invoker"]),
        (401, {"isolation": "landlock", "attestation_kids": "1"}, []),
        (401, [], ["weak-boundary"]),
    ],
)
@pytest.mark.parametrize("ready", [200, 503])
def test_the_invoker_is_asked_directly(status: int, checks: dict[str, Any], rules: list[str], ready: int) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/readyz"
            self.send_response(ready)
            self.end_headers()
            self.wfile.write(json.dumps({"ready": ready == 200, "checks": checks}).encode())

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        openings = list(probe.invoker(f"http://127.0.0.1:{server.server_port}", SIGNING))
    finally:
        server.shutdown()
        server.server_close()
    assert [opening.rule for opening in openings] == rules
    if "isolation_lacks" in checks:
        assert "(scopes: Linux 6.12)" in openings[-1].problem


def test_a_handler_in_our_plugins_place_must_be_ours(tmp_path: Path) -> None:
    """Kong runs what it finds on its Lua path in the place of a plugin server's plugin."""
    (tmp_path / "kong.json").write_text(json.dumps(SOUND))
    copied = tmp_path / "elsewhere"
    shutil.copytree(Path(PAIR_PATH.removesuffix("?.lua")), copied)

    def found(path: str) -> list[str]:
        seen = view.from_file(tmp_path / "kong.json", {**ENVIRONMENT, "KONG_LUA_PACKAGE_PATH": path})
        return [o.problem for o in rules.examine(seen) if o.rule == "foreign-handler"]

    for sound in ("", ";;", f"{LUA_PATH};;", f"{PAIR_PATH};{LUA_PATH};;", f"{copied}/?.lua;;", "/nowhere/?.lua;;"):
        assert found(sound) == []
    partner = copied / "kong/plugins/claude-pair/partner.lua"
    partner.write_text(partner.read_text().replace("local PROTOCOL = 1", "local PROTOCOL = 0"))  # an older release's
    assert found(f"{PAIR_PATH};{copied}/?.lua") == []  # the first one counts
    older = found(f"{copied}/?.lua;{PAIR_PATH}")
    assert len(older) == len(PAIRED)
    assert str(partner) in older[0]
    handler = copied / "kong/plugins/claude-gateway/handler.lua"
    handler.write_text("return { PRIORITY = 1440, VERSION = '1.0.0', access = function() end }")
    assert any(str(handler) in problem for problem in found(f"{copied}/?.lua;;"))


def test_defaults_are_filled_in_as_kong_does() -> None:
    record = {
        "fields": [
            {"a": {"type": "string", "default": "x"}},
            {"r": {"type": "record", "fields": [{"b": {"type": "integer", "default": 1}}]}},
            {"o": {"type": "record", "required": False, "fields": [{"c": {"type": "integer", "default": 2}}]}},
            {
                "l": {
                    "type": "array",
                    "elements": {"type": "record", "fields": [{"d": {"type": "integer", "default": 3}}]},
                }
            },
        ]
    }
    assert probe.with_defaults(record, {"l": [{}]}) == {"a": "x", "r": {"b": 1}, "l": [{"d": 3}]}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("sonet", "sonnet"), ("Haiku", "haiku"), ("claude-sonet-4-5", "claude-sonnet-4-5"), ("opuss[1m]", "opus[1m]"),
        ("cluade-opus-5-5", "claude-opus-5-5"),
        # What is known, and what is like nothing that is: it may be new.
        ("sonnet", None), ("opus[1m]", None), ("claude-opus-5-5-20260922", None), ("claude-3-5-haiku-latest", None),
        ("claude-opus-5-5-fast", None), ("ballad", None), ("claude-epic-6", None), ("house", None), ("", None),
    ],
)  # fmt: skip
def test_the_name_of_a_model_that_is_meant(name: str, meant: str | None) -> None:
    assert spelling.model(name) == meant


@pytest.mark.parametrize(
    ("name", "meant"),
    [("bash", "Bash"), ("Reed", "Read"), ("Websearch", "WebSearch"), ("Bash", None), ("mcp__x__y", None), ("Of", None),
     ("mcp__memory__recal", "mcp__memory__recall"), ("mcp__memory__recall", None), ("mcp__memory__x", None)],
)  # fmt: skip
def test_the_name_of_a_tool_that_is_meant(name: str, meant: str | None) -> None:
    assert spelling.tool(name) == meant


def test_a_name_that_is_most_likely_mistyped_is_no_opening(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said once, with its line, and the doctor is content: the name may be new."""
    path = tmp_path / "kong.yml"
    path.write_text((ROOT / "kong.yml").read_text().replace("models: [haiku]", "models: [hiaku]", 1))
    assert main(["doctor", str(path)]) == 0
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "hiaku" in text)
    (said,) = [each for each in capsys.readouterr().err.splitlines() if "hiaku" in each]
    assert said == f"{path}:{line}: tiers[1].models: hiaku is not known here: haiku?"
    assert main(["doctor", str(ROOT / "kong.yml")]) == 0 and "known here" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "name", "meant"),
    [
        ("skills", "pfd", "pdf"), ("skills", "PDF", "pdf"), ("skills", "frontend-desing", "frontend-design"),
        ("skills", "memroy", "memory"), ("mcp", "memmory", "memory"),
        # An operator's own, most likely.
        ("skills", "docs", None), ("skills", "house-style", None), ("skills", "pdf", None), ("mcp", "tickets", None),
        ("agents", "pfd", None), ("mcp", "pdf", None),
    ],
)  # fmt: skip
def test_the_name_of_an_entry_that_is_meant(kind: str, name: str, meant: str | None) -> None:
    assert spelling.entry(kind, name) == meant


PRIVATE_KEY = new_private_key()
PUBLIC_KEY = public_key_of(PRIVATE_KEY, "")


KEYS = {
    "public": ("previous_private_key", PUBLIC_KEY, False),
    "public, in one line": ("previous_private_key", PUBLIC_KEY.replace("\n", "\\n"), False),
    "private": ("previous_private_key", PRIVATE_KEY, True),
    "both": ("previous_private_key", PUBLIC_KEY + PRIVATE_KEY, True),
    "private, under the other name": ("previous_private_key", PRIVATE_KEY.replace("PRIVATE", "PUBLIC"), True),
    "public and a word": ("previous_private_key", PUBLIC_KEY + "and a word", True),
    "nobody signs by it": ("private_key", PUBLIC_KEY, True),  # which the plugin refuses, too
    "no secret at all": ("secret", PUBLIC_KEY, True),
}


@pytest.mark.parametrize("name", KEYS)
def test_a_public_key_is_no_secret(name: str) -> None:
    """Of the key of before a public half is enough. Nothing hides behind one."""
    field, value, is_secret = KEYS[name]
    section = {"attestation": {"previous_kid": "1", field: value}}
    seen = view.View((), ({"name": "claude-rate-tiers", "config": section},))
    assert bool(list(rules.clear_secrets(seen))) is is_secret


HEAD = '_format_version: "3.0"\n'
OURS = "plugins: [{name: claude-rate-tiers, config: %s}]"
UNREADABLE = {
    "a date that is none": (f"{HEAD}a: 2024-13-45", "month must be in 1..12"),
    "a number that is none": (f"{HEAD}a: 0b_", "invalid literal"),
    "a number of 5,000 digits": (f"{HEAD}a: {'1' * 5000}", "Exceeds the limit"),
    "a control character": (f"{HEAD}a: \x01", "unacceptable character"),
    "a key that is a list": (f"{HEAD}? [a]\n: 1", "unhashable"),
    "an anchor in itself": (f"{HEAD}services: &s [{{name: a, routes: *s}}]", "aliases counted"),
    "a merge of itself": (f"{HEAD}a: &a {{<<: *a}}", "an alias is in what it stands for"),
    "a config in itself": (f"{HEAD}plugins: [{{name: claude-gateway, config: &c {{jwt_claims: *c}}}}]", "aliases"),
    "aliases that multiply": (
        HEAD + "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)),
        "aliases counted",
    ),
    "protocols that are a number": (HEAD + "plugins: [{name: claude-gateway, protocols: 5}]", "is not what Kong takes"),
    "tags that are a number": (HEAD + "consumers: [{username: a, tags: 5}]", "is not what Kong takes"),
    "a port that is none": (
        f"{HEAD}services: [{{url: 'http://x:99999999', routes: [{{paths: [/], plugins: [{{name: claude-gateway}}]}}]}}]",
        "is not what Kong takes",
    ),
    "a host that is none": (f"{HEAD}services: [{{url: 'http://[x', routes: [{{paths: [/]}}]}}]", "Invalid IPv6 URL"),
    "a plugin without a name": (f"{HEAD}plugins: [{{config: {{}}}}]", "must have a name"),
    "a config that is a list": (HEAD + OURS % "[1]", "the config of plugin claude-rate-tiers must be a mapping"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_said_in_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "kong.yml"
    text, said = UNREADABLE[name]
    path.write_text(text)
    assert main(["doctor", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line and said in line


@pytest.mark.parametrize("section", ["jwt_claims", "rate_tiers", "attestation", "prompt_context", "redis_url"])
@pytest.mark.parametrize("value", [[None], 1, "x", [{}]])
@pytest.mark.parametrize("plugin", sorted(SUITE))
def test_a_section_of_another_kind_is_for_the_plugin_to_say(
    plugin: str, section: str, value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a route, with everything that looks at it."""
    entity = {"name": plugin, "config": {section: value}}
    service = {
        "name": "s",
        "url": "http://invoker:8100",
        "routes": [{"name": "r", "paths": ["/"], "plugins": [entity]}],
    }
    (tmp_path / "kong.json").write_text(json.dumps({"_format_version": "3.0", "services": [service]}))
    assert main(["doctor", str(tmp_path / "kong.json")]) == 1
    assert capsys.readouterr().out


def test_options_that_are_none_are_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "env").write_bytes(b"\xff\xfe\x00")
    addresses = ("foo", "http://", "http://[x", "http://x:abc", "http://x y", "ftp://x")
    cases = [(["--env-file", str(tmp_path / "env")], "not UTF-8"), *((["--invoker-url", a], a) for a in addresses)]
    for options, said in cases:
        assert main(["doctor", str(ROOT / "kong.yml"), *options]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line


def test_code_that_is_none_runs_nothing() -> None:
    assert guards.phase_code({"name": "post-function", "config": {"access": 5}}, "access") == []


def tier(**fields: Any) -> view.View:
    pools = [{"name": "team", "usd_per_month": 10}, {"name": "other", "usd_per_month": 6}]
    section = {"pools": pools, "tiers": [{"name": "t", "minute": 1, **fields}]}
    return view.View((), ({"name": "claude-rate-tiers", "config": section},))


BOTH = {"skills": ["memory"], "mcp": ["memory"]}
NONE_LEFT = "has no tool left that a run of the tier may call: each request for it is 403"


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"skills": ["pdf"], "tools": ["Read", "Write"]}, "skills",
         "pdf needs Bash, which the tier's tools have not: each request for it is 403"),
        ({"skills": ["tdd"], "tools": []}, "skills", "tdd needs Bash and Read and Write and Edit, which the tier's tools"),
        ({"skills": ["pdf"], "default_skills": ["pdf"], "tools": ["Read"]}, "skills",
         "pdf needs Bash and Write, which the tier's tools have not: each request that names no skills is 403"),
        ({"skills": ["memory"]}, "skills", "memory needs the MCP server memory, which the tier's mcp has not"),
        ({"skills": ["memroy"]}, "skills", "memroy is not known here: memory?"),
        ({"mcp": ["memmory"]}, "mcp", "memmory is not known here: memory?"),
        ({**BOTH, "tools": ["mcp__memory__recal"]}, "tools", "mcp__memory__recal is not known here: mcp__memory__recall?"),
        ({"tools": ["mcp__tickets__search"]}, "tools",
         "mcp__tickets__search is a tool of the MCP server tickets, which the tier's mcp has not: it allows nothing"),
        ({"mcp": ["memory"], "tools": ["mcp__memory__find"]}, "mcp", f"memory {NONE_LEFT}"),
        ({"mcp": ["memory"], "deny": ["mcp__memory"]}, "mcp", f"memory {NONE_LEFT}"),
        ({"mcp": ["memory"], "deny": [f"mcp__memory__{name}" for name in ("remember", "recall", "forget", "export")]},
         "mcp", f"memory {NONE_LEFT}"),
        ({"mcp": ["tickets"], "deny": ["mcp__tickets__*"]}, "mcp", f"tickets {NONE_LEFT}"),
        ({"mcp": ["tickets"], "tools": ["mcp__tickets__search"], "deny": ["mcp__tickets__search"]}, "mcp",
         f"tickets {NONE_LEFT}"),
        ({"usd_per_day": 2, "max_usd_per_run": 2}, "max_usd_per_run", "usd_per_day (2) is less than two runs hold"),
        ({"usd_per_month": 1.5, "usd_per_day": 9, "max_usd_per_run": 1}, "max_usd_per_run", "usd_per_month (1.5) is less"),
        ({"pools": ["team"], "max_usd_per_run": 6}, "max_usd_per_run", "usd_per_month of the pool team (10) is less"),
        ({"max_usd_per_run": 4}, "max_usd_per_run", "usd_per_month of the pool other (6) is less"),  # in all pools
        ({"budgets": [{"usd": 3, "per": "week", "rolling": True}], "max_usd_per_run": 2}, "max_usd_per_run",
         "usd_per_rolling_week (3) is less"),
        ({"budgets": [7, {"usd": "3", "per": "day"}, {"usd": 3, "per": "hour"}], "max_usd_per_run": 2},
         "max_usd_per_run", "usd_per_hour (3) is less"),
    ],
)  # fmt: skip
def test_what_no_run_of_a_tier_can_have_is_said(fields: dict[str, Any], field: str, says: str) -> None:
    said = {f"{each.name} {each.problem}": each.field for each in doubts.doubts(tier(**fields))}
    assert {place for text, place in said.items() if text.startswith(says)} == {f"tiers[1].{field}"}, said


@pytest.mark.parametrize(
    "fields",
    [
        {"skills": ["pdf", "house-style"]},  # all tools
        {"skills": ["pdf"], "tools": ["Bash", "Read", "Write"]},
        {**BOTH, "tools": []},  # tools of servers are another matter
        {**BOTH, "tools": ["Read", "mcp__memory__recall"], "deny": ["mcp__memory__forget", "Bash"]},
        {"mcp": ["tickets"], "deny": ["mcp__tickets__delete"]},
        {"mcp": ["tickets"], "tools": ["mcp__tickets__search"], "deny": ["no pattern (", 7]},
        {"skills": "pdf", "mcp": {"a": 1}, "tools": "Bash", "deny": 7},  # what the plugin refuses
        {"skills": [None, 7, ["pdf"]]},
        {"usd_per_day": 2, "max_usd_per_run": 1},
        {"usd_per_day": 2, "max_usd_per_run": 3},  # what the plugin refuses
        {"usd_per_day": "2", "max_usd_per_run": True},
        {"pools": ["team"], "max_usd_per_run": 5},
        {"pools": [], "max_usd_per_run": 4},
        {"budgets": [{"usd": 4, "per": "week"}], "max_usd_per_run": 2},
        {"budgets": {"usd": 3, "per": "week"}, "max_usd_per_run": 2},  # what the plugin refuses
        {"usd_per_day": 2},
    ],
)
def test_what_a_run_can_have_is_in_no_doubt(fields: dict[str, Any]) -> None:
    assert doubts.doubts(tier(**fields)) == []


def test_what_only_an_invoker_knows_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "kong.yml"
    mine = "skills: [house-style, pfd], agents: [reviewer], mcp: [tickets], "
    path.write_text((ROOT / "kong.yml").read_text().replace("{name: free, ", "{name: free, " + mine, 1))
    assert main(["doctor", str(path)]) == 0
    said = capsys.readouterr().err
    assert "knows its own catalog (INVOKER_CATALOG): MCP server tickets, agent reviewer, skill house-style\n" in said
    assert "skills: pfd is not known here: pdf?\n" in said
    assert main(["doctor", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["of_the_operator"] == ["MCP server tickets", "agent reviewer", "skill house-style"]
    assert [(each["name"], each["meant"]) for each in found["doubts"]] == [("pfd", "pdf")]
    assert main(["doctor", str(ROOT / "kong.yml")]) == 0 and "INVOKER_CATALOG" not in capsys.readouterr().err


def test_default_skills_that_the_tier_has_not_are_an_opening(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The plugin does not start with them."""
    path = tmp_path / "kong.yml"
    text = (ROOT / "kong.yml").read_text()
    path.write_text(text.replace("{name: free, ", "{name: free, skills: [pdf], default_skills: [docx], ", 1))
    assert main(["doctor", str(path)]) == 1
    assert "default_skills: docx is not among the tier's skills" in capsys.readouterr().out
