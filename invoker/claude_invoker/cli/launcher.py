"""A process of the CLI, from the user id that it gets to the moment at which nothing of it is left."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from claude_invoker.cli.child import Limits
from claude_invoker.cli.command import Deadlines, Shape
from claude_invoker.cli.contained import KILL_S, Contained
from claude_invoker.cli.kill import Killer, StillAlive
from claude_invoker.cli.process import CliError, CliProcess
from claude_invoker.cli.tree import Checkout, Discarded, Tree
from claude_invoker.cli.unbroken import unbroken
from claude_invoker.cli.usage import strays
from claude_invoker.cli.users import NoUserFree, Users
from claude_invoker.cli.walk import TooMuch, delete
from claude_invoker.egress.filters import Filters
from claude_invoker.isolation.box import Box
from claude_invoker.isolation.network import Way

_log = logging.getLogger(__name__)
READY_WITHIN_S = 30.0


class Tokens(Protocol):
    """Where the API is reached, and who gives out what it asks for (`metering.control.Metering`)."""

    socket: Path

    def issue(self) -> str: ...
    def revoke(self, token: str) -> None: ...


@dataclass(frozen=True)
class WayOut:
    """How a run reaches the hosts that its tier opens, and no others."""

    network: Way
    filters: Filters


Furnish = Callable[[Tree, int | None, Checkout], Awaitable[dict[str, tuple[int, int, int]]]]
"""Fills a new tree of a user's, and says which files are in it (as `runs.artifacts` does). Raises CannotFurnish."""


class CannotFurnish(CliError):
    """What the run is to work on cannot be put into its tree; that says nothing about the CLI."""


@dataclass(eq=False)
class Ready:
    """A started process and what belongs to it."""

    process: CliProcess
    token: str
    keep_tree: bool
    since: float
    before: dict[str, tuple[int, int, int]] | None = None
    """The files that its tree was furnished with; None: nobody has looked."""
    furnished: tuple[float, float] | None = None
    """From when to when it was, in seconds since 1970; None: there was nothing to put in."""
    at_first: frozenset[int] = frozenset()
    """Its processes when it got ready, where somebody has looked."""
    tree_is_gone: bool = False
    """Whether its tree is another's by now, and left alone."""
    aside: Contained | None = None
    """The last command that was started beside it (`cli.rounds`)."""

    @property
    def usable(self) -> bool:
        passage = self.process.passage
        return self.process.returncode is None and (passage is None or passage.alive)


