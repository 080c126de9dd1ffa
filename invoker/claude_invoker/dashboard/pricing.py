"""What a turn has cost, by the list that the metering proxy goes by. What is booked is the proxy's word alone."""

from __future__ import annotations

from decimal import Decimal
from functools import cache

from claude_invoker.dashboard.timeline import Price
from claude_invoker.metering import prices
from claude_invoker.metering.usage import Used
from claude_invoker.settings import Settings


def price_of(settings: Settings) -> Price:
    known = prices.Prices(settings.prices, "dearest")
    of = cache(known.price_of_any)

    def price(model: str, used: Used) -> Decimal:
        return of(model).cost(used)

    return price
