"""Archives: a caller's, unpacked where a run works before it begins; and of what a run has left, all in one file."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar, cast

from claude_invoker.cli import walk
from claude_invoker.model import Artifact
from claude_invoker.workspace.files import MOST_ENTRIES, Content, Names, NoPlace, blocks, problem_of, write

NAME = "tree.tar.gz"
_WALK = walk.Bounds(depth=256, entries=1_000_000)
_GIT = frozenset((".git",))
_ZIP, _GZIP = b"PK\x03\x04", b"\x1f\x8b"
_ZIP_ENTRY = b"PK\x01\x02"
_HEADERS = 4096
"""Bytes that the headers of an entry may take, besides its content."""
_AHEAD = 1 << 20
"""The same of one of a .tar."""
_LIST = 8 << 20
"""And of all of a .zip."""
_Read = TypeVar("_Read")


@dataclass(frozen=True)
class Bounds:
    """Of all that an archive holds, unpacked."""

    entries: int = MOST_ENTRIES
    bytes: int = 100_000_000


LARGE = Bounds(bytes=512 << 20)
"""Of one that is not held in memory."""


@dataclass(frozen=True)
class Member:
    path: str
    content: Iterator[bytes]
    """To be read before the next member is asked for."""
    is_executable: bool


class TooLarge(Exception):
    """What a run has left does not fit into an archive, and why."""


def unpack(work: Path, archive: Content, uid: int | None, bounds: Bounds) -> None:
    """Writes each file of a .zip or .tar.gz, as `files.put` writes one. All of it is looked at before any of it is
    written. In memory are the list of what it holds and a piece of one file. Raises NoPlace, OSError."""
    names = Names(bounds.entries)
    with _opened(archive) as file:
        for member in members(file, bounds):
            if problem := names.problem_of(member.path):
                raise NoPlace(f"a path in it {problem}: {ascii(member.path)[1:-1][:200]}")
            for _ in member.content:
                pass
        for member in members(file, bounds):
            write(work, member.path, member.content, uid, 0o700 if member.is_executable else 0o600)


def _opened(archive: Content) -> IO[bytes]:
    return io.BytesIO(archive) if isinstance(archive, bytes) else archive.open("rb")


def members(file: IO[bytes], bounds: Bounds) -> Iterator[Member]:
    """The regular files of a .zip or .tar.gz, in its order. Raises NoPlace."""
    file.seek(0)
    magic = file.read(4)
    kind = next((read for mark, read in ((_ZIP, _zip), (_GZIP, _tar)) if magic.startswith(mark)), None)
    if kind is None:
        raise NoPlace("it is neither a .zip nor a .tar.gz")
    entries, left = 0, bounds.bytes
    found = kind(file, bounds)
    while (entry := _understood(found)) is not None:
        entries += 1
        left -= entry.size
        if entries > bounds.entries:
            raise NoPlace(f"it has more than {bounds.entries:,} entries")
        if left < 0:
            raise NoPlace(f"it has more than {bounds.bytes:,} bytes")
        if entry.reader is not None:
            yield Member(entry.path, _content(entry, entry.reader), entry.is_executable)
        elif problem := problem_of(entry.path.removesuffix("/")):
            raise NoPlace(f"a path in it {problem}: {ascii(entry.path)[1:-1][:200]}")


def _content(entry: _Entry, reader: IO[bytes]) -> Iterator[bytes]:
    """As much as the entry says that it has. Raises NoPlace."""
    left = entry.size
    pieces = blocks(reader)
    while (piece := _understood(pieces)) is not None:
        left -= len(piece)
        if left < 0:
            break
        yield piece
    if left:
        raise NoPlace(f"{ascii(entry.path)[1:-1][:200]} is not as long as it says")


def _understood(pieces: Iterator[_Read]) -> _Read | None:
    """The next of what is read of an archive. Raises NoPlace."""
    try:
        return next(pieces, None)
    except NoPlace:
        raise
    except Exception as error:  # readers of archives fail over bytes in more ways than they say
        raise NoPlace("it is broken, encrypted or of a kind that is not known") from error


@dataclass(frozen=True)
class _Entry:
    """`reader`: of its content; None for a directory."""

    path: str
    size: int = 0
    reader: IO[bytes] | None = None
    is_executable: bool = False


def _zip(file: IO[bytes], bounds: Bounds) -> Iterator[_Entry]:
    if _occurrences(file, _ZIP_ENTRY) > bounds.entries:  # they would all be in memory first
        raise NoPlace(f"it has more than {bounds.entries:,} entries")
    with zipfile.ZipFile(cast("IO[bytes]", _Listed(file))) as opened:
        for info in opened.infolist():
            mode = info.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise NoPlace(f"{ascii(info.filename)[1:-1][:200]} is no regular file")
            if info.is_dir():
                yield _Entry(info.filename)
                continue
            with opened.open(info) as reader:
                yield _Entry(info.filename, info.file_size, reader, bool(mode & 0o100))


def _occurrences(file: IO[bytes], mark: bytes) -> int:
    """How often a file has a mark in it."""
    file.seek(0)
    count, last = 0, b""
    for block in blocks(file):
        read = last + block
        count += read.count(mark)
        last = read[1 - len(mark) :]
    return count


class _Listed:
    """A file of which nobody reads more than `_LIST` bytes at once: zipfile reads a list of what is in it as a whole,
    and a list can be as long as the file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int | None = None) -> bytes:
        read = self._file.read(min(_LIST + 1, _LIST + 1 if size is None or size < 0 else size))
        if len(read) > _LIST:
            raise NoPlace("the list of what is in it is too long")
        return read


