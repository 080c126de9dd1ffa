"""The files of the audit log: appended to under a lock, by one process or several, and never rewritten.

`audit-<log>-<first>.jsonl` has lines (`line.py`) from number `<first>` on, `details-<log>-<first>.jsonl` their details;
the next pair begins when one of a pair is long. Details are on the disk before their line is, and what a crash has left
of a line is cut off by the next one who writes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from claude_invoker.audit import line
from claude_invoker.audit.line import BEGIN, Entry

ROTATE_BYTES = 64 << 20
LOCKS = ("lock", "shipping")
"""Who writes, and who sends to a store: files beside the log's."""
_NAME = re.compile(r"(audit|details)-([0-9a-f]{16})-([0-9]{18})\.jsonl")
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Head:
    """The last line of a log: that it is there, and what it is, proves all before."""

    log: str
    seq: int
    chain: str


@dataclass(frozen=True)
class Pair:
    """A file of lines and that of their details."""

    log: str
    first: int
    lines: Path
    details: Path


def pair(directory: Path, log: str, first: int) -> Pair:
    name = f"{log}-{first:018d}.jsonl"
    return Pair(log, first, directory / f"audit-{name}", directory / f"details-{name}")


def pairs(directory: Path) -> list[Pair]:
    """Those whose file of lines is there, by what they begin with. Raises OSError."""
    return named(directory, [path.name for path in directory.iterdir()])


def named(directory: Path, names: Iterable[str]) -> list[Pair]:
    """The same, of files by their names; others are passed over."""
    found = [match for name in names if (match := _NAME.fullmatch(name)) and match[1] == "audit"]
    return sorted((pair(directory, match[2], int(match[3])) for match in found), key=lambda each: each.first)


