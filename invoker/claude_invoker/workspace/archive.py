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
from typing import IO, cast

from claude_invoker.cli import walk
from claude_invoker.model import Artifact
from claude_invoker.workspace.files import NoPlace, problem_of, write

NAME = "tree.tar.gz"
_WALK = walk.Bounds(depth=256, entries=1_000_000)
_GIT = frozenset((".git",))
_ZIP, _GZIP = b"PK\x03\x04", b"\x1f\x8b"
_ZIP_ENTRY = b"PK\x01\x02"
_HEADERS = 4096
"""Bytes that the headers of an entry may take, besides its content."""


@dataclass(frozen=True)
class Bounds:
    """Of all that an archive holds, unpacked."""

    entries: int = 20_000
    bytes: int = 100_000_000


@dataclass(frozen=True)
class _Member:
    path: str
    content: bytes
    is_executable: bool


class TooLarge(Exception):
    """What a run has left does not fit into an archive, and why."""


def unpack(work: Path, archive: bytes, uid: int | None, bounds: Bounds) -> None:
    """Writes each file of a .zip or .tar.gz, as `files.put` writes one. All of it is looked at before any of it is
    written. Raises NoPlace, OSError."""
    seen: set[str] = set()
    for member in _members(archive, bounds):
        if member.path in seen:
            raise NoPlace(f"{member.path!r} is there twice")
        seen.add(member.path)
    for member in _members(archive, bounds):
        write(work, member.path, member.content, uid, 0o700 if member.is_executable else 0o600)


def _members(archive: bytes, bounds: Bounds) -> Iterator[_Member]:
    """Its regular files. Raises NoPlace."""
    kind = next((read for magic, read in ((_ZIP, _zip), (_GZIP, _tar)) if archive.startswith(magic)), None)
    if kind is None:
        raise NoPlace("it is neither a .zip nor a .tar.gz")
    entries, left = 0, bounds.bytes
    try:
        for path, size, is_file, reader, is_executable in kind(archive, bounds):
            entries += 1
            left -= size
            if entries > bounds.entries:
                raise NoPlace(f"it has more than {bounds.entries:,} entries")
            if left < 0:
                raise NoPlace(f"it has more than {bounds.bytes:,} bytes")
            if problem := problem_of(path.removesuffix("/")):
                raise NoPlace(f"a path in it {problem}: {ascii(path)[1:-1][:200]}")
            if not is_file:
                continue
            content = reader.read(size + 1)
            if len(content) != size:
                raise NoPlace(f"{path} is not as long as it says")
            yield _Member(path, content, is_executable)
    except NoPlace:
        raise
    except Exception as error:  # readers of archives fail over bytes in more ways than they say
        raise NoPlace("it is broken, encrypted or of a kind that is not known") from error


_Entry = tuple[str, int, bool, IO[bytes], bool]


def _zip(archive: bytes, bounds: Bounds) -> Iterator[_Entry]:
    if archive.count(_ZIP_ENTRY) > bounds.entries:  # they would all be in memory first
        raise NoPlace(f"it has more than {bounds.entries:,} entries")
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        for info in opened.infolist():
            mode = info.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise NoPlace(f"{ascii(info.filename)[1:-1][:200]} is no regular file")
            if info.is_dir():
                yield info.filename, 0, False, io.BytesIO(), False
                continue
            with opened.open(info) as reader:
                yield info.filename, info.file_size, True, reader, bool(mode & 0o100)


def _tar(archive: bytes, bounds: Bounds) -> Iterator[_Entry]:
    unpacked = cast("IO[bytes]", _Bounded(gzip.GzipFile(fileobj=io.BytesIO(archive)), bounds))
    with tarfile.open(fileobj=unpacked, mode="r|") as opened:
        for info in opened:
            path = info.name.removeprefix("./")
            if info.isdir():
                if path != ".":
                    yield path, 0, False, io.BytesIO(), False
                continue
            reader = opened.extractfile(info) if info.isreg() and not info.issparse() else None
            if reader is None:
                raise NoPlace(f"{ascii(path)[1:-1][:200]} is no regular file")
            yield path, info.size, True, reader, bool(info.mode & 0o100)


class _Bounded:
    """So much is unpacked and no more, whatever a header says: tarfile has headers in memory."""

    def __init__(self, source: gzip.GzipFile, bounds: Bounds) -> None:
        self._source = source
        self._left = bounds.bytes + bounds.entries * _HEADERS
        self._bytes = bounds.bytes

    def read(self, size: int) -> bytes:
        read = self._source.read(size)
        self._left -= len(read)
        if self._left < 0:
            raise NoPlace(f"it has more than {self._bytes:,} bytes")
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
