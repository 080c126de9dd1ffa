"""A command in a run's tree that the CLI has not started: as the run's user, within the boundary that the run's own
commands have. Only while nothing else of the run is alive."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from claude_invoker.cli.child import Child, Limits
from claude_invoker.cli.command import NOTHING, Given, environment_of_commands
from claude_invoker.cli.contained import KILL_S, Contained, inside
from claude_invoker.cli.kill import Killer
from claude_invoker.cli.tree import Tree
from claude_invoker.isolation.box import Box
from claude_invoker.isolation.network import Way

TAIL = 64 << 10
MOST = 64 << 20
"""Bytes that it may print."""
_TEXT = "CLAUDE_INVOKER_COMMAND"
# Every user of the machine can read a command line, so what a caller wants is not in it.
_RUN = f'exec 2>&1; set -- "${_TEXT}"; unset {_TEXT}; eval "$1"'


@dataclass(frozen=True)
class Said:
    """How a command has ended: by itself with an exit code, else it `was` ended for one of its bounds."""

    exit_code: int | None
    was: Literal["", "timeout", "output"]
    tail: bytes
    """The last of what it has printed, `TAIL` bytes at most."""
    size: int
    """Bytes of all that it has printed."""
    is_outside: bool
    """Whether it has not begun, since the boundary could not be entered."""


class Aside(Contained):
    """`spawn` → one `said`."""

    def __init__(self, name: str, tree: Tree, uid: int | None, child: Child, killer: Killer | None) -> None:
        super().__init__(name, tree, uid, child, killer)
        self._tail = bytearray()
        self._size = 0
        self._is_full = asyncio.Event()
        self._complaint = b""
        self._reading = [asyncio.create_task(self._read()), asyncio.create_task(self._hear())]

    @classmethod
    async def spawn(
        cls,
        text: str,
        tree: Tree,
        *,
        name: str,
        uid: int | None,
        api: Path,
        limits: Limits,
        killer: Killer | None,
        box: Box | None,
        network: Way | None,
        given: Given = NOTHING,
    ) -> Aside:
        """Starts `text`, of Bash, in `tree.work` with nothing to read; the rest as of `CliProcess`. Raises OSError."""
        counted = box is not None and box.counts_processes and uid is None and limits.processes
        bound = f"ulimit -u {limits.processes} || exit 126; " if counted else ""
        with inside(box, tree, api, network, given.readable) as (kind, entry):
            shell = None if kind is None else kind.shell
            environment = environment_of_commands(tree, name, shell, egress=network is not None, given=given)
            child = await Child.start(
                ["/bin/bash" if shell is None else str(shell), "-c", bound + _RUN],
                env={**environment, _TEXT: text},
                cwd=tree.work,
                uid=uid,
                limits=limits,
                entry=entry,
                network=network,
                line_limit=1 << 16,
            )
        child.stdin.close()
        return cls(name, tree, uid, child, killer)

    @property
    def heard(self) -> int:
        """Bytes that it has printed so far."""
        return self._size

    async def said(self, within_s: float) -> Said:
        """Waits for its end, or ends it; nothing of what it has started is alive then. Raises StillAlive."""
        was: Literal["", "timeout", "output"] = ""
        ends = [asyncio.create_task(self._child.exited.wait()), asyncio.create_task(self._is_full.wait())]
        try:
            await asyncio.wait(ends, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
            if self.returncode is None:
                was = "output" if self._is_full.is_set() else "timeout"
        finally:
            for task in ends:
                task.cancel()
        code = self.returncode
        await self.end()
        if code is not None and code < 0:
            code = 128 - code
        return Said(code, was, bytes(self._tail), self._size, bool(code and self._complaint and not self._size))

    async def _is_over(self) -> None:
        # What it has printed last is still in the pipe. Who has got away with the pipe's other end is not waited for.
        _, late = await asyncio.wait(self._reading, timeout=KILL_S)
        for task in late:
            task.cancel()

    async def _read(self) -> None:
        while chunk := await self._child.stdout.read(1 << 16):
            self._size += len(chunk)
            self._tail += chunk
            del self._tail[:-TAIL]
            if self._size > MOST:
                self._is_full.set()

    async def _hear(self) -> None:
        """What is said before the command begins: by what makes the boundary."""
        while chunk := await self._child.stderr.read(4096):
            self._complaint = (self._complaint + chunk)[-4096:]
