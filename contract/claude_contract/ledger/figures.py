"""What is used and left of budgets: the figures of reports, metrics, pages and warnings are all made here. No I/O."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from claude_contract.ledger.limits import Budget, Slot, Terms
from claude_contract.ledger.model import Peek, Shared, Standing, organisation_name, pool_name, usd
from claude_contract.members import LARGEST


class Figures(NamedTuple):
    """One budget of one account. Money is micro-USD, times are milliseconds."""

    budget: Budget
    spent: int
    reserved: int
    """By runs that have not ended: it counts as spent where a run wants to start."""
    start_ms: int
    end_ms: int
    """Of its period (Unix time). A rolling one has none: 0, and its beginning is that of this moment."""
    reset_ms: int
    """Until the period ends; rolling: until some of what was spent no longer counts."""

    @property
    def used(self) -> int:
        return self.spent + self.reserved

    @property
    def left(self) -> int:
        return max(self.budget.micro_usd - self.used, 0)

    def document(self) -> dict[str, Any]:
        """As JSON has it: US dollars, and seconds."""
        when: dict[str, Any] = {"rolling": True}
        if not self.budget.rolling:
            when = {"zone": self.budget.zone, "start": self.start_ms // 1000, "end": self.end_ms // 1000}
        return {
            "name": self.budget.name,
            "per": self.budget.per,
            **when,
            "limit": usd(self.budget.micro_usd),
            "spent": usd(self.spent),
            "reserved": usd(self.reserved),
            "left": usd(self.left),
            "reset_s": seconds(self.reset_ms) if self.reset_ms else 0,
        }


def figures_of(standing: Standing) -> tuple[Figures, ...]:
    """Of each of an account's budgets, without those that `peek` tells of everybody and that limit nothing."""
    reserved = standing.reserved_micro_usd
    return tuple(
        [
            Figures(spent.budget, spent.micro_usd, reserved, spent.start_ms, spent.end_ms, spent.reset_ms)
            for spent in standing.spent
            if spent.budget.micro_usd < LARGEST
        ]
    )


MOST_POOLS = 100


class PoolsSeen:
    """The pools that requests have lately counted for, MOST_POOLS at most: those of which metrics tell."""

    def __init__(self) -> None:
        self._pools: dict[tuple[str, str, str], Terms] = {}

    def note(self, namespace: str, shared: Shared, terms: Sequence[Terms]) -> None:
        """`terms`: of each of its pools."""
        for key, each in zip(shared.pools, terms, strict=True):
            at = (namespace, shared.tag, key)
            self._pools.pop(at, None)
            self._pools[at] = each
            if len(self._pools) > MOST_POOLS:
                self._pools.pop(next(iter(self._pools)), None)

    def peeks(self) -> dict[tuple[str, str, str], Peek]:
        """Namespace, tag and key of each, and what to ask: the answer's only pool is the one."""
        return {
            at: Peek(at[0], "", slot=Slot(pools=(terms,)), shared=Shared(at[1], (at[2],)))
            for at, terms in list(self._pools.items())
        }


class Gauge(NamedTuple):
    """One number of a metric, with the values of `POOL_LABELS`."""

    labels: tuple[str, ...]
    value: float


POOL_LABELS = ("pool", "organisation", "of", "budget", "kind")
"""`of`: who shares it, by the value of the claim; empty for everybody. `kind`: limit, spent, reserved or left."""
PERIOD_LABELS = ("pool", "organisation", "of", "budget", "edge")
"""`edge`: start or end."""


def pool_gauges(tag: str, key: str, standing: Standing) -> tuple[list[Gauge], list[Gauge]]:
    """A pool's money in US dollars, and the edges of its budgets' periods in seconds since the epoch."""
    name, of = pool_name(key)
    who = (name, organisation_name(tag), of)
    money, edges = [], []
    for found in figures_of(standing):
        for kind, amount in _amounts(found):
            money.append(Gauge((*who, found.budget.name, kind), usd(amount)))
        if not found.budget.rolling:
            for edge, at_ms in (("start", found.start_ms), ("end", found.end_ms)):
                edges.append(Gauge((*who, found.budget.name, edge), at_ms / 1000))
    return money, edges


def _amounts(found: Figures) -> Iterator[tuple[str, int]]:
    yield "limit", found.budget.micro_usd
    yield "spent", found.spent
    yield "reserved", found.reserved
    yield "left", found.left


def seconds(ms: int) -> int:
    """Whole seconds, rounded up, at least 1: nobody comes back too early."""
    return max(1, math.ceil(ms / 1000))
