"""A child process with pipes, under another user where wanted.

uvloop's own subprocess support knows neither `user` nor `umask`, and both loops fork on the loop's thread;
so the child is started by `subprocess` in a thread and its pipes are connected to whichever loop runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import os
import resource
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from claude_invoker.cli import usage
from claude_invoker.cli.hold import Hold
from claude_invoker.isolation.box import Entry
from claude_invoker.isolation.network import Way, started

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
_SOONER = 500
"""Thousandths of all memory that a run's process seems larger when the kernel looks for one to end."""
_SHARE_OF_CLI = 8
"""One in so many of a run's processes is the CLI's own. It has some ten threads."""
_THREADS = ThreadPoolExecutor(8, "start")
"""What holds a run ends with the thread that has started it (PR_SET_PDEATHSIG, prctl(2)): so these end with the
invoker, and not before."""


@dataclass(frozen=True)
class Limits:
    """Resource limits of each process of a run (0: none), see setrlimit(2). What its processes take together is watched
    from outside (`runs.watch`). `runs`: how many there are at once; `held`: the first processes of those that there
    are, from which all of theirs descend."""

    memory: int = 0
    file_size: int = 0
    processes: int = 0
    runs: int = 1
    held: tuple[int, ...] = ()

    def settings(self, *, own_user: bool) -> list[tuple[int, int]]:
        """(resource, limit). The kernel counts processes by user: those of a run where that has its own, else all that
        our user has, so that the limit is for all runs together. A run that makes more than its share before it is
        looked at leaves the machine some then; and the next one, which is started meanwhile, has no more for it."""
        wanted = [(resource.RLIMIT_DATA, self.memory), (resource.RLIMIT_FSIZE, self.file_size)]
        if self.processes:
            most = self.processes if own_user else self._beside() + self.processes * self.runs
            wanted.append((resource.RLIMIT_NPROC, _within(most, resource.getrlimit(resource.RLIMIT_NPROC)[1])))
        return [(resource.RLIMIT_CORE, 0), *((kind, value) for kind, value in wanted if value)]

    def spare(self, *, own_count: bool) -> int:
        """How many of them commands leave to the CLI, which ends where it can start no thread; where all runs are
        counted together, to the CLIs of all. `own_count`: whether the kernel counts those of a run by themselves."""
        return self.processes // _SHARE_OF_CLI * (1 if own_count else self.runs)

    def _beside(self) -> int:
        """How many our user has that are not of runs."""
        return usage.beside(os.getuid(), self.held).threads


def _within(value: int, hard: int) -> int:
    return value if hard == resource.RLIM_INFINITY else min(value, hard)


class Child:
    """Standard input, output and error as asyncio streams; `exited` is set when the process has ended."""

    def __init__(
        self,
        popen: subprocess.Popen[bytes],
        stdin: asyncio.StreamWriter,
        stdout: asyncio.StreamReader,
        stderr: asyncio.StreamReader,
        transports: tuple[asyncio.BaseTransport, ...],
        listener: socket.socket | None,
        hold: Hold | None,
    ) -> None:
        self.hold = hold
        self._popen = popen
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self._transports = transports
        self.listener = listener
        self.exited = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._pidfd = os.pidfd_open(popen.pid)
        self._loop.add_reader(self._pidfd, self._reap)
        if hold is not None:
            hold.watch()

    @classmethod
    async def start(
        cls,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        uid: int | None,
        pass_fds: tuple[int, ...] = (),
        limits: Limits,
        entry: Entry | None = None,
        network: Way | None = None,
        line_limit: int,
    ) -> Child:
        """Starts it as leader of a new session, umask 077. `entry`: into a box (see `isolation`); `hold` is then what
        holds all of the run, where its user does not. `network`: in a network of its own; `listener` is then the one in
        it. Raises OSError."""
        entry = entry or Entry()
        popen, listener, hold = await asyncio.get_running_loop().run_in_executor(
            _THREADS, _popen, arguments, env, cwd, uid, pass_fds, limits, entry, network
        )
        assert popen.stdin is not None and popen.stdout is not None and popen.stderr is not None
        loop = asyncio.get_running_loop()
        stdout, out = await _reader(popen.stdout, line_limit)
        stderr, err = await _reader(popen.stderr, 65536)
        flow = asyncio.StreamReaderProtocol(asyncio.StreamReader())
        into, _ = await loop.connect_write_pipe(lambda: flow, _closed_once(popen.stdin))
        stdin = asyncio.StreamWriter(into, flow, None, loop)
        return cls(popen, stdin, stdout, stderr, (out, err, into), listener, hold)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        return self._popen.returncode

    def terminate(self) -> None:
        """Asks the process to end; nothing where it has ended."""
        if self.hold is not None:
            self.hold.terminate()
        elif self.returncode is None:
            self._popen.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """Closes the pipes."""
        for transport in self._transports:
            transport.close()
        if self.listener is not None:
            self.listener.close()
        if self.hold is not None:
            self.hold.close()

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._popen.wait()
        self.exited.set()


