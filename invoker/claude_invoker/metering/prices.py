"""What a model costs: the public list prices as genai-prices has them, and the operator's own over them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Literal

from genai_prices import data_snapshot
from genai_prices.types import ModelPrice, Provider, TieredPrices

from claude_invoker.metering.ownprice import LARGEST_CONTEXT, OwnPrice
from claude_invoker.metering.usage import Used

_MILLION = Decimal(1_000_000)
_SEARCH_USD = Decimal("0.01")
_DEFAULT_CONTEXT = 200_000
_LONG_INPUT, _LONG_OUTPUT = Decimal(2), Decimal("1.5")
"""What more than the default context has cost where it has a price of its own: https://platform.claude.com/docs/en/about-claude/pricing."""
_DATE = re.compile(r"(?:-\d{8}|-latest)$")


class UnknownPrice(Exception):
    """No price is known for a model."""


@dataclass(frozen=True)
class Rates:
    """US dollars for one token, and for one search."""

    input: Decimal
    output: Decimal
    cache_read: Decimal
    cache_write_5m: Decimal
    cache_write_1h: Decimal
    web_search: Decimal

    def cost(self, used: Used) -> Decimal:
        """US dollars, exact."""
        return (
            self.input * used.input
            + self.output * used.output
            + self.cache_read * used.cache_read
            + self.cache_write_5m * used.cache_write_5m
            + self.cache_write_1h * used.cache_write_1h
            + self.web_search * used.web_searches
        )

    def dearer(self, *, input: Decimal, output: Decimal) -> Rates:
        """By these factors; searches cost the same."""
        return Rates(
            self.input * input,
            self.output * output,
            self.cache_read * input,
            self.cache_write_5m * input,
            self.cache_write_1h * input,
            self.web_search,
        )


@dataclass(frozen=True)
class Price:
    """A model's rates. `steps`: (input tokens, rates of a request that has more than so many), from 0 on."""

    steps: tuple[tuple[int, Rates], ...]
    context_window: int

    def rates(self, all_input: int) -> Rates:
        """What a request of so many input tokens is billed by, cached ones included."""
        return next(rates for start, rates in reversed(self.steps) if start == 0 or all_input > start)

    def cost(self, used: Used) -> Decimal:
        return self.rates(used.all_input).cost(used)

    def times(self, factor: Decimal) -> Price:
        """Its tokens by this factor; searches cost the same."""
        return Price(
            tuple((start, rates.dearer(input=factor, output=factor)) for start, rates in self.steps),
            self.context_window,
        )

    def long_context(self) -> Price:
        """Of a request that may have a million tokens of input, which is more than the model takes by default: where no
        price is known beyond that, the dearest that the API has had for it."""
        if self.context_window >= LARGEST_CONTEXT:
            return self
        steps = self.steps
        if len(steps) == 1:
            steps = (*steps, (_DEFAULT_CONTEXT, steps[0][1].dearer(input=_LONG_INPUT, output=_LONG_OUTPUT)))
        return Price(steps, LARGEST_CONTEXT)