def _tar(file: IO[bytes], bounds: Bounds) -> Iterator[_Entry]:
    file.seek(0)
    unpacked = _Bounded(gzip.GzipFile(fileobj=file), bounds)
    with tarfile.open(fileobj=cast("IO[bytes]", unpacked), mode="r|") as opened:
        for info in opened:
            path = info.name.removeprefix("./")
            unpacked.comes(info.size if info.isreg() else 0)
            if info.isdir():
                if path != ".":
                    yield _Entry(path)
                continue
            if not info.isreg() or info.issparse():
                raise NoPlace(f"{ascii(path)[1:-1][:200]} is no regular file")
            yield _Entry(path, info.size, opened.extractfile(info), bool(info.mode & 0o100))


class _Bounded:
    """So much is unpacked and no more, whatever a header says: tarfile has headers in memory."""

    def __init__(self, source: gzip.GzipFile, bounds: Bounds) -> None:
        self._source = source
        self._left = bounds.bytes + bounds.entries * _HEADERS
        self._ahead = _AHEAD
        self._bytes = bounds.bytes

    def comes(self, size: int) -> None:
        """Of a file that follows so many bytes may be read, besides a header."""
        self._ahead = size + _AHEAD

    def read(self, size: int) -> bytes:
        read = self._source.read(size)
        self._left -= len(read)
        self._ahead -= len(read)
        if self._left < 0:
            raise NoPlace(f"it has more than {self._bytes:,} bytes")
        if self._ahead < 0:
            raise NoPlace("a header in it is too long")
        return read


def pack(work: Path, into: Path, most: int) -> Artifact:
    """All that lies in a tree of which nothing is alive, without `.git`: regular files, links as such, directories.
    `into`: a directory of ours, in which the archive has `most` bytes at most. Raises TooLarge, OSError, TooMuch."""
    into.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = into / NAME
    try:
        with path.open("xb") as file:
            sink = _Sink(file, most)
            with (
                gzip.GzipFile("", "wb", compresslevel=1, fileobj=cast("IO[bytes]", sink), mtime=0) as compressed,
                tarfile.open(fileobj=compressed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
            ):
                _fill(tar, work, 10 * most)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return Artifact(path=NAME, size=sink.size, type="application/gzip", sha256=sink.digest.hexdigest())


def _fill(tar: tarfile.TarFile, work: Path, left: int) -> None:
    for entry in walk.walk(work, _WALK, _GIT):
        if entry.name in _GIT:
            continue
        info = tarfile.TarInfo(entry.path)
        info.mode = 0o755 if entry.is_directory or entry.status.st_mode & 0o100 else 0o644
        info.mtime = int(entry.status.st_mtime)
        if entry.is_directory:
            info.type = tarfile.DIRTYPE
            tar.addfile(info)
        elif stat.S_ISLNK(entry.status.st_mode):
            info.type, info.linkname = tarfile.SYMTYPE, os.readlink(entry.name, dir_fd=entry.directory)
            tar.addfile(info)
        elif entry.is_regular:
            source = os.open(entry.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=entry.directory)
            with open(source, "rb") as reader:
                info.size = os.fstat(source).st_size
                left -= info.size  # a file with holes has more bytes than it takes on the disk
                if left < 0:
                    raise TooLarge("its files have too many bytes")
                tar.addfile(info, reader)


class _Sink:
    """Counts and hashes what is written."""

    def __init__(self, file: IO[bytes], most: int) -> None:
        self._file = file
        self._most = most
        self.size = 0
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.size += len(data)
        if self.size > self._most:
            raise TooLarge(f"it would have more than {self._most:,} bytes (INVOKER_ARTIFACT_MAX_BYTES)")
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()
