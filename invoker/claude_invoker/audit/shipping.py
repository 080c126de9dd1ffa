"""The audit log in a store, as it grows: what has come since is an object of lines and one of their details.

They are named as the log's own files, so that what the store has is a log that `verify` reads. Lines there are never
written over: a bucket whose objects cannot be changed or deleted (Object Lock) will do, and is an anchor that nobody
who has this machine can write anew. Only then details cannot be deleted there, either.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

from claude_invoker.audit import line, moved, person
from claude_invoker.audit.line import BEGIN
from claude_invoker.audit.log import LOCKS, Head, Log, Pair, named, pair, pairs, rows, still
from claude_invoker.locking import locked
from claude_invoker.store.store import Missing, Store

_log = logging.getLogger(__name__)
PIECE = 4 << 20
"""Bytes of lines in one object, about."""


class OtherLog(Exception):
    """The store's log and the directory's are not the same: one of them was cut or changed."""


class Shipping:
    """Sends what is new of a directory's log. Of several processes on the directory one does."""

    def __init__(self, log: Log, store: Store) -> None:
        self._files = log
        self._store = store
        self._lock: IO[bytes] | None = None
        self._sent: Head | None = None
        """The last that the store has; None: not known yet."""
        self._read = _Reading(log.directory)

    async def send(self) -> None:
        """Raises Away, OtherLog, OSError, ValueError for lines that cannot be read."""
        self._lock = self._lock or _alone(self._files.directory)
        if self._lock is None:
            return
        sent = self._sent or await self._known()
        while True:
            lines, details, head = await asyncio.to_thread(self._read.after, sent)
            if head == sent:
                return
            names = pair(Path(), head.log, sent.seq + 1)
            try:
                await self._store.put(names.details.name, details)
                await self._store.put(names.lines.name, lines)
            except BaseException:
                self._read = _Reading(self._files.directory)  # what was read is not there yet
                raise
            self._sent = sent = head

    async def let_go(self, most_bytes: int) -> None:
        """Deletes the oldest files of the directory that the store has, beyond so many bytes. Raises as `send`."""
        if self._lock is None or self._sent is None:
            return
        may_go = await asyncio.to_thread(moved.may_go, self._files, self._sent.seq, most_bytes)
        if not may_go:
            return
        sent = (await logs_in(self._store)).get(self._sent.log, [])
        here = pairs(self._files.directory)
        going = []
        for each, after in itertools.pairwise(here[: len(may_go) + 1]):
            if not await self._has(each, [one for one in sent if each.first <= one.first < after.first]):
                _log.error("%s of the audit log is not in its store as it is here: it stays", each.lines.name)
                break
            going.append(each)
        if going:
            upto = await asyncio.to_thread(moved.let_go, self._files, going)
            _log.info("the audit log has its first %d lines in its store alone now", upto.seq)

    async def _has(self, file: Pair, objects: list[Pair]) -> bool:
        """Whether these objects of the store have all of these lines, and what details there are."""
        lines, details = bytearray(), set[bytes]()
        with contextlib.suppress(Missing):
            for each in objects:
                lines += await self._store.get(each.lines.name)
                details.update(await _rows(self._store, each.details))
        if lines != await asyncio.to_thread(file.lines.read_bytes):
            return False
        return await asyncio.to_thread(lambda: details.issuperset(rows(file.details)))

    async def _known(self) -> Head:
        """What the store has last of this log. Raises as `send`."""
        log = self._files.head.log
        found = await last_in(self._store, log)
        if found is None:
            return Head(log, 0, BEGIN)
        if await asyncio.to_thread(self._files.chain_at, found.seq) != found.chain:
            raise OtherLog(f"line {found.seq} of the audit log is not as the store has it: it was cut or changed")
        return found

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _alone(directory: Path) -> IO[bytes] | None:
    """A file for as long as nobody else may send; None where somebody else does. Raises OSError."""
    lock = os.fdopen(os.open(directory / LOCKS[1], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), "r+b")
    if locked(lock):
        return lock
    lock.close()
    return None


