"""What a run may spend, has reserved for requests under way, and has spent."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from decimal import Decimal

from claude_invoker.metering.bill import Bill, Reservation
from claude_invoker.metering.prices import Price, Prices
from claude_invoker.metering.request import Asked
from claude_invoker.metering.usage import Used

ENOUGH_TOKENS = 8192
"""An answer that may be as long as this is rarely cut off: it is not worth a better bound, or waiting for others."""


class Exhausted(Exception):
    """What is left of the run's budget, or of another that it belongs to, does not suffice for the request."""


@dataclass
class Account:
    """One run's. Every amount is in US dollars, exact. A request is reserved before it is sent, at the most that it can
    cost, and settled by what its answer has used: requests at the same time never spend the same dollar."""

    prices: Prices
    cap_usd: Decimal
    spent_usd: Decimal = Decimal(0)
    reserved_usd: Decimal = Decimal(0)
    unknown_usd: Decimal = Decimal(0)
    """What requests may have cost beyond what was booked: it counts against the cap, and is not billed."""
    exhausted: bool = False
    """Whether a request was refused for want of budget."""
    budget: str = ""
    """Which, where it was not the run's own: a sentence."""
    blocked: bool = False
    """Whether it was none, but an admin who has blocked somebody."""
    _open: set[Reservation] = field(default_factory=set)
    _settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Of the next reservation that is."""

    @property
    def under_way(self) -> int:
        """Requests that are reserved and not settled."""
        return len(self._open)

    @property
    def left_usd(self) -> Decimal:
        return self.cap_usd - self.spent_usd - self.reserved_usd - self.unknown_usd

    @property
    def has_drawn(self) -> bool:
        """Whether one of them holds what the ledger has taken for it."""
        return any(each.is_drawn for each in self._open)

    @property
    def drawn_usd(self) -> Decimal:
        """What the ledger has taken for requests under way, with what others may have cost."""
        return sum((each.usd for each in self._open if each.is_drawn), self.unknown_usd)

    def fits(
        self,
        asked: Asked,
        price: Price,
        input_tokens: int,
        searches: int | None = None,
        within_usd: Decimal | None = None,
    ) -> int:
        """How many tokens the answer may have, at most as many as it asks for. 0 where there is no budget for one.
        `searches`: if it had no more than so many. `within_usd`: if so much were left."""
        left = self.left_usd if within_usd is None else min(self.left_usd, within_usd)
        left -= asked.input_usd_bound(price, input_tokens, searches)
        if left < 0:
            return 0
        rate = asked.output_usd_bound(price, input_tokens, searches)
        count = asked.max_tokens if rate == 0 else min(asked.max_tokens, int(left / rate))
        return count if count >= asked.fewest_tokens else 0

    def suffices(
        self,
        asked: Asked,
        price: Price,
        input_tokens: int,
        searches: int | None = None,
        within_usd: Decimal | None = None,
    ) -> bool:
        """Whether the answer may be as long as it asks for, or long enough."""
        fits = self.fits(asked, price, input_tokens, searches, within_usd)
        return fits >= min(asked.max_tokens, ENOUGH_TOKENS)

    async def others_settled(self) -> bool:
        """Waits for one of the requests under way: what it has not used of its reservation is there for others. False
        where there is none."""
        if not self._open:
            return False
        await self._settled.wait()
        return True

    def reserve(self, asked: Asked, price: Price, input_tokens: int, within_usd: Decimal | None = None) -> Reservation:
        """`input_tokens`: a bound. Gives up searches before it shortens the answer below what is enough. Raises
        Exhausted."""
        fewer = range(asked.uses.searches, 0, -1) or (0,)
        enough = (count for count in fewer if self.suffices(asked, price, input_tokens, count, within_usd))
        searches = next(enough, fewer[-1])
        max_tokens = self.fits(asked, price, input_tokens, searches, within_usd)
        if not max_tokens:
            self.exhausted = True
            raise Exhausted
        sent = asked.lowered(max_tokens, searches)
        input_usd = sent.input_usd_bound(price, input_tokens)
        usd = input_usd + max_tokens * sent.output_usd_bound(price, input_tokens)
        again = sent.again() * max_tokens
        bound = Used(sent.read_tokens(price, input_tokens) + again, max_tokens, web_searches=searches)
        reservation = Reservation(price, self.prices, usd, input_usd, sent, bound)
        self.reserved_usd += usd
        self._open.add(reservation)
        return reservation

    def settle(self, reservation: Reservation, bill: Bill) -> None:
        """Ends a reservation, once however often it is called."""
        if reservation not in self._open:
            return
        self._open.discard(reservation)
        self.reserved_usd -= reservation.usd
        self.spent_usd += bill.usd
        self.unknown_usd += bill.most_usd - bill.usd
        self._settled.set()
        self._settled = asyncio.Event()

    async def settled(self, within_s: float) -> bool:
        """Waits until no request is under way. False where one still is."""
        try:
            async with asyncio.timeout(within_s):
                while await self.others_settled():
                    pass
        except TimeoutError:
            return False
        return True
