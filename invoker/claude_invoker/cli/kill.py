"""Ending processes by what they cannot change: their user, or else the environment they were started with."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

_KILL_ALL = ("/bin/sh", "-c", "kill -9 -1")


def kill_user(uid: int) -> None:
    subprocess.run(_KILL_ALL, stderr=subprocess.DEVNULL, user=uid, group=uid, extra_groups=(), env={}, check=False)


def alive(uid: int) -> bool:
    """Whether a process of the user is left that is not yet a zombie."""
    return any(owner == uid and state not in "ZX" for _, owner, state in _processes())


def kill_marked(marker: bytes) -> int:
    """SIGKILL to each process whose environment carries the marker; how many there were."""
    found = 0
    for pid, owner, state in _processes():
        if owner != os.geteuid() or state in "ZX":
            continue
        with contextlib.suppress(OSError):
            if marker in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)
                found += 1
    return found


def _processes() -> list[tuple[int, int, str]]:
    """(pid, real user id, state letter) of every process, see proc(5)."""
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            status = Path(entry.path, "status").read_bytes()
            state = status.split(b"\nState:\t", 1)[1][:1].decode()
            uid = int(status.split(b"\nUid:\t", 1)[1].split(None, 1)[0])
            found.append((int(entry.name), uid, state))
    return found
