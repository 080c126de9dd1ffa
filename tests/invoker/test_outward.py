"""How the API is reached: directly, or by the proxy that the machine's variables name."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path

import aiohttp
import httpx
import pytest

from claude_invoker.metering.control import Metering, Settings, Terms
from claude_invoker.metering.figures import Figures
from claude_invoker.metering.outbound_proxy import proxy_for
from claude_invoker.metering.outward import Outward
from claude_invoker.metering.wire import Upstream
from tests.invoker.conftest import KEY, free_port, wait_for
from tests.support.site import certificate
from tests.support.upstream import Asked, upstream
from tests.support.waiting import HANG_S

API = "https://api.anthropic.com"
PROXY = "http://proxy.corp:3128"


@pytest.mark.parametrize(
    ("environment", "url", "expected"),
    [
        ({}, API, None),
        ({"HTTPS_PROXY": PROXY}, API, PROXY),
        ({"https_proxy": PROXY}, API, PROXY),
        ({"HTTP_PROXY": PROXY}, API, None),
        ({"HTTP_PROXY": PROXY}, "http://gateway.corp", PROXY),
        ({"ALL_PROXY": PROXY}, API, PROXY),
        ({"HTTPS_PROXY": "proxy.corp:3128"}, API, PROXY),
        ({"HTTPS_PROXY": "http://me:secret@proxy.corp:3128"}, API, "http://me:secret@proxy.corp:3128"),
        ({"HTTPS_PROXY": ""}, API, None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "anthropic.com"}, API, None),
        ({"HTTPS_PROXY": PROXY, "no_proxy": ".anthropic.com"}, API, None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "api.anthropic.com:8443"}, API, PROXY),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "*"}, API, None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "corp"}, API, PROXY),
        ({"HTTP_PROXY": PROXY}, "http://127.0.0.1:8101", None),
        ({"HTTP_PROXY": PROXY}, "http://[::1]:8101", None),
        ({"HTTP_PROXY": PROXY}, "http://localhost:8101", None),
    ],
)
def test_the_proxy_of_an_address(environment: dict[str, str], url: str, expected: str | None) -> None:
    assert proxy_for(url, environment) == expected


@pytest.mark.parametrize("given", ["socks5://me:secret@proxy:1", "ftp://proxy", "http://"])
def test_another_kind_of_proxy_is_an_error_without_its_password(given: str) -> None:
    with pytest.raises(ValueError, match="a proxy of http or https") as error:
        proxy_for(API, {"HTTPS_PROXY": given})
    assert "secret" not in str(error.value)


@asynccontextmanager
async def listening(heard: list[bytes]) -> AsyncIterator[str]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_the_proxy_is_asked_for_the_api_and_for_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[bytes] = []
    elsewhere: list[bytes] = []
    async with listening(heard) as proxy, listening(elsewhere) as other:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        upstream = Upstream("http://api.invalid", proxy.replace("//", "//me:secret@"))
        outward = Outward([upstream, Upstream(other)])
        assert (await outward.post("http://api.invalid", "/v1/messages", (), b"{}")).status == 200
        assert (await outward.post(other, "/x", (), b"{}")).status == 200
        await outward.close()
    assert heard[0].startswith(b"POST http://api.invalid/v1/messages ")
    assert b"proxy-authorization: basic " in heard[0].lower()
    assert elsewhere[0].startswith(b"POST /x ") and len(heard) == 1


async def test_a_request_is_sent_once_as_it_is_and_nothing_is_kept_of_its_answer() -> None:
    """Whoever answers with a redirect, or a cookie, gets nothing more; the next request has the same connection."""
    heads, connections = list[bytes](), 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while head := await reader.readuntil(b"\r\n\r\n"):
            heads.append(head)
            await reader.readexactly(2)
            more = b"location: /elsewhere\r\nset-cookie: a=b; path=/\r\n"
            writer.write(b"HTTP/1.1 307 x\r\n%bcontent-length: 2\r\n\r\n{}" % more)

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        outward = Outward([Upstream(url)])
        given = [(b"x-a", b"1"), (b"x-a", "ü".encode()), (b"user-agent", b"mine")]
        for _ in range(2):
            async with await outward.post(url, "/v1/messages?a=%2f&b=[x]", given, b"{}") as found:
                assert (found.status, await found.read()) == (307, b"{}")
        await outward.close()
    assert connections == 1 and len(heads) == 2
    for head in heads:
        assert head.startswith(b"POST /v1/messages?a=%2f&b=[x] HTTP/1.1\r\n")
        lines = [line.lower() for line in head.split(b"\r\n")]
        assert [line for line in lines if line.startswith((b"x-a:", b"user-agent:", b"cookie:"))] == [
            b"x-a: 1", "x-a: ü".encode(), b"user-agent: mine"
        ]  # fmt: skip


async def test_an_answer_that_leaves_http_is_none() -> None:
    """Passed on it would be the client's, and a gateway's in between: what comes next on that connection is no HTTP."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 103 x\r\n\r\nHTTP/1.1 101 x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        outward = Outward([Upstream(url)])
        with pytest.raises(aiohttp.ClientError, match="no HTTP"):
            await outward.post(url, "/v1/messages", (), b"{}")
        await outward.close()


