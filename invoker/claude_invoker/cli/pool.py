"""Warm processes, each used once: started before anyone asks, bounded in starts and in number."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from claude_invoker.cli.child import Limits
from claude_invoker.cli.command import Deadlines, Shape
from claude_invoker.cli.keyproxy import KeyProxy
from claude_invoker.cli.process import CliError, CliProcess
from claude_invoker.cli.tree import Tree
from claude_invoker.cli.users import Users

_log = logging.getLogger(__name__)
_READY_WITHIN_S = 30.0
_DEMAND_WINDOW_S = 60.0
_REFILL_DELAY_S = 0.25


@dataclass
class Launcher:
    """All that a start needs besides its shape."""

    cli: Path
    trees: Path
    users: Users
    proxy: KeyProxy
    deadlines: Deadlines
    limits: Limits
    model: str
    ending: dict[Ready, asyncio.Task[None] | None] = field(default_factory=dict)
    """Every process that is there, with the task that ends it."""
    starting: set[asyncio.Task[Ready]] = field(default_factory=set)

    async def launch(self, shape: Shape, tree: Tree | None = None) -> Ready:
        """A process that waits for its run. Raises CliError; leaves nothing behind when it does.

        A start is never broken off half-way: where the caller is cancelled, it is ended once it is there.
        """
        task = asyncio.create_task(self._launch(shape, tree))
        self.starting.add(task)
        task.add_done_callback(self.starting.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(self._unwanted)
            raise

    def _unwanted(self, task: asyncio.Task[Ready]) -> None:
        if not task.cancelled() and task.exception() is None:
            self.dispose_soon(task.result())

    async def _launch(self, shape: Shape, tree: Tree | None) -> Ready:
        name = secrets.token_hex(8)
        keep = tree is not None
        tree = tree or Tree(self.trees / name)
        try:
            uid = await asyncio.to_thread(self.users.take)
        except OSError as error:
            raise CliError(str(error)) from error
        token = self.proxy.issue()
        process: CliProcess | None = None
        try:
            await asyncio.to_thread(tree.create, uid)
            process = await CliProcess.spawn(
                self.cli,
                shape,
                tree,
                name=name,
                uid=uid,
                base_url=self.proxy.url,
                key=token,
                deadlines=self.deadlines,
                limits=self.limits,
            )
            ready = Ready(process, token, keep, time.monotonic())
            try:
                async with asyncio.timeout(_READY_WITHIN_S):
                    await process.ready(self.model)
            except TimeoutError as error:
                raise CliError(f"the CLI was not ready within {_READY_WITHIN_S:.0f} s") from error
        except (CliError, OSError) as error:
            if process is not None:
                await process.end()
            self.proxy.revoke(token)
            if not keep:
                await tree.deleted()
            self.users.give_back(uid)
            if isinstance(error, OSError):
                raise CliError(f"the CLI cannot be started: {error.strerror}") from error
            raise
        self.ending[ready] = None
        return ready

    async def dispose(self, ready: Ready) -> None:
        """Ends the process and everything it started, then deletes its tree unless that is a session's.

        Once begun this is carried through, also when the caller is cancelled.
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
        try:
            self.proxy.revoke(ready.token)
            await ready.process.end()
            if not ready.keep_tree:
                await ready.process.tree.deleted()
            self.users.give_back(ready.process.uid)
        finally:
            del self.ending[ready]


@dataclass(eq=False)
class Ready:
    """A started process and what belongs to it."""

    process: CliProcess
    token: str
    keep_tree: bool
    since: float


class Pool:
    """Keeps between `minimum` and `maximum` warm processes of the shapes that are asked for most."""

    def __init__(self, launcher: Launcher, default: Shape, *, minimum: int, maximum: int, starts: int) -> None:
        self._launcher = launcher
        self._default = default
        self._minimum = minimum
        self._maximum = max(minimum, maximum)
        self._starts = asyncio.Semaphore(starts)
        self._warm: dict[Shape, list[Ready]] = {}
        self._asked: list[tuple[float, Shape]] = []
        self._wake = asyncio.Event()
        self._filler: asyncio.Task[None] | None = None
        self.proven = False
        """Whether the last start of a warm process worked (False before the first)."""
        self.hits = 0
        self.misses = 0

    @property
    def warm(self) -> int:
        return sum(map(len, self._warm.values()))

    async def start(self) -> None:
        self._filler = asyncio.create_task(self._keep_filled())

    async def stop(self) -> None:
        if self._filler is not None:
            self._filler.cancel()
            await asyncio.gather(self._filler, return_exceptions=True)
        self._warm.clear()
        await self._launcher.dispose_all()

    async def take(self, shape: Shape, tree: Tree | None = None) -> Ready:
        """A process of that shape: warm where there is one, else started now. Raises CliError."""
        if tree is None:
            self._asked.append((time.monotonic(), shape))
            shelf = self._warm.get(shape, [])
            while shelf:
                ready = shelf.pop()
                self._wake.set()
                if ready.process.returncode is None:
                    self.hits += 1
                    return ready
                await self._launcher.dispose(ready)
        self.misses += 1
        try:
            async with self._starts:
                return await self._launcher.launch(shape, tree)
        finally:
            self._wake.set()

    async def _keep_filled(self) -> None:
        failures = 0
        while True:
            self._wake.clear()
            while (change := self._next_change()) is not None:
                shape, add = change
                if not add:
                    await self._launcher.dispose(self._warm[shape].pop(0))
                    continue
                try:
                    async with self._starts:
                        ready = await self._launcher.launch(shape)
                except CliError as error:
                    failures += 1
                    self.proven = False
                    _log.error("warm start failed: %s", error)
                    await asyncio.sleep(min(30.0, 2.0**failures))
                    continue
                failures = 0
                self.proven = True
                self._warm.setdefault(shape, []).append(ready)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), 5.0)
                # The run that has just taken a process needs the cores first, for its first words.
                await asyncio.sleep(_REFILL_DELAY_S)

    def _next_change(self) -> tuple[Shape, bool] | None:
        """The next process to start (True) or to give up (False), so that the shelves match the demand."""
        for shelf in self._warm.values():
            shelf[:] = [ready for ready in shelf if not self._died(ready)]
        wanted = self._wanted()
        for shape, count in wanted.items():
            if len(self._warm.get(shape, ())) < count:
                surplus = next((s for s, shelf in self._warm.items() if len(shelf) > wanted.get(s, 0)), None)
                if self.warm >= self._maximum and surplus is not None:
                    return surplus, False
                return shape, True
        for shape, shelf in self._warm.items():
            if len(shelf) > wanted.get(shape, 0):
                return shape, False
        return None

    def _died(self, ready: Ready) -> bool:
        if ready.process.returncode is None:
            return False
        self._launcher.dispose_soon(ready)
        return True

    def _wanted(self) -> dict[Shape, int]:
        """How many of which shape: the recent demand's shares, and the default shape where there is none."""
        horizon = time.monotonic() - _DEMAND_WINDOW_S
        self._asked = [(at, shape) for at, shape in self._asked if at > horizon]
        demand = Counter(shape for _, shape in self._asked)
        size = min(self._maximum, max(self._minimum, len(self._asked) // 10))
        if not size:
            return {}
        wanted: Counter[Shape] = Counter()
        for shape, count in demand.most_common(size):
            share = max(1, size * count // max(1, len(self._asked)))
            wanted[shape] += min(share, size - wanted.total())
        if wanted:
            # What was asked for most stays warm through a quiet hour.
            self._default = wanted.most_common(1)[0][0]
        if missing := size - wanted.total():
            wanted[self._default] += missing
        return dict(wanted)
