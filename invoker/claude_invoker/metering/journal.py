"""What runs have spent and nobody has booked yet, on disk: it outlives a killed invoker, and a Redis that is away."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import orjson

_log = logging.getLogger(__name__)
VERSION = 1
_COMPACT_BYTES = 64 * 1024

Book = Callable[[str, int], Awaitable[bool]]
"""Books micro-USD on a lease, once however often it is called. False where the ledger cannot be asked."""


@dataclass(frozen=True)
class Entry:
    """A run's lease, and what it has spent so far."""

    lease: str
    micro_usd: int


class Journal:
    """One file for each engine, locked (flock(2)) while the engine lives; a line for each answer of the API, with the
    total of its run. A line is on the disk some milliseconds after the answer."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / f"{secrets.token_hex(8)}.jsonl"
        self._file: BinaryIO | None = None
        self._thread = ThreadPoolExecutor(1, "journal")
        self._open: dict[str, Entry] = {}
        self._ended: set[str] = set()
        self._size = 0

    def open(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = self._path.open("xb", buffering=0)
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def close(self) -> None:
        """What is not booked stays for the next engine."""
        self._thread.shutdown()
        if self._file is not None:
            if not self._open:
                self._path.unlink(missing_ok=True)
            self._file.close()

    def note(self, run: str, entry: Entry) -> None:
        """What a run has spent so far. Returns before it is on the disk."""
        self._open[run] = entry
        self._write({"v": VERSION, "run": run, "lease": entry.lease, "micro_usd": entry.micro_usd})

    def ended(self, run: str) -> None:
        """Nothing will be added to it: it is owed until it is `booked`."""
        if run in self._open:
            self._ended.add(run)

    def booked(self, run: str) -> None:
        if self._open.pop(run, None) is not None:
            self._ended.discard(run)
            self._write({"v": VERSION, "run": run, "booked": True})

    def spent(self, run: str) -> int:
        """Micro-USD of a run that any engine of this directory has noted and not booked; 0 where there is none."""
        if run in self._open:
            return self._open[run].micro_usd
        most = 0
        for path in self._directory.glob("*.jsonl"):
            with contextlib.suppress(FileNotFoundError):
                if (entry := read(path).get(run)) is not None:
                    most = max(most, entry.micro_usd)
        return most

    async def settle(self, book: Book) -> None:
        """Books what ended runs of ours owe, and all that engines which are no more have left."""
        for run in list(self._ended):
            if await book(self._open[run].lease, self._open[run].micro_usd):
                self.booked(run)
        for path in self._directory.glob("*.jsonl"):
            if path == self._path:
                continue
            with contextlib.suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if all([await book(entry.lease, entry.micro_usd) for entry in read(path).values()]):
                    path.unlink()

    def _write(self, line: dict[str, object]) -> None:
        self._thread.submit(self._append, orjson.dumps(line) + b"\n", not self._open)

    def _append(self, line: bytes, nothing_is_open: bool) -> None:
        assert self._file is not None
        try:
            if nothing_is_open and self._size > _COMPACT_BYTES:
                self._file.truncate(0)
                self._file.seek(0)
                self._size = 0
            self._size += self._file.write(line)
            os.fdatasync(self._file.fileno())
        except OSError as error:
            _log.error("what runs have spent cannot be written down: %s", error.strerror)


def read(path: Path) -> dict[str, Entry]:
    """What is not booked, by run. A line that was cut off counts as not written. Raises FileNotFoundError."""
    found: dict[str, Entry] = {}
    for line in path.read_bytes().splitlines():
        try:
            document = orjson.loads(line)
            if document["v"] != VERSION:
                raise ValueError(f"version {document['v']!r}")
            if document.get("booked"):
                found.pop(document["run"], None)
            else:
                found[document["run"]] = Entry(str(document["lease"]), int(document["micro_usd"]))
        except (ValueError, KeyError, TypeError) as error:
            _log.error("a line of %s cannot be read: %s", path.name, error)
    return found
