"""Before a budget is used up: that it nearly is gets told, once at each of PERCENTS in a period. No I/O.

What is used is what is spent and what is reserved, which is what an admission counts: a budget of $1 with runs of $0.25
refuses from $0.76 on, so that spent money alone would warn of nothing before that.

Who sees it tells the store, whatever has brought the budget there: an admission, a job's start, a booking. The store
takes it once. So whoever dies before he has told it leaves it to the next one.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from msgspec import Struct

from claude_contract.ledger.figures import Figures, figures_of
from claude_contract.ledger.model import (
    Admission,
    Admit,
    Lease,
    Peek,
    Standing,
    dollars,
    organisation_name,
    pool_name,
)
from claude_contract.ledger.periods import ROLLING_MS

PERCENTS = (80, 95)  # percent
PREFIX = "claude:{warnings}:"
"""Of all keys, of whatever namespace: so that the invoker finds what is owed."""
OWED = PREFIX + "owed"
MOST_OWED = 10_000
OWED_MS = 7 * 24 * 3_600_000
_LATE_MS = 3_600_000  # for which it is known after its period: clocks differ
_MOST_KNOWN = 4096


def reached(used: int, limit: int, wanted: int = 0) -> tuple[int, ...]:
    """Those of PERCENTS that are reached: all of them where what is `wanted` besides is more than is left."""
    if used + wanted > limit:
        return PERCENTS
    return tuple([percent for percent in PERCENTS if 100 * used >= percent * limit])


class Notice(Struct, frozen=True):
    """What the operator is told."""

    id: str
    at: float  # seconds since the epoch
    data: dict[str, Any]


class BudgetWarning(Struct, frozen=True):
    """A budget of which `percent` are used."""

    namespace: str
    tag: str  # the accounts' hash tag, empty where a subject is by itself
    account: str  # its key: the subject's, or a pool's
    is_pool: bool
    figures: Figures
    percent: int

    @property
    def name(self) -> str:
        """`usd_per_day`, or a pool's `team.usd_per_month`."""
        budget = self.figures.budget.name
        return f"{self.pool}.{budget}" if self.is_pool else budget

    @property
    def pool(self) -> str:
        """The pool's name, empty where it is the subject's own budget."""
        return pool_name(self.account)[0] if self.is_pool else ""

    @property
    def key(self) -> str:
        """The same whoever sees it, in one period of one budget: one that was changed warns anew."""
        found = self.figures
        start = 0 if found.budget.rolling else found.start_ms
        account = f"{self.namespace}:{self.tag}:{self.account}"
        return f"{account}:{found.budget.claim().replace(' ', ':')}:{start}:{self.percent}"

    @property
    def lives_ms(self) -> int:
        """How long it is not told again: to the end of the period, of a rolling one for its length."""
        found = self.figures
        return ROLLING_MS[found.budget.per] if found.budget.rolling else found.reset_ms + _LATE_MS

    def notice(self) -> Notice:
        who: dict[str, Any] = {"account": self.account}
        if self.is_pool:
            name, of = pool_name(self.account)
            who = {"pool": name} | ({"of": of} if of else {})
        if organisation := organisation_name(self.tag):
            who["organisation"] = organisation
        data = {"percent": self.percent, "namespace": self.namespace, **who, "budget": self.figures.document()}
        return Notice(f"budget_{secrets.token_hex(12)}", time.time(), data)

    def __str__(self) -> str:
        found = self.figures
        whose = f"pool {self.account.removeprefix('pool.')}" if self.is_pool else self.account
        spent, reserved, limit = (dollars(amount) for amount in (found.spent, found.reserved, found.budget.micro_usd))
        return (
            f"{self.percent} % of {found.budget.name} of {whose} are used: {spent} spent and {reserved} reserved "
            f"of {limit}"
        )


def warnings_in(of: Admit | Lease | Peek, standings: Iterable[Standing], wanted: int = 0) -> tuple[BudgetWarning, ...]:
    """All that budgets have reached. `wanted`: micro-USD that were asked for and not given."""
    found: list[BudgetWarning] = []
    for place, standing in enumerate(standings):
        more = standing.reserved_micro_usd + wanted
        for spent in standing.spent:
            if 100 * (spent.micro_usd + more) >= PERCENTS[0] * spent.budget.micro_usd:  # nearly always not
                account = of.shared.pools[place - 1] if place else of.subject_key
                found += _reached(of.namespace, of.shared.tag, account, place > 0, standing, wanted)
                break
    return tuple(found)


def _reached(
    namespace: str, tag: str, account: str, is_pool: bool, standing: Standing, wanted: int
) -> Iterator[BudgetWarning]:
    for each in figures_of(standing):
        for percent in reached(each.used, each.budget.micro_usd, wanted):
            yield BudgetWarning(namespace, tag, account, is_pool, each, percent)


def warnings_of(request: Admit, admission: Admission) -> tuple[BudgetWarning, ...]:
    """What an admission sees: also those of a budget that has refused, whatever is left of it. A run that may go beyond
    its budgets sees none: whoever let it has seen them."""
    if request.slot.up_to_percent != 100:
        return ()
    wanted = 0
    if request.lease is not None and admission.exceeded.startswith("usd_"):
        wanted = request.lease.micro_usd
    return warnings_in(request, (admission.own, *admission.pools), wanted)


def highest(seen: Iterable[BudgetWarning]) -> tuple[BudgetWarning, ...]:
    """Of each budget the highest one."""
    return tuple({(warning.account, warning.figures.budget): warning for warning in seen}.values())


class Known:
    """Marks that this process need not tell again. `until_ms` of each is the clock's of whoever asks."""

    def __init__(self) -> None:
        self._until: dict[str, int] = {}

    def untold(self, seen: Iterable[BudgetWarning], now_ms: int) -> Iterator[BudgetWarning]:
        """Those that are new. Whoever has told one says so: `told`."""
        for warning in seen:
            if self._until.get(warning.key, 0) <= now_ms:
                yield warning

    def told(self, warning: BudgetWarning, now_ms: int) -> None:
        if len(self._until) >= _MOST_KNOWN:
            self._until = {key: until for key, until in self._until.items() if until > now_ms}
            if len(self._until) >= _MOST_KNOWN:
                self._until.clear()
        self._until[warning.key] = now_ms + warning.lives_ms


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Notice).decode
