"""Files that a caller sends with a request, put where the run works before it begins."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from claude_invoker.cli import walk
from claude_invoker.workspace.content import is_git


class NoPlace(Exception):
    """A file cannot be put where the caller wants it, and why."""


def problem_of(path: str) -> str | None:
    """Why a file may not have this path; None where it may."""
    parts = path.split("/")
    if not path.isprintable() or "\\" in path or len(path.encode()) > 1024:
        return "must be printable, without backslashes, of 1,024 bytes at most"
    if any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts):
        return "must be relative, without empty parts, . or .."
    if any(map(is_git, parts)):
        return "must not lie in .git"
    return None


def put(work: Path, files: Iterable[tuple[str, bytes]], uid: int | None) -> None:
    """Writes each, in the place of a file that is there; nothing is written by way of a link. Only before the run of
    this tree has begun. Raises NoPlace, OSError."""
    for path, content in files:
        write(work, path, content, uid)


def write(work: Path, path: str, content: bytes, uid: int | None, mode: int = 0o600) -> None:
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
            file.write(content)
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
