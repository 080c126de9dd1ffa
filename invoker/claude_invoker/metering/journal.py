"""What runs have cost and nobody has booked yet, on disk: it outlives the proxy, the invoker, and a Redis that is away.

One file for each proxy, locked (flock(2)) while the proxy lives. Each line stands for itself: the last one about a
request says what that costs, so a line that is there twice changes nothing. Before a request is sent its line holds the
most that it is billed if nobody can say more about it; then, as its answer passes, what was streamed; at the end what
it has cost. A line is written before what it is about goes on its way: it outlives any process. What has been answered
is on the disk some milliseconds later (fdatasync(2), one for all answers that have come meanwhile).
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import secrets
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import orjson

from claude_invoker.metering.figures import in_micro_usd

_log = logging.getLogger(__name__)
VERSION = 2
_BEFORE = 1
"""Read, and written no more: a line has a run's total."""
_COMPACT_BYTES = 256 * 1024
_SOON_S = 0.005


class CannotWrite(Exception):
    """What a request costs could not be written down: it must not be sent."""


@dataclass
class Entry:
    """A run's lease, and what each of its requests has cost so far, in US dollars."""

    lease: str | None
    requests: dict[int, Decimal] = field(default_factory=dict)

    @property
    def spent_usd(self) -> Decimal:
        return sum(self.requests.values(), Decimal(0))

    @property
    def micro_usd(self) -> int:
        return in_micro_usd(self.spent_usd)

    @property
    def next_number(self) -> int:
        return max(self.requests, default=0) + 1


