"""What a run has changed of its repository, by a git directory that the run has never seen.

The run is over, and its tree's own `.git` says whatever the run wanted: nothing of it is read. All `.git` in the tree
are taken away, and what is left is compared with the commit's store, as the run's user and within the boundary around
runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import stat
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from claude_invoker.cli import walk
from claude_invoker.cli.kill import StillAlive
from claude_invoker.cli.tree import Checkout, Tree
from claude_invoker.model import Artifact, Change
from claude_invoker.workspace.checkout import Confined, copy
from claude_invoker.workspace.git import GitFailed, SaysTooMuch

PATCH = "changes.patch"
_MOST_CHANGES = 1000
_WALK = walk.Bounds(depth=256, entries=1_000_000)
_OPTIONS = ("--cached", "--no-renames", "--no-ext-diff", "--no-textconv", "--no-color", "--ignore-submodules=all")
_STATUS: dict[str, Literal["added", "modified", "deleted", "type"]] = {
    "A": "added",
    "M": "modified",
    "D": "deleted",
    "T": "type",
}


class NoDifference(Exception):
    """It cannot be told what a run has changed, and why."""


@dataclass(frozen=True)
class Difference:
    changes: list[Change]
    """The first `_MOST_CHANGES`, by path."""
    patch: Artifact | None
    """None: nothing has changed, or `without` says why there is none."""
    without: str | None = None


async def difference(
    confined: Confined, tree: Tree, uid: int | None, checkout: Checkout, into: Path, max_bytes: int
) -> Difference:
    """Of a tree of which nothing is alive; the patch, of `max_bytes` at most, is put `into` a directory of ours.

    Raises NoDifference.
    """
    try:
        async with beside(tree, uid) as place:
            return await _compared(confined, place, uid, checkout, into, max_bytes)
    except (GitFailed, OSError, walk.TooMuch, StillAlive) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise NoDifference(str(said)) from error


@contextlib.asynccontextmanager
async def beside(tree: Tree, uid: int | None) -> AsyncIterator[Tree]:
    """A tree in which nothing has been prepared, with the `work` of that tree, without any `.git`; it goes back in the
    end. Only while nothing of the tree is alive. Raises OSError, walk.TooMuch."""
    place = Tree(tree.root.parent / f"{tree.root.name}-{secrets.token_hex(4)}")
    try:
        try:
            await asyncio.to_thread(_move, tree, place, uid)
            yield place
        finally:
            await asyncio.to_thread(_move_back, place, tree)
    finally:
        await asyncio.to_thread(walk.delete, place.root)


def _move(tree: Tree, beside: Tree, uid: int | None) -> None:
    """Puts the run's `work` into a tree that the run has prepared nothing in, without any `.git`."""
    if not stat.S_ISDIR(tree.work.lstat().st_mode):
        raise NotADirectoryError(0, "the run has put something else in the place of its directory")
    beside.create(uid)
    beside.work.rmdir()
    if uid is not None:
        os.chown(beside.root, os.geteuid(), os.getegid())
    tree.work.rename(beside.work)
    beside.work.chmod(0o700)
    found: list[str] = []
    for entry in walk.walk(beside.work, _WALK):
        if entry.name == ".git":
            found.append(entry.path)
        else:
            _make_readable(entry)
    for path in found:
        # By a path, which is of directories only: nothing of the run is alive to put a link there.
        walk.delete(beside.work / path)
    if uid is not None:
        os.chown(beside.root, uid, uid)


def _move_back(beside: Tree, tree: Tree) -> None:
    """Also where it was found to be too much when it had been moved: it is what the run has left, and a session's."""
    if not os.path.lexists(tree.work):
        beside.work.rename(tree.work)


def _make_readable(entry: walk.Entry) -> None:
    """So that git sees all that it can keep: it passes over what it may not read, and over pipes and sockets in the
    place of files; and it waits for ever for what a pipe called `.gitignore` says."""
    mode = stat.S_IMODE(entry.status.st_mode)
    if entry.is_directory or entry.is_regular:
        needed = 0o700 if entry.is_directory else 0o400
        if mode & needed != needed:
            os.chmod(entry.name, mode | needed, dir_fd=entry.directory)
    elif not stat.S_ISLNK(entry.status.st_mode):
        os.unlink(entry.name, dir_fd=entry.directory)


async def _compared(
    confined: Confined, tree: Tree, uid: int | None, checkout: Checkout, into: Path, max_bytes: int
) -> Difference:
    directory = tree.home / "git"
    await asyncio.to_thread(copy, checkout.store, directory, uid, f"{checkout.commit}\n")
    await confined.git(tree, uid, directory, "read-tree", checkout.commit)
    await add_all(confined, tree, uid, directory)
    compare = ("diff-index", *_OPTIONS)
    said = await confined.git(tree, uid, directory, *compare, "--raw", "--numstat", "-z", checkout.commit)
    changes = list(parse(said))
    if not changes:
        return Difference([], None)
    into.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = into / PATCH
    options = ("--patch", "--binary", "--full-index", "--src-prefix=a/", "--dst-prefix=b/", "--unified=3")
    try:
        await confined.git(
            tree, uid, directory, *compare, *options, checkout.commit, output=max_bytes, seconds=120, into=path
        )
    except GitFailed as error:
        path.unlink(missing_ok=True)
        large = f"it has more than {max_bytes:,} bytes (INVOKER_ARTIFACT_MAX_BYTES)"
        return Difference(changes[:_MOST_CHANGES], None, large if isinstance(error, SaysTooMuch) else str(error))
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    digest = await asyncio.to_thread(_digest, path)
    patch = Artifact(path=PATCH, size=path.stat().st_size, type="text/x-diff", sha256=digest)
    return Difference(changes[:_MOST_CHANGES], patch)


async def add_all(confined: Confined, tree: Tree, uid: int | None, directory: Path) -> None:
    """Puts into the index what is in `work`. Raises GitFailed, OSError, StillAlive."""
    # What git cannot read or may not name (a `.GIT`) is left out, and says so by its exit code.
    try:
        await confined.git(tree, uid, directory, "add", "--all", "--ignore-errors", "--", ".")
    except GitFailed as error:
        if error.code != 1:
            raise


def parse(said: bytes) -> Iterator[Change]:
    """What `git diff-index --raw --numstat -z` prints."""
    statuses: dict[str, str] = {}
    parts = iter(said.split(b"\0"))
    for part in parts:
        if part.startswith(b":"):
            statuses[_text(next(parts))] = part.decode()[-1]
        elif part:
            added, removed, path = part.split(b"\t", 2)
            status = _STATUS.get(statuses.get(_text(path), "M"), "modified")
            yield Change(path=_shown(_text(path)), status=status, added=_lines(added), removed=_lines(removed))


def _lines(said: bytes) -> int | None:
    return int(said) if said.isdigit() else None


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def _shown(path: str) -> str:
    """As an answer can have it."""
    return path if path.isprintable() else ascii(path)[1:-1]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
