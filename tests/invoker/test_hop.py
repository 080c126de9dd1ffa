"""The way from the invoker to its metering proxy: what breaks off, what is slow, and that no piece is merged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from claude_invoker.passthrough import hop
from claude_invoker.passthrough.hop import Answer, BrokenOff
from tests.support.waiting import HANG_S

HEAD = b"HTTP/1.1 200 OK\r\nX-A: 1\r\nx-a: 2\r\nTransfer-Encoding: chunked\r\n\r\n"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(folder: Path, serve: Serve) -> AsyncIterator[Path]:
    path = folder / "api.sock"
    async with await asyncio.start_unix_server(serve, path):
        yield path


def saying(*parts: bytes) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.close()

    return serve


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def ask(path: Path, body: bytes = b"{}") -> Answer:
    async with asyncio.timeout(HANG_S):
        answer = await hop.connect(path)
        await answer.ask("/v1/messages?beta=true", [(b"host", b"api"), (b"x", b"\xe9")], body)
        return answer


async def test_an_answer_comes_piece_by_piece(tmp_path: Path) -> None:
    pieces = [b"a" * size for size in (1, 400, 70_000)]
    together = HEAD + b"".join(map(chunk, pieces[:2]))
    async with serving(tmp_path, saying(together, chunk(pieces[2]), b"0\r\n\r\n")) as path:
        answer = await ask(path)
        found = [piece async for piece in answer.pieces()]
    assert (answer.status, answer.headers[:2]) == (200, [(b"x-a", b"1"), (b"x-a", b"2")])
    assert found[:2] == pieces[:2] and b"".join(found[2:]) == pieces[2]


async def test_what_is_asked_arrives_byte_for_byte(tmp_path: Path) -> None:
    came: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(await reader.readuntil(b"\r\n\r\n"))
        came.append(await reader.readexactly(5 << 20))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()

    async with serving(tmp_path, serve) as path:
        answer = await ask(path, bytes(range(256)) * (20 << 10))
        assert [piece async for piece in answer.pieces()] == [] and answer.status == 204
    assert came[0].startswith(b"POST /v1/messages?beta=true HTTP/1.1\r\n") and b"\r\nx: \xe9\r\n" in came[0]
    assert came[1] == bytes(range(256)) * (20 << 10)


@pytest.mark.parametrize(
    "parts",
    [
        (),
        (HEAD[:20],),
        (b"no HTTP at all\r\n\r\n",),
        (HEAD,),
        (HEAD, chunk(b"abc")),
        (HEAD, b"zz\r\nabc\r\n"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc",),
    ],
)
async def test_what_has_no_end_is_broken_off(tmp_path: Path, parts: tuple[bytes, ...]) -> None:
    async with serving(tmp_path, saying(*parts)) as path:
        with pytest.raises(BrokenOff):
            answer = await ask(path)
            async with asyncio.timeout(HANG_S):
                [piece async for piece in answer.pieces()]


async def test_where_nobody_listens_it_is_broken_off(tmp_path: Path) -> None:
    with pytest.raises(BrokenOff):
        await ask(tmp_path / "nobody.sock")


@pytest.mark.parametrize("name, value", [(b"x", b"1\r\nx-api-key: 2"), (b"x", b"1\n"), (b"x\r", b"1")])
async def test_a_line_within_a_header_is_never_sent(tmp_path: Path, name: bytes, value: bytes) -> None:
    async with serving(tmp_path, saying(HEAD, b"0\r\n\r\n")) as path:
        assert (await ask(path)).status == 200, "the control"
        with pytest.raises(BrokenOff):
            await (await hop.connect(path)).ask("/", [(name, value)], b"")


async def test_who_does_not_read_holds_the_api_back(tmp_path: Path) -> None:
    """What is unread stays within its bound, and all of it comes when it is read."""
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD)
        for _ in range(400):
            writer.write(chunk(b"x" * 65_536))
            await writer.drain()
            sent += 65_536
        writer.write(b"0\r\n\r\n")
        writer.close()

    async with serving(tmp_path, serve) as path:
        answer = await ask(path)
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.3)
        assert sent < 4 << 20, "of 26 MB"
        assert sum([len(piece) async for piece in answer.pieces()]) == 400 * 65_536


async def test_closing_ends_it_for_the_proxy(tmp_path: Path) -> None:
    left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD)
        await reader.read()
        left.set()
        writer.close()

    async with serving(tmp_path, serve) as path:
        answer = await ask(path, b"")
        answer.close()
        await asyncio.wait_for(left.wait(), HANG_S)
