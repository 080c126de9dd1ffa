"""What is allowed: windows of requests, runs at the same time, and money; and how the scripts take it. No I/O.

Money is whole micro-USD, times are milliseconds, and names say so.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from claude_contract.ledger import periods
from claude_contract.ledger.periods import Per
from claude_contract.members import LARGEST

PERIODS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "month": 30 * 86400, "year": 365 * 86400}  # seconds
# Limits up to this many are counted to the millisecond; larger ones in this many buckets per window.
BUCKETS = 64
MOST_RUNS = 2**31 - 1
MAX_BUDGETS = 4  # of one account
MAX_PERCENT = 1000  # of a budget, that a run may use
# Where the money of a subject with a tag of its own is also booked, as release 0.1.0 has it; see `money.lua`.
_KEPT: dict[tuple[Per, str], int] = {("day", "UTC"): 1, ("month", "UTC"): 2}


@dataclass(frozen=True, slots=True)
class Window:
    """At most `limit` requests in any `seconds`; with `burst`, paced as by nginx's limit_req (nodelay)."""

    name: str  # a key of PERIODS
    limit: int  # below 2**32
    burst: int = -1  # below 2**31; -1: not paced

    @property
    def seconds(self) -> int:
        return PERIODS[self.name]

    @property
    def width_ms(self) -> int:
        """Of the buckets in which requests are counted."""
        return 1 if self.limit <= BUCKETS else self.seconds * 1000 // BUCKETS


_RULE = struct.Struct("<IIIi")  # seconds, limit, bucket width (ms), burst


@dataclass(frozen=True, slots=True)
class Windows:
    """All windows of a tier, and as the scripts take them: one argument is cheaper for Redis than twenty."""

    each: tuple[Window, ...] = ()
    packed: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        packed = b"".join([_RULE.pack(w.seconds, w.limit, w.width_ms, w.burst) for w in self.each])
        object.__setattr__(self, "packed", packed)


NO_WINDOWS = Windows()


@dataclass(frozen=True, slots=True)
class Budget:
    """At most so much per calendar period of a time zone, or in any such time (`rolling`): spent and reserved."""

    micro_usd: int
    per: Per
    zone: str = "UTC"
    rolling: bool = False

    @property
    def limits(self) -> bool:
        """Not those of which `peek` tells of every subject."""
        return self.micro_usd < LARGEST

    @property
    def name(self) -> str:
        """As refusals and reports have it."""
        return f"usd_per_rolling_{self.per}" if self.rolling else f"usd_per_{self.per}"

    def span(self, now_ms: int) -> tuple[int, int]:
        """Beginning and end (ms) of the period that this moment is in; a rolling one's end is 0."""
        if self.rolling:
            return now_ms - periods.ROLLING_MS[self.per], 0
        found = periods.period(self.per, self.zone, now_ms)
        return found.start_ms, found.end_ms

    def claim(self) -> str:
        return f"{self.micro_usd} {self.per} {'rolling' if self.rolling else self.zone}"

    @classmethod
    def from_claim(cls, claim: Any) -> Budget:
        """The inverse of `claim`. Raises ValueError."""
        amount, per, zone = claim.split(" ") if isinstance(claim, str) else ("", "", "")
        if not (amount.isascii() and amount.isdecimal()) or per not in periods.PERS:
            raise ValueError("not a budget")
        if zone == "rolling":
            return cls(int(amount), per, rolling=True)
        periods.zone(zone)
        return cls(int(amount), per, zone)


BUDGETS = tuple([Budget(0, per, rolling=rolling).name for rolling in (False, True) for per in periods.PERS])
"""All names of budgets, as `live.lua` numbers them, from 1 on."""
UTC_DAY, UTC_MONTH = Budget(LARGEST, "day"), Budget(LARGEST, "month")
"""Without limit: what `peek` tells of every subject."""

_FIRST = struct.Struct("<i")  # concurrent runs, -1 any
_BUDGET = struct.Struct("<dddB")  # micro-USD, start and end (ms), see `_flags`; rolling: its length, 0
_NEVER = 1 << 62


