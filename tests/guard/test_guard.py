"""Whose mark lets a request pass: every form of the guard, run as the Lua that Kong runs."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from lupa import luajit21

from kong_claude.guard import BYS, KEYS, LUA, LUA_PATH, LUA_PLUGINS, PLUGIN, By, lua
from minikong.declarative import DeclarativeError
from minikong.pytest_plugin import MiniKong
from tests.support.waiting import HANG_S

ROUTE, SERVICE, OTHER = (f"00000000-0000-4000-8000-00000000000{n}" for n in range(3))
FORMS = ("lua-plugin", "post-function")
SETTINGS = {"plugins": ",".join(("bundled", *LUA_PLUGINS)), "lua_package_path": f"{LUA_PATH};;"}
Start = Callable[[dict[str, Any]], MiniKong]


@pytest.fixture
def start() -> Iterator[Start]:
    """minikong with the guards installed, on a declarative configuration."""
    running: list[MiniKong] = []

    def make(document: dict[str, Any]) -> MiniKong:
        running.append(MiniKong(json.dumps(document), [], SETTINGS))
        return running[-1]

    yield make
    for made in running:
        made.stop()


def guard(form: str, plugin: str, by: By) -> dict[str, Any]:
    if form == "post-function":
        return {"name": "post-function", "config": {"access": [lua([plugin], by)]}}
    config = {"by": by} | ({"plugin": plugin} if PLUGIN[plugin] == "claude-guard" else {})
    return {"name": PLUGIN[plugin], "config": config}


def leaves(key: str, mark: str) -> dict[str, Any]:
    """Something that ran before and left this Lua value under the key."""
    return {"name": "pre-function", "config": {"access": [f'kong.ctx.shared["{key}"] = {mark}']}}


def status(start: Start, *on_route: dict[str, Any], on_service: tuple[dict[str, Any], ...] = ()) -> int:
    """What a request is answered with; 502: it passed, since nothing listens upstream."""
    route = {"id": ROUTE, "name": "r", "paths": ["/"], "plugins": [*on_route]}
    service = {"id": SERVICE, "name": "s", "url": "http://127.0.0.1:9", "retries": 0}
    document = {"_format_version": "3.0", "services": [service | {"plugins": [*on_service], "routes": [route]}]}
    started = start(document)
    try:
        with urllib.request.urlopen(started.base_url + "/", timeout=HANG_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


PASSED, REFUSED = 502, 503
LEFT: dict[str, tuple[str, set[By]]] = {
    "the route's": (f'{{ mark = "{ROUTE}" }}', {"route"}),
    "the service's": (f'{{ mark = "{SERVICE}" }}', {"service"}),
    "another route's": (f'{{ mark = "{OTHER}" }}', set()),
    "none": ("{}", set()),
    "nothing": ("nil", set()),
    "a text": (f'"{ROUTE}"', set()),
    "true": ("true", set()),
}


@pytest.mark.parametrize("left", LEFT)
@pytest.mark.parametrize("by", BYS)
@pytest.mark.parametrize("form", FORMS)
def test_the_id_of_one_side_passes_never_either(start: Start, form: str, by: By, left: str) -> None:
    """A stale instance of a lax configuration of the whole service leaves the service's id on a strict route."""
    mark, passes = LEFT[left]
    got = status(start, leaves("claude_gateway", mark), guard(form, "claude-gateway", by))
    assert got == (PASSED if by in passes else REFUSED)


def test_control_a_guard_that_takes_either_lets_the_stale_configuration_pass(start: Start) -> None:
    either = lua(["claude-gateway"]).replace(
        "left.mark ~= own.id", "(left.mark ~= own.id and left.mark ~= kong.router.get_service().id)"
    )
    guarding = {"name": "post-function", "config": {"access": [either]}}
    assert status(start, leaves("claude_gateway", LEFT["the service's"][0]), guarding) == PASSED


@pytest.mark.parametrize("plugin", KEYS)
@pytest.mark.parametrize("form", FORMS)
def test_each_plugin_has_its_own_key(start: Start, form: str, plugin: str) -> None:
    mark = f'{{ mark = "{ROUTE}" }}'
    assert status(start, leaves(KEYS[plugin], mark), guard(form, plugin, "route")) == PASSED
    other = next(key for key in KEYS.values() if key != KEYS[plugin])
    assert status(start, leaves(other, mark), guard(form, plugin, "route")) == REFUSED


