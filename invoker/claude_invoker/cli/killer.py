"""The program that ends runs: `python -I -S killer.py KILLER_UID`, started by `kill.Killer` and run by its path.

It reads lines `ID UID DEADLINE_S` and answers each with `ID LEFT`, the processes of user UID that were still alive when
it gave up (0: none). Each request has a process of its own, so that one that takes long keeps no other waiting.

A run may do to processes of its own user whatever it wants: also stop whoever comes as that user to end it. The
killer's real and saved user ids are therefore a third one, which no run ever has: with the run's as its effective id it
may signal every process of the run, and none of them may signal it (kill(2)). It never calls exec, which would copy the
effective id into the saved one.

Standard library only, and little of that: it forks for every run, so it has to be small.
"""

import os
import select
import signal
import sys
import time

_PAUSE_S = 0.002


def alive(uid: int) -> int:
    """How many processes have this real user id and are not yet over, see proc(5)."""
    found = 0
    for entry in os.listdir("/proc"):  # noqa: PTH208 -- pathlib is not small
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/status", "rb") as file:
                status = file.read()
        except OSError:
            continue
        owner = status.split(b"\nUid:\t", 1)[1].split(None, 1)[0]
        found += int(owner) == uid and not over(status)
    return found


def over(status: bytes) -> bool:
    """Whether a process with this /proc/PID/status runs no more. It is a zombie as soon as its first thread has ended,
    and goes on as long as it has others."""
    state = status.split(b"\nState:\t", 1)[1][:1]
    threads = status.split(b"\nThreads:\t", 1)[1].split(None, 1)[0]
    return state == b"X" or (state == b"Z" and int(threads) <= 1)


def strike(uid: int, killer_uid: int) -> None:
    """SIGKILL to every process that user `uid` may signal. Returns in the parent once it has been sent."""
    try:
        child = os.fork()
    except OSError:
        strike_without_fork(uid, killer_uid)
        return
    if child:
        os.waitpid(child, 0)
        return
    try:
        os.setresgid(uid, uid, uid)
        os.setgroups([])
        os.setresuid(killer_uid, uid, killer_uid)
        if powerless():
            os.kill(-1, signal.SIGKILL)
    finally:
        os._exit(0)


def strike_without_fork(uid: int, killer_uid: int) -> None:
    """The same where no process can be made, since runs have them all: then it is the only way to get some back.

    Root's id is kept as the saved one, which lets us return and gives the run no right to signal us either.
    """
    os.setresuid(killer_uid, uid, 0)
    try:
        if powerless():
            os.kill(-1, signal.SIGKILL)
    finally:
        os.setresuid(0, 0, 0)


def powerless() -> bool:
    """Whether we hold no capability: with CAP_KILL, kill(-1) would end the machine."""
    with open("/proc/self/status", "rb") as file:
        return int(file.read().split(b"\nCapEff:\t", 1)[1].split(None, 1)[0], 16) == 0


def end(uid: int, killer_uid: int, until: float) -> int:
    """Strikes until nothing of the user is left, or that time has passed. How many are left."""
    while True:
        strike(uid, killer_uid)
        left = alive(uid)
        if not left or time.monotonic() > until:
            return left
        time.sleep(_PAUSE_S)


class Request:
    """One line read, and until when it is tried (on the clock of `time.monotonic`)."""

    def __init__(self, line: bytes) -> None:
        number, uid, deadline_s = line.split()
        self.number, self.uid, self.until = number, int(uid), time.monotonic() + float(deadline_s)


def begin(request: Request, killer_uid: int, waiting: dict[int, bytes]) -> bool:
    """A process for one request, noted in `waiting`. False where none can be made now."""
    try:
        child = os.fork()
    except OSError:
        return False
    if not child:
        signal.set_wakeup_fd(-1)
        left = 255
        try:
            left = min(254, end(request.uid, killer_uid, request.until))
        finally:
            os._exit(left)
    waiting[child] = request.number
    return True


def answered_without_fork(request: Request, killer_uid: int) -> bool:
    """Whether a request for which no process can be made is over. Zombies that nobody waits for are processes, too:
    where they are what is too many, none can ever be made, and all has ended all the same."""
    strike_without_fork(request.uid, killer_uid)
    left = alive(request.uid)
    if left and time.monotonic() <= request.until:
        return False
    os.write(1, b"%s %d\n" % (request.number, min(254, left)))
    return True


def serve(killer_uid: int) -> None:
    """Answers requests until standard input ends."""
    waiting: dict[int, bytes] = {}
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    text = b""
    postponed: list[Request] = []
    while True:
        postponed = [request for request in postponed if not answered_without_fork(request, killer_uid)]
        postponed = [request for request in postponed if not begin(request, killer_uid, waiting)]
        for ready in select.select([0, reader], [], [], _PAUSE_S if postponed else None)[0]:
            if ready == reader:
                os.read(reader, 4096)
                continue
            chunk = os.read(0, 65536)
            if not chunk:
                return
            *lines, text = (text + chunk).split(b"\n")
            postponed += [request for request in map(Request, lines) if not begin(request, killer_uid, waiting)]
        while waiting:
            child, status = os.waitpid(-1, os.WNOHANG)
            if not child:
                break
            os.write(1, b"%s %d\n" % (waiting.pop(child), os.waitstatus_to_exitcode(status)))


if __name__ == "__main__":
    os.setsid()
    serve(int(sys.argv[1]))
