"""The process that all of a run descend from and end with: the first one in its namespaces, or the one that stays in
its domain (`isolation.reaper`)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal

from claude_invoker.cli import usage


class Hold:
    """`pid`: the number of that process, `end`: what ends it, and with it all that it holds."""

    def __init__(self, pid: int, end: signal.Signals) -> None:
        """Raises ProcessLookupError."""
        self.pid = pid
        self.over = asyncio.Event()
        """Whether nothing is left, once it is watched."""
        self._end = end
        self._pidfd = os.pidfd_open(pid)
        self._cli: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def watch(self) -> None:
        """From now on `over` is set when it is so."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pidfd, self._is_over)

    def _is_over(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._pidfd)
        self.over.set()

    def find_cli(self, processes: int) -> None:
        """The CLI is its eldest child. `processes`: how many it and what it starts may be (0: any number), see
        `Box.counts_processes`. Raises OSError."""
        cli = usage.eldest_child(self.pid)
        if processes:
            resource.prlimit(cli, resource.RLIMIT_NPROC, (processes, processes))
        self._cli = os.pidfd_open(cli)

    def terminate(self) -> None:
        """Asks the CLI to end."""
        if self._cli is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._cli, signal.SIGTERM)

    def strike(self) -> None:
        """Ends everything."""
        if self.over.is_set():
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, self._end)

    def has_held(self, returncode: int | None) -> bool:
        """Whether all has ended with it, which was started with this end: namespaces are ended by the kernel, however
        their first process ends; a process of ours has to do it itself."""
        return self._end == signal.SIGKILL or (returncode is not None and returncode >= 0)

    def close(self) -> None:
        """Once nothing is left. Called again it does nothing."""
        descriptors, self._pidfd, self._cli = (self._pidfd, self._cli), -1, None
        for descriptor in descriptors:
            if descriptor is not None and descriptor >= 0:
                os.close(descriptor)