@pytest.mark.parametrize("form", FORMS)
def test_once_on_the_service_it_refuses_a_route_that_was_added_without_our_plugin(start: Start, form: str) -> None:
    on_service = (guard(form, "claude-gateway", "route"),)
    assert status(start, on_service=on_service) == REFUSED
    marked = leaves("claude_gateway", f'{{ mark = "{ROUTE}" }}')
    assert status(start, marked, on_service=on_service) == PASSED
    # What the documents name: a post-function of the route's own displaces the service's, the Lua plugin stays.
    own = {"name": "post-function", "config": {"access": ["return"]}}
    assert status(start, own, on_service=on_service) == (PASSED if form == "post-function" else REFUSED)


def test_a_guard_cannot_be_bound_to_a_consumer(start: Start) -> None:
    document = {
        "_format_version": "3.0",
        "consumers": [{"username": "vip"}],
        "plugins": [{"name": "claude-guard", "consumer": "vip"}],
    }
    with pytest.raises(DeclarativeError, match="consumer"):
        start(document)


@pytest.mark.parametrize("config", [{"by": "either"}, {"by": None}, {"plugin": "claude-metrics"}, {"mark": "r"}])
def test_a_guard_that_would_compare_something_else_is_refused(start: Start, config: dict[str, Any]) -> None:
    document = {"_format_version": "3.0", "plugins": [{"name": "claude-guard", "config": config}]}
    with pytest.raises(DeclarativeError):
        start(document)


def test_what_it_refuses_is_said_once_a_second(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """With the plugin server away every request is refused: the log was ten lines for each."""
    route = {"name": "r", "paths": ["/"], "plugins": [guard("lua-plugin", "claude-gateway", "route")]}
    service = {"name": "s", "url": "http://127.0.0.1:9", "routes": [route]}
    started = start({"_format_version": "3.0", "services": [service]})
    begin, asked, statuses = time.time(), 0, set()
    while time.time() < begin + 2.5 or asked < 100:
        statuses.add(httpx.get(started.base_url + "/").status_code)
        asked += 1
    seconds = int(time.time()) - int(begin) + 1
    assert statuses == {REFUSED}
    lines = [record.getMessage() for record in caplog.records if "did not pass for this route" in record.getMessage()]
    assert 1 < len(lines) <= seconds
    assert "nor for" not in lines[0]
    before = [int(found[1]) for line in lines if (found := re.search("nor for ([0-9]+) requests before", line))]
    assert len(lines) + sum(before) <= asked
    assert sum(before) > 0 and min(before) > 0, "nothing is said of nobody"


SAYS = """
local moments, compare = ...
local said, now = {}, 0
package.loaded["kong.db.schema.typedefs"] = {}
ngx = { time = function() return now end }
kong = {
  log = { err = function(...) said[#said + 1] = table.concat({ ... }) end },
  ctx = { shared = {} }, router = { get_route = function() return { id = "r" } end }, response = { exit = function() end },
}
local handler = loadstring(compare)().handler(1, function() return "claude_gateway" end)
for _, moment in ipairs(moments) do
  now = moment
  handler:access({ by = "route" })
end
return table.concat(said, "\\n")
"""


@pytest.mark.parametrize(
    ("moments", "unsaid"),
    [([10, 11, 12], ["", "", ""]), ([10, 10, 11, 12], ["", "1", ""]), ([10, 10, 10, 11, 11, 12], ["", "2", "1"])],
)
def test_no_request_that_it_refuses_is_left_out_of_what_is_said(moments: list[int], unsaid: list[str]) -> None:
    runtime = luajit21.LuaRuntime()
    compare = (LUA / "kong/plugins/claude-guard/compare.lua").read_text()
    said = runtime.execute(SAYS, runtime.table_from(moments), compare)
    assert said.split("\n") == [
        "claude_gateway did not pass for this route" + (f", nor for {number} requests before" if number else "")
        for number in unsaid
    ]
