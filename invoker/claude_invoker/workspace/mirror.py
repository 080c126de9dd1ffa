"""What a repository's server has, kept bare and by a user of its own: asked for anew when it is old, once for all who
ask at the same time."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from claude_contract.secret_file import SecretFileError
from claude_invoker.cli import walk
from claude_invoker.ending import ended
from claude_invoker.locking import locked
from claude_invoker.problem import Problem
from claude_invoker.workspace import git, github
from claude_invoker.workspace.git import Bounds, GitFailed
from claude_invoker.workspace.repository import Wanted, refused, unavailable

_log = logging.getLogger(__name__)
_LOCK_S = 0.05
_WALK = walk.Bounds(depth=64, entries=10_000_000)
_NOWHERE = "refs/nowhere/default"
"""What HEAD names where the server has no default branch: nothing that is fetched is called so."""
_REFSPECS = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
_LISTING = 32 << 20
"""Bytes that all branches and tags of a repository may take in a list: some 400,000."""
_WHOLE = ("--depth=2147483647",)
"""All of it; but a depth is asked for, which servers of plain files do not have ("dumb http"): what git takes from such
a one it does not check, and no bound on a file's size is one on their number."""
_NOT_THERE = ("not found", "does not appear to be a git repository")
RECENT_S = 300.0
"""So long after somebody has asked for one, what he wants of it may still be read."""
_PACKS = 50
_PACKING_S = 600.0


@dataclass(frozen=True)
class Offered:
    """Branches and tags, and which branch is the default one (None: none is)."""

    refs: dict[str, str]
    head: str | None = None


def offered(listing: bytes) -> Offered:
    """What `git ls-remote --symref` prints, as far as we want to have it."""
    refs: dict[str, str] = {}
    head = None
    for line in listing.decode("utf-8", "surrogateescape").split("\n"):
        said, _, name = line.partition("\t")
        if name.startswith(("refs/heads/", "refs/tags/")) and not name.endswith("^{}") and not said.startswith("ref: "):
            refs[name] = said
        elif name == "HEAD" and said.startswith("ref: refs/heads/") and said.isprintable():  # an answer names it
            head = said.removeprefix("ref: ")
    return Offered(refs, head)


