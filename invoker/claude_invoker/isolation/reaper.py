"""Ends all that a run has started where it has no user of its own: a process of ours that stays in the run's domain.

Who is in a domain with scoped signals reaches by kill(-1) that domain and those made in it, and nobody else of the
same user; and whatever a run does to be forgotten (a session of its own, parents that end, another environment), it
descends from the process that adopts orphans. Commands are in domains of their own and cannot signal this one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 1, 4, 36
END = signal.SIGTERM
"""What tells it to end the run."""
_HEARD = {signal.SIGCHLD, END}


def last_as_we_do() -> Callable[[], None]:
    """In a child of ours, while it still has /proc. What it returns is for `stay_behind`, in this same process: where
    memory ends, it is then looked at as the invoker is and not as a run, which it has to outlive."""
    score = None
    _LIBC.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)  # else the file is root's
    with contextlib.suppress(OSError):
        ours = Path(f"/proc/{os.getppid()}/oom_score_adj").read_bytes()
        score = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    _LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)

    def last() -> None:
        if score is not None:
            with contextlib.suppress(OSError):
                os.write(score, ours)

    return last


def stay_behind(last: Callable[[], None]) -> None:
    """In a child of ours, before exec, once it is in the domain: returns in a child of that, which becomes the run.
    `last`: see `last_as_we_do`.

    This process stays as long as anything of the run lives, and ends it when that first child has ended, when it is
    told to (`END`), or when the thread that has started it is no more. It ends with the exit code of its first child.

    Raises OSError where the domain does not keep signals in: kill(-1) would then end all that our user has.
    """
    with contextlib.suppress(PermissionError):
        os.kill(os.getppid(), 0)
        raise OSError("signals leave the domain")
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
    invoker = os.getppid()
    first = os.fork()
    if not first:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    code = 255
    try:
        # It is a copy of the invoker, and never becomes another program.
        _LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
        _LIBC.prctl(_PR_SET_PDEATHSIG, END, 0, 0, 0)
        last()
        os.closerange(0, 1 << 20)
        code = _watch(first) if os.getppid() == invoker else code
    finally:
        _end()
        os._exit(code)


def _watch(first: int) -> int:
    """Reaps until the run is to end. The exit code of the first child, 255 where it has not ended."""
    while signal.sigwait(_HEARD) != END:
        while True:
            try:
                child, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if child == first:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
            if not child:
                break
    return 255


def _end() -> None:
    """Returns when nothing is left."""
    with contextlib.suppress(ChildProcessError):
        while True:
            with contextlib.suppress(OSError):
                os.kill(-1, signal.SIGKILL)
            os.waitpid(-1, 0)
            # All that have ended by now at once: to signal again after each takes a minute for a fork bomb's thousands.
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
