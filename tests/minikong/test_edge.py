"""The edge over real sockets: streaming, aborts, upgrades, connection reuse, TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from minikong.context import Context
from minikong.entities import Route
from minikong.http.upstream import UpstreamConnection, UpstreamPool
from tests.minikong.plain_gateway import PlainGateway, running_edge
from tests.support.waiting import HANG_S

HEAD = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Service:
    """Calls `answer` for each connection."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.connections = 0
        self.closed = asyncio.Event()
        self.port = 0
        self.failures: list[AssertionError] = []

    async def __aenter__(self) -> Service:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        except AssertionError as error:
            self.failures.append(error)
        finally:
            self.closed.set()
            writer.close()


def run(work: Awaitable[None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(work, HANG_S)

    asyncio.run(bounded())


async def head_of(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


async def ok(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def test_events_arrive_one_by_one() -> None:
    """Each event is at the client before the service sends the next."""
    got = asyncio.Queue[bytes]()

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(5):
            event = b"data: %d\n\n" % number
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            assert await got.get() == event
        writer.write(b"0\r\n\r\n")

    async def main() -> None:
        async with Service(stream) as service, running_edge(lambda: service.port) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEAD)
            await head_of(reader)
            for _ in range(5):
                size = int(await reader.readline(), 16)
                got.put_nowait(await reader.readexactly(size))
                await reader.readexactly(2)
            assert await reader.readline() == b"0\r\n"
            writer.close()

    run(main())


@pytest.mark.parametrize("leave", ["close", "reset", "half-close"])
def test_client_that_leaves_ends_the_service_request(leave: str) -> None:
    """nginx closes the service's connection when the client closes its side, even only half of it."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        assert await reader.read() == b""

    async def main() -> None:
        async with Service(silent) as service, running_edge(lambda: service.port) as (edge, port):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEAD)
            while not service.connections:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            if leave == "reset":
                raw = writer.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if leave == "half-close":
                writer.write_eof()
            else:
                writer.close()
            await service.closed.wait()
            while edge.open_connections:
                await asyncio.sleep(0.01)
            writer.close()

    run(main())


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [1000, 400_000])
def test_client_that_leaves_after_its_body_is_noticed(
    size: int, chunked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where all of the body was there while plugins ran, so that nothing more is to be read: after 400 KB nobody
    noticed."""
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (size, b"x" * size) if chunked else b"x" * size
    plain = PlainGateway.handle

    async def thoughtful(self: PlainGateway, ctx: Context, exchange: Any) -> None:
        connection = exchange._connection  # which stops reading at its high water, wherever the pieces end
        while len(connection.buffer) < len(body) and connection._reading:
            await asyncio.sleep(0.01)
        proxy = exchange.proxy

        async def patient(ctx: Context) -> None:
            assert ctx.upstream is not None
            ctx.upstream.read_timeout = 60.0
            await proxy(ctx)

        exchange.proxy = patient
        await plain(self, ctx, exchange)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        await reader.readexactly(size)
        left.set()
        assert await reader.read() == b""

    async def main() -> None:
        async with Service(silent) as service, running_edge(lambda: service.port) as (edge, port):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
            writer.write(b"POST / HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n%b" % (length, body))
            await left.wait()
            writer.transport.abort()
            await service.closed.wait()
            while edge.open_connections:
                await asyncio.sleep(0.01)

    monkeypatch.setattr(PlainGateway, "handle", thoughtful)
    left = asyncio.Event()
    run(main())


def test_client_that_leaves_while_its_service_is_connected_to_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its request went on until the service's time was over."""
    plain = UpstreamPool.connect
    handle = PlainGateway.handle
    connecting = asyncio.Event()
    clients: list[Any] = []

    async def known(self: PlainGateway, ctx: Context, exchange: Any) -> None:
        clients.append(exchange._connection)
        await handle(self, ctx, exchange)

    async def slow(self: UpstreamPool, key: Any, timeout: float) -> UpstreamConnection:
        made = await plain(self, key, HANG_S)
        connecting.set()
        while not clients[0].eof:
            await asyncio.sleep(0.01)
        return made

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read() == b"", "nothing of its request"

    async def main() -> None:
        async with Service(silent) as service, running_edge(lambda: service.port) as (edge, port):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEAD)
            await connecting.wait()
            writer.transport.abort()
            await service.closed.wait()
            assert not service.failures
            while edge.open_connections:
                await asyncio.sleep(0.01)

    monkeypatch.setattr(PlainGateway, "handle", known)
    monkeypatch.setattr(UpstreamPool, "connect", slow)
    run(main())


def test_client_that_leaves_in_a_stream() -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"400\r\n" + b"x" * 1024 + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0.001)

    async def main() -> None:
        async with Service(endless) as service, running_edge(lambda: service.port) as (edge, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEAD)
            await head_of(reader)
            writer.transport.abort()
            await service.closed.wait()
            while edge.open_connections:
                await asyncio.sleep(0.01)

    run(main())


def test_slow_client_slows_the_service() -> None:
    """What a client does not read is not piled up in the gateway."""
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536

    async def main() -> None:
        async with Service(flood) as service, running_edge(lambda: service.port) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=65536)
            writer.write(HEAD)
            await head_of(reader)
            before = -1
            while sent != before:
                before = sent
                await asyncio.sleep(0.2)
            assert sent < 60_000_000  # socket buffers and a few hundred kB of ours
            writer.transport.abort()

    run(main())


