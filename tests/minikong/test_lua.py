"""Lua plugins: the sandbox of untrusted_lua, values shared with plugin servers, the chain of functions."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from minikong import app, conf
from minikong.declarative import DeclarativeError

SERVICE_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nup\n"


@contextlib.asynccontextmanager
async def gateway(plugins: list[dict[str, Any]], **settings: str) -> AsyncIterator[app.App]:
    """minikong with one route `/` to a service that answers "up"."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(SERVICE_ANSWER)
        writer.close()

    service = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = service.sockets[0].getsockname()[1]
    config = {
        "_format_version": "3.0",
        "services": [
            {
                "name": "up",
                "url": f"http://127.0.0.1:{port}",
                "routes": [{"name": "all", "paths": ["/"], "plugins": plugins}],
            }
        ],
    }
    made = {
        "proxy_listen": "127.0.0.1:0",
        "admin_listen": "off",
        "log_level": "emerg",
        "declarative_config_string": json.dumps(config),
    }
    running = await app.start(conf.load(overrides=made | settings), environ={})
    try:
        yield running
    finally:
        await running.stop()
        service.close()


def access(*codes: str, name: str = "pre-function") -> dict[str, Any]:
    return {"name": name, "config": {"access": list(codes)}}


async def get(running: app.App, head: str = "", body: bytes = b"") -> tuple[int, bytes, bytes]:
    """(status, head, body); (0, b"", b"") if the connection was closed without an answer."""
    reader, writer = await asyncio.open_connection(*running.proxy_addresses[0])
    method = "POST" if body else "GET"
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    writer.write(f"{method} /a?b=1 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{head}{length}\r\n".encode() + body)
    answer = await reader.read()
    writer.close()
    if not answer:
        return 0, b"", b""
    start, _, content = answer.partition(b"\r\n\r\n")
    return int(start.split(b" ")[1]), start, content


REACHES_OUT = [
    "os.execute('true')",
    "io.open('/etc/passwd')",
    "dofile('/etc/passwd')",
    "loadstring('return 1')()",
    "load('return 1')()",
    "setfenv(1, {})",
    "getmetatable('').__index.x = 1",
    "rawset(kong, 'x', 1)",
    "package.loaded.os.exit(1)",
    "debug.getinfo(1)",
    "require('os')",
    "require('cjson')",
    "python.eval('1')",
    "string.x = 1",
    "string.dump(function() end)",
    "collectgarbage()",
    "error('on purpose')",
    "local x = nil; x.y = 1",
    "ffi.cdef('int getpid(void);')",
]


@pytest.mark.parametrize("code", REACHES_OUT)
async def test_the_sandbox_refuses(code: str) -> None:
    async with gateway([access(code)]) as running:
        status, _, body = await get(running)
    assert status == 500
    assert b"An unexpected error occurred" in body


ALLOWED = [
    "local t = {}; table.insert(t, 1); t[2] = string.upper('x')",
    "local s = ('x'):rep(3); assert(#s == 3)",
    "assert(_G._G == _G and _G.kong == kong)",
    "assert(math.floor(1.5) == 1 and type(os.time()) == 'number')",
    "local co = coroutine.wrap(function() coroutine.yield(1) end); assert(co() == 1)",
    "assert(pcall(error, 'x') == false)",
    "assert(kong.request.get_method() == 'GET' and kong.request.get_query_arg('b') == '1')",
    "assert(kong.request.get_header('HOST') == 'h' and kong.request.get_headers().Host == 'h')",
    "assert(kong.response.exit ~= nil and kong.version == '3.9.1')",
    "assert(ngx.var.request_uri == '/a?b=1' and ngx.null ~= nil)",
    "assert(not pcall(kong.request.get_header, 5))",
    "kong.ctx.plugin.x = {1}; assert(kong.ctx.plugin.x[1] == 1 and kong.ctx.shared.x == nil)",
]


