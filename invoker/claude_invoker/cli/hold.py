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
        self._end = end
        self._pidfd = os.pidfd_open(pid)
        self._cli: int | None = None

    def find_cli(self, processes: int) -> None:
        """The CLI is its child, and before the run its only one. `processes`: how many it and what it starts may be
        (0: any number), see `Box.counts_processes`. Raises OSError."""
        children = usage.children(self.pid)
        if len(children) != 1:
            raise ChildProcessError(f"{len(children)} processes where there should be the CLI's")
        if processes:
            resource.prlimit(children[0], resource.RLIMIT_NPROC, (processes, processes))
        self._cli = os.pidfd_open(children[0])

    def terminate(self) -> None:
        """Asks the CLI to end."""
        if self._cli is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._cli, signal.SIGTERM)

    def strike(self) -> None:
        """Ends everything."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, self._end)

    async def over(self, within_s: float) -> bool:
        """Waits until nothing is left. False where something is after `within_s`."""
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pidfd, ended.set)
        try:
            await asyncio.wait_for(ended.wait(), within_s)
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(self._pidfd)
        return True

    def has_held(self, returncode: int | None) -> bool:
        """Whether all has ended with it, which was started with this end: namespaces are ended by the kernel, however
        their first process ends; a process of ours has to do it itself."""
        return self._end == signal.SIGKILL or (returncode is not None and returncode >= 0)

    def close(self) -> None:
        """Once nothing is left."""
        for descriptor in (self._pidfd, self._cli):
            if descriptor is not None:
                os.close(descriptor)
