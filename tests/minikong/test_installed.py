"""Plugins in Lua that `plugins` names and `lua_package_path` finds."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from minikong.declarative import DeclarativeError
from minikong.pluginserver import StartError
from minikong.pytest_plugin import MiniKong
from tests.support.waiting import HANG_S

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
        with urllib.request.urlopen(kong.base_url + "/", timeout=HANG_S) as answer:
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
        ("handler", "handler:access", "handler:response", "minikong does not run the phase response"),
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


FILTERS = """
local handler = { VERSION = "1.0.0", PRIORITY = 50 }
function handler:header_filter(conf)
  if kong.request.get_query_arg("broken") then error("on purpose") end
  kong.response.set_header("X-Source", kong.response.get_source())
  kong.response.clear_header("Content-Length")
  kong.ctx.plugin.mine = true
end
function handler:body_filter(conf)
  assert(kong.ctx.plugin.mine)
  if kong.request.get_query_arg("late") then error("on purpose") end
  if kong.request.get_query_arg("pieces") then
    ngx.arg[1] = ngx.arg[1]:upper()
    return
  end
  local body = kong.response.get_raw_body()
  if body then kong.response.set_raw_body("(" .. body .. ")") end
end
return handler
"""


def test_what_is_answered_can_be_changed_on_its_way_out(house: House) -> None:
    """Of a service piece by piece, or whole at its end; and Kong's own errors."""
    house.write("handler", FILTERS)
    with HTTPServer(("127.0.0.1", 0), _Pieces) as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{service.server_port}"
        route = {"name": "r", "paths": ["/of-service"], "strip_path": False}
        document = {
            "_format_version": "3.0",
            "plugins": [{"name": "house"}],
            "services": [{"url": url, "routes": [route]}],
        }
        made = {"plugins": "bundled,house", "lua_package_path": f"{house.folder}/?.lua;;", "log_level": "emerg"}
        house.running.append(kong := MiniKong(json.dumps(document), [], made))
        with httpx.Client(base_url=kong.base_url, timeout=HANG_S) as client:
            whole = client.get("/of-service")
            assert (whole.text, whole.headers["x-source"]) == ("(one two)", "service")
            assert client.get("/of-service?pieces=1").text == "ONE TWO"
            own = client.get("/nowhere")
            assert (own.status_code, own.headers["x-source"]) == (404, "exit")
            assert own.text.startswith("({") and "no Route matched" in own.text and own.text.endswith("})")
            head = client.head("/nowhere")
            assert (head.status_code, head.text, head.headers["x-source"]) == (404, "", "exit")
            for broken in ("/nowhere?broken=1", "/nowhere?late=1", "/of-service?late=1"):
                with pytest.raises(httpx.RemoteProtocolError):
                    client.get(broken)
        service.shutdown()


class _Pieces(BaseHTTPRequestHandler):
    """An answer of two chunks."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in (b"one ", b"two", b""):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.wfile.flush()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass
