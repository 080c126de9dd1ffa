"""What a run draws on the budgets that it belongs to: those of its subject and its pools, in the gateway's ledger."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Protocol

from claude_invoker.metering.account import ENOUGH_TOKENS, Account, Exhausted
from claude_invoker.metering.bill import Bill, Reservation
from claude_invoker.metering.figures import in_micro_usd
from claude_invoker.metering.prices import Price
from claude_invoker.metering.request import Asked
from claude_invoker.metering.wire import Drawn

_PATIENCE_S = 30.0
"""How long a request waits for what others have drawn of a budget and do not use: less than a run may be silent."""
_PAUSES_S = (0.25, 2.0)
"""Between two questions, the first and the longest: whose requests are answered, in which invoker, nobody says."""


class CannotDraw(Exception):
    """The ledger cannot say now whether there is budget; the text is for the run."""


class Teller(Protocol):
    """What the run has cost, and what its requests may cost that are under way; with one more, at least and at most. In
    micro-USD."""

    async def ask(self, run: str, cost: int, under_way: int, least: int, most: int) -> Drawn: ...

    def say(self, run: str, cost: int, under_way: int) -> None: ...


class Purse:
    """One run's. What is drawn is said of the whole run, and what is said last holds: so it is said in turn."""

    def __init__(self, run: str, account: Account, teller: Teller) -> None:
        self._run = run
        self._account = account
        self._teller = teller
        self._turn = asyncio.Lock()
        self._less = asyncio.Event()
        """Set when less is under way than now."""

    async def reserve(self, asked: Asked, price: Price, tokens: int) -> Reservation:
        """Of the run's own budget, then of all others: the answer may be shorter for it. Waits for other requests, of
        the run or not, where what they have drawn is not there for this one. `tokens`: a bound of its input. Raises
        Exhausted, CannotDraw."""
        loop = asyncio.get_running_loop()
        until, (pause_s, longest_s), enough = loop.time() + _PATIENCE_S, _PAUSES_S, ENOUGH_TOKENS
        while True:
            async with self._turn:
                less, others = self._less, self._account.has_drawn
                found = await self._draw(asked, price, tokens, ENOUGH_TOKENS if others else enough)
            if isinstance(found, Reservation):
                return found
            if others:
                await less.wait()
            elif found.fleeting and loop.time() < until:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, longest_s)
            elif enough:
                enough = 0  # what is left, however short the answer is then
            else:
                account = self._account
                account.exhausted, account.budget, account.blocked = True, found.refused or "", found.blocked
                raise Exhausted

    async def _draw(self, asked: Asked, price: Price, tokens: int, enough: int) -> Reservation | Drawn:
        """`enough`: how long the answer must be allowed to be, if it asks for as much. Why nothing is drawn, where
        nothing is. Raises Exhausted, CannotDraw."""
        account = self._account
        reservation = account.reserve(asked, price, tokens)
        try:
            under_way = account.drawn_usd
            least = min(asked.least_usd(price, tokens, enough), reservation.usd)
            drawn = await self._teller.ask(
                self._run,
                in_micro_usd(account.spent_usd),
                in_micro_usd(under_way),
                in_micro_usd(under_way + least),
                in_micro_usd(under_way + reservation.usd),
            )
            if drawn.held is not None:
                raise CannotDraw(drawn.held)
            if drawn.refused is not None:
                account.settle(reservation, Bill())
                return drawn
            left = Decimal(drawn.micro_usd) / 1_000_000 - under_way
            if left < reservation.usd:
                account.settle(reservation, Bill())
                reservation = account.reserve(asked, price, tokens, left)
        except BaseException:
            account.settle(reservation, Bill())
            raise
        reservation.is_drawn = True
        return reservation

    async def settled(self) -> None:
        """Something of the account has changed: it has cost more, less is under way."""
        async with self._turn:
            under_way = in_micro_usd(self._account.drawn_usd)
            self._teller.say(self._run, in_micro_usd(self._account.spent_usd), under_way)
            self._less.set()
            self._less = asyncio.Event()
