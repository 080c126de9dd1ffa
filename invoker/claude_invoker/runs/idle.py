"""Processes of sessions that are kept between two turns, so that the next one needs no start.

Kept is only a process in which nothing can go on by itself: one that has run no command and started no other process.
What it was started with holds for the next turn, so that this has to ask for the same. It has no way to the API in
between: its token is worth something while a run has it (`metering`), and each run has its own account and lease.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from claude_contract.rules import Rules
from claude_invoker.cli import usage
from claude_invoker.cli.contained import Contained
from claude_invoker.cli.launcher import Launcher, Ready
from claude_invoker.plan import Plan
from claude_invoker.runs.run import Run
from claude_invoker.runs.sessions import Session, Sessions

_log = logging.getLogger(__name__)
HARMLESS = frozenset({"Read", "Write", "Edit", "Glob", "Grep", "WebSearch", "StructuredOutput"})
"""Tools of the CLI's own that leave nothing running when they have answered."""
_SETTLES_S = 0.5
"""How long a process that a tool has used may take to be gone."""


@dataclass(frozen=True)
class Kind:
    """What is fixed for a process by its first turn: only a turn of the same kind goes on in it."""

    tier: str
    tools: tuple[str, ...]
    entries: tuple[tuple[str, ...], tuple[str, ...]]
    max_turns: int
    model: str
    models: tuple[str, ...] | None
    system: str | None
    schema: str
    rules: tuple[Rules, ...]

    @classmethod
    def of(cls, run: Run) -> Kind:
        plan: Plan = run.plan
        schema = "" if plan.output_schema is None else repr(plan.output_schema)
        entries = (plan.skills, plan.agents)
        return cls(
            run.tier, plan.tools, entries, plan.max_turns, plan.model, plan.models, plan.system, schema, plan.rules
        )


@dataclass
class _Kept:
    ready: Ready
    kind: Kind
    mark: int
    memory: int
    expiry: asyncio.TimerHandle | None = None
    since: float = field(default_factory=time.monotonic)


class Idle:
    """`for_s`: how long a process is kept (0: not at all); `memory`: bytes that all of them may have together."""

    def __init__(self, launcher: Launcher, sessions: Sessions, for_s: float, memory: int) -> None:
        self._launcher = launcher
        self._sessions = sessions
        self._for_s = for_s
        self._memory = memory
        self._kept: dict[str, _Kept] = {}
        self._ending: dict[str, asyncio.Task[None]] = {}
        self.hits = 0

    @property
    def enabled(self) -> bool:
        return self._for_s > 0

    @property
    def count(self) -> int:
        return len(self._kept)

    @property
    def memory(self) -> int:
        """Bytes that they had when they were kept."""
        return sum(kept.memory for kept in self._kept.values())

    def suits(self, run: Run) -> bool:
        """Whether a run of that plan may leave its process to the next turn, or take one."""
        plan = run.plan
        is_plain = not any((plan.egress, plan.servers, plan.check, plan.repository)) and plan.defers_after_s is None
        return self.enabled and is_plain and plan.session is not None

    async def take(self, session: Session, run: Run) -> Ready | None:
        """The process of the session's last turn, where it is one for this turn too: nobody has had the session since,
        and what is asked for is the same. None where it is not; then none is left of it."""
        kept = self._kept.pop(session.name, None)
        if kept is None:
            return None
        _rest(kept)
        is_ours = self._is_ours(kept, session.mark) and not session.is_made
        is_fit = self.suits(run) and kept.kind == Kind.of(run) and kept.ready.usable and self._launcher.surrounded
        if is_ours and is_fit:
            self.hits += 1
            return kept.ready
        await self._end(kept.ready, is_ours)
        return None

    async def forget(self, session: Session) -> None:
        """Ends it: the session's directory is to become another."""
        if (kept := self._kept.pop(session.name, None)) is not None:
            _rest(kept)
            await self._end(kept.ready, self._is_ours(kept, session.mark))

    async def keep(self, name: str, ready: Ready, run: Run, mark: int) -> None:
        """Of a run that is over. `mark`: of the session's record as its turn has left it."""
        uses = await asyncio.to_thread(_processes, ready.process)
        kept = _Kept(ready, Kind.of(run), mark, uses.memory)
        self._kept[name] = kept
        loop = asyncio.get_running_loop()
        kept.expiry = loop.call_later(self._for_s, self._expire, name)
        while self.memory > self._memory and self._kept:
            oldest = min(self._kept, key=lambda each: self._kept[each].since)
            self._expire(oldest)

    async def drop(self, ready: Ready) -> None:
        """Of a turn that has failed after all."""
        await self._end(ready, is_ours=True)

    async def stop(self) -> None:
        for name in list(self._kept):
            self._expire(name)
        await asyncio.gather(*self._ending.values(), return_exceptions=True)

    async def settled(self, name: str) -> None:
        """Waits for the end of a process whose time is over, so that its session is not taken for one in use."""
        if (task := self._ending.get(name)) is not None:
            await asyncio.wait((task,))

    def _expire(self, name: str) -> None:
        kept = self._kept.pop(name, None)
        if kept is None:
            return
        _rest(kept)
        task = asyncio.create_task(self._expired(name, kept))
        self._ending[name] = task
        task.add_done_callback(lambda _: self._ending.pop(name, None))

    async def _expired(self, name: str, kept: _Kept) -> None:
        with self._sessions.at(name) as tree:
            is_ours = tree is not None and self._is_ours(kept, self._sessions.mark(name))
            await self._end(kept.ready, is_ours)

    def _is_ours(self, kept: _Kept, mark: int) -> bool:
        """Whether the directory is still as the process has it: another invoker that shares it may have had a turn
        there since, or may have one."""
        try:
            owner = kept.ready.process.tree.root.lstat().st_uid
        except OSError:
            return False
        return kept.mark == mark and kept.ready.process.uid in (None, owner)

    async def _end(self, ready: Ready, is_ours: bool) -> None:
        if not is_ours:
            ready.tree_is_gone = True
        await self._launcher.dispose(ready)


def _rest(kept: _Kept) -> None:
    if kept.expiry is not None:
        kept.expiry.cancel()


async def alive(process: Contained) -> frozenset[int]:
    """What is alive of all that it has started, itself included."""
    return frozenset((await asyncio.to_thread(_processes, process)).pids)


async def is_alone(process: Contained, at_first: Iterable[int]) -> bool:
    """Whether nothing is alive of it but what was when it got ready."""
    until = time.monotonic() + _SETTLES_S
    while not await alive(process) <= frozenset(at_first):
        if time.monotonic() > until:
            return False
        await asyncio.sleep(0.02)
    return True


def _processes(process: Contained) -> usage.Processes:
    if process.uid is not None:
        return usage.of_users([process.uid])[process.uid]
    if process.hold is not None:
        return usage.descended([process.hold.pid])[process.hold.pid]
    return usage.marked([process.mark])[process.mark]