def test_service_connection_is_reused_and_replaced() -> None:
    async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            await head_of(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async def main() -> None:
        async with Service(twice) as service, running_edge(lambda: service.port) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(6):
                writer.write(HEAD)
                assert (await head_of(reader)).startswith(b"HTTP/1.1 200 OK")
                assert await reader.readexactly(2) == b"ok"
            assert service.connections == 3
            writer.close()

    run(main())


def test_websocket_is_a_tunnel() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await head_of(reader)
        assert b"\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n" in head
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhi")
        while data := await reader.read(100):
            writer.write(data.upper())

    async def main() -> None:
        async with Service(echo) as service, running_edge(lambda: service.port) as (edge, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /w HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n")
            head = await head_of(reader)
            assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n")
            assert await reader.readexactly(2) == b"hi"
            writer.write(b"frame")
            assert await reader.readexactly(5) == b"FRAME"
            writer.close()
            await service.closed.wait()
            while edge.open_connections:
                await asyncio.sleep(0.01)

    run(main())


def test_large_body_both_ways() -> None:
    """8 MiB up, chunked, and back, with the service reading slowly."""
    size = 8 * 1024 * 1024

    async def mirror(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await head_of(reader)
        assert b"Content-Length: %d\r\n" % size in head
        body = b""
        while len(body) < size:
            body += await reader.read(65536)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + body)
        await writer.drain()

    async def main() -> None:
        async with Service(mirror) as service, running_edge(lambda: service.port) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            body = bytes(range(256)) * (size // 256)
            writer.write(b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
            for at in range(0, size, 50_000):
                piece = body[at : at + 50_000]
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await writer.drain()
            writer.write(b"0\r\n\r\n")
            await head_of(reader)
            assert await reader.readexactly(size) == body
            writer.close()

    run(main())


def test_streamed_request_reaches_the_service_at_once() -> None:
    """request_buffering off: the service has the first part before the client sends the second."""
    arrived = asyncio.Event()

    async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        assert await reader.readexactly(8) == b"3\r\none\r\n"
        arrived.set()
        assert await reader.readuntil(b"0\r\n\r\n") == b"3\r\ntwo\r\n0\r\n\r\n"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await reader.read()

    async def main() -> None:
        route = Route("r", "r", request_buffering=False)
        async with Service(read) as service, running_edge(lambda: service.port, route=route) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
            await arrived.wait()
            writer.write(b"3\r\ntwo\r\n0\r\n\r\n")
            assert (await head_of(reader)).startswith(b"HTTP/1.1 200 OK")
            writer.close()

    run(main())


def test_head_that_trickles_is_cut_off() -> None:
    """client_header_timeout bounds the whole head, not the pause between two bytes."""

    async def main() -> None:
        async with running_edge(lambda: 1, nginx_http_client_header_timeout="1s") as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            ended = asyncio.create_task(reader.read())
            for byte in b"GET / HTTP/1.1\r\nX: " + b"x" * 100:
                if ended.done():
                    break
                writer.write(bytes([byte]))
                await asyncio.sleep(0.1)
            assert await ended == b""
            writer.close()

    run(main())


def test_tls() -> None:
    async def main() -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        async with Service(ok) as service, running_edge(lambda: service.port, tls=True) as (edge, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="a.b")
            for _ in range(3):
                writer.write(HEAD)
                assert b"\r\nConnection: keep-alive\r\n" in await head_of(reader)
                assert await reader.readexactly(2) == b"ok"
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEAD)
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
            assert b"plain HTTP request was sent to HTTPS port" in answer
            writer.close()
            while edge.open_connections:
                await asyncio.sleep(0.01)

    run(main())


def test_unread_body_does_not_delay_the_answer() -> None:
    """The gateway answers before the body came, and reads the next request after it."""

    async def main() -> None:
        async with Service(ok) as service, running_edge(lambda: service.port) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /gateway/own HTTP/1.1\r\nHost: a\r\nContent-Length: 20000\r\n\r\n")
            assert b"\r\nConnection: keep-alive\r\n" in await head_of(reader)
            assert await reader.readexactly(4) == b"own\n"
            writer.write(b"x" * 20000 + HEAD)
            assert (await head_of(reader)).startswith(b"HTTP/1.1 200 OK")
            writer.close()

    run(main())


def test_an_answer_before_a_streamed_body_has_come_is_passed_on_and_the_next_request_served() -> None:
    """What is left of the body is read and dropped, and not waited for in the place of who was to stream it."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 507 No\r\nContent-Length: 2\r\n\r\nno")
        while await reader.read(1 << 16):
            pass

    async def main() -> None:
        route = Route("r", "r", request_buffering=False)
        async with Service(refuse) as service, running_edge(lambda: service.port, route=route) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(3):
                writer.write(b"PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000\r\n\r\n")
                assert (await head_of(reader)).startswith(b"HTTP/1.1 507 ")
                assert await reader.readexactly(2) == b"no"
                for _ in range(50):
                    writer.write(b"x" * 100_000)
                    await writer.drain()
            writer.close()

    run(main())
