"""Charts over time, as numbers and as bars of an SVG. Pure. Names of tiers and models are others' words."""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

Outcome = Literal["done", "failed", "cancelled", "not over"]
OUTCOMES: tuple[Outcome, ...] = ("done", "failed", "cancelled", "not over")
Unit = Literal["count", "usd", "s"]
Span = Literal["1h", "6h", "24h", "7d"]
_BARS: dict[Span, tuple[int, int]] = {"1h": (300, 12), "6h": (900, 24), "24h": (3600, 24), "7d": (6 * 3600, 28)}
"""Seconds of each bar, and how many."""
_NAMED = 5
"""Series by name; the rest is one."""
_MOST_POOLS = 4
"""Those of which most was spent: a request counts for no more of them."""
WIDTH, HEIGHT = 600, 120
_GAP = 2


@dataclass(frozen=True)
class Point:
    """A job, or a run that is none. `at`: of its acceptance, in seconds since 1970."""

    at: float
    outcome: Outcome
    tier: str = ""
    model: str = ""
    cost_usd: float = 0.0
    waited_s: float | None = None
    first_token_s: float | None = None
    pools: tuple[tuple[str, str], ...] = ()
    """Of each that it counted for the name, and whose it is."""


@dataclass(frozen=True)
class Series:
    """A number for each bar; `look` is its class in the style sheet."""

    name: str
    look: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Bar:
    """A rectangle of one series, from the top left corner on."""

    x: float
    y: float
    width: float
    height: float
    look: str


@dataclass(frozen=True)
class Chart:
    """`starts`: when each bar begins. Series stand on each other."""

    key: str
    title: str
    unit: Unit
    starts: tuple[int, ...]
    series: tuple[Series, ...]

    @property
    def totals(self) -> tuple[float, ...]:
        return tuple(sum(each.values[at] for each in self.series) for at in range(len(self.starts)))

    @property
    def top(self) -> float:
        return max(self.totals, default=0.0)

    @property
    def top_at(self) -> int:
        """When the highest bar begins."""
        return self.starts[self.totals.index(self.top)]

    @property
    def bars(self) -> list[Bar]:
        step, bars = WIDTH / len(self.starts), list[Bar]()
        for at in range(len(self.starts)):
            y = float(HEIGHT)
            for each in self.series:
                height = each.values[at] / self.top * HEIGHT if self.top else 0.0
                y -= height
                if height:
                    bars.append(Bar(round(at * step, 2), round(y, 2), step - _GAP, round(height, 2), each.look))
        return bars


def begins(span: Span, now: float) -> int:
    """When the first bar does."""
    each, count = _BARS[span]
    return (int(now) // each + 1 - count) * each


def charts(points: Iterable[Point], span: Span, now: float) -> list[Chart]:
    each, count = _BARS[span]
    first = begins(span, now)
    bars: list[list[Point]] = [[] for _ in range(count)]
    for point in points:
        if first <= point.at < first + count * each:
            bars[int(point.at - first) // each].append(point)
    starts = tuple(range(first, first + count * each, each))

    def longest(bar: Sequence[Point]) -> float:
        return max((point.waited_s for point in bar if point.waited_s is not None), default=0.0)

    def middle(bar: Sequence[Point]) -> float:
        found = [point.first_token_s for point in bar if point.first_token_s is not None]
        return statistics.median(found) if found else 0.0

    outcomes = tuple(
        Series(name, name.replace(" ", "-"), tuple(float(sum(point.outcome == name for point in bar)) for bar in bars))
        for name in OUTCOMES
    )
    return [
        Chart("runs", "Jobs and runs", "count", starts, outcomes),
        Chart("tiers", "Spent, by tier", "usd", starts, _spent(bars, lambda point: point.tier or "default")),
        Chart("models", "Spent, by model", "usd", starts, _spent(bars, lambda point: point.model or "none")),
        *_of_pools(bars, starts),
        _of_one("waits", "Longest wait in the queue", starts, "longest", map(longest, bars)),
        _of_one("first-token", "Time to the first token", starts, "median", map(middle, bars)),
    ]


def _of_one(key: str, title: str, starts: tuple[int, ...], name: str, values: Iterable[float]) -> Chart:
    return Chart(key, title, "s", starts, (Series(name, "s0", tuple(values)),))


def _of_pools(bars: Sequence[Sequence[Point]], starts: tuple[int, ...]) -> list[Chart]:
    """One for each pool by name, since what is spent of one is spent of others, too: by who shares it."""
    spent: dict[str, float] = defaultdict(float)
    for point in itertools.chain.from_iterable(bars):
        for name, _ in point.pools:
            spent[name] += point.cost_usd
    names = sorted(spent, key=lambda name: (-spent[name], name))[:_MOST_POOLS]
    each = [_spent(_in_pool(bars, name), partial(_sharers, name)) for name in names]
    titles = [f"Spent, by pool {name}" for name in names]
    return [Chart(f"pool-{n}", titles[n], "usd", starts, series) for n, series in enumerate(each)]


def _in_pool(bars: Sequence[Sequence[Point]], name: str) -> list[list[Point]]:
    return [[point for point in bar if name in dict(point.pools)] for bar in bars]


def _sharers(name: str, point: Point) -> str:
    return dict(point.pools)[name] or "everybody"


def _spent(bars: Sequence[Sequence[Point]], name_of: Callable[[Point], str]) -> tuple[Series, ...]:
    """Of the names that have spent most, and of all others together."""
    by_name: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(bars))
    for at, bar in enumerate(bars):
        for point in bar:
            by_name[name_of(point)][at] += point.cost_usd
    order = sorted(by_name.items(), key=lambda one: (-sum(one[1]), one[0]))
    named = [Series(name, f"s{n}", tuple(values)) for n, (name, values) in enumerate(order[:_NAMED])]
    if rest := [values for _, values in order[_NAMED:]]:
        named.append(Series("others", f"s{_NAMED}", tuple(map(sum, zip(*rest, strict=True)))))
    return tuple(named)