@pytest.mark.parametrize("code", ALLOWED)
async def test_the_sandbox_allows(code: str) -> None:
    async with gateway([access(code)]) as running:
        assert (await get(running))[0] == 200


async def test_modules_that_the_admin_allows() -> None:
    code = "assert(require('cjson').encode({1, 2}) == '[1,2]'); assert(not pcall(require, 'os'))"
    async with gateway([access(code)], untrusted_lua_sandbox_requires="cjson") as running:
        assert (await get(running))[0] == 200


async def test_what_minikong_does_not_run_it_refuses_by_name() -> None:
    plugin = {"name": "pre-function", "config": {"body_filter": ["return 1"]}}
    with pytest.raises(DeclarativeError, match="minikong does not run body_filter functions"):
        async with gateway([plugin]):
            pass
    with pytest.raises(DeclarativeError, match="plugin 'request-transformer' not enabled"):
        async with gateway([{"name": "request-transformer"}]):
            pass


async def test_untrusted_lua_on_and_off() -> None:
    async with gateway([access("assert(require('cjson')); assert(io.open)")], untrusted_lua="on") as running:
        assert (await get(running))[0] == 200
    async with gateway([access("return 1")], untrusted_lua="off") as running:
        assert (await get(running))[0] == 0  # header_filter fails too: no answer at all


async def test_exit_cannot_be_caught_and_ends_the_access_phase() -> None:
    first = access("pcall(function() kong.response.exit(418, {a = 1}, {['X-A'] = '1'}) end) kong.log.err('never')")
    second = access("kong.response.exit(500, 'not this')", name="post-function")
    async with gateway([first, second]) as running:
        status, head, body = await get(running)
    assert (status, body) == (418, b'{"a":1}')
    assert b"X-A: 1" in head


async def test_lua_values_are_shared_by_reference_between_functions() -> None:
    first = access("kong.ctx.shared.t = {n = 1}", "kong.ctx.shared.t.n = kong.ctx.shared.t.n + 1")
    second = access(
        "local n = 0 for k, v in pairs(kong.ctx.shared) do n = n + 1 end "
        "kong.response.exit(200, n .. ' ' .. kong.ctx.shared.t.n)",
        name="post-function",
    )
    async with gateway([first, second]) as running:
        assert (await get(running))[2] == b"1 2"


async def test_a_chunk_that_returns_a_function_runs_it_from_then_on() -> None:
    code = "local runs = 0 return function() runs = runs + 1 kong.response.exit(200, tostring(runs)) end"
    async with gateway([access(code)]) as running:
        assert [(await get(running))[2] for _ in range(3)] == [b"1", b"2", b"3"]
    code = "local runs = 0 return function() runs = runs + 1 kong.response.set_header('X-Runs', runs) end"
    async with gateway([access(code)]) as running:
        assert [b"X-Runs: %d" % n in (await get(running))[1] for n in (1, 2, 3)] == [True, True, True]


async def test_the_body_can_be_read() -> None:
    code = "kong.response.exit(200, kong.request.get_raw_body() .. kong.request.get_body('application/json').a)"
    async with gateway([access(code)]) as running:
        assert (await get(running, body=b'{"a":"x"}'))[2] == b'{"a":"x"}x'


async def test_many_requests_leave_nothing_behind_and_nothing_crashes() -> None:
    code = (
        "kong.ctx.shared.t = {kong.request.get_headers()} kong.ctx.plugin.f = function() return 1 end "
        "if kong.request.get_header('x-exit') then kong.response.exit(200, kong.ctx.shared.t) end"
    )
    async with gateway([access(code, code)]) as running:
        for round_ in range(30):
            answers = await asyncio.gather(*(get(running, "X-Exit: 1\r\n" if n % 2 else "") for n in range(20)))
            assert {status for status, _, _ in answers} == {200}
            if round_ % 10 == 0:
                gc.collect()
                running.gateway.lua.lua.gccollect()
