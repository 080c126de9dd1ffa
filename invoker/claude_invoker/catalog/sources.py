"""Reading a catalog, from a directory or from the archive that `pack` makes of one. What is broken in it is named and
left out: nobody can be kept from starting, or from having the other entries, by one of them."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, cast

from msgspec import Struct

from claude_invoker.catalog.entry import HEAD_ROOM, Broken, Entry, File, Kind, agent_of, is_name, skill_of
from claude_invoker.catalog.server import SUFFIXES, server_of
from claude_invoker.cli import walk
from claude_invoker.workspace import archive, files

SKILLS, AGENTS, SERVERS = "skills", "agents", "mcp"
_FOLDERS: Mapping[str, Kind] = {SKILLS: "skill", AGENTS: "agent", SERVERS: "server"}
_SUFFIXES = {AGENTS: (".md",), SERVERS: SUFFIXES}
"""Of entries that are a file."""
_KINDS = f"there are {SKILLS}, {AGENTS} and {SERVERS}"
MOST = 200
"""Entries of a kind."""
ENTRY = walk.Bounds(depth=8, entries=500, bytes=16 << 20)
"""Of one skill. On the disk and in its files."""
ALL = archive.Bounds(entries=20_000, bytes=128 << 20)
"""Of a catalog."""
_LISTED = 2_000
"""Names that are looked at in the directory of all skills."""


class Refused(Struct, frozen=True):
    """Something that is left out: its place in the catalog, and why."""

    place: str
    why: str

    def __str__(self) -> str:
        return f"{self.place}: {self.why}"


class Read(Struct, frozen=True):
    """What a directory or an archive holds; skills, then agents, then servers, in the order of their names."""

    entries: tuple[Entry, ...]
    refused: tuple[Refused, ...] = ()


def read(path: Path) -> Read:
    """Raises ValueError for what is no catalog at all, OSError."""
    if path.is_dir():
        return _of_directory(path)
    if path.is_file():
        return _of_archive(path)
    raise ValueError(f"{path} is neither a directory nor an archive of one (claude-invoker catalog pack)")


def pack(entries: Iterable[Entry], into: Path) -> None:
    """Writes an archive, which is the same for the same entries. Raises OSError."""
    with (
        into.open("wb") as file,
        gzip.GzipFile("", "wb", compresslevel=9, fileobj=file, mtime=0) as compressed,
        tarfile.open(fileobj=cast("IO[bytes]", compressed), mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for entry in entries:
            folder = next(name for name, kind in _FOLDERS.items() if kind == entry.kind)
            above = f"{folder}/{entry.name}" if entry.kind == "skill" else folder
            for each in entry.files:
                info = tarfile.TarInfo(f"{above}/{each.path}")
                info.size, info.mode = len(each.content), 0o755 if each.is_executable else 0o644
                tar.addfile(info, io.BytesIO(each.content))


def _of_directory(root: Path) -> Read:
    refused: list[Refused] = []
    if root.stat().st_mode & stat.S_IWOTH:
        raise ValueError(f"{root} can be changed by every user of this machine")
    with os.scandir(root) as listed:
        present = sorted(each.name for each in listed if each.is_dir())
    strange = [name for name in present if name not in _FOLDERS]
    refused += [Refused(_shown(name), f"is no kind of entry: {_KINDS}") for name in strange[:10]]
    if not any(name in _FOLDERS for name in present):
        refused.append(Refused(SKILLS, "is not there"))
    found: dict[tuple[str, str], list[File] | Broken] = {}
    left = ALL.bytes
    for kind in (name for name in _FOLDERS if name in present):
        try:
            names = _names(root / kind, directories=kind == SKILLS)
        except Broken as error:
            refused.append(Refused(kind, str(error)))
            continue
        for name in names:
            try:
                given = _files(root / SKILLS / name) if kind == SKILLS else [_file(root / kind / name)]
                left -= sum(len(file.content) for file in given)
                if left < 0:
                    raise Broken(f"is beyond the {ALL.bytes >> 20} MiB that a catalog may have")
                found[kind, name] = given
            except Broken as error:
                found[kind, name] = error
            except OSError as error:
                found[kind, name] = Broken(f"cannot be read: {error.strerror}")
    return _judged(found, refused)


def _names(directory: Path, *, directories: bool) -> list[str]:
    """Sorted; of directories only, and of links in their place, or of all that is there. Raises Broken."""
    names: list[str] = []
    try:
        if stat.S_ISLNK(directory.lstat().st_mode):
            raise Broken("is a link")
        with os.scandir(directory) as listed:
            for each in listed:
                if not directories or each.is_dir(follow_symlinks=False) or each.is_symlink():
                    names.append(each.name)
                if len(names) > _LISTED:
                    raise Broken(f"has more than {_LISTED:,} entries: none of them is taken")
    except OSError as error:
        raise Broken(f"cannot be read: {error.strerror}") from error
    return sorted(names)


def _refuse_name(name: str) -> None:
    if not is_name(name):
        raise Broken("must be called by lower-case letters, digits and single hyphens, 64 at most")


def _file(path: Path) -> File:
    """Of an agent or a server. Raises Broken, OSError."""
    descriptor = -1
    if stat.S_ISREG(path.lstat().st_mode):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0:
        raise Broken("is no regular file")
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Broken("changes while it is read")
        if status.st_mode & stat.S_IWOTH:
            raise Broken("can be changed by every user of this machine")
        return File(path.name, file.read(HEAD_ROOM + 1))


def _files(directory: Path) -> list[File]:
    """Raises Broken, OSError."""
    if stat.S_ISLNK(directory.lstat().st_mode):
        raise Broken("is a link")
    found: list[File] = []
    left = ENTRY.bytes
    names = files.Names(ENTRY.entries)
    try:
        for entry in walk.walk(directory, ENTRY):
            shown = _shown(entry.path)
            if entry.status.st_mode & stat.S_IWOTH and not stat.S_ISLNK(entry.status.st_mode):
                raise Broken(f"{shown} can be changed by every user of this machine")
            if entry.is_directory:
                continue
            if not entry.is_regular:
                raise Broken(f"{shown} is no regular file" + (", but a link" if _is_link(entry) else ""))
            with _opened(entry) as file:
                content = file.read(left + 1)
            left -= len(content)
            if left < 0:
                raise Broken(f"has more than {ENTRY.bytes >> 20} MiB")
            if problem := names.problem_of(entry.path):
                raise Broken(f"{shown}: its path {problem}")
            found.append(File(entry.path, content, bool(entry.status.st_mode & 0o100)))
    except walk.TooMuch as error:
        raise Broken(f"has {error}") from error
    return found


def _is_link(entry: walk.Entry) -> bool:
    return stat.S_ISLNK(entry.status.st_mode)


@contextlib.contextmanager
def _opened(entry: walk.Entry) -> Iterator[IO[bytes]]:
    """Raises Broken where it is another by now, OSError."""
    with open(walk.open_file(entry), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise Broken(f"{_shown(entry.path)} changes while it is read")
        yield file


def _of_archive(path: Path) -> Read:
    """Raises ValueError, OSError."""
    if path.stat().st_mode & stat.S_IWOTH:
        raise ValueError(f"{path} can be changed by every user of this machine")
    found: dict[tuple[str, str], list[File] | Broken] = {}
    skills: dict[str, list[File]] = {}
    names = files.Names(ALL.entries)
    try:
        with path.open("rb") as file:
            for member in archive.members(file, ALL):
                if problem := names.problem_of(member.path):
                    raise ValueError(f"{path}: a path in it {problem}: {_shown(member.path)}")
                kind, _, rest = member.path.partition("/")
                name, _, inner = rest.partition("/")
                content = b"".join(member.content)
                if kind == SKILLS and inner:
                    skills.setdefault(name, []).append(File(inner, content, member.is_executable))
                elif kind in _SUFFIXES and name and not inner:
                    found[kind, name] = [File(name, content)]
                else:
                    raise ValueError(f"{path}: {_shown(member.path)} is no part of an entry: {_KINDS}")
    except files.NoPlace as error:
        raise ValueError(f"{path}: {error}") from error
    return _judged({(SKILLS, name): given for name, given in skills.items()} | found, [])


def _judged(found: Mapping[tuple[str, str], list[File] | Broken], refused: list[Refused]) -> Read:
    entries: list[Entry] = []
    order = list(_FOLDERS)
    for kind, name in sorted(found, key=lambda each: (order.index(each[0]), each[1])):
        given = found[kind, name]
        try:
            plain, suffix = (name, "") if kind == SKILLS else os.path.splitext(name)  # noqa: PTH122 -- it is no path
            if suffix not in _SUFFIXES.get(kind, ("",)):
                raise Broken(f"is no {_FOLDERS[kind]}: their files end in {' or '.join(_SUFFIXES[kind])}")
            _refuse_name(plain)
            if isinstance(given, Broken):
                raise given
            _refuse_size(given)
            if any((each.kind, each.name) == (_FOLDERS[kind], plain) for each in entries):
                raise Broken("is there twice, by another suffix")
            made = _made(kind, plain, given)
            if sum(each.kind == made.kind for each in entries) == MOST:
                raise Broken(f"is one more than the {MOST} that a catalog may have")
            entries.append(made)
        except Broken as error:
            refused.append(Refused(f"{kind}/{_shown(name)}", _printable(str(error))))
    return Read(tuple(entries), tuple(refused))


def _made(kind: str, name: str, given: list[File]) -> Entry:
    """Raises Broken."""
    match _FOLDERS[kind]:
        case "skill":
            return skill_of(name, given)
        case "agent":
            return agent_of(name, given[0].content)
        case "server":
            return server_of(name, given[0])


def _refuse_size(given: list[File]) -> None:
    """The same bounds for what comes from an archive. Raises Broken."""
    if len(given) > ENTRY.entries or sum(len(file.content) for file in given) > ENTRY.bytes:
        raise Broken(f"has more than {ENTRY.entries:,} files or {ENTRY.bytes >> 20} MiB")


def _printable(text: str) -> str:
    """What libraries say quotes what they have read."""
    return "".join(each if each.isprintable() else "?" for each in text)


def _shown(name: str) -> str:
    """A name that an enemy may have given, for a log."""
    return ascii(name)[1:-1][:200]
