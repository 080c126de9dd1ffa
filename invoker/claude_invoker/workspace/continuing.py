"""A session's directory on a repository, from one turn to the next.

Its files stay, its `.git` does not: each turn gets one of ours, at the commit that the session works on, so that
nothing that a turn has put there is done in the next one. Which commit that is lies in the session's tree, where its
commands cannot write; whoever could would get what the caller may have: another allowed commit of that repository.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from claude_invoker.cli import walk
from claude_invoker.cli.launcher import CannotFurnish
from claude_invoker.cli.tree import Checkout, Tree
from claude_invoker.cli.unbroken import unbroken
from claude_invoker.workspace.checkout import Confined, add_objects, copy, head_and_refs
from claude_invoker.workspace.difference import add_all, beside
from claude_invoker.workspace.git import GitFailed

_NAME = "checkout"
_MOST = 4096
_SHOWN = 20
_OURS = ("-c", "user.name=claude-invoker", "-c", "user.email=claude-invoker@localhost")


class Base(msgspec.Struct, frozen=True):
    """What a session's files were before its first turn, or are since they were rebased."""

    ref: str
    branch: str
    commit: str


class CannotRebase(CannotFurnish):
    """What the session has changed does not go with what the branch has changed; nothing has been done."""


@contextmanager
def noting(tree: Tree, uid: int | None, checkout: Checkout) -> Iterator[None]:
    """The session works on this once the block is over: then nothing is written any more that a full disk would not
    take, and until then what was noted before holds. Only while nothing of it is alive. Raises OSError."""
    tree.transcripts.mkdir(mode=0o700, exist_ok=True)
    path, new = tree.transcripts / _NAME, tree.transcripts / f"{_NAME}.new"
    walk.delete(new)
    try:
        with new.open("xb") as file:
            said = {"ref": checkout.ref, "branch": checkout.branch, "commit": checkout.commit}
            file.write(json.dumps(said).encode())
        if uid is not None:
            for made in (tree.transcripts, new):
                os.chown(made, uid, uid, follow_symlinks=False)
        yield
        if path.is_dir() and not path.is_symlink():  # which the run has put there
            walk.delete(path)
        new.replace(path)
    finally:
        walk.delete(new)


def remembered(tree: Tree) -> Base | None:
    """None where nothing is noted: its first turn has not come so far. Only while nothing of it is alive."""
    with suppress(OSError, msgspec.MsgspecError):
        tree.straighten()
        file = os.open(tree.transcripts / _NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(file, "rb") as reader:
            return msgspec.json.decode(reader.read(_MOST), type=Base)
    return None


async def go_on(confined: Confined, tree: Tree, uid: int | None, checkout: Checkout) -> None:
    """Gives the tree a `.git` of ours, and leaves its files as they are. Raises GitFailed, OSError, walk.TooMuch."""
    directory = tree.work / ".git"
    await asyncio.to_thread(walk.delete, directory)
    await asyncio.to_thread(copy, checkout.store, directory, uid, *head_and_refs(checkout))
    await confined.git(tree, uid, directory, "read-tree", checkout.commit)
    await confined.fill_modules(tree, uid, checkout, "read-tree", "HEAD")


async def rebase(confined: Confined, tree: Tree, uid: int | None, base: Checkout, onto: Checkout) -> None:
    """Makes the files those of `onto`, with what the session has changed of `base`. All or nothing.

    Raises CannotRebase, GitFailed, OSError, walk.TooMuch, StillAlive.
    """
    if moved := {path for path, _ in set(base.modules) ^ set(onto.modules)}:
        raise CannotRebase(f"submodules that have moved: {_listed(sorted(moved))}")
    async with beside(tree, uid) as place:
        directory = place.home / "git"
        await asyncio.to_thread(copy, base.store, directory, uid, f"{base.commit}\n")
        await asyncio.to_thread(add_objects, onto.store, directory, uid)

        async def do(*arguments: str, **more: Any) -> str:
            return (await confined.git(place, uid, directory, *_OURS, *arguments, **more)).decode().strip()

        async def commit(tree_of: str, *parents: str) -> str:
            of = (word for parent in parents for word in ("-p", parent))
            return await do("commit-tree", f"{tree_of}^{{tree}}", *of, stdin=b"x")

        await do("read-tree", base.commit)
        await add_all(confined, place, uid, directory)
        ours = await do("write-tree")
        # The two commits have histories of any depth, or none: what they come from is said by commits of our own.
        root = await commit(base.commit)
        mine, theirs = await commit(ours, root), await commit(onto.commit, root)
        try:
            merged = await do("merge-tree", "--write-tree", "--no-messages", "--name-only", "-z", mine, theirs)
        except GitFailed as error:
            if error.code != 1:
                raise
            paths = sorted(set(error.output.decode("utf-8", "replace").split("\0")[1:]) - {""})
            raise CannotRebase(_listed(paths)) from error
        await do("update-ref", "--no-deref", "HEAD", mine)
        both = await commit(merged.rstrip("\0"), mine)
        try:
            await do("checkout", "--quiet", "--detach", "--no-overwrite-ignore", both)
        except BaseException as error:
            if isinstance(error, GitFailed) and "would be overwritten" in str(error):  # it looks first, then it writes
                raise CannotRebase("what .gitignore names would be overwritten") from error
            await unbroken(_put_back(do, directory, mine, both))
            raise


async def _put_back(do: Callable[..., Awaitable[str]], directory: Path, mine: str, both: str) -> None:
    """A checkout of `both` over `mine` has been broken off: too large a file, no room, no time, nobody who waits."""
    (directory / "index.lock").unlink(missing_ok=True)
    await do("read-tree", both)  # so that what there is only in it goes
    await do("reset", "--quiet", "--hard", mine)


def _listed(paths: list[str]) -> str:
    shown = ", ".join(ascii(path)[1:-1][:200] for path in paths[:_SHOWN])
    return shown + (f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else "")
