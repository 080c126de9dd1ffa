"""Plugins in Lua that `plugins` names and `lua_package_path` finds."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minikong.declarative import DeclarativeError
from minikong.pluginserver import StartError
from minikong.pytest_plugin import MiniKong

HANDLER = """
local words = require "kong.plugins.house.words"
local handler = { VERSION = "1.2.3", PRIORITY = 50 }
function handler:access(conf)
  assert(self == handler and kong.ctx.shared and ngx.ctx)
  if conf.fail then error("on purpose") end
  return kong.response.exit(conf.status, { said = words.said, by = conf.headers[1], cjson = require("cjson").encode({}) })
end
return handler
"""
SCHEMA = """
local typedefs = require "kong.db.schema.typedefs"
return {
  name = "house",
  fields = {
    { consumer = typedefs.no_consumer },
    { protocols = typedefs.protocols_http },
    { config = { type = "record", fields = {
      { status = { type = "integer", default = 201, between = { 200, 299 } } },
      { fail = { type = "boolean", default = false } },
      { headers = { type = "array", elements = typedefs.header_name, default = { "x-a" } } },
    } } },
  },
}
"""


class House:
    """A directory that holds the plugin, and gateways that have it installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: list[MiniKong] = []
        self.write("handler", HANDLER)
        self.write("schema", SCHEMA)
        self.write("words", 'return { said = "hello" }')

    def write(self, part: str, text: str) -> None:
        path = self.folder / "kong" / "plugins" / "house" / f"{part}.lua"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def start(self, config: dict[str, Any] | None = None, **settings: str) -> MiniKong:
        plugin = {"name": "house", "config": config or {}}
        route = {"name": "r", "paths": ["/"], "plugins": [plugin]}
        document = {"_format_version": "3.0", "services": [{"url": "http://127.0.0.1:9", "routes": [route]}]}
        made = {"plugins": "bundled,house", "lua_package_path": f"{self.folder}/?.lua;;", "log_level": "emerg"}
        self.running.append(MiniKong(json.dumps(document), [], made | settings))
        return self.running[-1]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    for kong in made.running:
        kong.stop()


def ask(kong: MiniKong) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(kong.base_url + "/", timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_it_runs_with_its_configuration_and_what_it_requires(house: House) -> None:
    assert ask(house.start()) == (201, {"said": "hello", "by": "x-a", "cjson": "{}"})
    assert ask(house.start({"status": 202, "headers": ["x-b"]})) == (202, {"said": "hello", "by": "x-b", "cjson": "{}"})


def test_an_error_in_it_is_500_as_in_kong(house: House) -> None:
    status, body = ask(house.start({"fail": True}))
    assert (status, body["message"]) == (500, "An unexpected error occurred")


@pytest.mark.parametrize("config", [{"status": 300}, {"nope": 1}, {"headers": ["a b"]}])
def test_its_schema_is_checked(house: House, config: dict[str, Any]) -> None:
    with pytest.raises(DeclarativeError):
        house.start(config)


def test_it_is_enabled_and_found_or_the_start_fails(house: House) -> None:
    with pytest.raises(StartError, match="house plugin is enabled but not installed"):
        house.start(lua_package_path="/nowhere/?.lua")
    with pytest.raises(DeclarativeError, match="plugin 'house' not enabled"):
        house.start(plugins="bundled")


@pytest.mark.parametrize(
    ("part", "old", "new", "said"),
    [
        ("handler", "handler:access", "handler:header_filter", "minikong does not run the phase header_filter"),
        ("handler", '"1.2.3"', '"one"', "VERSION"),
        ("handler", "PRIORITY = 50", "PRIORITY = nil", "PRIORITY"),
        ("handler", "return handler", "return handler +", "house"),
        ("handler", "plugins.house.words", "plugins.house.absent", "absent"),
        ("schema", "typedefs.no_consumer", "typedefs.url", "does not know the typedef url"),
        ("schema", 'type = "boolean"', 'type = "boolean", custom_validator = print', "a function in the schema"),
    ],
)
def test_what_minikong_cannot_run_stops_the_start(house: House, part: str, old: str, new: str, said: str) -> None:
    text = {"handler": HANDLER, "schema": SCHEMA}[part]
    assert old in text
    house.write(part, text.replace(old, new))
    with pytest.raises(StartError, match=said):
        house.start()


def test_the_sandbox_of_pre_function_does_not_see_more_for_it(house: House) -> None:
    code = "return kong.response.exit(200, { package = type(package), io = type(io) })"
    document = {"_format_version": "3.0", "plugins": [{"name": "pre-function", "config": {"access": [code]}}]}
    document["routes"] = [{"name": "r", "paths": ["/"]}]
    settings = {"plugins": "bundled,house", "lua_package_path": f"{house.folder}/?.lua;;"}
    house.running.append(MiniKong(json.dumps(document), [], settings))
    assert ask(house.running[-1]) == (200, {"package": "nil", "io": "nil"})