class _Reading:
    """Reads a log from where it has been read to."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._at: dict[Path, tuple[int, int]] = {}
        """File → its inode, since details may be written anew, and how far it has been read."""

    def after(self, sent: Head) -> tuple[bytes, bytes, Head]:
        """About a `PIECE` of what follows: lines, details, and the head that they make. Raises OSError, ValueError."""
        lines: list[bytes] = []
        details: list[bytes] = []
        head, size = sent, 0
        with still(self._directory):
            found = pairs(self._directory)
            for each, after in itertools.zip_longest(found, found[1:]):
                if after is not None and after.first <= head.seq + 1:
                    continue  # all of it has been sent
                begin = head
                for row in self._rows(each.lines):
                    read = line.read(row.rstrip(b"\n"))
                    if read.seq > head.seq:
                        lines.append(row)
                        size += len(row)
                        head = Head(sent.log, read.seq, read.chain)
                    if size >= PIECE:
                        break
                for row in self._rows(each.details):
                    seq = line.seq_of_details(row)
                    if seq > head.seq:
                        break
                    if seq > begin.seq:
                        details.append(row)
                break
        return b"".join(lines), b"".join(details), head

    def _rows(self, path: Path) -> Iterator[bytes]:
        """From where the last one who stopped has stopped: what he took last is not given again, unless he broke off
        at it."""
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            inode, at = self._at.get(path, (0, 0))
            now = os.fstat(file.fileno())
            if inode == now.st_ino and at <= now.st_size:
                file.seek(at)
            while row := file.readline():
                self._at[path] = (now.st_ino, file.tell() - len(row))
                yield row
            self._at[path] = (now.st_ino, file.tell())


async def logs_in(store: Store) -> dict[str, list[Pair]]:
    """The logs that it has, each with its files by what they begin with. Raises Away."""
    logs: dict[str, list[Pair]] = {}
    for each in named(Path(), [found.name async for found in store.found("")]):
        logs.setdefault(each.log, []).append(each)
    return logs


async def last_in(store: Store, log: str) -> Head | None:
    """What the store has last of a log. Raises Away, ValueError."""
    files = (await logs_in(store)).get(log)
    return await _last(store, files) if files else None


async def heads_in(store: Store) -> list[Head]:
    """Of each log what it has last. Raises Away, ValueError."""
    return [await _last(store, files) for files in (await logs_in(store)).values()]


async def _last(store: Store, files: list[Pair]) -> Head:
    rows = await _rows(store, files[-1].lines)
    if not rows:
        raise ValueError(f"{files[-1].lines.name} has no lines")
    read = line.read(rows[-1])
    return Head(files[-1].log, read.seq, read.chain)


async def _rows(store: Store, name: Path) -> list[bytes]:
    return (await store.get(name.name)).split(b"\n")[:-1]


@asynccontextmanager
async def fetched(store: Store) -> AsyncIterator[dict[str, Path]]:
    """Log → a directory with all that the store has of it, for as long as the block lasts. Raises Away, OSError."""
    with tempfile.TemporaryDirectory(prefix="audit-") as above:
        places: dict[str, Path] = {}
        for log, files in (await logs_in(store)).items():
            places[log] = Path(above) / log
            places[log].mkdir()
            for path in [path for each in files for path in (each.lines, each.details)]:
                with contextlib.suppress(Missing):
                    (places[log] / path.name).write_bytes(await store.get(path.name))
        yield places


async def forget(store: Store, subject: str) -> int:
    """As `person.forget`, of all logs in the store. Raises Away, ValueError."""
    deleted = 0
    for each in [each for files in (await logs_in(store)).values() for each in files]:
        try:
            details = await _rows(store, each.details)
        except Missing:
            continue
        left, gone = person.without(await _rows(store, each.lines), details, subject)
        if gone:
            await store.put(each.details.name, left)
            deleted += gone
    return deleted
