"""The repositories of one invoker: from what a caller may work on to a tree that holds it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import logging
import os
import secrets
import time
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

import msgspec

from claude_contract.secret_file import SecretFileError
from claude_invoker.caller import Caller
from claude_invoker.cli import usage, walk
from claude_invoker.cli.kill import StillAlive
from claude_invoker.cli.launcher import CannotFurnish, Launcher
from claude_invoker.cli.tree import Checkout, Tree
from claude_invoker.disk import Kept
from claude_invoker.problem import Problem
from claude_invoker.settings import Settings
from claude_invoker.workspace import content, continuing, git, github, modules, push
from claude_invoker.workspace.checkout import Confined, Stores
from claude_invoker.workspace.content import Unacceptable
from claude_invoker.workspace.continuing import Base
from claude_invoker.workspace.git import Bounds, GitFailed
from claude_invoker.workspace.mirror import RECENT_S, Mirror
from claude_invoker.workspace.repository import Repositories, Wanted, is_ref, load

_log = logging.getLogger(__name__)
_STORE_S = 3600.0
"""How long a commit's store is kept after it was last asked for."""
_MIRROR_S = 14 * 86_400.0
"""And a mirror after its last fetch."""
_CHECKOUT_S = 60.0
_PUSHES = 2
"""At once: each copies a store."""


