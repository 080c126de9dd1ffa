"""What is left of somebody's limits, as the gateway tells it to a page (`GET /claude/limits` has the same), as the rows
of tables. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec
from msgspec import Struct

_FROM = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


class Window(Struct):
    """`burst`: of one that is paced, of which 1 more may pass at once: `remaining` is of these."""

    name: str
    limit: int
    remaining: int
    reset_s: int
    burst: int | None = None


class AtOnce(Struct):
    limit: int | None
    running: int


class Budget(Struct):
    """`start` and `end` of its period, in seconds since 1970; none where it is rolling."""

    name: str
    limit: float
    spent: float
    reserved: float
    left: float
    reset_s: int
    end: int | None = None


class Day(Struct):
    """Of a UTC day or month, of which is told whether it is limited or not. `left`, `end`: where it is."""

    limit: float | None
    spent: float
    reset_s: int
    left: float | None = None
    end: int | None = None


class Money(Struct):
    reserved: float
    day: Day
    month: Day
    budgets: tuple[Budget, ...] = ()


class PoolMoney(Struct):
    reserved: float
    budgets: tuple[Budget, ...]


class Messages(Struct):
    windows: tuple[Window, ...]
    concurrent: AtOnce


class Pool(Struct):
    name: str
    windows: tuple[Window, ...]
    concurrent: AtOnce
    usd: PoolMoney


class Blocked(Struct):
    """By an admin. `of`: "caller", "tier" or "pool", whose name is `pool`; "": a gateway of the release before."""

    for_s: int
    pool: str = ""
    of: str = ""


class Tightest(Struct):
    limit: str
    left: float
    pool: str = ""


class Told(Struct):
    """`sub`: whose they are, where an admin has named somebody. `unknown_pools`: names and claims of those of which it
    is not known which one is meant."""

    tier: str
    windows: tuple[Window, ...]
    concurrent: AtOnce
    usd: Money
    messages: Messages | None = None
    pools: tuple[Pool, ...] = ()
    tightest: Tightest | None = None
    blocked: Blocked | None = None
    sub: str = ""
    unknown_pools: tuple[tuple[str, str], ...] = ()


class Untold(Struct):
    """Why the gateway cannot tell them."""

    problem: str


def told_in(text: str) -> Told | Untold | None:
    """What the header says; None where it says what no gateway of ours does."""
    try:
        return msgspec.json.decode(text, type=Told)
    except msgspec.DecodeError:
        pass
    try:
        return msgspec.json.decode(text, type=Untold)
    except msgspec.DecodeError:
        return None


@dataclass(frozen=True)
class Row:
    """One limit. Numbers are runs or requests, or US dollars; `allowed` None: without limit. `again`: when some of it
    is free again."""

    limit: str
    unit: Literal["count", "usd"]
    allowed: float | None
    used: float
    reserved: float | None
    left: float | None
    again: str


@dataclass(frozen=True)
class Part:
    """The limits of one account."""

    title: str
    rows: tuple[Row, ...]


def parts_of(told: Told) -> list[Part]:
    """Those of the caller, of his messages to models, of each of his pools."""
    money = [_of_utc(name, day, told.usd.reserved) for name, day in (("day", told.usd.day), ("month", told.usd.month))]
    own = [*_counted(told.windows, told.concurrent), *money, *map(_budget, told.usd.budgets)]
    parts = [Part("Runs and jobs", tuple(own))]
    if told.messages is not None:
        parts.append(Part("Messages to models", tuple(_counted(told.messages.windows, told.messages.concurrent))))
    for pool in told.pools:
        rows = [*_counted(pool.windows, pool.concurrent), *map(_budget, pool.usd.budgets)]
        parts.append(Part(f"Pool {pool.name}", tuple(rows)))
    return parts


def _counted(windows: tuple[Window, ...], at_once: AtOnce) -> Iterator[Row]:
    for each in windows:
        # One whose limit was lowered after requests had been admitted has more than that used; what is left is none.
        name, whole = each.name, each.limit
        if each.burst is not None:
            name, whole = f"{each.name}: {each.limit} at a pace", 1 + each.burst
        left = min(each.remaining, whole)
        yield Row(name, "count", whole, whole - left, None, left, _in(each.reset_s))
    limit = at_once.limit
    left_now = None if limit is None else max(limit - at_once.running, 0)
    yield Row("at once", "count", limit, at_once.running, None, left_now, "when one ends" if at_once.running else "")


def _budget(each: Budget) -> Row:
    again = _in(each.reset_s) if each.end is None else f"{_in(each.reset_s)}, all of it"
    return Row(each.name, "usd", each.limit, each.spent, each.reserved, each.left, again)


def _of_utc(name: str, day: Day, reserved: float) -> Row:
    again = "" if day.limit is None else f"{_in(day.reset_s)}, all of it"
    return Row(f"usd_per_{name}", "usd", day.limit, day.spent, reserved, day.left, again)


def _in(seconds: int) -> str:
    """The two largest units of it; nothing where it is now."""
    found = []
    for size, unit in _FROM:
        if count := seconds // size:
            found.append(f"{count} {unit}")
        seconds %= size
    return "in " + " ".join(found[:2]) if found else ""