@asynccontextmanager
async def forwarding(log: Path, name: str, chain: Path | None) -> AsyncIterator[str]:
    """A real proxy, with a password; with `chain` it is reached over TLS."""
    port = free_port()
    options = ["--hostname", "127.0.0.1", "--port", str(port), "--basic-auth", "me:secret", "--num-workers", "1"]
    command = [sys.executable, "-m", "proxy", *options, "--num-acceptors", "1", "--log-file", str(log)]
    if chain is not None:
        command += ["--cert-file", str(chain), "--key-file", str(chain)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            await asyncio.to_thread(wait_for, lambda: answers(port), what="the proxy")
            yield f"http{'' if chain is None else 's'}://me:secret@{name}:{port}"
        finally:
            process.terminate()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize(
    "by", ["directly", "by a proxy", "by a proxy over TLS", "by one that is away", "by another authority"]
)
async def test_the_metering_proxy_itself_reaches_the_api(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over TLS, by CONNECT: the proxy has no more of it than the API's address, and its password is only its own."""
    name = socket.gethostname()  # localhost is never asked by a proxy
    chain, authority = certificate(tmp_path, name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    log = tmp_path / "proxy.log"
    with upstream(context) as api:
        async with forwarding(log, name, chain if by == "by a proxy over TLS" else None) as proxy:
            url = api.url.replace("127.0.0.1", name)
            monkeypatch.setenv("SSL_CERT_FILE", "" if by == "by another authority" else str(authority))
            if by != "directly":
                place = f"http://me:secret@127.0.0.1:{free_port()}" if by == "by one that is away" else proxy
                monkeypatch.setenv("HTTPS_PROXY", place)
            key = os.memfd_create("key")
            os.write(key, KEY.encode())
            metering = Metering(Settings((url,)), tmp_path / "journal", None, key)
            token = metering.issue()
            await metering.start(tmp_path / "api.sock")
            try:
                await metering.open("run", token, Terms(None, Decimal(1), None, 1), Figures())
                transport = httpx.AsyncHTTPTransport(uds=str(metering.socket))
                async with httpx.AsyncClient(transport=transport, timeout=HANG_S) as asking:
                    body = {
                        "model": "claude-haiku-4-5",
                        "max_tokens": 5,
                        "messages": [{"role": "user", "content": "x"}],
                    }
                    answer = await asking.post("http://api/v1/messages", json=body, headers={"x-api-key": token})
            finally:
                await metering.stop()
    reached = by in ("directly", "by a proxy", "by a proxy over TLS")
    assert (answer.status_code, len(api.messages)) == ((200, 1) if reached else (502, 0)), answer.text
    said = log.read_text() if log.exists() else ""
    assert (f"CONNECT {name}:" in said) == (by in ("by a proxy", "by a proxy over TLS", "by another authority")), said
    seen: list[Asked] = api.messages
    assert all("proxy-authorization" not in each.headers and each.headers["x-api-key"] == [KEY] for each in seen)
    assert "/v1/messages" not in said and KEY not in said


async def test_whoever_asks_while_a_proxy_starts_is_not_told_that_he_may_not(tmp_path: Path) -> None:
    """Runs go on when it has died: they ask the next one as soon as it can be reached, before it knows of them."""
    key = os.memfd_create("key")
    os.write(key, KEY.encode())
    with upstream() as api:
        metering = Metering(Settings((api.url,)), tmp_path / "journal", None, key)
        token = metering.issue()
        await metering.start(tmp_path / "api.sock")
        try:
            await metering.open("run", token, Terms(None, Decimal(1), None, 9), Figures())
            for _ in range(3):
                assert metering.pid is not None
                os.kill(metering.pid, signal.SIGKILL)
                assert (await asked_as_soon_as_it_is_reached(metering.socket, token)).status_code == 200
                assert (await asked_as_soon_as_it_is_reached(metering.socket, "another")).status_code == 401
        finally:
            await metering.stop()


async def asked_as_soon_as_it_is_reached(path: Path, token: str) -> httpx.Response:
    body = {"model": "claude-haiku-4-5", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}
    async with asyncio.timeout(HANG_S):
        while True:
            async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path)), timeout=HANG_S) as asking:
                with contextlib.suppress(httpx.TransportError):
                    return await asking.post("http://api/v1/messages", json=body, headers={"x-api-key": token})
            await asyncio.sleep(0.001)
