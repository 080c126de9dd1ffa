"""The invoker's side of the metering proxy: starts it, watches over it, and tells it which runs there are.

While it is not there, runs' requests are refused by the kernel: nobody listens. The next one reads what the last one
has written down, and is told the runs that go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from claude_contract.features import Feature
from claude_contract.ledger import Draw, Drawn, LedgerUnavailable, Slot
from claude_invoker.metering import handing, wire
from claude_invoker.metering.drawn import answered
from claude_invoker.metering.figures import Figures
from claude_invoker.metering.handing import Hands, NotHanded, Request
from claude_invoker.metering.outbound_proxy import proxy_for
from claude_invoker.metering.ownprice import OwnPrice
from claude_invoker.metering.wire import Debt, ToInvoker

_log = logging.getLogger(__name__)
PROGRAM: tuple[str, ...] = ("-P", "-m", "claude_invoker.metering")
_READY_S = 30.0
_ANSWER_S = 10.0
_END_S = 6.0
_LONGEST_PAUSE_S = 10.0
_BACKLOG = 256


class NoProxy(RuntimeError):
    """The metering proxy is not there, or does not answer."""


@dataclass(frozen=True)
class Terms:
    """What a run may do."""

    lease: str | None
    cap_usd: Decimal
    models: tuple[str, ...] | None
    requests: int
    features: tuple[Feature, ...] = ()
    slot: Slot | None = None
    """What the lease stands for."""
    tier: str = ""
    is_new: bool = False
    """Whether its lease was never before that of anything else: not that of a run, which may be tried again."""


class Purses(Protocol):
    """Where runs draw what their requests may cost (`draws.Draws`)."""

    def put(self, lease: str, slot: Slot, draw: Draw, answer: Callable[[Drawn | LedgerUnavailable], None]) -> None: ...


@dataclass
class _Run:
    token: str
    terms: Terms
    figures: Figures
    open: bool = True


@dataclass
class Settings:
    """What the proxy is told at its start."""

    base_urls: tuple[str, ...]
    """Of the API, in the order in which they are asked."""
    prices: Mapping[str, OwnPrice] = field(default_factory=dict)
    unknown_price: Literal["refuse", "dearest"] = "refuse"


class Metering:
    """`journals`: the directory of its journals; `uid`: its user, None for ours; `key`: a descriptor of the API's key,
    which is kept open for as long as there is to be a proxy."""

    def __init__(self, settings: Settings, journals: Path, uid: int | None, key: int) -> None:
        self._settings = settings
        self._upstreams = tuple(wire.Upstream(url, proxy_for(url, os.environ)) for url in settings.base_urls)
        self._journals = journals
        self._uid = uid
        self._key = key
        self._directory = -1
        self._runs: dict[str, _Run] = {}
        self._tokens: dict[str, str] = {}
        self._answers: dict[int, asyncio.Future[ToInvoker]] = {}
        self._ids = itertools.count(1)
        self._process: asyncio.subprocess.Process | None = None
        self._link: asyncio.WriteTransport | None = None
        self._hands: Hands | None = None
        self._ready = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self.held: str | None = None
        """Why no request of a run that is billed is sent now."""
        self.purses: Purses | None = None
        self.socket = Path()
        """Where runs ask."""
        self.starts = 0

    @property
    def obstacle(self) -> str | None:
        """Why no request of a run would be sent now; None where one would."""
        return None if self._ready.is_set() else "the metering proxy is not running: the log says why"

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def under_way(self) -> dict[str, int]:
        """How many requests to the API each run has under way."""
        return {run: kept.figures.under_way for run, kept in self._runs.items() if kept.figures.under_way}

    async def start(self, socket_path: Path) -> None:
        """Starts the proxy; `ready` tells when it is there. Raises OSError."""
        self.socket = socket_path
        self._journals.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = os.open(self._journals, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        if self._uid is not None:
            for name in os.listdir(self._directory):  # noqa: PTH208 -- a descriptor
                # Also what a release has left whose invoker wrote the journals itself.
                os.chown(name, self._uid, self._uid, dir_fd=self._directory, follow_symlinks=False)
            os.fchown(self._directory, self._uid, self._uid)
        os.fchmod(self._directory, 0o700)
        await self._spawn()
        self._watching = asyncio.create_task(self._watch())

    async def ready(self) -> None:
        """Waits for it. Raises NoProxy."""
        try:
            async with asyncio.timeout(_READY_S):
                await self._ready.wait()
        except TimeoutError as error:
            raise NoProxy("the metering proxy does not start") from error

    async def stop(self) -> None:
        """Lets it write down what is under way, and end."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self._end()
        for descriptor in (self._directory, self._key):
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def issue(self) -> str:
        """A new token that is worth nothing yet."""
        return "run-" + secrets.token_urlsafe(32)

    def revoke(self, token: str) -> None:
        """It is worth nothing any more. Does not wait."""
        run = self._tokens.pop(token, None)
        if run is not None and (kept := self._runs.get(run)) is not None and kept.open:
            kept.open = False
            self._say(wire.Close(next(self._ids), run, 0.0))

    async def open(self, run: str, token: str, terms: Terms, figures: Figures) -> None:
        """From now on the token is worth requests of this run; `figures` is kept up to date. Raises NoProxy."""
        await self.ready()
        self._runs[run] = kept = _Run(token, terms, figures)
        self._tokens[token] = run
        try:
            answer = await self._asked(_opened(next(self._ids), run, kept, is_new=terms.is_new), _ANSWER_S)
            if isinstance(answer, wire.Done) and answer.refused is not None:
                raise NoProxy(answer.refused)
        except NoProxy:
            self.forget(run, token)
            raise

    async def hand(
        self, run: str, token: str, terms: Terms, figures: Figures, asked: Request
    ) -> asyncio.Future[wire.Answered]:
        """Opens an account for one request, which the proxy answers on its client's own connection: see `Hands.give`.
        Raises NoProxy."""
        await self.ready()
        self._runs[run] = kept = _Run(token, terms, figures)
        self._tokens[token] = run
        try:
            if self._hands is None:
                raise NotHanded(self.obstacle)
            return await self._hands.give(_opened(next(self._ids), run, kept, is_new=terms.is_new), asked)
        except NotHanded as error:
            self.forget(run, token)
            raise NoProxy(str(error)) from error

    def forget(self, run: str, token: str) -> None:
        """The proxy has not opened it."""
        self.revoke(token)
        self._runs.pop(run, None)

    async def left(self, run: str) -> None:
        """The client of a request that was handed over has left."""
        if self._hands is not None:
            await self._hands.until_taken(run)
        self._say(wire.Left(run))

    async def close(self, run: str, within_s: float) -> bool:
        """The run has ended: waits for the last of its requests. Whether its figures are final; where they are not, the
        proxy, or the next one, will know (`owed`)."""
        kept = self._runs.get(run)
        if kept is None:
            return True
        kept.open = False
        self._tokens.pop(kept.token, None)
        try:
            answer = await self._asked(wire.Close(next(self._ids), run, within_s), within_s + _ANSWER_S)
        except NoProxy as error:
            _log.warning("run %s: what its last requests have cost is not known yet: %s", run, error)
            self._runs.pop(run, None)
            return False
        is_final = isinstance(answer, wire.Done) and answer.final
        if is_final:
            self._runs.pop(run, None)
        return is_final

    def booked(self, run: str, is_new: bool) -> None:
        """The ledger has all that the run has cost. `is_new`: it did not have it before."""
        self._runs.pop(run, None)
        self._say(wire.Booked(run, is_new))

    async def owed(self) -> tuple[Debt, ...]:
        """What runs have cost that have ended, also those of invokers that are no more. Raises NoProxy."""
        await self.ready()
        answer = await self._asked(wire.Ask(next(self._ids), "owed"), _ANSWER_S)
        return answer.debts if isinstance(answer, wire.Owed) else ()

    async def spent(self, run_id: str, lease: str | None) -> int | None:
        """Micro-USD of a run that is not booked; None where no journal of this directory knows it. Raises NoProxy."""
        await self.ready()
        answer = await self._asked(wire.Ask(next(self._ids), "spent", run_id, lease), _ANSWER_S)
        return answer.micro_usd if isinstance(answer, wire.Spent) else None

    def hold(self, reason: str | None) -> None:
        """Requests of runs that are billed are refused for this reason, until it is None."""
        if reason != self.held:
            _log.warning("requests of runs: %s", reason or "what they cost can be booked again")
            self.held = reason
            self._say(wire.Hold(reason))

    def _say(self, message: wire.ToProxy) -> None:
        """Nothing where there is no proxy: the next one is told by `_greet`, or finds out by `owed`."""
        if self._link is not None and self._ready.is_set():
            self._link.write(wire.line(message))

    async def _asked(self, message: wire.Open | wire.Close | wire.Ask, within_s: float) -> ToInvoker:
        if not self._ready.is_set():
            raise NoProxy(self.obstacle)
        answer: asyncio.Future[ToInvoker] = asyncio.get_running_loop().create_future()
        self._answers[message.id] = answer
        try:
            self._say(message)
            async with asyncio.timeout(within_s):
                return await answer
        except TimeoutError as error:
            raise NoProxy("the metering proxy does not answer") from error
        finally:
            self._answers.pop(message.id, None)

    async def _watch(self) -> None:
        """Starts it again whenever it ends, after a pause that grows while it does not live long."""
        pause_s = 0.05
        while True:
            began = time.monotonic()
            if self._process is not None:
                starting = asyncio.create_task(self._overdue(self._process))
                try:
                    code = await self._process.wait()
                finally:
                    starting.cancel()
                self._lost()
                _log.error(
                    "the metering proxy has ended (%d): requests of runs are refused until the next one is there", code
                )
            pause_s = 0.05 if time.monotonic() - began > _LONGEST_PAUSE_S else min(_LONGEST_PAUSE_S, 2 * pause_s)
            await asyncio.sleep(pause_s)
            try:
                await self._spawn()
            except OSError as error:
                self._process = None
                _log.error("the metering proxy cannot be started: %s", error)

    async def _overdue(self, process: asyncio.subprocess.Process) -> None:
        await asyncio.sleep(_READY_S)
        if not self._ready.is_set():
            _log.error("the metering proxy has not got ready within %g s", _READY_S)
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    async def _spawn(self) -> None:
        """Raises OSError."""
        self.socket.unlink(missing_ok=True)
        ours, theirs = socket.socketpair()
        hands, handed = handing.pair()
        with theirs, handed, socket.socket(socket.AF_UNIX) as listener:
            try:
                listener.bind(str(self.socket))
                self.socket.chmod(0o666)
                listener.listen(_BACKLOG)
                passed = (theirs.fileno(), handed.fileno(), listener.fileno(), self._directory, self._key)
                uid = -1 if self._uid is None else self._uid
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    *PROGRAM,
                    *map(str, (*passed, uid)),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    cwd="/",
                    env={name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ},
                    pass_fds=passed,
                    start_new_session=True,
                )
            except OSError:
                ours.close()
                hands.close()
                raise
        self.starts += 1
        self._hands = Hands(hands)
        loop = asyncio.get_running_loop()
        self._link, _ = await loop.create_unix_connection(lambda: _Link(self), sock=ours)
        prices = {name: price.model_dump(mode="json") for name, price in self._settings.prices.items()}
        setup = wire.Setup(
            self._upstreams, prices, self._settings.unknown_price, os.environ.get("SSL_CERT_FILE") or None
        )
        self._link.write(wire.line(setup))

    def _greet(self) -> None:
        """A proxy is there: it is told what the last one knew, before anything else."""
        self._ready.set()
        if self.held is not None:
            self._say(wire.Hold(self.held))
        for run, kept in list(self._runs.items()):
            if kept.open:
                kept.figures.under_way = 0
                self._say(_opened(next(self._ids), run, kept, is_new=False))
            else:
                del self._runs[run]  # it has ended: what it owes is in the journal
        self._say(wire.Serve())

    def _lost(self) -> None:
        self._ready.clear()
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._hands is not None:
            self._hands.lost()
            self._hands = None
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(NoProxy("the metering proxy has ended"))

    async def _end(self) -> None:
        process, self._process = self._process, None
        self._lost()
        if process is None:
            return
        try:
            async with asyncio.timeout(_END_S):
                await process.wait()
        except TimeoutError:
            _log.error("the metering proxy does not end, it is killed")
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def heard(self, message: ToInvoker) -> None:
        match message:
            case wire.Ready():
                self._greet()
            case wire.Told():
                kept = self._runs.get(message.run)
                if kept is not None:
                    kept.figures.take(message)
                    if not kept.open and not message.under_way:
                        del self._runs[message.run]
            case wire.Metered():
                if (kept := self._runs.get(message.run)) is not None:
                    kept.figures.add(message)
            case wire.Draw():
                self._draw(message)
            case wire.Done() | wire.Owed() | wire.Spent():
                answer = self._answers.get(message.id)
                if answer is not None and not answer.done():
                    answer.set_result(message)
            case wire.Taken():
                if self._hands is not None:
                    self._hands.taken(message.run)
            case wire.Answered():
                if self._hands is not None:
                    self._hands.heard(message)

    def _draw(self, message: wire.Draw) -> None:
        kept = self._runs.get(message.run)
        if kept is None or kept.terms.lease is None or self.purses is None:
            return
        lease, slot = kept.terms.lease, kept.terms.slot or Slot()
        amounts = message.under_way_micro_usd, message.least_micro_usd, message.most_micro_usd
        self.purses.put(
            lease,
            slot,
            Draw(message.cost_micro_usd, *amounts, kept.terms.tier),
            lambda drawn: self._say(answered(message, drawn, lease)),
        )


class _Link(asyncio.Protocol):
    """Reads lines as they come: what is told before something else is known before it, too."""

    def __init__(self, metering: Metering) -> None:
        self._metering = metering
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > wire.MAX_LINE:
            raise ValueError("a line of the metering proxy is too long")
        for line in lines:
            try:
                self._metering.heard(wire.to_invoker.decode(line))
            except msgspec.MsgspecError:
                _log.exception("the metering proxy says what is not understood")


def _opened(number: int, run: str, kept: _Run, *, is_new: bool) -> wire.Open:
    terms = kept.terms
    bounds = terms.cap_usd, terms.models, terms.requests, terms.features
    return wire.Open(number, run, kept.token, terms.lease, *bounds, is_new)
