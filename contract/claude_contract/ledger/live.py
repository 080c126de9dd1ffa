"""Limits that an admin has changed for a while: what a change binds, and what it makes of a tier's limits. No I/O.

How they stand in Redis, and which goes before which, is in `live.lua`; the table of keys is in docs/rate-tiers.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Literal

import msgspec
from msgspec import Struct

from claude_contract import versions
from claude_contract.ledger.limits import BUDGETS, MOST_RUNS, PERIODS, Terms, Windows
from claude_contract.ledger.model import DEPLOYMENT, NAMESPACE, VERSION, Changed, UnreadableLedger, micro_usd, usd

BLOCKED = "blocked"
"""A limit of its own: 1 refuses every request, 0 lets one through whose tier or pool is blocked."""
LIMITS = (*PERIODS, "concurrent", *BUDGETS, BLOCKED)
"""All that can be changed."""
MOST_CHANGES = 1000
"""At the same time, of one namespace (and organisation)."""
MOST_REFUSED = 10_000
"""Lines of refused attempts that wait to be written into the audit log. More are not kept."""
MOST_USD = 1_000_000_000

OUTBOX = f"{NAMESPACE}:{{{DEPLOYMENT}}}:audit"
"""A stream of what is to be written into the audit log: whoever changes limits adds to it in the same script."""

Kind = Literal["subject", "tier", "pool"]


def limits_key(namespace: str, tag: str = DEPLOYMENT) -> str:
    """Where the changes are, of one organisation where each has its tag."""
    return f"{namespace}:{{{tag}}}:limits"


class Target(Struct, frozen=True):
    """What a change binds. `key`: the subject's or the pool's, `tier`: its name; all pools of a name have no key."""

    kind: Kind
    key: str = ""
    name: str = ""  # of the tier or the pool
    shown: Mapping[str, str] = {}  # as an admin names it

    @property
    def field(self) -> str:
        """Of the hash in Redis."""
        if self.kind == "subject":
            return f"s:{self.key}"
        if self.kind == "tier":
            return f"t:{self.name}"
        return f"p:{self.key}" if self.key else f"P:{self.name}"

    def __str__(self) -> str:
        return ", ".join([f"{name} {value}" for name, value in self.shown.items()])


class Change(Struct, frozen=True, omit_defaults=False):
    """One change, as it is kept. Times are milliseconds since 1970, money is micro-USD."""

    of: Mapping[str, str]  # what it binds, as an admin names it
    limits: Mapping[str, int]
    until: int
    by: str
    why: str
    at: int
    v: int = VERSION

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    def shown(self) -> dict[str, object]:
        """For people and programs: amounts in US dollars."""
        return {name: shown_limit(name, value) for name, value in self.limits.items()}


def read_change(field: str, value: bytes) -> Change:
    """Raises UnreadableLedger."""
    try:
        found = msgspec.json.decode(value, type=Change)
        versions.check("the change", found.v, VERSION)
    except (msgspec.DecodeError, versions.UnknownVersion) as error:
        raise UnreadableLedger(f"the change of limits {field!r} cannot be read, reset it: {error}") from error
    return found


def shown_limit(name: str, value: int) -> int | float | bool:
    """A limit as people write it."""
    if name == BLOCKED:
        return bool(value)
    return usd(value) if name.startswith("usd_") else value


def limit_of(name: str, value: object) -> int:
    """The inverse of `shown_limit`. Raises ValueError, which says what the value must be."""
    if name == BLOCKED:
        if not isinstance(value, bool):
            raise ValueError("must be true or false")
        return int(value)
    if name.startswith("usd_"):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MOST_USD:
            raise ValueError(f"must be an amount in US dollars: more than 0, at most {MOST_USD}")
        return micro_usd(value)
    if type(value) is not int or not 1 <= value <= MOST_RUNS:
        raise ValueError(f"must be a whole number from 1 to {MOST_RUNS}")
    return value


def with_changes(windows: Windows, terms: Terms, at: int, changed: Iterable[Changed]) -> tuple[Windows, Terms]:
    """The limits of the account `at` as they are now."""
    own = {limit: value for n, limit, value in changed if n == at}
    if not own:
        return windows, terms
    return (
        Windows(tuple([replace(w, limit=own.get(w.name, w.limit)) for w in windows.each])),
        Terms(
            terms.concurrent if terms.concurrent is None else own.get("concurrent", terms.concurrent),
            tuple([replace(b, micro_usd=own[b.name]) if b.limits and b.name in own else b for b in terms.budgets]),
        ),
    )
