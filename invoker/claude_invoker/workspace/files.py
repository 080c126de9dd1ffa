"""Files that a caller sends with a request, put where the run works before it begins."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from claude_invoker.cli import walk
from claude_invoker.workspace.content import folded, is_git

Content = bytes | Path
"""Of a file: in memory, or where it lies on the disk."""


@dataclass(frozen=True)
class Uploaded:
    """In the place of content: what was put before (see `uploads`), by its SHA-256."""

    name: str


MOST_ENTRIES = 20_000
"""Files, and directories that are made for them, of one request."""
_BLOCK = 1 << 20


class NoPlace(Exception):
    """A file cannot be put where the caller wants it, and why."""


def problem_of(path: str) -> str | None:
    """Why a file may not have this path; None where it may."""
    parts = path.split("/")
    if not path.isprintable() or "\\" in path or len(path.encode()) > 1024:
        return "must be printable, without backslashes, of 1,024 bytes at most"
    if any(part in ("", ".", "..") for part in parts):
        return "must be relative, without empty parts, . or .."
    if any(len(part.encode()) > 255 for part in parts):
        return "must have names of 255 bytes at most"
    if any(map(is_git, parts)):
        return "must not lie in .git"
    return None


class Names:
    """The paths of one request's files: none twice, no two that are one name on some systems, and so many at most with
    the directories that they lie in."""

    def __init__(self, most: int = MOST_ENTRIES) -> None:
        self._left = self._most = most
        self._root: dict[str, Any] = {}
        self._files: set[str] = set()

    def problem_of(self, path: str) -> str | None:
        """Why a file may not have this path beside the others; None where it may."""
        if problem := problem_of(path):
            return problem
        if path in self._files:
            return "is there twice"
        self._files.add(path)
        below = self._root
        for part in path.split("/"):
            spelled, below = below.setdefault(folded(part), (part, {}))
            if spelled != part:
                return f"has {ascii(part)[1:-1]}, which is one name with {ascii(spelled)[1:-1]} on some systems"
            if not below:
                self._left -= 1
        return None if self._left >= 0 else f"is of more than {self._most:,} files and directories"


def put(work: Path, files: Iterable[tuple[str, Content]], uid: int | None) -> None:
    """Writes each, in the place of a file that is there; nothing is written by way of a link. Only before the run of
    this tree has begun. Raises NoPlace, OSError."""
    for path, content in files:
        if isinstance(content, bytes):
            write(work, path, [content], uid)
        else:
            with content.open("rb") as file:
                write(work, path, blocks(file), uid)


def blocks(file: IO[bytes]) -> Iterator[bytes]:
    """What is left of it, piece by piece."""
    while block := file.read(_BLOCK):
        yield block


def write(work: Path, path: str, content: Iterable[bytes], uid: int | None, mode: int = 0o600) -> None:
    """One of them."""
    *parents, name = path.split("/")
    at = os.open(work, walk.DIRECTORY)
    try:
        for parent in parents:
            at = _below(at, parent, path, uid)
        try:
            os.unlink(name, dir_fd=at)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise NoPlace(f"{path}: there is a directory of that name") from error
        made = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=at)
        with open(made, "wb") as file:
            file.writelines(content)
            if uid is not None:
                os.fchown(made, uid, uid)
    finally:
        os.close(at)


def _below(at: int, name: str, path: str, uid: int | None) -> int:
    """The directory of that name, which is made where there is none; `at` is closed only when it is there."""
    try:
        os.mkdir(name, 0o700, dir_fd=at)
        if uid is not None:
            os.chown(name, uid, uid, dir_fd=at, follow_symlinks=False)
    except FileExistsError:
        pass
    try:
        below = os.open(name, walk.DIRECTORY, dir_fd=at)
    except OSError as error:
        raise NoPlace(f"{path}: {name} is no directory") from error
    os.close(at)
    return below