@dataclass(frozen=True, slots=True)
class Terms:
    """What runs may take of one account at the same time: places, and money. As the scripts take it: `packed`."""

    concurrent: int | None = None
    budgets: tuple[Budget, ...] = ()
    _made: tuple[bool, int, int, bytes] = field(default=(False, 0, 0, b""), init=False, repr=False, compare=False)

    def packed(self, now_ms: int, own_tag: bool) -> bytes:
        """With the periods of that moment; made once for as long as they hold. `own_tag`: the account has one."""
        made = self._made
        if made[0] is not own_tag or not made[1] <= now_ms < made[2]:
            made = self._pack(now_ms, own_tag)
            object.__setattr__(self, "_made", made)
        return made[3]

    def _pack(self, now_ms: int, own_tag: bool) -> tuple[bool, int, int, bytes]:
        packed, since, until = [_FIRST.pack(-1 if self.concurrent is None else self.concurrent)], 0, _NEVER
        for budget in self.budgets:
            if budget.rolling:
                packed.append(_BUDGET.pack(budget.micro_usd, periods.ROLLING_MS[budget.per], 0, _flags(budget, 0)))
                continue
            found = periods.period(budget.per, budget.zone, now_ms)
            since, until = max(since, found.start_ms), min(until, found.end_ms)
            kept = _KEPT.get((budget.per, budget.zone), 0) if own_tag else 0
            packed.append(_BUDGET.pack(budget.micro_usd, found.start_ms, found.end_ms, _flags(budget, kept)))
        return own_tag, since, until, b"".join(packed)


def _flags(budget: Budget, kept: int) -> int:
    """Where it is also booked, and by which number it may be changed: none where it limits nothing."""
    return kept if not budget.limits else kept + 4 * (1 + BUDGETS.index(budget.name))


@dataclass(frozen=True, slots=True)
class Slot:
    """What a run takes while it lives: one of `concurrent`, and `run_micro_usd` of the budgets; and the same of each of
    its pools. None: without limit."""

    concurrent: int | None = None
    run_micro_usd: int = 0  # reserved
    day_micro_usd: int | None = None  # these two are budgets of UTC days and months
    month_micro_usd: int | None = None
    ttl_ms: int = 60_000
    budgets: tuple[Budget, ...] = ()
    pools: tuple[Terms, ...] = ()
    up_to_percent: int = 100  # how far this run may use the subject's own budgets; never those of pools
    own: Terms = field(init=False, repr=False, compare=False)
    bound: Terms = field(init=False, repr=False, compare=False)
    """`own`, where it is more than 100 %."""
    _claim: Mapping[str, Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        short = ((self.day_micro_usd, "day"), (self.month_micro_usd, "month"))
        budgets = [Budget(amount, per) for amount, per in short if amount is not None]  # type: ignore[arg-type]
        own = bound = Terms(self.concurrent, (*budgets, *self.budgets))
        if self.up_to_percent != 100:
            more = [replace(each, micro_usd=each.micro_usd * self.up_to_percent // 100) for each in own.budgets]
            bound = Terms(self.concurrent, tuple(more))
        object.__setattr__(self, "own", own)
        object.__setattr__(self, "bound", bound)
        object.__setattr__(self, "_claim", self._made())

    @property
    def has_budget(self) -> bool:
        return any(terms.budgets for terms in (self.own, *self.pools))

    def claim(self) -> Mapping[str, Any]:
        """As it travels in the attestation and in job records (`slot`). Made once."""
        return self._claim

    def _made(self) -> dict[str, Any]:
        given: dict[str, Any] = {
            "concurrent": self.concurrent,
            "usd": self.run_micro_usd or None,
            "usd_day": self.day_micro_usd,
            "usd_month": self.month_micro_usd,
            "ttl_ms": self.ttl_ms,
            "budgets": [budget.claim() for budget in self.budgets] or None,
            "pools": [[t.concurrent, *(budget.claim() for budget in t.budgets)] for t in self.pools] or None,
            "up_to": self.up_to_percent if self.up_to_percent != 100 else None,
        }
        return {name: value for name, value in given.items() if value is not None}

    @classmethod
    def from_claim(cls, claim: Mapping[str, Any]) -> Slot:
        """The inverse of `claim`. Raises TypeError, ValueError for what is not one."""
        if unknown := claim.keys() - _CLAIM:
            raise TypeError(f"unknown in a slot: {', '.join(sorted(map(str, unknown)))}")
        whole = {name: int(value) for name, value in claim.items() if name not in ("budgets", "pools")}
        return cls(
            whole.get("concurrent"),
            whole.get("usd", 0),
            whole.get("usd_day"),
            whole.get("usd_month"),
            whole.get("ttl_ms", 60_000),
            tuple(map(Budget.from_claim, _list(claim.get("budgets", [])))),
            tuple(map(_terms, _list(claim.get("pools", [])))),
            _percent(whole.get("up_to", 100)),
        )


_CLAIM = {"concurrent", "usd", "usd_day", "usd_month", "ttl_ms", "budgets", "pools", "up_to"}


def _percent(value: int) -> int:
    if not 100 <= value <= MAX_PERCENT:
        raise ValueError("not a share of a budget")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("not a list")
    return value


def _terms(claim: Any) -> Terms:
    concurrent, *budgets = _list(claim)
    if concurrent is not None and (type(concurrent) is not int or not 0 <= concurrent <= MOST_RUNS):
        raise TypeError("not a number of runs")
    return Terms(concurrent, tuple(map(Budget.from_claim, budgets)))


NO_SLOT = Slot()
