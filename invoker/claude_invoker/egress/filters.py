"""The filter as the invoker has it: one process for all runs that reach hosts, started for the first of them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from claude_contract.destinations import Destination
from claude_invoker.egress import wire
from claude_invoker.egress.wire import Moved, Order, Visit

_log = logging.getLogger(__name__)
_PROGRAM: tuple[str, ...] = ("-m", "claude_invoker.egress.filter")

Told = Callable[[Visit | Moved], None]


class Passage:
    """One run's way out. Worth nothing before `begin` and after `close`."""

    def __init__(self, filter: _Process, number: int) -> None:
        self._filter = filter
        self._number = number

    @property
    def alive(self) -> bool:
        """False where the filter has ended: then the run reaches nobody."""
        return self._filter.alive

    def begin(self, told: Told) -> None:
        """`told` hears of all that the run does with it."""
        self._filter.told[self._number] = told
        self._filter.order(Order("begin", self._number))

    def close(self) -> None:
        """Breaks all its connections. Called again it does nothing."""
        if self._filter.told.pop(self._number, None) is not None:
            self._filter.order(Order("close", self._number))


@dataclass
class Traffic:
    """Of all runs so far."""

    led: int = 0
    refused: int = 0
    bytes: int = 0

    def take(self, said: Visit | Moved) -> None:
        if isinstance(said, Moved):
            self.bytes += said.bytes
        elif said.refusal:
            self.refused += 1
        else:
            self.led += 1


class Filters:
    """`user`: gives a user id that nobody else has, `give_back` takes it again. `max_bytes`: of a run, both ways."""

    def __init__(
        self, user: Callable[[], Awaitable[int | None]], give_back: Callable[[int | None], None], max_bytes: int
    ) -> None:
        self._user = user
        self._give_back = give_back
        self._max_bytes = max_bytes
        self._process: _Process | None = None
        self._starting = asyncio.Lock()
        self._numbers = itertools.count(1)
        self.traffic = Traffic()

    async def open(self, listener: socket.socket, destinations: Iterable[Destination]) -> Passage:
        """From now on who connects to `listener` (which is closed here) is led to these hosts. Raises OSError."""
        with listener:
            process = await self._running()
            number = next(self._numbers)
            process.told[number] = lambda said: None
            hosts = tuple(f"{host.host}:{host.port}" for host in destinations)
            process.order(Order("open", number, hosts, self._max_bytes), [listener.fileno()])
        return Passage(process, number)

    async def stop(self) -> None:
        if self._process is not None:
            await self._process.stop()

    async def _running(self) -> _Process:
        async with self._starting:
            if self._process is None or not self._process.alive:
                await self.stop()
                uid = await self._user()
                try:
                    self._process = await _Process.start(uid, self.traffic, lambda: self._give_back(uid))
                except BaseException:
                    self._give_back(uid)
                    raise
            return self._process


class _Process:
    """One process of the filter, and who wants to hear what of it."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        control: socket.socket,
        traffic: Traffic,
        ended: Callable[[], None],
    ) -> None:
        self._process = process
        self._traffic = traffic
        self._control = control
        self._ended = ended
        self._stopped = False
        self.alive = True
        self.told: dict[int, Told] = {}
        asyncio.get_running_loop().add_reader(control, self._heard)

    @classmethod
    async def start(cls, uid: int | None, traffic: Traffic, ended: Callable[[], None]) -> _Process:
        """Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-I",
                    *_PROGRAM,
                    str(os.geteuid() if uid is None else uid),
                    str(theirs.fileno()),
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    cwd="/",
                    env={},
                )
            except BaseException:
                ours.close()
                raise
        ours.setblocking(False)
        return cls(process, ours, traffic, ended)

    def order(self, order: Order, descriptors: Iterable[int] = ()) -> None:
        """Where the filter has ended there is nobody to be told: its runs reach nobody. Raises OSError where an `open`
        cannot be sent."""
        try:
            socket.send_fds(self._control, [wire.encode(order)], list(descriptors))
        except OSError:
            if order.verb == "open":
                raise
            if self.alive and order.verb == "close":
                # It does not read any more: better none of its runs gets out than one that is over.
                self._process.kill()

    async def stop(self) -> None:
        """Called again it does nothing."""
        if self._stopped:
            return
        self._stopped = True
        self._lost()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        self._control.close()
        self._ended()

    def _heard(self) -> None:
        try:
            packet = self._control.recv(wire.MAX_PACKET)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            _log.error("the egress filter has ended; runs that use it reach nobody any more")
            self._lost()
            return
        said = wire.decode(packet)
        if isinstance(said, Order):
            return
        self._traffic.take(said)
        if (told := self.told.get(said.passage)) is not None:
            told(said)

    def _lost(self) -> None:
        if self.alive:
            self.alive = False
            asyncio.get_running_loop().remove_reader(self._control)
