"""Ending processes by what they cannot change: their user, or else the environment they were started with."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import sys
from collections.abc import Collection
from pathlib import Path

from claude_invoker.cli.killer import over

_log = logging.getLogger(__name__)
_PROGRAM = Path(__file__).with_name("killer.py")
_MARGIN_S = 2.0
"""What the killer may take longer than its own deadline before it is taken for dead."""


class StillAlive(Exception):
    """Processes that should have ended have not."""


class Killer:
    """A process of root's that ends everything a user has (see `killer`), started when first needed.

    `uid`: the user id that it strikes with; no run may ever have it.
    """

    def __init__(self, uid: int) -> None:
        if uid <= 0:
            raise ValueError("the killer's user id must not be root's")
        self._uid = uid
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._answers: dict[bytes, asyncio.Future[int]] = {}
        self._ids = itertools.count(1)
        self._starting = asyncio.Lock()

    async def end(self, uid: int, deadline_s: float) -> None:
        """Leaves no process of user `uid`. Raises StillAlive where some are left after `deadline_s`."""
        if uid <= 0 or uid == self._uid:
            raise ValueError(f"{uid} is not a run's user id")
        try:
            left = await self._ask(uid, deadline_s)
        except ConnectionError:  # it has ended, or another call has given it up: that was not about this user
            try:
                left = await self._ask(uid, deadline_s)
            except ConnectionError as error:
                raise StillAlive("the killer ended twice") from error
        if left:
            raise StillAlive(f"{left} processes of user {uid} are left after {deadline_s:g} s")

    async def _ask(self, uid: int, deadline_s: float) -> int:
        """How many processes are left. Raises StillAlive where the killer does not answer, ConnectionError where it
        ends meanwhile."""
        number = b"%d" % next(self._ids)
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            process = await self._running()
            assert process.stdin is not None
            process.stdin.write(b"%s %d %r\n" % (number, uid, deadline_s))
            async with asyncio.timeout(deadline_s + _MARGIN_S):
                return await answer
        except TimeoutError as error:
            await self.stop()  # the next call starts another
            raise StillAlive("the killer does not answer") from error
        except ConnectionError:
            raise
        except OSError as error:
            raise StillAlive(f"the killer cannot be started: {error.strerror}") from error
        finally:
            self._answers.pop(number, None)

    async def stop(self) -> None:
        # Both at once: while this waits, another call may start the next.
        process, self._process = self._process, None
        reader, self._reader = self._reader, None
        if process is None or reader is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await asyncio.gather(reader, return_exceptions=True)

    async def _running(self) -> asyncio.subprocess.Process:
        async with self._starting:
            if self._process is None or self._process.returncode is not None:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-I",
                    "-S",
                    str(_PROGRAM),
                    str(self._uid),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    cwd="/",
                    env={},
                )
                self._reader = asyncio.create_task(self._read(self._process))
            return self._process

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            number, left = line.split()
            if (answer := self._answers.get(number)) is not None and not answer.done():
                answer.set_result(int(left))
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(ConnectionError("the killer ended"))


def kill_marked(marker: bytes) -> int:
    """SIGKILL to each process of our own user whose environment carries the marker; how many there were."""
    found = 0
    for pid, owner in _processes():
        if owner != os.geteuid():
            continue
        with contextlib.suppress(OSError):
            # Of each thread: the first may have ended, and the process with it no environment that can be read.
            if any(marker in path.read_bytes().split(b"\0") for path in Path(f"/proc/{pid}/task").glob("*/environ")):
                os.kill(pid, signal.SIGKILL)
                found += 1
    return found


def owners(uids: Collection[int]) -> set[int]:
    """Which of these users have a process that is not yet over."""
    return {owner for _, owner in _processes() if owner in uids}


def _processes() -> list[tuple[int, int]]:
    """(pid, real user id) of every process that is not yet over, see proc(5)."""
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            status = Path(entry.path, "status").read_bytes()
            uid = int(status.split(b"\nUid:\t", 1)[1].split(None, 1)[0])
            if not over(status):
                found.append((int(entry.name), uid))
    return found