class Workspaces:
    """Knows what `INVOKER_REPOSITORIES` names. Mirrors and stores lie in `directory`, which several invokers may share
    and git's own user can pass to; runs come to neither."""

    def __init__(self, settings: Settings, launcher: Launcher, directory: Path, uid: int | None) -> None:
        """`uid`: git's own user, where it asks servers; None: ours. Raises ValueError."""
        assert settings.repositories is not None
        if git.program() is None:
            raise ValueError("INVOKER_REPOSITORIES needs git: install it, or leave the setting out")
        self.known: Repositories = load(settings.repositories)
        if self.known.use_ssh and (obstacle := git.obstacle_to_ssh(uid)):
            raise ValueError(f"INVOKER_REPOSITORIES: a url by ssh {obstacle}")
        self._directory = directory
        self._stores_in = self._directory / "stores"
        self._uid = uid
        self._bounds = content.Bounds(settings.tree_entries_limit, settings.tree_limit, settings.file_size_limit)
        self._stores = Stores(self._stores_in, uid, self._bounds)
        self._pushes = asyncio.Semaphore(_PUSHES)
        self.confined = Confined(launcher, Bounds(_CHECKOUT_S, settings.file_size_limit))
        self._mirrors: dict[str, Mirror] = {}
        self._asked = 0
        """How often the servers of mirrors that are forgotten were asked."""

    def open(self) -> None:
        """Makes the directories. Raises OSError."""
        for path, mode in ((self._directory, 0o711), (self._stores_in, 0o711)):
            path.mkdir(mode=mode, exist_ok=True)
            path.chmod(mode)
        owner = os.geteuid() if self._uid is None else self._uid
        for path in self._directory.glob("*.git"):
            if path.lstat().st_uid != owner:  # INVOKER_UID_BASE was another
                path.with_suffix(".fetched").unlink(missing_ok=True)
                walk.delete(path)

    def wanted(self, caller: Caller) -> Wanted | None:
        """What a caller's run works on; None: nothing. Raises Problem 403, 404, 422."""
        if caller.repository is not None:
            return self.known.find(caller.repository)
        if caller.additions.context.get("repository"):
            raise Problem(
                403,
                "forbidden",
                "the request names a repository, and the gateway has not verified that your token allows one: name one "
                "only, with a token whose claim lists it (the gateway's jwt_claims must have repo_claim, "
                "and repo_capture where the path has it)",
            )
        return None

    def _mirror(self, url: str) -> Mirror:
        name = hashlib.sha256(url.encode()).hexdigest()[:32]
        if name not in self._mirrors:
            self._mirrors[name] = self._at(name)
        return self._mirrors[name]

    def _at(self, name: str) -> Mirror:
        return Mirror(self._directory / f"{name}.git", self._uid)

    async def ready(self, wanted: Wanted, new: str | None = None) -> Checkout:
        """The commit that a run works on, with all of it here. `new`: a branch that is to be pushed.

        Raises Problem 403, 404, 409, 422, 503.
        """
        if new is not None:
            wanted.refuse_branch(new)
        mirror = self._mirror(wanted.url)
        name, commit = await mirror.find(wanted)
        if new is not None:
            await push.refuse_taken(mirror, wanted, new)
        store = await self._stores.of(mirror, wanted, commit)
        branch = name.removeprefix("refs/heads/") if name.startswith("refs/heads/") else ""
        ref = wanted.ref if wanted.ref is not None else branch
        found = Checkout(wanted.name, ref, commit, branch, store)
        return await self._with_modules(wanted, found) if wanted.source.submodules else found

    async def _with_modules(self, wanted: Wanted, checkout: Checkout) -> Checkout:
        """With the submodules that may come along; others stay empty. Raises Problem 422, 503."""
        holds = await asyncio.to_thread(modules.noted, checkout.store)
        chosen = []
        for path, module in sorted(holds.modules.items()):
            asked = self.known.at(modules.address(wanted.url, module.url), module.commit)
            if asked is not None and wanted.takes_along(asked):
                chosen.append((path, asked))
        try:
            if len(chosen) > modules.MOST:
                raise Unacceptable(f"more than {modules.MOST} submodules")
            found = [(path, await self._module(asked)) for path, asked in chosen]
            held = {path: await asyncio.to_thread(modules.noted, module.store) for path, module in found}
            await asyncio.to_thread(modules.check, holds, held, self._bounds)
        except Unacceptable as error:
            detail = f"{wanted.name} at {checkout.commit} cannot be worked on: {error}"
            raise Problem(422, "repository", detail) from error
        return dataclasses.replace(checkout, modules=tuple(found))

    async def _module(self, wanted: Wanted) -> Checkout:
        """Its own submodules do not come along. Raises Unacceptable, Problem 503."""
        assert wanted.ref is not None
        mirror = self._mirror(wanted.url)
        try:
            _, commit = await mirror.find(wanted)
            store = await self._stores.of(mirror, wanted, commit)
        except Problem as problem:
            if problem.status == 503:
                raise
            raise Unacceptable(f"its submodule {wanted.name} at {wanted.ref}: {problem.detail}") from problem
        return Checkout(wanted.name, None, commit, "", store)

    async def gone_on(self, wanted: Wanted, base: Base, new: str | None = None, *, rebase: bool) -> Checkout:
        """What a session's next turn works on: what the one before did, or where it is to be rebased what is wanted
        now. `new`: a branch that is to be pushed.

        Raises Problem 403, 404, 409, 422, 503.
        """
        if not rebase and wanted.ref not in (None, base.ref, base.commit):
            raise Problem(
                422,
                "invalid",
                f"the session works on {base.ref or base.commit}: name that, none, or rebase it to another",
            )
        ref = wanted.ref if wanted.ref is not None or not rebase else base.ref or None
        if ref is not None and not is_ref(ref):
            raise Problem(422, "invalid", "the session has no record of its commit any more")
        before = await self.ready(msgspec.structs.replace(wanted, ref=base.commit), None if rebase else new)
        before = dataclasses.replace(before, ref=base.ref, branch=base.branch, is_session=True)
        now = await self.ready(msgspec.structs.replace(wanted, ref=ref), new) if rebase else before
        return dataclasses.replace(now, is_session=True, base=before)

    async def push(self, wanted: Wanted, checkout: Checkout, branch: str, patch: Path, message: str) -> str:
        """Leaves `patch`, of what a run has changed of the checkout, as a new branch at the server. The commit's id.
        Raises NotPushed."""
        room = self._stores_in / f".pushing-{secrets.token_hex(8)}"  # swept as a store is, where we die meanwhile
        try:
            async with self._pushes:
                return await push.push(wanted, checkout, branch, patch, message, room, self._uid, self._bounds)
        finally:
            await asyncio.to_thread(walk.delete, room)

    async def open_pull_request(self, wanted: Wanted, checkout: Checkout, branch: str, title: str, body: str) -> str:
        """For a branch that was pushed. Where it is. Raises NotPushed."""
        try:
            base = checkout.branch or await self._mirror(wanted.url).default_branch()
            return await github.open_pull_request(wanted, branch, base, title, body)
        except (GitFailed, SecretFileError, OSError) as error:
            _log.warning("%s: no pull request for %s: %s", wanted.name, branch, error)
            raise push.NotPushed("GitHub opens no pull request for it; the invoker's log says why") from error

    async def furnish(self, tree: Tree, uid: int | None, checkout: Checkout) -> None:
        """Fills a new tree, or makes a session's ready for its next turn. Raises CannotFurnish."""
        try:
            with continuing.noting(tree, uid, checkout) if checkout.is_session else contextlib.nullcontext():
                if checkout.base is None:
                    await self.confined.check_out(tree, uid, checkout)
                elif checkout.base.commit != checkout.commit:
                    await continuing.rebase(self.confined, tree, uid, checkout.base, checkout)
            if checkout.base is not None:
                await continuing.go_on(self.confined, tree, uid, checkout)
        except (GitFailed, OSError, walk.TooMuch, StillAlive) as error:
            said = error.strerror if isinstance(error, OSError) else error
            raise CannotFurnish(f"{checkout.name} at {checkout.commit} cannot be checked out: {said}") from error

    async def close(self) -> None:
        """Leaves nothing under way."""
        await asyncio.gather(self._stores.close(), *(mirror.close() for mirror in self._mirrors.values()))

    @property
    def fetches(self) -> int:
        """How often a server was asked."""
        return self._asked + sum(mirror.fetches for mirror in self._mirrors.values())

    async def sweep(self, in_use: Collection[Path]) -> None:
        """Deletes what nobody has asked for in a while, and packs mirrors that were fetched often. `in_use`: stores of
        runs that are not over."""
        await asyncio.to_thread(self._stores.sweep, _STORE_S, in_use)
        await asyncio.to_thread(self._sweep_mirrors)
        for mirror in self._mirrors.values():
            mirror.pack()
        # A caller may name any number of those that there are not.
        for name in {path.stem for path in self._directory.glob("*.lock")} | self._mirrors.keys():
            mirror = self._mirrors.get(name) or self._at(name)
            if mirror.forget():
                self._asked += mirror.fetches
                self._mirrors.pop(name, None)

    async def kept(self) -> list[Kept]:
        """Mirrors and stores, which are nobody's. Raises OSError."""
        return await asyncio.to_thread(lambda: [*self._kept_mirrors(), *self._stores.kept()])

    def _kept_mirrors(self) -> Iterator[Kept]:
        for path in self._directory.glob("*.git"):
            mirror = self._at(path.stem)
            size = usage.files(path).bytes
            yield Kept(path.name, None, mirror.used_at, size, mirror.used_at + RECENT_S > time.time())

    async def drop(self, name: str) -> bool:
        """Raises OSError."""
        path = Path(name)
        drop = self._at(path.stem).drop if path.suffix == ".git" else partial(self._stores.drop, name)
        return await asyncio.to_thread(drop)

    def _sweep_mirrors(self) -> None:
        for stamp in self._directory.glob("*.fetched"):
            with contextlib.suppress(FileNotFoundError):
                if stamp.stat().st_mtime + _MIRROR_S < time.time():
                    stamp.unlink()
                    walk.delete(stamp.with_suffix(".git"))
