"""Watches what runs use of the machine, and says when one uses more than it may.

The kernel bounds each process, and the processes of a user; it has no bound for what a run's processes take together,
nor for what lies in a run's tree, that works in every container. So it is looked at twice a second.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from claude_invoker import disk
from claude_invoker.cli import usage
from claude_invoker.cli.contained import Contained
from claude_invoker.problem import Problem

_log = logging.getLogger(__name__)
_EVERY_S = 0.5
_SHARE = 20
"""Files are looked at again after so many times what the last look took."""
_FILES_S = 1.0
"""And not before so long."""

Kind = Literal["memory", "processes", "tree", "tree_entries"]


@dataclass(frozen=True)
class Bounds:
    """What one run may use together; 0: as much as it wants. `memory` and `tree` are bytes."""

    memory: int = 0
    processes: int = 0
    tree: int = 0
    tree_entries: int = 0

    def of(self, kind: Kind) -> int:
        return int(getattr(self, kind))


_SETTINGS: dict[Kind, tuple[str, str]] = {
    "memory": ("INVOKER_MEMORY_LIMIT", "bytes of memory"),
    "processes": ("INVOKER_PROCESS_LIMIT", "processes and threads"),
    "tree": ("INVOKER_TREE_LIMIT", "bytes in its directory"),
    "tree_entries": ("INVOKER_TREE_ENTRIES_LIMIT", "files in its directory"),
}


def problem_of(kind: Kind, allowed: int) -> Problem:
    setting, what = _SETTINGS[kind]
    return Problem(
        422,
        "limit",
        f"the run took more than {allowed} {what} ({setting})",
        extra={"limit": kind, "allowed": allowed, "setting": setting},
    )


@dataclass
class _Watched:
    process: Contained
    exceeded: Callable[[Problem], None]
    subject: str
    uses: dict[Kind, int] = field(default_factory=dict)
    unnamed: int = 0
    """Bytes of memory in files without a name, as of the last look at files."""


class Watch:
    """`strays`: whether runs can leave files outside of their trees. `trees`: what all that run may have on the disk
    together."""

    def __init__(self, bounds: Bounds, strays: Callable[[], bool], trees: disk.Bounds = disk.Bounds()) -> None:  # noqa: B008 frozen
        self.bounds = bounds
        self._trees = trees
        self._strays = strays
        self._watched: list[_Watched] = []
        self._tasks: list[asyncio.Task[None]] = []

    @contextmanager
    def over(self, process: Contained, exceeded: Callable[[Problem], None], subject: str = "") -> Iterator[None]:
        """Calls `exceeded` once if the process, and all that it starts, use more than they may while the block runs; or
        all runs of the subject, or of all, where this one has the most."""
        watched = _Watched(process, exceeded, subject)
        self._watched.append(watched)
        if len(self._watched) == 1:
            self._rest()
            self._tasks = [asyncio.create_task(self._again(look)) for look in (self._processes, self._files)]
        try:
            yield
        finally:
            if watched in self._watched:
                self._watched.remove(watched)
            if not self._watched:
                self._rest()

    def most(self, kind: Kind) -> int:
        """What the run uses that uses the most."""
        return max((watched.uses.get(kind, 0) for watched in self._watched), default=0)

    @property
    def trees(self) -> int:
        """Bytes that the files of all take together."""
        return sum(watched.uses.get("tree", 0) for watched in self._watched)

    def _rest(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _again(self, look: Callable[[], Awaitable[float]]) -> None:
        """Looks again and again, until cancelled; one look that fails is no reason not to look."""
        while True:
            try:
                pause_s = await look()
            except Exception:
                _log.exception("what runs use of the machine could not be seen, it is looked at again")
                pause_s = _EVERY_S
            await asyncio.sleep(pause_s)

    def _judge(self, watched: _Watched) -> None:
        for kind, used in watched.uses.items():
            if (allowed := self.bounds.of(kind)) and used > allowed and watched in self._watched:
                self._watched.remove(watched)
                _log.warning("a run is ended: %s: %d, %d are allowed", kind, used, allowed)
                watched.exceeded(problem_of(kind, allowed))

    def _judge_together(self, subject: str) -> None:
        """Ends the one that has the most, of the subject's or of all, while they are beyond the bound."""
        for of_all, allowed in ((False, self._trees.per_subject), (True, self._trees.in_all)):
            group = [each for each in self._watched if of_all or each.subject == subject]
            group.sort(key=lambda each: each.uses.get("tree", 0))
            while allowed and sum(each.uses.get("tree", 0) for each in group) > allowed:
                most = group.pop()
                self._watched.remove(most)
                full = disk.refusal("trees", self._trees, of_all=of_all)
                # It has cost money: no client is to repeat it by itself, as vendors' do after a 507.
                problem = Problem(422, "limit", full.detail, extra=full.extra)
                _log.warning("a run is ended: %s", problem.detail)
                most.exceeded(problem)

    async def _processes(self) -> float:
        for watched, uses in await asyncio.to_thread(_uses, list(self._watched), self.bounds.memory):
            watched.uses["memory"] = uses.memory
            watched.uses["processes"] = uses.threads
            self._judge(watched)
        return _EVERY_S

    async def _files(self) -> float:
        began = time.monotonic()
        for watched in list(self._watched):
            found, watched.unnamed = await asyncio.to_thread(self._look, watched.process)
            watched.uses["tree"], watched.uses["tree_entries"] = found.bytes, found.entries
            self._judge(watched)
            self._judge_together(watched.subject)
        return max(_FILES_S, _SHARE * (time.monotonic() - began))

    def _look(self, process: Contained) -> tuple[usage.Files, int]:
        enough = usage.Files(self.bounds.tree or 1 << 63, self.bounds.tree_entries or 1 << 63)
        found = usage.files(process.tree.root, enough)
        if process.uid is not None and self._strays():
            for path in usage.strays(process.uid):
                more = usage.files(path, enough)
                found = usage.Files(found.bytes + more.bytes, found.entries + more.entries)
        pids = _of([process])[0].pids
        on_disk, in_memory = usage.nameless(pids)
        found.bytes += on_disk
        return found, in_memory


def _uses(watched: list[_Watched], memory: int) -> list[tuple[_Watched, usage.Processes]]:
    """What each uses; memory that is too much is looked at once more, with what is shared counted once."""
    found = _of([each.process for each in watched])
    for each, uses in zip(watched, found, strict=True):
        if memory and uses.memory + each.unnamed > memory:
            uses.memory = usage.memory_of(uses, each.unnamed)
        else:
            uses.memory += each.unnamed
    return list(zip(watched, found, strict=True))


def _of(processes: list[Contained]) -> list[usage.Processes]:
    by_user = usage.of_users([process.uid for process in processes if process.uid is not None])
    held = [process.hold.pid for process in processes if process.uid is None and process.hold is not None]
    by_descent = usage.descended(held) if held else {}
    marks = [process.mark for process in processes if process.uid is None and process.hold is None]
    by_mark = usage.marked(marks) if marks else {}

    def of(process: Contained) -> usage.Processes:
        if process.uid is not None:
            return by_user[process.uid]
        return by_mark[process.mark] if process.hold is None else by_descent[process.hold.pid]

    return [of(process) for process in processes]
