"""What a run has changed, as a new branch at the repository's server.

Nothing that the run has made is pushed but its patch, which is text: git's own user applies it, in a git directory
that is made for this and that no run comes to, to the commit that the run has worked on. A branch is only ever made:
one that is there stays as it is, whoever was faster.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import shutil
from pathlib import Path

from claude_contract.secret_file import SecretFileError
from claude_invoker.cli import walk
from claude_invoker.cli.tree import Checkout
from claude_invoker.problem import Problem
from claude_invoker.workspace import content, git, github
from claude_invoker.workspace.checkout import checked, copy
from claude_invoker.workspace.content import Unacceptable
from claude_invoker.workspace.git import Bounds, GitFailed
from claude_invoker.workspace.mirror import Mirror
from claude_invoker.workspace.repository import Wanted, unavailable

_log = logging.getLogger(__name__)
_APPLY = ("apply", "--cached", "--whitespace=nowarn")
_FSCK = ("fsck", "--strict", "--no-dangling", "--no-progress")


class NotPushed(Exception):
    """Why there is no such branch: for the caller."""


async def refuse_taken(mirror: Mirror, wanted: Wanted, branch: str) -> None:
    """Raises Problem 403 for the default branch, 409 for one that is there, 503."""
    try:
        default, is_there = await mirror.default_branch(), await mirror.has_branch(branch)
    except (GitFailed, OSError) as error:
        _log.warning("%s: what branches there are cannot be told: %s", wanted.name, error)
        raise unavailable(f"what branches {wanted.name} has cannot be told now") from error
    if branch.casefold() == default.casefold():
        raise Problem(403, "forbidden", f"result.push: {branch} is the default branch of {wanted.name}")
    if is_there:
        raise Problem(
            409, "conflict", f"result.push: {wanted.name} has a branch {branch}; name another, such as claude/{{run}}"
        )


async def push(
    wanted: Wanted,
    checkout: Checkout,
    branch: str,
    patch: Path,
    message: str,
    room: Path,
    uid: int | None,
    bounds: content.Bounds,
) -> str:
    """The commit's id. `room`: a directory to be made, the caller's to delete; `uid`: git's user, None: ours; `bounds`
    of what the branch may hold. Raises NotPushed."""
    try:
        await asyncio.to_thread(_prepare, checkout, patch, room, uid)
        return await _pushed(wanted, checkout, branch, message, room, uid, bounds)
    except Unacceptable as error:
        raise NotPushed(f"a repository may not hold that: {error}") from error
    except (GitFailed, SecretFileError, OSError, walk.TooMuch) as error:
        said = error.strerror if isinstance(error, OSError) else error
        _log.warning("%s: the branch %s cannot be pushed: %s", wanted.name, branch, said)
        raise NotPushed("the server does not take it, or it cannot be made; the invoker's log says why") from error


def _prepare(checkout: Checkout, patch: Path, room: Path, uid: int | None) -> None:
    copy(checkout.store, room, uid, f"{checkout.commit}\n")
    shutil.copyfile(patch, room / "patch")
    if uid is not None:
        os.chown(room / "patch", uid, uid)


async def _pushed(
    wanted: Wanted,
    checkout: Checkout,
    branch: str,
    message: str,
    room: Path,
    uid: int | None,
    bounds: content.Bounds,
) -> str:
    source = wanted.source
    assert source.push is not None
    name, address = source.push.identity
    who = {f"GIT_{role}_NAME": name for role in ("AUTHOR", "COMMITTER")}
    who |= {f"GIT_{role}_EMAIL": address for role in ("AUTHOR", "COMMITTER")}
    env = git.environment(GIT_DIR=str(room), **who)

    async def do(*arguments: str, stdin: bytes = b"", output: int = 256 << 20) -> bytes:
        limits = Bounds(source.timeout_s, source.max_bytes, output)
        return await git.run(arguments, cwd=room, uid=uid, env=env, bounds=limits, stdin=stdin)

    async def one(*arguments: str, stdin: bytes = b"") -> str:
        return (await do(*arguments, stdin=stdin)).decode().strip()

    await do("read-tree", checkout.commit)
    await do(*_APPLY, "--", str(room / "patch"))
    tree = await one("write-tree")
    await checked(do, tree, bounds)
    commit = await one("commit-tree", tree, "-p", checkout.commit, stdin=message.encode("utf-8", "replace"))
    await do(*_FSCK, commit)
    async with github.access(wanted, uid, "write") as access:
        ask = functools.partial(access.ask, room, uid, Bounds(source.timeout_s, source.max_bytes))
        ref = f"refs/heads/{branch}"
        try:
            # The lease is on nothing: the branch is made, or left alone, and nothing is forced.
            await ask("push", "--quiet", f"--force-with-lease={ref}:", "--", wanted.url, f"{commit}:{ref}")
        except GitFailed:
            if await ask("ls-remote", "--", wanted.url, ref):
                raise NotPushed(f"{wanted.name} has a branch {branch} by now") from None
            raise
    return commit
