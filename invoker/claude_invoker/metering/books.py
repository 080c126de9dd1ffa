"""The metering proxy's side of what it and the invoker say to each other: runs' accounts, kept here."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from claude_invoker.metering.account import Account
from claude_invoker.metering.exchange import Grant
from claude_invoker.metering.handing import Arrived, Connection
from claude_invoker.metering.journal import CannotWrite, Journal
from claude_invoker.metering.models import permits
from claude_invoker.metering.prices import Prices
from claude_invoker.metering.proxy import KeyProxy
from claude_invoker.metering.purse import Purse
from claude_invoker.metering.usage import Used
from claude_invoker.metering.wire import (
    Answered,
    Ask,
    Booked,
    Close,
    Debt,
    Done,
    Draw,
    Drawn,
    End,
    Handed,
    Hold,
    Left,
    Open,
    Owed,
    Spent,
    Taken,
    ToInvoker,
    Told,
    ToProxy,
)

_log = logging.getLogger(__name__)
_NOBODY_BILLED_S = 120.0
"""How long a run that nobody is billed for may take to have its last request answered."""
_AGAIN_S = 5.0
_ANSWER_S = 10.0
_MOST_DEBTS = 1000
"""Told at once; the next time the others."""


@dataclass
class _Kept:
    token: str
    grant: Grant
    open: bool = True


class Books:
    """`tell`: says something to the invoker."""

    def __init__(self, journal: Journal, prices: Prices, proxy: KeyProxy, tell: Callable[[ToInvoker], None]) -> None:
        self._journal = journal
        self._prices = prices
        self._proxy = proxy
        self._tell = tell
        self._runs: dict[str, _Kept] = {}
        self._handed: dict[str, Connection] = {}
        """Of runs, on which answers are under way."""
        self._booked_once: dict[str, float] = {}
        self._answers: dict[int, asyncio.Future[Drawn]] = {}
        self._ids = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, message: ToProxy) -> None:
        """Does what the invoker asks for. Raises ValueError for what it may not say."""
        match message:
            case Open():
                self._tell(Done(message.id, refused=self._open(message)))
            case Left():
                if (connection := self._handed.get(message.run)) is not None:
                    connection.left()
            case Close():
                self._soon(self._close(message))
            case Booked():
                self._booked(message.run, message.is_new)
            case Hold():
                self._proxy.hold = message.reason
            case Drawn():
                answer = self._answers.get(message.id)
                if answer is not None and not answer.done():
                    answer.set_result(message)
            case Ask(what="owed"):
                self._tell(Owed(message.id, self._owed()))
            case Ask():
                self._tell(Spent(message.id, self._spent(message.run, message.lease)))
            case _:
                raise ValueError("the invoker has set up the proxy twice")

    def answer(self, arrived: Arrived) -> None:
        """A request that the invoker has handed over, with an account of its own."""
        self._soon(self._answer(arrived.message, arrived.connection, arrived.body))

    def refuse(self, message: Handed) -> None:
        """One whose connection has not come with it."""
        _log.error("a request is refused: as many connections are open as may be (ulimit -n)")
        self._tell(Taken(message.open.run))
        self._tell(Answered(message.open.id, refused="too many requests are under way"))

    async def _answer(self, message: Handed, connection: Connection, body: bytes) -> None:
        run, refused = message.open.run, self._open(message.open)
        self._tell(Taken(run))
        if refused is not None:
            connection.close()
            self._tell(Answered(message.open.id, refused=refused))
            return
        self._handed[run] = connection
        scope = {"path": message.path, "query_string": message.query, "headers": message.headers}
        end: End = "broken"
        try:
            await self._proxy.answer(self._runs[run].grant, scope, body, connection.send, connection.gone)
        finally:
            del self._handed[run]
            if connection.close():
                end = "complete"
            elif connection.gone.done():
                end = "left"
            self._tell(Answered(message.open.id, end))

    async def ask(self, run: str, cost: int, under_way: int, least: int, most: int) -> Drawn:
        """See `purse.Teller`."""
        number = next(self._ids)
        answer: asyncio.Future[Drawn] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            self._tell(Draw(number, run, cost, under_way, least, most))
            async with asyncio.timeout(_ANSWER_S):
                return await answer
        except TimeoutError:
            return Drawn(number, under_way, held="the invoker does not say what is left of the budgets")
        finally:
            del self._answers[number]

    def say(self, run: str, cost: int, under_way: int) -> None:
        self._tell(Draw(0, run, cost, under_way, under_way, under_way))

    def _open(self, message: Open) -> str | None:
        """Why not, where it cannot be."""
        try:
            entry = self._journal.begin(message.run, message.lease)
        except CannotWrite:
            return "what runs cost cannot be written down: the disk is full?"
        account = Account(self._prices, message.cap_usd, entry.spent_usd)
        purse = None if message.lease is None else Purse(message.run, account, self)
        grant = Grant(
            message.run,
            lambda model: permits(message.models, model),
            message.requests,
            account,
            self._journal,
            frozenset(message.features),
            purse,
        )
        if purse is not None:
            grant.settled = lambda: self._soon(purse.settled())
            if not message.is_new:
                grant.settled()  # of the proxy before this one the ledger may have more under way
        grant.changed = lambda model, used: self._changed(grant, model, used)
        grant.metered = self._tell
        self._runs[message.run] = _Kept(message.token, grant)
        self._proxy.grant(message.token, grant)
        if not message.is_new:
            self._changed(grant, "", Used())
        return None

    def _changed(self, grant: Grant, model: str, used: Used) -> None:
        self._journal.commit_soon()
        account = grant.account
        told = Told(
            grant.run,
            account.spent_usd,
            account.under_way,
            account.exhausted,
            account.budget,
            account.blocked,
            grant.refused,
            grant.held_back,
            grant.api_status,
            grant.unreachable,
            grant.retry_after,
            model,
            used,
        )
        self._tell(told)

    async def _close(self, message: Close) -> None:
        kept = self._runs.get(message.run)
        if kept is None:
            self._tell(Done(message.id))
            return
        kept.open = False
        self._proxy.revoke(kept.token)
        account = kept.grant.account
        final = await account.settled(message.within_s)
        await self._journal.commit()
        self._tell(Done(message.id, final))
        if kept.grant.purse is None:
            await account.settled(_NOBODY_BILLED_S)
            self._booked(message.run)

    def _booked(self, run: str, is_new: bool = False) -> None:
        """Forgets it, where nobody is billed, or the ledger still has what it had. Else it is asked again when it has
        on its disk and on its replicas what it has now (it books nothing twice): until it has lost nothing."""
        entry = self._journal.entries.get(run)
        self._runs.pop(run, None)
        if entry is None or entry.lease is None or (run in self._booked_once and not is_new):
            self._booked_once.pop(run, None)
            self._journal.booked(run)
        else:
            self._booked_once[run] = time.monotonic()

    def _spent(self, run_id: str, lease: str | None) -> int | None:
        self._journal.adopt()
        for run, entry in self._journal.entries.items():
            if run.partition(":")[0] == run_id and entry.lease == lease:
                return entry.micro_usd
        return None

    def _owed(self) -> tuple[Debt, ...]:
        """What is known to the last answer, of runs that have ended."""
        self._journal.adopt()
        debts = []
        for run, entry in list(self._journal.entries.items()):
            kept = self._runs.get(run)
            if run in self._booked_once and time.monotonic() - self._booked_once[run] < _AGAIN_S:
                continue
            if kept is not None and (kept.open or kept.grant.account.under_way):
                continue
            if entry.lease is not None:
                debts.append(Debt(run, entry.lease, entry.micro_usd))
            elif kept is None:
                self._booked(run)
        return tuple(debts[:_MOST_DEBTS])

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
