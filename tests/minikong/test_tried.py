"""What no recording has, as it was tried on Kong 3.9.3: the same requests, the same answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from minikong import app, conf
from tests.support.waiting import HANG_S


@contextlib.asynccontextmanager
async def gateway(**routes: dict[str, Any]) -> AsyncIterator[tuple[str, int]]:
    """minikong's address; each route is at its own path, and the service answers with the head that it got."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(head), head))
        writer.close()

    service = await asyncio.start_server(serve, "127.0.0.1", 0)
    made = [{"name": name, "paths": [f"/{name}"], **fields} for name, fields in routes.items()]
    url = f"http://127.0.0.1:{service.sockets[0].getsockname()[1]}"
    config = {"_format_version": "3.0", "services": [{"name": "up", "url": url, "routes": made}]}
    settings = {"proxy_listen": "127.0.0.1:0", "admin_listen": "off", "log_level": "emerg"}
    started = conf.load(overrides=settings | {"declarative_config_string": json.dumps(config)})
    running = await app.start(started, environ={})
    try:
        yield running.proxy_addresses[0]
    finally:
        await running.stop()
        service.close()


async def ask(
    address: tuple[str, int], path: str, *headers: str, method: str = "GET"
) -> tuple[str, dict[str, str], bytes]:
    """Status line, headers by lower-case name, body."""
    reader, writer = await asyncio.open_connection(*address)
    lines = [f"{method} {path} HTTP/1.1", "Host: x.test", *headers, "Connection: close", "", ""]
    writer.write("\r\n".join(lines).encode())
    answered = await asyncio.wait_for(reader.read(), HANG_S)
    writer.close()
    head, _, body = answered.partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    return status, {name.lower(): value for name, value in (field.split(": ", 1) for field in fields)}, body


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ([], "127.0.0.1"),
        (["1.1.1.1"], "1.1.1.1, 127.0.0.1"),
        (["1.1.1.1", "2.2.2.2"], "1.1.1.1, 127.0.0.1"),
        (["1.1.1.1, 3.3.3.3", "2.2.2.2"], "1.1.1.1, 3.3.3.3, 127.0.0.1"),
        (["", "2.2.2.2"], ", 127.0.0.1"),
        (["1.1.1.1", "", "2.2.2.2"], "1.1.1.1, 127.0.0.1"),
        (["junk"], "junk, 127.0.0.1"),
    ],
)
async def test_of_several_x_forwarded_for_the_first_is_handed_on(sent: list[str], expected: str) -> None:
    async with gateway(plain={}) as address:
        _, _, head = await ask(address, "/plain", *(f"X-Forwarded-For: {value}" for value in sent))
    lines = [line for line in head.decode().split("\r\n") if line.lower().startswith("x-forwarded-for:")]
    assert lines == [f"X-Forwarded-For: {expected}"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
async def test_a_redirect_to_https_says_its_charset_where_it_is_no_old_one(method: str) -> None:
    """nginx leaves it out of 301 and 302 only."""
    codes = {301: "text/html", 302: "text/html"}
    codes |= dict.fromkeys((307, 308), "text/html; charset=UTF-8")
    routes = {f"r{code}": {"protocols": ["https"], "https_redirect_status_code": code} for code in codes}
    async with gateway(**routes) as address:
        for code, content_type in codes.items():
            status, headers, body = await ask(address, f"/r{code}?a=b", method=method)
            assert status.startswith(f"HTTP/1.1 {code} ")
            assert headers["location"] == f"https://x.test/r{code}?a=b"
            assert headers["content-type"] == content_type
            assert (b"</html>" in body) is (method != "HEAD")


async def test_an_echo_without_unnamed_captures_shows_an_empty_list() -> None:
    echo = {"name": "request-termination", "config": {"echo": True, "status_code": 200}}
    async with gateway(echo={"plugins": [echo]}) as address:
        _, _, body = await ask(address, "/echo?a=b")
    request = json.loads(body)["request"]
    assert request["uri_captures"] == {"named": {}, "unnamed": []}
    assert "body" not in request, "one that cannot be read as a form or JSON"