class Prices:
    """`own`: prices by model, which stand over the public ones. `unknown`: what a model without a price is: refused, or
    billed as the dearest that is known."""

    def __init__(self, own: Mapping[str, OwnPrice], unknown: Literal["refuse", "dearest"]) -> None:
        self._own = {name: _own_price(price) for name, price in own.items()}
        self._unknown = unknown
        self._public = _anthropics()

    def price(self, model: str, at: datetime | None = None) -> Price:
        """Raises UnknownPrice."""
        at = at or datetime.now(UTC)
        known = self._known(model, at)
        if known is None and self._unknown == "refuse":
            raise UnknownPrice(f"no price is known for model {model[:200]}: set one in INVOKER_PRICES")
        return known or self._dearest(at)

    def fast(self, model: str) -> Price:
        """Of the model with `speed: fast`, of which no price is public here: the operator's own, of the name with
        `-fast`. Raises UnknownPrice."""
        name = f"{_DATE.sub('', model)}-fast"
        own = self._own.get(f"{model}-fast") or self._own.get(name)
        if own is None:
            raise UnknownPrice(
                f"no price is known for model {model[:200]} in fast mode: set one for {name[:200]} in INVOKER_PRICES"
            )
        return own

    def price_of_any(self, model: str, at: datetime | None = None) -> Price:
        """Of a model that has been used already: where its price is not known the dearest."""
        at = at or datetime.now(UTC)
        return self._known(model, at) or self._dearest(at)

    def _known(self, model: str, at: datetime) -> Price | None:
        own = self._own.get(model) or self._own.get(_DATE.sub("", model))
        if own is not None:
            return own
        found = self._public.find_model(model)
        if found is not None and _is_named(model, found.id):
            return _public_price(found.get_prices(at), found.context_window)
        return None

    def _dearest(self, at: datetime) -> Price:
        public = (_public_price(each.get_prices(at), each.context_window) for each in self._public.models)
        return max((*self._own.values(), *filter(None, public)), key=lambda price: price.steps[-1][1].output)


def public_names() -> list[str]:
    """The API's models that have a public price."""
    return [each.id for each in _anthropics().models]


def full_name(model: str) -> str:
    """The API knows no families: of `sonnet` the latest of its models that has a public price."""
    named = [each.id for each in _anthropics().models if model.isalpha() and model in each.id.split("-")]
    return max(named, key=lambda name: [int(number) for number in _parts(name)[1]], default=model)


def _anthropics() -> Provider:
    (found,) = (found for found in data_snapshot.get_snapshot().providers if found.id == "anthropic")
    return found


def _is_named(model: str, name: str) -> bool:
    """Whether a model's full name stands for `name`: the list's own patterns go by the beginning, but `-fast` behind a
    name is another price. A date and `-latest` are not."""
    words, numbers = _parts(model)
    wanted, ours = _parts(name)
    return words == wanted and (numbers == ours or [*numbers, "0"] == ours)


def _parts(model: str) -> tuple[list[str], list[str]]:
    parts = _DATE.sub("", model).split("-")
    return [part for part in parts if not part.isdigit()], [part for part in parts if part.isdigit()]


def _own_price(price: OwnPrice) -> Price:
    def per_token(value: Decimal | None, otherwise: str) -> Decimal:
        return (price.input * Decimal(otherwise) if value is None else value) / _MILLION

    rates = Rates(
        price.input / _MILLION,
        price.output / _MILLION,
        per_token(price.cache_read, "0.1"),
        per_token(price.cache_write_5m, "1.25"),
        per_token(price.cache_write_1h, "2"),
        _SEARCH_USD if price.web_search is None else price.web_search / 1000,
    )
    return Price(((0, rates),), price.context_window)


def _public_price(price: ModelPrice, context_window: int | None) -> Price | None:
    """None where the list does not say what input and output cost: it is not nothing."""
    if price.input_mtok is None or price.output_mtok is None:
        return None
    writes, lasting = price.cache_write_mtok, price.cache_write_1h_mtok
    listed = (price.input_mtok, price.output_mtok, price.cache_read_mtok, writes, lasting)
    starts = {0} | {tier.start for each in listed if isinstance(each, TieredPrices) for tier in each.tiers}

    def at(start: int, each: Decimal | TieredPrices) -> Decimal:
        if not isinstance(each, TieredPrices):
            return each
        return next((tier.price for tier in reversed(each.tiers) if tier.start <= start), each.base)

    steps = []
    for start in sorted(starts):
        own = OwnPrice(
            input=at(start, price.input_mtok),
            output=at(start, price.output_mtok),
            cache_read=None if price.cache_read_mtok is None else at(start, price.cache_read_mtok),
            cache_write_5m=None if writes is None else at(start, writes),
            cache_write_1h=None if lasting is None else at(start, lasting),
            web_search=price.web_searches_kcount if isinstance(price.web_searches_kcount, Decimal) else None,
        )
        steps.append((start, _own_price(own).steps[0][1]))
    return Price(tuple(steps), context_window or LARGEST_CONTEXT)