class Journal:
    """`directory`: a descriptor of the journals' directory, which stays the caller's. Only its user can enter it."""

    def __init__(self, directory: int) -> None:
        self._directory = directory
        self._name = f"{secrets.token_hex(8)}.jsonl"
        self._file = -1
        self._size = 0
        self._kept = 0
        """Bytes of the file when it was last written anew."""
        self.entries: dict[str, Entry] = {}
        self._written = 0
        self._synced = 0
        self._syncing: asyncio.Task[None] | None = None
        self._due: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Raises OSError."""
        self._file = self._created(self._name)

    def close(self) -> None:
        """What is not booked stays for the next proxy."""
        if self._due is not None:
            self._due.cancel()
        os.fdatasync(self._file)
        if not self.entries:
            os.unlink(self._name, dir_fd=self._directory)
        os.close(self._file)

    def adopt(self) -> None:
        """Takes over what proxies that are no more have left. What cannot be is logged, and stays. Raises OSError."""
        for name in os.listdir(self._directory):  # noqa: PTH208 -- a descriptor
            if name.endswith(".jsonl") and name != self._name:
                try:
                    self._adopt(name)
                except OSError as error:
                    _log.error("what runs cost by %s is not booked: %s", name, error.strerror)

    def _adopt(self, name: str) -> None:
        """Raises OSError."""
        left = self._locked(name)
        if left is None:
            return
        try:
            for run, entry in read(_content(left), name).items():
                known = self.entries.setdefault(run, Entry(entry.lease))
                known.requests |= entry.requests
                self._write(b"".join(_lines(run, known)))
            os.fdatasync(self._file)
            os.unlink(name, dir_fd=self._directory)
        finally:
            os.close(left)

    def begin(self, run: str, lease: str | None) -> Entry:
        """The run's entry; the one that is there, where it has spent before. Raises CannotWrite."""
        entry = self.entries.get(run)
        if entry is None:
            entry = self.entries[run] = Entry(lease)
            try:
                self._write(b"".join(_lines(run, entry)))
            except OSError as error:
                del self.entries[run]
                raise CannotWrite from error
        return entry

    def send(self, run: str, bound_usd: Decimal) -> int:
        """A request's number: it is about to be sent. Raises CannotWrite."""
        entry = self.entries[run]
        number = entry.next_number
        try:
            self._write(_line(run, number, bound_usd))
        except OSError as error:
            _log.error("what runs cost cannot be written down: %s", error.strerror)
            raise CannotWrite from error
        entry.requests[number] = bound_usd
        return number

    def note(self, run: str, number: int, usd: Decimal) -> None:
        """What a request has cost so far."""
        entry = self.entries[run]
        if entry.requests[number] == usd:
            return
        entry.requests[number] = usd
        try:
            self._write(_line(run, number, usd))
        except OSError as error:
            _log.error("what runs cost cannot be written down: %s", error.strerror)

    def booked(self, run: str) -> None:
        """It is owed no more, or nobody is to be billed for it."""
        if self.entries.pop(run, None) is not None:
            try:
                self._write(orjson.dumps({"v": VERSION, "run": run, "booked": True}) + b"\n")
            except OSError as error:  # the ledger knows it: it is only asked once more
                _log.error("what runs cost cannot be written down: %s", error.strerror)

    def commit_soon(self) -> None:
        """As `commit`, in some milliseconds, and for all that is written until then: no answer waits for a disk."""
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(_SOON_S, self._is_due)

    def _is_due(self) -> None:
        self._due = None
        if self._syncing is not None:
            self.commit_soon()  # what was written since is not in that
        elif self._synced < self._written:
            self._syncing = asyncio.create_task(self._sync())

    async def commit(self) -> None:
        """Returns when all that has been written is on the disk; an error of the disk is logged."""
        wanted = self._written
        while self._synced < wanted:
            if self._syncing is None:
                self._syncing = asyncio.create_task(self._sync())
            await asyncio.shield(self._syncing)

    async def _sync(self) -> None:
        upto = self._written
        try:
            await asyncio.to_thread(os.fdatasync, self._file)
            if self._size > max(_COMPACT_BYTES, 4 * self._kept):
                self._compact()
                upto = self._written
        except OSError as error:
            _log.error("what runs cost is not safe on the disk: %s", error.strerror)
        finally:
            self._synced, self._syncing = upto, None

    def _compact(self) -> None:
        """Writes the file anew, with what is still owed; whoever reads it finds the old one or the new one."""
        made = f".{self._name}"
        file = self._created(made)
        try:
            content = b"".join(line for run, entry in self.entries.items() for line in _lines(run, entry))
            _write_all(file, content)
            os.fdatasync(file)
            os.rename(made, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            os.fsync(self._directory)
        except OSError:
            os.close(file)
            raise
        os.close(self._file)
        self._file, self._size, self._kept = file, len(content), len(content)

    def _created(self, name: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        file = os.open(name, flags, 0o600, dir_fd=self._directory)
        fcntl.flock(file, fcntl.LOCK_EX)
        return file

    def _locked(self, name: str) -> int | None:
        """A file whose proxy is no more; None where it lives, or the file is gone."""
        try:
            file = os.open(name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._directory)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its owner may have written it anew since, or another proxy taken it over.
            if os.fstat(file).st_ino == os.stat(name, dir_fd=self._directory, follow_symlinks=False).st_ino:
                return file
        except (BlockingIOError, FileNotFoundError):
            pass
        os.close(file)
        return None

    def _write(self, lines: bytes) -> None:
        """Raises OSError; the file is then as before."""
        try:
            _write_all(self._file, lines)
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(lines)
        self._written += 1


def _write_all(file: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]


def _content(file: int) -> bytes:
    with open(file, "rb", closefd=False) as opened:
        return opened.read()


def _line(run: str, number: int, usd: Decimal) -> bytes:
    return orjson.dumps({"v": VERSION, "run": run, "n": number, "usd": str(usd)}) + b"\n"


def _lines(run: str, entry: Entry) -> list[bytes]:
    begun = orjson.dumps({"v": VERSION, "run": run, "lease": entry.lease}) + b"\n"
    return [begun, *(_line(run, number, usd) for number, usd in entry.requests.items())]


def read(content: bytes, name: str = "a journal") -> dict[str, Entry]:
    """What is not booked, by run. A line that was cut off counts as not written."""
    found: dict[str, Entry] = {}
    for line in content.splitlines():
        try:
            _apply(found, orjson.loads(line))
        except (ValueError, KeyError, TypeError, ArithmeticError) as error:
            _log.error("a line of %s cannot be read: %s", name, error)
    return found


def _apply(found: dict[str, Entry], line: dict[str, Any]) -> None:
    version, run = line["v"], str(line["run"])
    if version not in (VERSION, _BEFORE):
        raise ValueError(f"version {version!r}")
    if line.get("booked"):
        found.pop(run, None)
    elif version == _BEFORE:
        found[run] = Entry(str(line["lease"]), {0: Decimal(int(line["micro_usd"])) / 1_000_000})
    elif "n" in line:
        found[run].requests[int(line["n"])] = Decimal(line["usd"])
    else:
        lease = line["lease"]
        found.setdefault(run, Entry(None if lease is None else str(lease)))
