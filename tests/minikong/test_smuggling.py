"""Framing attacks: the service never sees a request framed differently than the gateway parsed it."""

from __future__ import annotations

import asyncio
import re

import pytest

from minikong.conf import Listen
from minikong.context import Context
from minikong.entities import Route
from minikong.http.connection import Handler
from minikong.http.listener import Edge
from minikong.http.seam import Exchange
from tests.minikong.plain_gateway import running_edge
from tests.minikong.strict_service import StrictService

H = b"Host: a\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
BODY = b"5\r\nhello\r\n0\r\n\r\n"
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"


def post(headers: bytes, body: bytes, version: bytes = b"1.1") -> bytes:
    return b"POST /p HTTP/" + version + b"\r\n" + H + headers + b"\r\n" + body


# name, bytes on one connection, statuses of the answers, bodies of the requests that reach the service
CASES: list[tuple[str, bytes, list[int], list[bytes]]] = [
    ("cl.te", post(b"Content-Length: 6\r\n" + CHUNKED, b"0\r\n\r\nG" + HIDDEN), [400], []),
    ("te.cl", post(CHUNKED + b"Content-Length: 3\r\n", b"5\r\nhello\r\n0\r\n\r\n" + HIDDEN), [400], []),
    ("two lengths, equal", post(b"Content-Length: 5\r\nContent-Length: 5\r\n", b"hello"), [400], []),
    ("two lengths, different", post(b"Content-Length: 5\r\nContent-Length: 0\r\n", b"hello"), [400], []),
    ("two lengths, other case", post(b"Content-Length: 5\r\ncontent-length: 5\r\n", b"hello"), [400], []),
    ("length list", post(b"Content-Length: 5, 5\r\n", b"hello"), [400], []),
    ("length +5", post(b"Content-Length: +5\r\n", b"hello"), [400], []),
    ("length -5", post(b"Content-Length: -5\r\n", b"hello"), [400], []),
    ("length 0x5", post(b"Content-Length: 0x5\r\n", b"hello"), [400], []),
    ("length 5_0", post(b"Content-Length: 5_0\r\n", b"hello"), [400], []),
    ("length empty", post(b"Content-Length:\r\n", b"hello"), [400], []),
    ("length with tab", post(b"Content-Length:\t5\r\n", b"hello"), [400], []),
    ("length in Arabic digits", post("Content-Length: ٥\r\n".encode(), b"hello"), [400], []),
    ("length over 2^63", post(b"Content-Length: 9223372036854775808\r\n", b"hello"), [400], []),
    ("length of 400 digits", post(b"Content-Length: " + b"9" * 400 + b"\r\n", b"hello"), [400], []),
    ("length 0005", post(b"Content-Length: 0005\r\n", b"hello"), [200], [b"hello"]),
    ("length, spaces around", post(b"Content-Length:   5  \r\n", b"hello"), [200], [b"hello"]),
    ("coding twice", post(CHUNKED + CHUNKED, BODY), [400], []),
    ("coding list", post(b"Transfer-Encoding: chunked, chunked\r\n", BODY), [501], []),
    ("coding gzip, chunked", post(b"Transfer-Encoding: gzip, chunked\r\n", BODY), [501], []),
    ("coding identity", post(b"Transfer-Encoding: identity\r\nContent-Length: 5\r\n", b"hello"), [501], []),
    ("coding xchunked", post(b"Transfer-Encoding: xchunked\r\n", BODY), [501], []),
    ("coding, tab before", post(b"Transfer-Encoding:\tchunked\r\n", BODY), [501], []),
    ("coding, vertical tab", post(b"Transfer-Encoding: \x0bchunked\r\n", BODY), [501], []),
    ("coding quoted", post(b'Transfer-Encoding: "chunked"\r\n', BODY), [501], []),
    ("coding empty", post(b"Transfer-Encoding:\r\nContent-Length: 5\r\n", b"hello"), [501], []),
    ("coding Chunked", post(b"Transfer-Encoding: cHuNkEd\r\n", BODY), [200], [b"hello"]),
    ("coding in HTTP/1.0", post(CHUNKED, BODY, b"1.0"), [400], []),
    ("space before the colon", post(b"Transfer-Encoding : chunked\r\n", BODY), [400], []),
    ("space before the colon, length", post(b"Content-Length : 5\r\n", b"hello"), [400], []),
    ("vertical tab in the name", post(b"Content-Length\x0b: 5\r\n", b"hello"), [400], []),
    ("name starts with a space", post(b" Content-Length: 5\r\n", b"hello"), [400], []),
    ("obs-fold", post(b"Transfer-Encoding:\r\n chunked\r\n", BODY), [400], []),
    ("obs-fold, tab", post(b"X: a\r\n\tTransfer-Encoding: chunked\r\n", BODY), [400], []),
    ("NUL in a value", post(b"Content-Length: 5\x00\r\n", b"hello"), [400], []),
    ("NUL in a name", post(b"Content-\x00Length: 5\r\n", b"hello"), [400], []),
    ("bare CR in a value", post(b"X: a\rContent-Length: 5\r\n", b"hello"), [400], []),
    ("bare CR ends a line", post(b"X: a\rTransfer-Encoding: chunked\r\n\r\n", BODY), [400], []),
    ("bare LF", b"POST /p HTTP/1.1\nHost: a\nContent-Length: 5\n\nhello", [200], [b"hello"]),
    ("bare LF, chunked", b"POST /p HTTP/1.1\nHost: a\n" + CHUNKED + b"\n5\nhello\n0\n\n", [200], [b"hello"]),
    ("underscore is another header", post(b"Content_Length: 5\r\n", b""), [200], [b""]),
    ("invalid name is ignored", post(b"Content-Length[: 5\r\n", b""), [200], [b""]),
    ("chunk extension", post(CHUNKED, b"5;a=b;c\r\nhello\r\n0;d\r\n\r\n"), [200], [b"hello"]),
    ("chunk size 0005", post(CHUNKED, b"0005\r\nhello\r\n00\r\n\r\n"), [200], [b"hello"]),
    ("chunk size 0x5", post(CHUNKED, b"0x5\r\nhello\r\n0\r\n\r\n"), [400], []),
    ("chunk size +5", post(CHUNKED, b"+5\r\nhello\r\n0\r\n\r\n"), [400], []),
    ("chunk size -1", post(CHUNKED, b"-1\r\nhello\r\n0\r\n\r\n"), [400], []),
    ("chunk size empty", post(CHUNKED, b"\r\nhello\r\n0\r\n\r\n"), [400], []),
    ("chunk size, space before", post(CHUNKED, b" 5\r\nhello\r\n0\r\n\r\n"), [400], []),
    ("chunk size over 64 bits", post(CHUNKED, b"10000000000000005\r\nhello\r\n0\r\n\r\n"), [400], []),
    ("chunk size wraps to 5", post(CHUNKED, b"100000000000000000000000000000005\r\nhello\r\n0\r\n\r\n"), [400], []),
    ("chunk longer than its size", post(CHUNKED, b"4\r\nhello\r\n0\r\n\r\n"), [400], []),
    ("chunk without line end", post(CHUNKED, b"5\r\nhello0\r\n\r\n"), [400], []),
    ("bare CR after a chunk size", post(CHUNKED, b"5\rhello\r\n0\r\n\r\n"), [400], []),
    ("bare CR in an extension", post(CHUNKED, b"5;a\rb\r\nhello\r\n0\r\n\r\n"), [400], []),
    ("request in a trailer", post(CHUNKED, b"0\r\nGET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"), [200], [b""]),
    ("framing in a trailer", post(CHUNKED, b"5\r\nhello\r\n0\r\nContent-Length: 9\r\n\r\n"), [200], [b"hello"]),
    ("request in a body", post(b"Content-Length: 38\r\n", HIDDEN + b"....."), [200], [HIDDEN + b"....."]),
    ("request in a chunk", post(CHUNKED, b"21\r\n" + HIDDEN + b"\r\n0\r\n\r\n"), [200], [HIDDEN]),
    ("body, then a request", post(b"Content-Length: 5\r\n", b"hello" + HIDDEN), [200, 200], [b"hello", b""]),
    ("chunked, then a request", post(CHUNKED, BODY + HIDDEN), [200, 200], [b"hello", b""]),
    ("body shorter than said", post(b"Content-Length: 3\r\n", b"hello"), [200, 400], [b"hel"]),
    ("no length, with a body", post(b"", b"hello"), [200, 400], [b""]),
    ("GET with a body", b"GET /g HTTP/1.1\r\n" + H + b"Content-Length: 5\r\n\r\nhello", [200], [b"hello"]),
    ("two Hosts", b"GET /g HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", [400], []),
    ("Host and absolute target", b"GET http://b/g HTTP/1.1\r\nHost: a\r\n\r\n", [200], [b""]),
    ("hop-by-hop length", post(b"Connection: content-length\r\nContent-Length: 5\r\n", b"hello"), [200], [b"hello"]),
    ("hop-by-hop coding", post(b"Connection: transfer-encoding\r\n" + CHUNKED, BODY), [200], [b"hello"]),
    ("upgrade to h2c", post(b"Upgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 2\r\n", b"hi"), [200], [b"hi"]),
    ("CR LF in the target", b"GET /g\rX HTTP/1.1\r\n" + H + b"\r\n", [400], []),
    ("encoded CR LF in the target", b"GET /g%0d%0aX:1 HTTP/1.1\r\n" + H + b"\r\n", [200], [b""]),
    ("HTTP/0.9 with a body", b"GET /g\r\n" + HIDDEN, [], [b""]),
    ("lines before the request", b"\r\n\r\n" + HIDDEN, [200], [b""]),
]


