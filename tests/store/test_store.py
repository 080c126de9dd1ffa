"""Objects by name: the same for a directory and for a real S3 server over HTTP."""

from __future__ import annotations

import logging
import os
import secrets
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from claude_invoker.store.place import Key, Place
from claude_invoker.store.store import Away, Missing, Store
from tests.invoker.conftest import as_root
from tests.support.s3 import ID, S3, SECRET, away
from tests.support.waiting import until


async def read(store: Store, name: str, start: int = 0, end: int = 0) -> bytes:
    return b"".join([piece async for piece in await store.read(name, start, end)])


async def test_what_is_put_is_read_whole_and_in_ranges(store: Store, tmp_path: Path) -> None:
    content = os.urandom(20 << 20)  # of several parts
    (tmp_path / "large").write_bytes(content)
    await store.put("a/large", tmp_path / "large")
    await store.put("a/small", b"0123456789")
    await store.put("a/empty", b"")
    assert await read(store, "a/large", 0, len(content)) == content == await store.get("a/large")
    assert await read(store, "a/large", 9_000_000, 9_000_010) == content[9_000_000:9_000_010]
    assert (await read(store, "a/small", 4, 10), await read(store, "a/small", 4, 6)) == (b"456789", b"45")
    assert await read(store, "a/small", 4, 4) == b"" == await read(store, "a/empty") == await store.get("a/empty")
    pieces = [len(piece) async for piece in await store.read("a/large", 0, len(content))]
    assert len(pieces) > 3, "it is streamed"
    await store.put("a/small", b"other")
    assert await store.get("a/small") == b"other"


async def test_names_are_listed_and_deleted(store: Store) -> None:
    assert [found async for found in store.found("a")] == []
    assert await store.folders("a") == []
    for name in ("a/1/x", "a/1/y", "a/2/x", "ab/3"):
        await store.put(name, b"1")
    assert sorted([found.name async for found in store.found("a")]) == ["a/1/x", "a/1/y", "a/2/x"]
    assert sorted(await store.folders("a")) == ["1", "2"]
    await store.delete(["a/1/x", "a/never"])
    with pytest.raises(Missing):
        await store.read("a/1/x", 0, 1)
    with pytest.raises(Missing):
        await store.get("a/never")
    assert await store.expire("a", 3600) == 0
    time.sleep(1.1)  # S3's clock has seconds
    assert await store.expire("a", 0) == 2
    assert [found.name async for found in store.found("ab")] == ["ab/3"]


async def test_a_store_that_is_away_says_so_without_secrets(
    s3: S3, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    store = Store(Place.parse(s3.url(f"test-{secrets.token_hex(4)}")), Key(ID, SECRET, "token-of-the-tests"))
    await store.put("x", b"1")
    with caplog.at_level(logging.DEBUG), away(s3):
        for work in (store.put("x", b"2"), store.get("x"), store.folders("x"), store.delete(["x"])):
            with pytest.raises(Away) as said:
                await work
            assert said.value.__cause__ is None
            for text in (str(said.value), caplog.text, repr(store.place)):
                assert SECRET not in text and "token-of-the-tests" not in text and ID not in text
        assert store.seems_away
    assert await store.get("x") == b"1"
    assert [record.message for record in caplog.records if "store cannot be used" in record.message].__len__() == 1


@as_root
async def test_what_the_store_keeps_keeps_nothing_else_from_being_deleted(tmp_path: Path) -> None:
    """As a bucket does with an object that has a lock of its own: here one that is mounted, the first that is listed."""
    store = Store(Place("file", directory=tmp_path / "store"), None)
    for number in range(4):
        await store.put(f"x/{number}", b"1")
    first, *_ = [found.name async for found in store.found("x")]
    kept = tmp_path / "store" / first
    mounted = subprocess.run(["mount", "--bind", kept, kept], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount: {mounted.stderr.strip()}")

    async def is_alone() -> bool:
        with suppress(Away):
            await store.expire("x", -1.0)
        return [tmp_path / "store" / found.name async for found in store.found("x")] == [kept]

    try:
        await until(is_alone, "the end of the others")
    finally:
        subprocess.run(["umount", kept], check=True)


@pytest.mark.parametrize("status", [403, 404, 500, 301])
async def test_whatever_a_server_answers_is_away_and_nothing_of_it_is_quoted(status: int) -> None:
    import asyncio

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = b"<Error><Code>NoSuchBucket</Code><Message>hunter2 signature=abc</Message></Error>"
        head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\nLocation: /x\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    store = Store(Place.parse(f"s3://bucket?endpoint=http://127.0.0.1:{port}"), Key(ID, SECRET))
    async with server:
        with pytest.raises(Away) as said:
            await store.put("x", b"1")
    assert "hunter2" not in str(said.value) and SECRET not in str(said.value)


def test_a_directory_that_runs_could_read_is_refused(tmp_path: Path) -> None:
    Store(Place.parse(f"file://{tmp_path}/made"), None)
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o700  # the control
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "open").chmod(0o755)
    with pytest.raises(ValueError, match="chmod 700"):
        Store(Place.parse(f"file://{tmp_path}/open"), None)


async def test_nothing_leaves_the_directory(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    store = Store(Place.parse(f"file://{tmp_path}/store"), None)
    name: Any
    for name in ("../secret", "a/../../secret"):
        with pytest.raises((Missing, Away)):
            await store.get(name)


async def test_a_directory_is_left_as_empty_as_it_was(tmp_path: Path) -> None:
    """Each run's directory stayed, and what a killed invoker was writing: the library lists neither."""
    store = Store(Place.parse(f"file://{tmp_path}/store"), None)
    await store.put("artifacts/run_1/a", b"x")
    await store.put("artifacts/run_1/b", b"x")
    await store.delete(["artifacts/run_1/a", "artifacts/run_1/b"])
    await store.put("sessions/s/1.pack", b"x")
    old, new = tmp_path / "store/sessions/s/2.pack#1", tmp_path / "store/sessions/s/3.pack#1"
    for half in (old, new):
        half.write_bytes(b"half")
    os.utime(old, (0, 0))
    await store.tidy()
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["store/sessions/s/1.pack", "store/sessions/s/3.pack#1"], "which may be being written now"
    assert not (tmp_path / "store/artifacts/run_1").exists()
