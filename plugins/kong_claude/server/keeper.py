"""Whose server this is, and how it outlives the worker that started it.

nginx starts the server from worker 0, and ends it with that worker: SIGTERM, and SIGKILL at once after it, when the
worker's Lua ends. On `kong reload` the other old workers still need it then, and the new ones too until their own
listens, which takes a second. So what Kong starts is a keeper, which does nothing, and the server is its child.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple

PATIENCE = 1.0  # seconds until a keeper without SIGTERM notices that its worker has gone


class Master(NamedTuple):
    """Kong's nginx master. `started` (clock ticks since boot) tells it from a later process of the same number."""

    pid: int
    started: str

    @property
    def alive(self) -> bool:
        try:
            state, started = _stat(self.pid)
        except OSError:
            return False
        return started == self.started and state != "Z"


def _stat(pid: int) -> tuple[str, str]:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return fields[0], fields[19]


def parent(pid: int) -> tuple[int, str]:
    """Parent's pid and name. Raises OSError."""
    ppid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return ppid, Path(f"/proc/{ppid}/comm").read_text().strip() if ppid else ""


def master_of(pid: int) -> Master | None:
    """The master of the nginx worker that started process `pid`; None where no nginx did."""
    try:
        worker, name = parent(pid)
        if name != "nginx":
            return None
        master, name = parent(worker)
        if master > 1 or name == "nginx":  # in a container nginx may be the first process
            return Master(master, _stat(master)[1])
    except (OSError, IndexError, ValueError):
        pass
    return None


def keep() -> None:
    """Returns in the child. The keeper itself ends with the child's status, or when it is told to by then telling the
    child: at once, so that Kong may start another."""
    worker = os.getppid()
    awaited = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    child = os.fork()
    if not child:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, awaited)
        return
    while True:
        came = signal.sigtimedwait(awaited, PATIENCE)
        if came is not None and came.si_signo == signal.SIGCHLD:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                sys.stdout.flush()
                os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
        elif came is not None or os.getppid() != worker:
            os.kill(child, signal.SIGTERM)
            os._exit(0)