def _confine(limits: list[tuple[int, int]], steps: Sequence[Callable[[], None]]) -> None:
    """Runs in the child before exec. (prlimit(2) from here would need CAP_SYS_RESOURCE, which containers
    lack.) No program it starts gains rights by a set-user-id bit."""
    _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for kind, value in limits:
        resource.setrlimit(kind, (value, value))
    _go_first()
    for step in steps:
        step()


def _go_first() -> None:
    """Where memory ends, of a container or a machine, runs end before who serves them; whatever they hold it by."""
    # Its change of user has made the file root's. Nothing else of that user is alive to look into what is ours yet.
    _LIBC.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
    with contextlib.suppress(OSError):
        score = Path("/proc/self/oom_score_adj")
        score.write_text(str(min(1000, int(score.read_text()) + _SOONER)))
    _LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # until exec


def _popen(
    arguments: Sequence[str],
    env: Mapping[str, str],
    cwd: Path,
    uid: int | None,
    pass_fds: tuple[int, ...],
    limits: Limits,
    entry: Entry,
    network: Way | None,
) -> tuple[subprocess.Popen[bytes], socket.socket | None, Hold | None]:
    def start(go_inside: Callable[[], None] | None = None) -> subprocess.Popen[bytes]:
        steps = [step for step in (go_inside, entry.enter) if step is not None]
        return subprocess.Popen(
            [*entry.command, *arguments],
            env=env,
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            pass_fds=(*pass_fds, *entry.pass_fds),
            start_new_session=True,
            umask=0o077,
            user=uid,
            group=uid,
            extra_groups=None if uid is None else (),
            preexec_fn=functools.partial(_confine, limits.settings(own_user=uid is not None), steps),
        )

    popen, listener = (start(), None) if network is None else started(network, start)
    if entry.first is None:
        return popen, listener, None
    try:
        return popen, listener, Hold(entry.first(popen.pid), entry.end)
    except OSError as error:
        popen.kill()
        _, said = popen.communicate()
        if listener is not None:
            listener.close()
        why = said.decode(errors="replace").strip().splitlines()[-1:]
        raise OSError(error.errno, "; ".join([error.strerror or str(error), *why])) from error


async def _reader(pipe: IO[bytes], limit: int) -> tuple[asyncio.StreamReader, asyncio.BaseTransport]:
    reader = asyncio.StreamReader(limit=limit)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, _closed_once(pipe))
    return reader, transport


def _closed_once(pipe: IO[bytes]) -> IO[bytes]:
    """uvloop closes a pipe's descriptor and then its file object, which closes that number again: by then it may be
    another thread's, even one that libuv polls, and libuv aborts the process. So uvloop gets a file object that
    leaves the descriptor alone; asyncio closes by the file object only."""
    if not type(asyncio.get_running_loop()).__module__.startswith("uvloop"):
        return pipe
    number = os.dup(pipe.fileno())
    mode = "wb" if pipe.writable() else "rb"
    pipe.close()
    return open(number, mode, buffering=0, closefd=False)