def _recording(edge: Edge, parsed: list[tuple[str, bytes, bytes]]) -> Handler:
    """A handler that notes every request as the gateway sees it, with its body, before it is proxied."""
    inner = edge.gateway.handle

    async def handle(ctx: Context, exchange: Exchange) -> None:
        body = await ctx.request.body.read()
        parsed.append((ctx.request.method, ctx.request.target, body))
        await inner(ctx, exchange)

    return handle


async def _play(raw: bytes, port: int, step: int, expect: int) -> list[int]:
    """Sends `raw` in pieces of `step` bytes; the statuses of all answers, waiting a little for more than `expect`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for at in range(0, len(raw), step):
        writer.write(raw[at : at + step])
        if step < len(raw):
            await asyncio.sleep(0)
    data = b""
    statuses: list[int] = []
    try:
        while True:
            async with asyncio.timeout(0.05 if len(statuses) >= expect else 5):
                piece = await reader.read(65536)
            if not piece:
                break
            data += piece
            statuses = [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", data)]
    except (TimeoutError, ConnectionError):
        pass
    writer.close()
    return statuses


@pytest.mark.parametrize("step", [1 << 20, 7], ids=["at once", "in pieces"])
@pytest.mark.parametrize("buffering", [True, False], ids=["buffered", "streamed"])
def test_corpus(step: int, buffering: bool) -> None:
    async def run() -> list[str]:
        problems = []
        route = Route("r", "r", request_buffering=buffering)
        async with StrictService() as service, running_edge(lambda: service.port, route=route) as (_, port):
            for name, raw, statuses, bodies in CASES:
                service.requests.clear()
                service.errors.clear()
                got = await _play(raw, port, step, len(statuses))
                arrived = [body for _, _, body in service.requests]
                # a streamed body that breaks off has reached the service in part: it must not look complete
                if got != statuses or arrived != bodies or (service.errors and buffering):
                    problems.append(f"{name}: {got} {arrived} {service.errors}, want {statuses} {bodies}")
        return problems

    assert asyncio.run(run()) == []


def test_gateway_and_service_agree() -> None:
    """What the gateway parsed (method, target, body) is what the service parsed, for the whole corpus."""

    async def run() -> None:
        async with StrictService() as service, running_edge(lambda: service.port) as (edge, _):
            parsed: list[tuple[str, bytes, bytes]] = []
            _, port = await edge.listen(Listen("127.0.0.1", 0), _recording(edge, parsed))
            for name, raw, statuses, _ in CASES:
                parsed.clear()
                service.requests.clear()
                await _play(raw, port, 1 << 20, len(statuses))
                assert service.requests == parsed, name

    asyncio.run(run())
