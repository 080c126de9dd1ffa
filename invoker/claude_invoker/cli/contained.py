"""A process within the boundary around a run, ended with everything it started: the CLI, or a command beside it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from claude_invoker.cli.child import Child
from claude_invoker.cli.hold import Hold
from claude_invoker.cli.kill import Killer, StillAlive, kill_marked
from claude_invoker.cli.tree import Tree
from claude_invoker.egress.filters import Passage
from claude_invoker.isolation.box import Box, Entry, Kind, least
from claude_invoker.isolation.network import Way

KILL_S = 5.0
"""How long the end of everything may take; with 200 hostile processes it takes a hundredth of that."""


@contextlib.contextmanager
def inside(
    box: Box | None, tree: Tree, api: Path, network: Way | None, readable: tuple[Path, ...] = ()
) -> Iterator[tuple[Kind | None, Entry]]:
    """How a process gets into the boundary around runs, with this tree. `api`: the socket of the key proxy; `readable`:
    what it may read besides. Raises OSError."""
    if box is None:
        yield None, Entry(enter=least())
        return
    kind = box.closed if network is None else box.open
    with box.around(tree.root, kind, api.parent, readable) as entry:
        yield kind, entry


class Contained:
    """`killer` ends what has a user of its own. A process that is started under `name` has `mark` in its
    environment."""

    def __init__(self, name: str, tree: Tree, uid: int | None, child: Child, killer: Killer | None) -> None:
        self.name = name
        self.tree = tree
        self.uid = uid
        self._child = child
        self._killer = killer
        self._ended = False
        self.passage: Passage | None = None
        """Its way out, where it has one."""

    @property
    def hold(self) -> Hold | None:
        """What holds all of the run where its user does not."""
        return self._child.hold

    @property
    def listener(self) -> socket.socket | None:
        return self._child.listener

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def first(self) -> int:
        """The process from which all of it descends."""
        return self.pid if self.hold is None else self.hold.pid

    @property
    def mark(self) -> str:
        """The variable in the environment of all that it starts, unless that takes it out."""
        return f"CLAUDE_INVOKER_PROCESS={self.name}"

    @property
    def returncode(self) -> int | None:
        return self._child.returncode

    def close_input(self) -> None:
        """It has nothing more to read. (The CLI exits once its run is over.)"""
        self._child.stdin.close()

    async def exited(self, within_s: float) -> bool:
        """Waits for the process itself. False where it is still there after `within_s`."""
        try:
            async with asyncio.timeout(within_s):
                await self._child.exited.wait()
        except TimeoutError:
            return False
        return True

    async def end(self) -> None:
        """Leaves no process of all that it started: SIGKILL. Called again it does nothing.

        Raises StillAlive where some are left after `KILL_S`.
        """
        if self._ended:
            return
        self.close_input()
        if self.hold is not None:
            self.hold.strike()
            try:
                async with asyncio.timeout(KILL_S):
                    await self.hold.over.wait()
            except TimeoutError as error:
                raise StillAlive(f"process {self.hold.pid} and what it holds do not end") from error
        if self._killer is not None and self.uid is not None:
            await self._killer.end(self.uid, KILL_S)
        elif self.hold is None:
            await self._kill_marked()
        if not await self.exited(KILL_S):
            raise StillAlive(f"the process {self.pid} of a run does not end")
        if self.hold is not None and not self.hold.has_held(self.returncode):
            raise StillAlive("the process that holds the run was killed, and the run may be left")
        await self._is_over()
        self._child.close()
        self._ended = True

    async def _is_over(self) -> None:
        """Nothing of it is alive; its pipes are still open."""

    async def _kill_marked(self) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        marker = self.mark.encode()
        until = time.monotonic() + KILL_S
        while left := await asyncio.to_thread(kill_marked, marker):
            if time.monotonic() > until:
                raise StillAlive(f"{left} processes are left after {KILL_S:g} s")
            await asyncio.sleep(0.005)