@contextmanager
def locked(directory: Path, *, shared: bool = False) -> Iterator[None]:
    """Nobody writes meanwhile, but who has the lock. Raises OSError."""
    flags = os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT
    lock = os.open(directory / LOCKS[0], flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@contextmanager
def still(directory: Path) -> Iterator[None]:
    """While nobody writes; a copy of a log has no lock, and nobody who writes."""
    if not (directory / LOCKS[0]).exists():
        yield
        return
    with locked(directory, shared=True):
        yield


class Log:
    """The log of a directory. Blocks: for threads."""

    def __init__(self, directory: Path, rotate_bytes: int = ROTATE_BYTES) -> None:
        self.directory = directory
        self._rotate_bytes = rotate_bytes
        self._current: Pair | None = None
        self._sizes = (-1, -1)
        self.head = Head("", 0, BEGIN)
        """As this process has seen it last."""

    def open(self) -> None:
        """Makes the directory, mends what a crash has left, begins a log where there is none.

        Raises OSError, ValueError for a file that is no log."""
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        self.directory.mkdir(mode=0o700, exist_ok=True)
        self.directory.chmod(0o700)
        with locked(self.directory):
            self._refresh()
            if self._current is None:
                log = secrets.token_hex(8)
                self._current = pair(self.directory, log, 1)
                self.head = Head(log, 0, BEGIN)
                self._append([Entry("log.begin", "", log)])

    def append(self, entries: Sequence[Entry]) -> Head:
        """All of them, on the disk when it returns. Raises OSError: then none is there; ValueError as `open`."""
        with locked(self.directory):
            self._refresh()
            if self._current is None:
                raise FileNotFoundError(f"{self.directory}: the audit log is gone")
            if max(self._sizes) >= self._rotate_bytes:
                self._current = pair(self.directory, self.head.log, self.head.seq + 1)
                self._sizes = (0, 0)
            self._append(entries)
            return self.head

    def _append(self, entries: Sequence[Entry]) -> None:
        assert self._current is not None
        lines, details, seq, chain = [], [], self.head.seq, self.head.chain
        for entry in entries:
            seq += 1
            one, its_details, chain = line.written(entry, seq, chain)
            lines.append(one)
            details.append(its_details)
        before, self._sizes = self._sizes, (-1, -1)  # if it fails, the next one looks at the files
        _add(self._current.details, b"".join(details))
        _add(self._current.lines, b"".join(lines))
        if max(before) <= 0:
            sync_directory(self.directory)
        self._sizes = _sizes(self._current)
        self.head = Head(self.head.log, seq, chain)

    def _refresh(self) -> None:
        """To what others have written since; cuts off what a crash has left."""
        if self._current is not None and _sizes(self._current) == self._sizes:
            newer = pair(self.directory, self.head.log, self.head.seq + 1)
            if not newer.lines.exists():
                return
        found = pairs(self.directory)
        self._current = found[-1] if found else None
        if self._current is None:
            return
        last = None
        for each in reversed(found):  # the newest may have been begun and nothing more
            _cut_unfinished(each.lines)
            last = _last_line(each.lines)
            if last is not None:
                break
        if last is None:
            self.head = Head(self._current.log, 0, BEGIN)
        else:
            read = line.read(last)
            self.head = Head(self._current.log, read.seq, read.chain)
        _cut_details(self._current.details, self.head.seq)
        self._sizes = _sizes(self._current)

    def chain_at(self, seq: int) -> str | None:
        """The chain that a line has, None where there is no such line. Raises OSError, ValueError."""
        if seq == self.head.seq:
            return self.head.chain
        with locked(self.directory, shared=True):
            holding = [each for each in pairs(self.directory) if each.first <= seq]
            if not holding:
                return None
            with open(holding[-1].lines, "rb") as file:
                for one in file:
                    read = line.read(one.rstrip(b"\n"))
                    if read.seq == seq:
                        return read.chain
        return None


def _add(path: Path, what: bytes) -> None:
    """All of it on the disk, or nothing."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        size = os.fstat(file).st_size
        try:
            left = memoryview(what)
            while left:
                left = left[os.write(file, left) :]
            os.fsync(file)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(file, size)
            raise
    finally:
        os.close(file)


def rows(path: Path) -> Iterator[bytes]:
    """The whole lines of a file, without their ends; none, where it is gone."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        for row in file:
            if row.endswith(b"\n"):
                yield row[:-1]


def size_of(of: Pair) -> int:
    """Bytes of both."""
    return sum(_sizes(of))


def _sizes(of: Pair) -> tuple[int, int]:
    return _size(of.lines), _size(of.details)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cut_unfinished(path: Path) -> None:
    """What is behind the last end of a line."""
    size = _size(path)
    at = size
    with contextlib.suppress(FileNotFoundError), open(path, "r+b") as file:
        while at > 0:
            begin = max(at - _BLOCK, 0)
            file.seek(begin)
            end = file.read(at - begin).rfind(b"\n")
            if end >= 0:
                at = begin + end + 1
                break
            at = begin
        if at < size:
            file.truncate(at)
            os.fsync(file.fileno())


def _last_line(path: Path) -> bytes | None:
    """Without its end; None where there is none. All lines are finished."""
    size = _size(path)
    if size == 0:
        return None
    block = _BLOCK
    with open(path, "rb") as file:
        while True:
            begin = max(size - block, 0)
            file.seek(begin)
            _, end, last = file.read(size - begin)[:-1].rpartition(b"\n")
            if end or begin == 0:
                return last
            block *= 2


def _cut_details(path: Path, most: int) -> None:
    """Those that a crash has left without their line."""
    _cut_unfinished(path)
    last = _last_line(path) if path.exists() else None
    if last is None:
        return
    try:
        if line.seq_of_details(last) <= most:
            return
    except ValueError:
        return  # not ours to mend: `verify` finds it
    kept = 0
    with open(path, "r+b") as file:
        for one in file:
            if line.seq_of_details(one) > most:
                break
            kept += len(one)
        file.truncate(kept)
        os.fsync(file.fileno())