@dataclass
class Launcher:
    """All that a start needs besides its shape."""

    cli: Path
    trees: Path
    discarded: Discarded
    users: Users
    killer: Killer | None
    """Ends what has a user of its own; None where runs have ours."""
    proxy: Tokens
    deadlines: Deadlines
    limits: Limits
    box: Box | None = None
    """What surrounds every process; None where there is no such thing here."""
    way_out: WayOut | None = None
    """None where no run can be kept to the hosts that its tier opens: none is started that has some."""
    ready_within_s: float = READY_WITHIN_S
    furnish: Furnish | None = None
    """None where no repositories are known."""
    ending: dict[Ready, asyncio.Task[None] | None] = field(default_factory=dict)
    """Every process that is there, with the task that ends it."""
    starting: set[asyncio.Task[Ready]] = field(default_factory=set)

    @property
    def bounds(self) -> Limits:
        """Of a process that is started now, beside those that are there."""
        there = [each for ready in self.ending for each in (ready.process, ready.aside) if each is not None]
        return replace(self.limits, held=tuple(each.first for each in there))

    @property
    def surrounded(self) -> bool:
        """Whether what is started, and what its commands start, has the boundary that was found to hold."""
        return self.box is None or self.box.intact

    async def launch(self, shape: Shape, tree: Tree | None = None) -> Ready:
        """A process that waits for its run. Raises CliError; leaves nothing behind when it does.

        A start is never broken off half-way: where the caller is cancelled, it is ended once it is there; where the
        tree is the caller's, before the caller goes on.
        """
        task = asyncio.create_task(self._launch(shape, tree))
        self.starting.add(task)
        task.add_done_callback(self.starting.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(self._unwanted)
            if tree is not None:
                await unbroken(self._gone(task))
            raise

    async def _gone(self, task: asyncio.Task[Ready]) -> None:
        with contextlib.suppress(CliError):
            await self.dispose(await task)

    def _unwanted(self, task: asyncio.Task[Ready]) -> None:
        if not task.cancelled() and task.exception() is None:
            self.dispose_soon(task.result())

    async def _launch(self, shape: Shape, tree: Tree | None) -> Ready:
        name = secrets.token_hex(8)
        keep = tree is not None
        self.refuse_unsurrounded(shape)
        tree = tree or Tree(self.trees / name)
        try:
            uid = await self.free_user()
        except (NoUserFree, OSError) as error:
            raise CliError(f"no user id for the run: {error}") from error
        token = self.proxy.issue()
        process: CliProcess | None = None
        try:
            await asyncio.to_thread(tree.create, uid)
            before, furnished = None, None
            if shape.checkout is not None:
                assert self.furnish is not None
                began = time.time()
                before = await self.furnish(tree, uid, shape.checkout)
                furnished = began, time.time()
            process = await self.spawn(shape, tree, uid, name, token)
            await self.get_ready(process)
        except Exception as error:  # also that there is no thread to be had, which is a RuntimeError
            await self._leave_nothing(() if process is None else (process,), tree, uid, token, keep=keep)
            if isinstance(error, CliError):
                raise
            said = error.strerror if isinstance(error, OSError) else error
            raise CliError(f"the CLI cannot be started: {said}") from error
        ready = Ready(process, token, keep, time.monotonic(), before, furnished)
        self.ending[ready] = None
        return ready

    def refuse_unsurrounded(self, shape: Shape) -> None:
        """Raises CliError where what is started would not have the boundary that was found to hold."""
        if not self.surrounded:
            raise CliError("the shell's wrapper has been changed, commands would run without their boundary: restart")
        if shape.egress and self.way_out is None:
            raise CliError("runs cannot be kept to the hosts that their tier opens")

    def network(self, shape: Shape) -> Way | None:
        """What is started for a run that reaches hosts has a network of its own."""
        return self.way_out.network if shape.egress and self.way_out is not None else None

    async def spawn(self, shape: Shape, tree: Tree, uid: int | None, name: str, token: str) -> CliProcess:
        """Raises OSError."""
        return await CliProcess.spawn(
            self.cli,
            shape,
            tree,
            name=name,
            uid=uid,
            api=self.proxy.socket,
            key=token,
            deadlines=self.deadlines,
            limits=self.bounds,
            killer=self.killer,
            box=self.box,
            network=self.network(shape),
        )

    async def open_passage(self, process: Contained, shape: Shape) -> None:
        """Gives it its way out, where it has one. Raises OSError."""
        if self.way_out is not None and process.listener is not None:
            process.passage = await self.way_out.filters.open(process.listener, shape.egress)

    async def get_ready(self, process: CliProcess) -> None:
        """Waits until it serves. Raises CliError, OSError."""
        await self.open_passage(process, process.shape)
        try:
            async with asyncio.timeout(self.ready_within_s):
                await process.ready()
        except TimeoutError as error:
            raise CliError(f"the CLI was not ready within {self.ready_within_s:.0f} s") from error

    async def free_user(self) -> int | None:
        """A user id of which nothing is alive. Raises NoUserFree, OSError."""
        while True:
            uid = self.users.take()
            if uid is None or await self._nothing_lives(uid):
                return uid

    async def retire_user(self, uid: int) -> None:
        """Of one that was taken and has no tree: whatever it still does is ended. Raises nothing."""
        if await self._nothing_lives(uid):
            self.users.give_back(uid)

    async def _nothing_lives(self, uid: int) -> bool:
        """Ends what a user has; where that does not end the id is not used until it has."""
        assert self.killer is not None
        try:
            await self.killer.end(uid, KILL_S)
        except StillAlive as error:
            _log.error("user %d cannot be used: %s", uid, error)
            self.users.quarantine(uid)
            return False
        return True

    async def dispose(self, ready: Ready) -> None:
        """Ends the process and everything it started, then deletes its tree, or takes it back where it is a session's.

        Once begun this is carried through, also when the caller is cancelled. Never raises.
        """
        if (task := self.dispose_soon(ready)) is not None:
            await asyncio.shield(task)

    def dispose_soon(self, ready: Ready) -> asyncio.Task[None] | None:
        """The same without waiting for it. None where it is done already."""
        if ready not in self.ending:
            return None
        task = self.ending[ready] or asyncio.create_task(self._dispose(ready))
        self.ending[ready] = task
        return task

    async def dispose_all(self) -> None:
        await asyncio.gather(*self.starting, return_exceptions=True)
        await asyncio.gather(*(self.dispose(ready) for ready in list(self.ending)))

    async def _dispose(self, ready: Ready) -> None:
        process = ready.process
        try:
            started = (process,) if ready.aside is None else (process, ready.aside)
            await self._leave_nothing(
                started,
                process.tree,
                process.uid,
                ready.token,
                keep=ready.keep_tree,
                leave=ready.tree_is_gone,
            )
        finally:
            del self.ending[ready]

    async def _leave_nothing(
        self,
        started: Sequence[Contained],
        tree: Tree,
        uid: int | None,
        token: str,
        *,
        keep: bool,
        leave: bool = False,
    ) -> None:
        """Gives everything back that a run had. What cannot be ended or moved keeps its user id, so that no other run
        comes to it by having the same."""
        self.proxy.revoke(token)
        for process in started:
            if process.passage is not None:
                process.passage.close()
        try:
            for process in started:
                await process.end()
            if uid is not None and self.box is None:
                await asyncio.to_thread(_tidy, uid)
            if leave or (keep and await self._taken_back(tree, uid)):
                self.users.give_back(uid)
                return
            if tree.root.exists():
                self.discarded.delete_soon(self.discarded.take(tree.root))
            self.users.give_back(uid)
        except Exception as error:
            _log.error("a run of user %s has not ended cleanly, the id is not used until it has: %s", uid, error)
            # Also a session's: whoever lives on may still write there.
            self.users.quarantine(uid, None if self._put_away(tree) else tree.root)

    def _put_away(self, tree: Tree) -> bool:
        try:
            self.discarded.delete_soon(self.discarded.take(tree.root))
        except OSError:
            return not os.path.lexists(tree.root)
        return True

    async def end_leftovers(self) -> None:
        """Tries again to end what has not ended; whose nothing is left gives its user id back. Raises nothing."""
        for uid, path in list(self.users.quarantined.items()):
            try:
                if self.killer is not None:
                    await self.killer.end(uid, KILL_S)
            except StillAlive:
                continue
            if path is None or self._put_away(Tree(path)):
                self.users.release(uid)
                _log.info("nothing is left of user %d, the id is used again", uid)

    async def _taken_back(self, tree: Tree, uid: int | None) -> bool:
        """False where the tree cannot be kept: it has become too large to be handed over."""
        try:
            await asyncio.to_thread(tree.take_back, uid)
        except (TooMuch, OSError, RuntimeError) as error:
            _log.warning("a session ends, since its directory cannot be kept: %s", error)
            return False
        return True


def _tidy(uid: int) -> None:
    """Deletes what a user has left where every user may leave files. Only while nothing of that user is alive."""
    for path in strays(uid):
        try:
            delete(path)
        except OSError as error:
            _log.warning("a run's file cannot be deleted: %s: %s", path, error.strerror)