class Mirror:
    """One repository. `path` is git's, and belongs to user `uid` (None: to us); beside it lie a lock, which several
    invokers share, and the time of the last fetch, where nobody but us can write."""

    def __init__(self, path: Path, uid: int | None) -> None:
        self.path = path
        self.uid = uid
        self._stamp = path.with_suffix(".fetched")
        self._lock = path.with_suffix(".lock")
        self._fetching: asyncio.Task[None] | None = None
        self._known: dict[str | None, tuple[str, str]] = {}
        self._known_at = 0.0
        self._failed_at = 0.0
        self._packing: asyncio.Task[None] | None = None
        self._packs = 0
        self.fetches = 0

    async def find(self, wanted: Wanted) -> tuple[str, str]:
        """(full name of the ref, or empty for a commit's own id; commit). Asks the server where what is here is older
        than `refresh_s`, or does not have it.

        Raises Problem 404 for what the server has not, 403 for a commit that is on no allowed branch, 422 for malformed
        objects, 503 where it cannot be asked.
        """
        asked = time.time()
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._lock)  # for other invokers, too: it is in use
        found = None
        if self.fetched_at + wanted.source.refresh_s > asked:
            found = await self._look(wanted)
        if found is None:
            try:
                found = await self._fetched(wanted, asked)
            except Problem as problem:
                if problem.status != 503 or not wanted.source.stale or not self.fetched_at:
                    raise
                found = await self._look(wanted)
                if found is None:
                    raise
                _log.warning("%s is worked on as it was %.0f s ago", wanted.name, asked - self.fetched_at)
        name, _ = found
        if name and not wanted.allows(name.split("/", 2)[2]):
            raise refused(wanted, name.split("/", 2)[2])
        return found

    async def _fetched(self, wanted: Wanted, asked: float) -> tuple[str, str]:
        if self._failed_at + wanted.source.refresh_s > asked and wanted.source.stale:
            raise _unavailable(wanted)  # it was asked a moment ago
        while True:
            if self._fetching is None or self._fetching.done():
                self._fetching = asyncio.create_task(self._fetch(wanted, asked))
                self._fetching.add_done_callback(lambda task: task.cancelled() or task.exception())
            await asyncio.shield(self._fetching)
            found = await self._look(wanted)
            if found is not None:
                return found
            if self.fetched_at >= asked:
                break
            # What was under way had begun before we asked, and may have seen what was there before.
        if wanted.ref is None:
            raise Problem(404, "no-ref", f"{wanted.name} has no default branch: it is empty, or name one (X-Branch)")
        what = "commit" if wanted.is_commit else "branch or tag"
        raise Problem(404, "no-ref", f"{wanted.name} has no {what} {wanted.ref}")

    async def close(self) -> None:
        """Breaks off what is being fetched or packed."""
        for task in (self._fetching, self._packing):
            if task is not None:
                await ended(task)

    def pack(self) -> None:
        """Begins to make one pack of many, where there are: each fetch leaves one, and git slows down by them. What no
        branch has any more goes a day later."""
        packs = sum(1 for _ in self.path.glob("objects/pack/*.pack"))
        if packs >= self._packs + _PACKS and (self._packing is None or self._packing.done()):
            self._packing = asyncio.create_task(self._pack())

    async def _pack(self) -> None:
        async with self._alone():
            try:
                await self.git("gc", "--quiet", "--force", "--prune=1.day.ago", seconds=_PACKING_S)
            except (GitFailed, OSError) as error:
                _log.warning("%s cannot be packed: %s", self.path.name, error)
        # Where it cannot be done, it is tried again after as many fetches.
        self._packs = sum(1 for _ in self.path.glob("objects/pack/*.pack"))

    @property
    def fetched_at(self) -> float:
        """When the last fetch began that succeeded; 0: there was none."""
        try:
            return self._stamp.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    async def _look(self, wanted: Wanted) -> tuple[str, str] | None:
        """What is here of it. Raises Problem 403 for a commit that is on no allowed branch."""
        at = self.fetched_at
        if not at:
            return None
        if self._known_at != at:
            self._known, self._known_at = {}, at
        known = self._known  # another fetch may end meanwhile: what is found now is of no later one
        if wanted.ref not in known:
            found = await (self._commit(wanted) if wanted.is_commit else self._ref(wanted.ref))
            if found is None:
                return None
            if wanted.is_commit:  # whether it is allowed is the source's matter: asked each time
                return found
            known[wanted.ref] = found
        return known[wanted.ref]

    async def _ref(self, ref: str | None) -> tuple[str, str] | None:
        if ref is None:
            try:
                names = [(await self.git("symbolic-ref", "--quiet", "HEAD")).decode().strip()]
            except GitFailed:
                return None
        else:
            names = [f"refs/heads/{ref}", f"refs/tags/{ref}"]
        asked = "".join(f"{name}^{{commit}}\n" for name in names).encode()
        answers = (await self.git("cat-file", "--batch-check=%(objectname) %(objecttype)", stdin=asked)).decode()
        for name, answer in zip(names, answers.splitlines(), strict=True):
            commit, _, kind = answer.rpartition(" ")
            if kind == "commit" and len(commit) == 40:
                return name, commit
        return None

    async def _commit(self, wanted: Wanted) -> tuple[str, str] | None:
        assert wanted.ref is not None
        try:
            said = await self.git(
                "for-each-ref", f"--contains={wanted.ref}", "--format=%(refname)", "refs/heads", "refs/tags"
            )
        except GitFailed:
            return None
        names = said.decode("utf-8", "replace").split()
        if names and not any(wanted.allows(name.split("/", 2)[2]) for name in names):
            raise refused(wanted, wanted.ref)
        return ("", wanted.ref) if names else None

    async def has_branch(self, name: str) -> bool:
        """Whether it was at the server when that was last asked. Raises GitFailed, OSError."""
        return bool(await self.git("for-each-ref", "--format=x", f"refs/heads/{name}"))

    async def default_branch(self) -> str:
        """The server's; empty where it has none. Raises GitFailed, OSError."""
        return (await self.git("symbolic-ref", "--quiet", "HEAD")).decode().strip().removeprefix("refs/heads/")

    async def git(self, *arguments: str, stdin: bytes = b"", seconds: float = 60.0) -> bytes:
        """git on what is here. Raises GitFailed, OSError."""
        env = git.environment(GIT_DIR=str(self.path))
        bounds = Bounds(seconds)
        return await git.run(arguments, cwd=self.path, uid=self.uid, env=env, stdin=stdin, bounds=bounds)

    async def _fetch(self, wanted: Wanted, asked: float) -> None:
        async with self._alone():
            if self.fetched_at >= asked:
                return  # by another invoker
            began = time.time()
            try:
                await self._fetch_now(wanted)
            except (GitFailed, SecretFileError, OSError) as error:
                self._failed_at = time.time()
                await asyncio.to_thread(self._tidy)
                _log.warning("%s cannot be fetched: %s", wanted.name, error)
                if isinstance(error, github.NotInstalled) or any(map(str(error).__contains__, _NOT_THERE)):
                    raise Problem(404, "no-repository", f"the server has no repository {wanted.name}") from error
                if "error: object " in str(error):  # what fsck says
                    detail = f"{wanted.name} has objects that git's checks refuse; the invoker's log says which"
                    raise Problem(422, "repository", detail) from error
                raise _unavailable(wanted) from error
            self._stamp.touch(0o600)
            os.utime(self._stamp, (began, began))

    async def _fetch_now(self, wanted: Wanted) -> None:
        self.fetches += 1
        if not self.fetched_at:
            await self._make()
        bounds = Bounds(wanted.source.timeout_s, wanted.source.max_bytes, _LISTING)
        options = (*_WHOLE, "--quiet", "--prune", "--no-tags", "--no-write-fetch-head", "--no-show-forced-updates")
        async with github.access(wanted, self.uid, "read") as access:
            ask = functools.partial(access.ask, self.path, self.uid, bounds)
            # What there is, before any of it is brought: mostly it is here.
            asked = ("HEAD", "refs/heads/*", "refs/tags/*")
            theirs = offered(await ask("ls-remote", "--symref", "--", wanted.url, *asked))
            ours = await self._refs()
            if theirs.refs and theirs.refs != ours:
                await ask("fetch", *options, "--", wanted.url, *_REFSPECS)
        if not theirs.refs and ours:
            gone = "".join(f"delete {name}\n" for name in ours)
            await self.git("update-ref", "--stdin", stdin=gone.encode("utf-8", "surrogateescape"))
        await self.git("symbolic-ref", "HEAD", theirs.head or _NOWHERE)

    async def _refs(self) -> dict[str, str]:
        listing = await self.git("for-each-ref", "--format=%(objectname)%09%(refname)", "refs/heads", "refs/tags")
        return offered(listing).refs

    async def _make(self) -> None:
        await asyncio.to_thread(walk.delete, self.path)  # of a first fetch that was broken off
        self.path.mkdir(mode=0o700)
        if self.uid is not None:
            os.chown(self.path, self.uid, self.uid)
        await self.git("init", "--quiet", "--bare", "--template=")
        # Stores are made by commit; `checkout` asks for those that `find` has found.
        await self.git("config", "uploadpack.allowAnySHA1InWant", "true")

    def _tidy(self) -> None:
        """Leaves nothing of a fetch that failed."""
        if not self.fetched_at:
            walk.delete(self.path)
            return
        with contextlib.suppress(OSError, walk.TooMuch):
            for entry in walk.walk(self.path, _WALK):
                if not entry.is_directory and entry.name.startswith(("tmp_", ".tmp-")):
                    os.unlink(entry.name, dir_fd=entry.directory)

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """One fetch at a time, of all invokers that share the directory."""
        while True:
            with self._lock.open("wb") as lock:
                if locked(lock) and _is_still(lock, self._lock):
                    yield
                    return
            await asyncio.sleep(_LOCK_S)

    @property
    def used_at(self) -> float:
        """When somebody asked for it last; 0: nobody did."""
        try:
            return self._lock.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def drop(self) -> bool:
        """Deletes what is here, unless it is asked for, fetched or packed now. Whether it is gone. Raises OSError."""
        with contextlib.suppress(FileNotFoundError), self._lock.open("r+b") as lock:
            if self.used_at + RECENT_S > time.time() or not locked(lock):
                return False
            self._stamp.unlink(missing_ok=True)
            walk.delete(self.path)
        return True

    def forget(self) -> bool:
        """Leaves nothing of a repository that was never fetched, or no longer is; False where there is something."""
        if self.fetched_at or (self._fetching is not None and not self._fetching.done()):
            return False
        with contextlib.suppress(FileNotFoundError), self._lock.open("r+b") as lock:
            if not locked(lock):
                return False
            if _is_still(lock, self._lock):
                self._lock.unlink()
        return True


def _is_still(lock: IO[bytes], path: Path) -> bool:
    """Whether this is the file that others find there."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _unavailable(wanted: Wanted) -> Problem:
    return unavailable(f"the repository {wanted.name} cannot be fetched from its server now")
