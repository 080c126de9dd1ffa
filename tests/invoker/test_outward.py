"""How the API is reached: directly, or by the proxy that the machine's variables name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from claude_invoker.metering.outward import client, proxy_for

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
        async with client("http://api.invalid", proxy.replace("//", "//me:secret@")) as found:
            assert (await found.post("http://api.invalid/v1/messages", content=b"{}")).status_code == 200
            assert (await found.post(f"{other}/x", content=b"{}")).status_code == 200
    assert heard[0].startswith(b"POST http://api.invalid/v1/messages ")
    assert b"proxy-authorization: basic " in heard[0].lower()
    assert elsewhere[0].startswith(b"POST /x ") and len(heard) == 1
