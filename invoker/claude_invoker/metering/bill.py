"""What one request has cost, however it ended: pure."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Literal

from claude_invoker.metering.allowed import Otherwise
from claude_invoker.metering.prices import Price, Prices, UnknownPrice
from claude_invoker.metering.request import Asked
from claude_invoker.metering.usage import ByModel, Meter, Used

_log = logging.getLogger(__name__)

Ending = Literal["complete", "not sent", "failed", "left"]
"""`failed`: the API broke off, or could not be asked. `left`: we did, since the run has gone, or the proxy ends."""


NOTHING = Used()


@dataclass(eq=False)
class Reservation:
    """Of one request. `asked` is what is to be sent, lowered so that it costs no more than `usd`; `input_usd` is what
    of that is for its input."""

    price: Price
    prices: Prices
    usd: Decimal
    input_usd: Decimal
    asked: Asked
    bound: Used
    """The most that it can use."""
    is_drawn: bool = False
    """Whether the ledger has taken it of the run's budgets."""

    @property
    def max_tokens(self) -> int:
        """What the answer may have."""
        return self.asked.max_tokens


@dataclass(frozen=True)
class Bill:
    """US dollars, exact: what is booked, and the most that it may have been, which counts against the run's cap."""

    usd: Decimal = Decimal(0)
    most_usd: Decimal = Decimal(0)
    used: Used = NOTHING
    beside: ByModel = field(default_factory=dict)
    """What other models have used for it, each at its own price."""


def unheard(reservation: Reservation, *, stream: bool) -> Bill:
    """Of a request on which the API has said nothing before we left it: of a stream, which begins with its message's
    start, the most that its input can be; of an answer in one piece all that was reserved."""
    return Bill(reservation.input_usd if stream else reservation.usd, reservation.usd)


def bill(reservation: Reservation, meter: Meter, ending: Ending, status: int | None, *, stream: bool) -> Bill:
    """`status`: the API's, None where it has not answered; `stream`: whether a stream was asked for."""
    if meter.seen:
        used, cost = meter.used, heard(reservation, meter, meter.used)
        return Bill(cost, max(cost, heard(reservation, meter, meter.most)), used, meter.beside)
    if ending == "not sent" or (status is not None and status != 200):
        return Bill()
    if ending == "failed":
        return Bill(most_usd=reservation.usd)  # the API bills no answer that it has not begun
    return unheard(reservation, stream=stream)


def heard(reservation: Reservation, meter: Meter, used: Used) -> Decimal:
    """US dollars of an answer, if it has used so much, with what other models have used for it."""
    cost = _answered(reservation, meter).cost(used)
    return sum((_price(reservation, model).cost(each) for model, each in meter.beside.items()), cost)


def _answered(reservation: Reservation, meter: Meter) -> Price:
    """By what the API says that it has done: it may have been slower than was asked for, or in the geography that the
    key's workspace has set. Where it does not say, by what was asked for."""
    asked = reservation.asked.otherwise
    if not (meter.speed or meter.geo):
        return reservation.price
    done = Otherwise(
        fast=meter.speed == "fast" or (asked.fast and meter.speed != "standard"),
        in_us=meter.geo == "us" or (asked.in_us and meter.geo not in ("global", "not_available")),
    )
    if done == asked:
        return reservation.price
    try:
        return reservation.asked.price(reservation.prices, done)
    except UnknownPrice:
        _log.error("the API has answered %.100r in fast mode unasked, which has no price here", reservation.asked.model)
        return reservation.asked.price(reservation.prices, replace(done, fast=False))


def _price(reservation: Reservation, model: str) -> Price:
    """Of one that nobody has asked for: where its price is not known the dearest."""
    return reservation.prices.price_of_any(model) if model else reservation.price
