"""Whatever a plugin server sends, a request gets Kong's answer and the gateway lives on."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minikong import app, conf, pdk
from minikong.context import Context, Headers, Request, Response, Upstream
from minikong.gateway import Gateway
from minikong.luavalue import BrokenFrame, LuaError, pack
from minikong.pdk.registry import PHASE_BITS
from tests.support.waiting import HANG_S

DUMP = [
    {
        "Name": "probe",
        "Phases": ["rewrite", "access", "response", "log"],
        "Priority": 1,
        "Version": "1.0.0",
        "Schema": {"name": "probe", "fields": [{"config": {"type": "record", "fields": []}}]},
    }
]


def config(port: int) -> dict[str, Any]:
    service = {"name": "up", "url": f"http://127.0.0.1:{port}", "routes": [{"name": "r", "paths": ["/"]}]}
    return {"_format_version": "3.0", "services": [service], "plugins": [{"name": "probe"}]}


def make_conf(tmp_path: Path, **more: str) -> conf.KongConf:
    (tmp_path / "dump.json").write_text(json.dumps(DUMP))
    made = {
        "prefix": str(tmp_path),
        "proxy_listen": "127.0.0.1:0",
        "admin_listen": "off",
        "plugins": "bundled,probe",
        "pluginserver_names": "probe",
        "pluginserver_probe_socket": str(tmp_path / "s.sock"),
        "pluginserver_probe_query_cmd": f"cat {tmp_path / 'dump.json'}",
        "nginx_http_lua_socket_read_timeout": "200ms",
        "log_level": "emerg",
    }
    return conf.load(overrides=made | more)


class Body:
    spilled = False

    async def read(self) -> bytes:
        return b'{"a":1}'


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Gateway:
    return Gateway(make_conf(tmp_path_factory.mktemp("kong")), environ={})


def context(gateway: Gateway, phase: str, timer: bool) -> Context:
    headers = Headers([(b"Host", b"h"), (b"Content-Type", b"application/json"), (b"X-M", b"1"), (b"X-M", b"2")])
    request = Request("POST", b"/a?b=1", (1, 1), headers, Body(), "http", ("127.0.0.1", 5), ("127.0.0.1", 80), host="h")
    request.remote_addr = request.client_addr
    ctx = Context(request=request, phase=phase, gateway=gateway, client_body=b'{"a":1}', in_timer=timer, args=b"b=1")
    if phase != "rewrite":
        ctx.upstream = Upstream("http", "127.0.0.1", 80, "POST", b"/a", b"b=1", b"h")
    if phase in ("response", "header_filter", "log"):
        ctx.response = Response(200, Headers([(b"X-A", b"1")]), "service", b"up")
    return ctx


LUA = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**53), 2**53),
        st.floats(),
        st.binary(max_size=12),
        st.sampled_from(
            [b"Host", b"X-A", b"content-type", b"application/json", b"GET", b"", b"{vault://env/x}", 200, 403]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.binary(max_size=6), st.integers(0, 4)), inner, max_size=3),
    ),
    max_leaves=6,
)
FOUND = sorted({*pdk.FUNCTIONS} | {*pdk.EXPOSED})


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(FOUND),
    arguments=st.lists(LUA, max_size=4),
    phase=st.sampled_from(["rewrite", "access", "response", "header_filter", "log", "certificate"]),
    exposed=st.booleans(),
)
def test_a_pdk_call_answers_or_raises_what_kong_raises(
    gateway: Gateway, name: str, arguments: list[Any], phase: str, exposed: bool
) -> None:
    table = pdk.EXPOSED if (exposed and name in pdk.EXPOSED) or name not in pdk.FUNCTIONS else pdk.FUNCTIONS
    ctx = context(gateway, phase, timer=exposed and phase in ("log", "certificate"))
    assert phase in PHASE_BITS
    try:
        answer = table[name](ctx, *arguments)
        pack(answer)
    except (LuaError, pdk.Exit, BrokenFrame):
        pass


FRAME_DATA = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.floats(), st.binary(max_size=20), st.text(max_size=8)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)),
    max_leaves=8,
)


class Hostile:
    """A plugin server whose replies to events come from `replies`; it starts instances properly."""

    def __init__(self) -> None:
        self.random = random.Random(7)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        unpacker = msgpack.Unpacker(raw=False, strict_map_key=False, unicode_errors="surrogateescape")
        try:
            while data := await reader.read(65536):
                unpacker.feed(data)
                for frame in unpacker:
                    self._answer(frame, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    def _answer(self, frame: list[Any], writer: asyncio.StreamWriter) -> None:
        _, msgid, method, _ = frame
        if method == "plugin.StartInstance":
            writer.write(msgpack.packb([1, msgid, None, {"Id": 1}]))
            return
        pick = self.random.randrange(8)
        if pick == 0:
            writer.write(self.random.randbytes(self.random.randrange(1, 40)))
        elif pick == 1:
            writer.close()
        elif pick == 2:
            writer.write(msgpack.packb([1, msgid, self._value(), self._value()]))
        elif pick == 3:
            writer.write(msgpack.packb([self.random.choice([0, 1, 2, 3, None]), self.random.choice([msgid, 0, "x"])]))
        elif pick == 4:
            writer.write(
                msgpack.packb([2, "serverPid", self._value()]) + msgpack.packb([1, msgid, None, {"Data": "ret"}])
            )
        elif pick == 5:
            writer.write(
                msgpack.packb(
                    [1, msgid, None, {"EventId": 1, "Data": {"Method": self._method(), "Args": self._value()}}]
                )
            )
        elif pick == 6:
            writer.write(msgpack.packb([1, msgid, None, {"EventId": self._value(), "Data": self._value()}]))
        else:
            writer.write(msgpack.packb([1, msgid, None, {"Data": "ret", "EventId": 1}]))

    def _method(self) -> Any:
        return self.random.choice([*FOUND, "kong", "kong.nope", "", 5, None, "kong.request.get_method.x"])

    def _value(self, depth: int = 0) -> Any:
        pick = self.random.randrange(7 if depth < 2 else 5)
        if pick < 5:
            return [None, True, self.random.randrange(-5, 700), self.random.random(), self.random.randbytes(3)][pick]
        if pick == 5:
            return [self._value(depth + 1) for _ in range(self.random.randrange(4))]
        return {str(i): self._value(depth + 1) for i in range(self.random.randrange(4))}


@pytest.fixture
async def running(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[app.App]:
    async def service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nup\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    up = await asyncio.start_server(service, "127.0.0.1", 0)
    server = await asyncio.start_unix_server(Hostile().serve, tmp_path / "s.sock")
    text = json.dumps(config(up.sockets[0].getsockname()[1]))
    started = await app.start(make_conf(tmp_path, declarative_config_string=text), environ={})
    yield started
    await started.stop()
    server.close()
    up.close()
    assert "failed inside minikong" not in caplog.text
    assert "did not answer a request" not in caplog.text


async def test_every_request_is_answered(running: app.App) -> None:
    outcomes: dict[bytes, int] = {}

    async def request() -> None:
        reader, writer = await asyncio.open_connection(*running.proxy_addresses[0])
        writer.write(b'POST /x?b=1 HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 7\r\n\r\n{"a":1}')
        async with asyncio.timeout(HANG_S):
            answer = await reader.read()
        writer.close()
        status = answer[9:12]
        outcomes[status] = outcomes.get(status, 0) + 1

    for _ in range(12):
        await asyncio.gather(*(request() for _ in range(25)))
    assert sum(outcomes.values()) == 300
    assert outcomes.get(b"200", 0) > 10  # closed connections, errors, time-outs: Kong lets them pass
    assert outcomes.get(b"500", 0) > 10  # replies that break the protocol: Kong raises
