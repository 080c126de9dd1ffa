"""Warm processes, each used once: started before anyone asks, bounded in starts and in number."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Iterable

from claude_invoker.cli.command import Shape
from claude_invoker.cli.contained import KILL_S
from claude_invoker.cli.launcher import READY_WITHIN_S, CannotFurnish, Launcher, Ready
from claude_invoker.cli.process import CliError
from claude_invoker.cli.tree import Tree

_log = logging.getLogger(__name__)
_DEMAND_WINDOW_S = 60.0
_REFILL_DELAY_S = 0.25
_STUCK_S = READY_WITHIN_S + 3 * KILL_S


class Pool:
    """Keeps between `minimum` and `maximum` warm processes of the shapes that are asked for most."""

    def __init__(self, launcher: Launcher, *, minimum: int, maximum: int, starts: int) -> None:
        self._launcher = launcher
        self._default: Shape | None = None
        self._first: list[Shape] = []
        self._minimum = minimum
        self._maximum = max(minimum, maximum)
        self._starts = asyncio.Semaphore(starts)
        self._warm: dict[Shape, list[Ready]] = {}
        self._asked: list[tuple[float, Shape]] = []
        self._wake = asyncio.Event()
        self._filler: asyncio.Task[None] | None = None
        self._busy_since: float | None = None
        self.proven = False
        """Whether the last start worked (False before the first)."""
        self.hits = 0
        self.misses = 0

    @property
    def warm(self) -> int:
        return sum(map(len, self._warm.values()))

    @property
    def obstacle(self) -> str | None:
        """Why no process could be started now; None where one could."""
        if self._filler is None or self._filler.done():
            return "processes are not kept ready"
        if self._busy_since is not None and time.monotonic() - self._busy_since > _STUCK_S:
            return "the start or end of a process does not finish"
        return None if self.proven else "no process has got ready yet, or the last did not"

    async def start(self, default: Shape, first: Iterable[Shape] = (), *, rehearsed: bool = False) -> None:
        """`default`: the shape to keep ready as long as none is asked for. `first`: more of which one is kept ready
        until it is asked for, where any is kept at all. `rehearsed`: a start has just worked, which need not be shown
        by one more where none is kept."""
        self.proven = rehearsed and not self._minimum
        self._default = default
        self._first = [shape for shape in dict.fromkeys(first) if shape != default] if self._minimum else []
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
            self._first = [each for each in self._first if each != shape]
            self._asked.append((time.monotonic(), shape))
            shelf = self._warm.get(shape, [])
            while shelf:
                ready = shelf.pop()
                self._wake.set()
                if ready.usable and self._launcher.surrounded:
                    self.hits += 1
                    return ready
                await self._launcher.dispose(ready)
        self.misses += 1
        try:
            async with self._starts:
                ready = await self._launcher.launch(shape, tree)
        except CliError as error:
            # A session's directory or a repository can be the reason, which is its own matter.
            self.proven = self.proven and (tree is not None or isinstance(error, CannotFurnish))
            raise
        finally:
            self._wake.set()
        self.proven = True
        return ready

    async def _keep_filled(self) -> None:
        failures = 0
        while True:
            self._wake.clear()
            while (change := self._next_change()) is not None:
                shape, add = change
                self._busy_since = time.monotonic()
                try:
                    if add:
                        await self._add(shape)
                        failures = 0
                    else:
                        await self._launcher.dispose(self._warm[shape].pop(0))
                except CliError as error:
                    failures += 1
                    _log.error("warm start failed: %s", error)
                    await asyncio.sleep(min(30.0, 2.0**failures))
                finally:
                    self._busy_since = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5.0):
                    await self._wake.wait()
                # The run that has just taken a process needs the cores first, for its first words.
                await asyncio.sleep(_REFILL_DELAY_S)

    async def _add(self, shape: Shape) -> None:
        """Starts a process for the shelf. Raises CliError."""
        try:
            async with self._starts:
                self._busy_since = time.monotonic()
                ready = await self._launcher.launch(shape)
        except CannotFurnish:
            self._asked = [(at, asked) for at, asked in self._asked if asked != shape]  # until it is asked for again
            raise
        except CliError:
            self.proven = False
            self._first = [each for each in self._first if each != shape]  # what nobody has asked for
            raise
        self.proven = True
        self._warm.setdefault(shape, []).append(ready)

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
        if ready.usable:
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
            # Nothing is kept warm; but that a start works is shown by one, and shown again after one that failed.
            return {} if self.proven or self._default is None else {self._default: 1}
        wanted: Counter[Shape] = Counter()
        for shape, count in demand.most_common(size):
            share = max(1, size * count // max(1, len(self._asked)))
            wanted[shape] += min(share, size - wanted.total())
        if plain := [shape for shape, _ in wanted.most_common() if shape.checkout is None]:
            # What was asked for most stays warm through a quiet hour; a repository's head moves meanwhile.
            self._default = plain[0]
        if self._default is not None and (missing := size - wanted.total()):
            wanted[self._default] += missing
        for shape in self._first:
            if shape not in wanted and wanted.total() < self._maximum:
                wanted[shape] = 1
        return dict(wanted)
