"""Kong's Lua half by itself, in LuaJIT with a Kong of a few tables: what it believes, and what it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lupa import luajit21

from kong_claude.guard import PAIR_PATH

PARTNER = Path(PAIR_PATH.replace("?", "kong/plugins/claude-pair/partner"))
KONG = """
local headers, log = ...
local shared, contexts, current = {}, {}, "one"
local set = {}
ngx = { null = "null", var = {}, header = {}, req = {
  get_body_data = function() return set.read end, set_header = function(name, value) set.one = name .. "=" .. value end,
} }
kong = {
  request = {
    get_headers = function(max) return headers end, get_method = function() return "GET" end,
    get_raw_body = function(limit) return set.body end,
  },
  response = { get_source = function() return set.source end, set_headers = function(h) set.response = h end },
  service = { request = { set_headers = function(h) set.headers = h end, set_raw_body = function(b) set.body = b end } },
  ctx = setmetatable({}, { __index = function(_, k)
    if k == "shared" then return shared end
    contexts[current] = contexts[current] or {}
    return contexts[current]
  end }),
}
plugin = {
  PRIORITY = 1440, VERSION = "0.1.0", phases = { "access", "log" }, rpc_notifications = {},
  access = function() error("single calls") end,
  log = function() set.logged = (set.logged or 0) + 1 end,
  rpc = {},
}
package.loaded["kong.runloop.plugin_servers"] = { load_plugin = function(name)
  if name == "claude-gateway" then return true, plugin end
  return false, "no plugin found"
end }
return shared, set, function(request) current = request end
"""


class Kong:
    """One worker. `server(event)`: what the plugin server does while Kong awaits its reply."""

    def __init__(self) -> None:
        self.lua = luajit21.LuaRuntime(unpack_returned_tuples=True, encoding="latin-1")
        self.headers = self.lua.table_from({"host": "h"})
        self.shared, self.set, self.go_to = self.lua.execute(KONG, self.headers)
        self.plugin = self.lua.globals().plugin
        self.make = self.lua.execute(PARTNER.read_text())
        self.handler = self.make("claude-gateway")
        self.conf = self.lua.table()

    def access(self, server: Any) -> None:
        self.plugin.rpc.handle_event = lambda _rpc, _conf, event: server(self, dict(event.items()))
        self.handler.access(self.handler, self.conf)

    def notify(self, *message: Any) -> None:
        """What a reply on this connection has in front of it."""
        self.plugin.rpc_notifications["claude-pair"](None, self.table(list(message)))

    def table(self, value: Any) -> Any:
        if isinstance(value, list):
            return self.lua.table_from([self.table(one) for one in value])
        return self.lua.table_from({k: self.table(v) for k, v in value.items()}) if isinstance(value, dict) else value


MARK = ["kong.ctx.shared.set", ["claude_gateway", {"mark": "route"}]]


def passed(kong: Kong) -> bool:
    return kong.shared["claude_gateway"] is not None


def test_what_is_told_for_this_event_is_done() -> None:
    kong = Kong()
    kong.access(lambda k, event: k.notify(event[3], False, MARK))
    assert passed(kong)
    assert kong.shared["claude_gateway"].mark == "route"


@pytest.mark.parametrize("number", [0, -1, None, "1", 2])
def test_what_is_told_for_another_event_is_not(number: Any) -> None:
    """A reply that came too late, for a request that Kong has given up, meets the next one on its connection."""
    kong = Kong()
    kong.access(lambda k, event: k.notify(number, False, MARK))
    assert not passed(kong)


def test_control_the_number_is_what_tells_them_apart() -> None:
    kong = Kong()
    kong.access(lambda k, event: k.notify(1, False, MARK))
    assert passed(kong)


@pytest.mark.parametrize("number", [1, None])
def test_what_is_told_after_the_event_is_not_done(number: Any) -> None:
    kong = Kong()
    kong.access(lambda k, event: None)
    kong.notify(number, False, MARK)
    assert not passed(kong)


def test_two_requests_at_once_keep_apart() -> None:
    kong = Kong()

    def both(k: Kong, first: dict[Any, Any]) -> None:
        k.go_to("two")
        k.access(lambda k, second: k.notify(first[3], False, MARK))  # the first one's, on the second one's connection
        assert not passed(k)
        k.go_to("one")
        k.notify(first[3], False, MARK)

    kong.access(both)
    assert passed(kong)


def test_what_was_asked_comes_with_the_next_event_of_that_configuration_only() -> None:
    kong = Kong()
    events: list[dict[Any, Any]] = []
    questions = [77, ["kong.request.get_headers", 1000], ["kong.request.get_method"]]

    def asks(k: Kong, event: dict[Any, Any]) -> None:
        events.append(event)
        k.notify(event[3], questions)

    kong.access(asks)
    kong.access(lambda k, event: events.append(event))
    kong.conf = kong.lua.table()
    kong.access(lambda k, event: events.append(event))
    assert [event[4] for event in events] == [0, 77, 0]
    assert [len(event) for event in events] == [4, 6, 4]
    assert events[1][5].host == "h"
    assert events[1][6] == "GET"


@pytest.mark.parametrize(
    ("length", "expect", "limit", "comes"),
    [
        ("4", None, 100, True),
        ("4", None, None, True),
        ("4", None, 0, True),
        ("8192", None, 0, True),
        ("8193", None, 100_000, False),
        ("5", None, 4, False),
        ("4", "100-continue", 100, False),
        (None, None, 100, False),
        ("4x", None, 100, False),
    ],
)
def test_a_body_is_read_beforehand_where_nobody_waits_for_it(
    length: str | None, expect: str | None, limit: int | None, comes: bool
) -> None:
    kong = Kong()
    kong.set.body = "body"
    kong.lua.globals().ngx.var = kong.lua.table_from({"http_content_length": length, "http_expect": expect})
    question = ["kong.request.get_raw_body", *([] if limit is None else [limit])]
    events: list[dict[Any, Any]] = []
    kong.access(lambda k, event: k.notify(event[3], [5, question]))
    kong.access(lambda k, event: events.append(event))
    assert events[0][5] == ("body" if comes else False)


@pytest.mark.parametrize(
    ("headers", "plain"),
    [
        ({"X-A": "1"}, True),
        ({"X-A": ""}, False),
        ({"X-A": {}}, False),  # to be removed
        ({"X-A": ["1", "2"]}, False),
        ({"X-A": 1}, False),
        ({1: "1"}, False),
        ({"Host": "h"}, False),
        ({"Transfer-Encoding": "chunked"}, False),
        ({"transfer_encoding": "chunked"}, False),
    ],
)
def test_what_is_more_than_a_text_is_set_by_kong_itself(headers: dict[Any, Any], plain: bool) -> None:
    """Kong refuses what is no header, removes by an empty table, and has a way of its own for some."""
    kong = Kong()
    told = [["kong.service.request.set_headers", [headers]], ["kong.response.set_headers", [headers]]]
    kong.access(lambda k, event: k.notify(event[3], False, *told))
    assert (kong.set.headers is None, kong.set.response is None) == (plain, plain)
    assert (kong.set.one, kong.lua.globals().ngx.header["X-A"]) == (("X-A=1", "1") if plain else (None, None))


@pytest.mark.parametrize("read", [True, False])
@pytest.mark.parametrize(
    ("offset", "length", "becomes", "found"),
    [
        (0, 0, "x", "xabcdef"),
        (0, 2, "x", "xcdef"),
        (2, 3, "", "abf"),
        (5, 1, "xyz", "abcdexyz"),
        (6, 0, "x", "abcdefx"),
    ],
)
def test_a_body_is_changed_where_it_differs(read: bool, offset: int, length: int, becomes: str, found: str) -> None:
    kong = Kong()
    kong.set["read" if read else "body"] = "abcdef"
    kong.access(lambda k, event: k.notify(event[3], False, ["splice", [offset, length, becomes]]))
    assert kong.set.body == found


def test_an_unknown_thing_to_do_is_an_error() -> None:
    """Which Kong answers with 500: what comes after it, the mark, is not done."""
    kong = Kong()
    with pytest.raises(luajit21.LuaError, match="no such call"):
        kong.access(lambda k, event: k.notify(event[3], False, ["os.exit", []], MARK))
    assert not passed(kong)


def test_a_plugin_that_no_server_serves_is_named() -> None:
    with pytest.raises(luajit21.LuaError, match="claude-rate-tiers: no plugin server serves it"):
        Kong().make("claude-rate-tiers")


LEASE = {"lease": "l"}


@pytest.mark.parametrize(
    ("left", "source", "events"),
    [
        (None, "service", 0),
        ({"mark": "r"}, "service", 0),
        ({"mark": "r"}, "exit", 0),
        ({"claude_admission": LEASE}, "service", 0),
        ({"claude_admission": LEASE}, "exit", 1),
        ({"claude_admission": LEASE}, "error", 1),
        ({"claude_admission": {**LEASE, "settles": True}}, "service", 1),
        (LEASE, "exit", 1),
        ("text", "exit", 0),
    ],
)
def test_the_log_phase_is_sent_where_something_is_to_be_ended(left: Any, source: str, events: int) -> None:
    kong = Kong()
    kong.shared["claude_gateway"] = kong.table(left)
    kong.set.source = source
    kong.handler.log(kong.handler, kong.conf)
    assert (kong.set.logged or 0) == events


TIMER = """
local make, notified = ...
local serialized = 0
local metrics = { PRIORITY = 11, VERSION = "0.1.0", phases = { "log" }, rpc_notifications = {}, exposed_api = {
  ["kong.log.serialize"] = function() serialized = serialized + 1; return "{}" end,
} }
local events = {}
metrics.rpc = { handle_event = function(_, conf, event)
  events[#events + 1] = event
  metrics.rpc_notifications["claude-pair"](nil, { notified or event[3], { 7, { "kong.log.serialize" } } })
end }
metrics.log = function(_, conf)  -- as Kong: in a timer, by a name that is looked up then
  coroutine.wrap(function() metrics.rpc:handle_event(conf, "log") end)()
end
package.loaded["kong.runloop.plugin_servers"].load_plugin = function() return true, metrics end
local handler, conf = make("claude-metrics"), {}
kong.ctx = setmetatable({}, { __index = function(_, key) end })  -- of no plugin
handler:log(conf)
handler:log(conf)
return events[1], events[2], serialized
"""


def test_the_log_phase_brings_what_kong_has_serialized() -> None:
    """In its timer, where kong.ctx.plugin is nobody's: what is told there finds its event by the coroutine."""
    kong = Kong()
    first, second, serialized = kong.lua.execute(TIMER, kong.make)
    assert (first[1], first[2], first[4]) == ("log", 1, 0)
    assert (second[1], second[4], second[5]) == ("log", 7, "{}")
    assert serialized == 1


def test_what_is_told_for_another_log_phase_is_not_done() -> None:
    """The control is the test above."""
    kong = Kong()
    _, second, serialized = kong.lua.execute(TIMER, kong.make, 99)
    assert (second[4], second[5], serialized) == (0, None, 0)


REUSED = """
local make, set, shared = ...
local gateway = plugin
local metrics = { PRIORITY = 11, VERSION = "0.1.0", phases = { "log" }, rpc_notifications = {}, exposed_api = {} }
metrics.rpc = { handle_event = function() error("no instance", 0) end }
metrics.log = function(_, conf) metrics.rpc:handle_event(conf, "log") end
package.loaded["kong.runloop.plugin_servers"].load_plugin = function(name)
  return true, name == "claude-metrics" and metrics or gateway
end
gateway.rpc.handle_event = function(_, _, event)
  gateway.rpc_notifications["claude-pair"](nil, { event[3], false, { "kong.ctx.shared.set", { "k", "told" } } })
end
local log, access = make("claude-metrics"), make("claude-gateway")
return coroutine.wrap(function()
  local done, problem = pcall(log.log, log, {})
  access:access({})
  return done, problem, shared.k
end)()
"""


def test_a_log_phase_that_fails_leaves_its_coroutine_to_the_next_request() -> None:
    kong = Kong()
    done, problem, told = kong.lua.execute(REUSED, kong.make, kong.set, kong.shared)
    assert (done, problem, told) == (False, "no instance", "told")
