"""What an admin asks to be changed, read strictly: `GET`, `PUT` and `DELETE /claude/admin/limits`. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from msgspec import Struct

from claude_contract.ledger import DEPLOYMENT, organisation_tag, pool_key, subject_key
from claude_contract.ledger.limits import BUDGETS
from claude_contract.ledger.live import BLOCKED, LIMITS, Change, Target, limit_of, limits_key
from kong_claude.decision import Refuse
from kong_claude.rate_tiers.tiers import Tier
from kong_claude.strict_json import JSONError, parse_object

MAX_BODY = 16 << 10  # bytes
MAX_TEXT = 500  # characters, of a reason and of names
FOR_S = 24 * 3600
"""How long a change holds that does not say."""
MOST_S = 31 * 24 * 3600
_SHOWN = re.compile(r"[^\x00-\x1f\x7f\u2028\u2029]+")
_QUERY = ("sub", "tier", "pool", "value", "organisation", "explain")
_CLAIM = "claim."  # in a query: claim.team=red


class Wrong(Exception):
    """What is wrong with a request: `refusal` is its answer."""

    def __init__(self, message: str, status: int = 422, reason: str = "bad_change") -> None:
        super().__init__(message)
        self.refusal = Refuse(status, message, reason)


class _Body(Struct, forbid_unknown_fields=True):
    limits: dict[str, bool | int | float]
    why: str
    sub: str | None = None
    tier: str | None = None
    pool: str | None = None
    value: str | None = None
    organisation: str | None = None
    until: datetime | None = None
    for_s: int | None = None


@dataclass(frozen=True)
class Configured:
    """What can be changed: the tiers and pools of the configuration, and how requests find them."""

    namespace: str
    tiers: Mapping[str, Tier]
    default: Tier
    counted: str  # what `limit_by` counts
    organisation_claim: str = ""

    @property
    def pools(self) -> dict[str, str]:
        """Each pool's claim by its name, "" where everybody shares it."""
        return {pool.name: pool.claim for tier in self.tiers.values() for pool in tier.pools}

    def allowed(self, target: Target) -> set[str]:
        """The limits that a change of it may name: those that all have whom it binds."""
        of = [tier.limits() for tier in self.tiers.values() if target.kind != "tier" or tier.name == target.name]
        account = target.name if target.kind == "pool" else ""
        each = [limits[account] for limits in of if account in limits]
        return set.intersection(*each) | {BLOCKED}

    def stopped(self, target: Target, change: Change) -> list[str]:
        """What an admin may not have meant: budgets that become less than a run holds, so that none can start."""
        found = []
        for limit, micro_usd in change.limits.items():
            tiers = [
                tier.name
                for tier in self.tiers.values()
                if limit in BUDGETS and micro_usd < tier.least_hold
                if target.kind != "tier" or tier.name == target.name
                if target.kind != "pool" or target.name in [pool.name for pool in tier.pools]
            ]
            if tiers:
                whose = f"the {'tier' if len(tiers) == 1 else 'tiers'} {', '.join(tiers)}"
                found.append(f"{limit} is less than max_usd_per_run of {whose}: no run of it can start")
        return found

    def tag(self, organisation: str | None) -> str:
        """Raises Wrong."""
        if not self.organisation_claim:
            if organisation is not None:
                raise Wrong("organisation: no organisation_claim is configured, so there is one for all")
            return DEPLOYMENT
        if organisation is None:
            raise Wrong(f"organisation is missing: each has limits of its own ({self.organisation_claim})")
        return organisation_tag("claim", _text("organisation", organisation))

    def key(self, organisation: str | None) -> str:
        """Where changes are. Raises Wrong."""
        return limits_key(self.namespace, self.tag(organisation))

    def target(self, given: Mapping[str, str | None]) -> Target:
        """Of what a request names by `sub`, or `tier`, or `pool` and maybe `value`. Raises Wrong."""
        shown = {name: value for name in _QUERY[:5] if (value := given.get(name)) is not None}
        for name, value in shown.items():
            _text(name, value)
        kinds = [name for name in ("sub", "tier", "pool") if name in shown]
        if len(kinds) != 1:
            raise Wrong("name one of sub, tier and pool, whose limits are meant")
        if "value" in shown and kinds != ["pool"]:
            raise Wrong("value belongs to a pool: those with that value of its claim")
        match kinds[0]:
            case "sub":
                return Target("subject", key=subject_key(self.counted, shown["sub"]), shown=shown)
            case "tier":
                if shown["tier"] not in self.tiers:
                    raise Wrong(f"there is no tier {shown['tier']!r}: {', '.join(self.tiers)}")
                return Target("tier", name=shown["tier"], shown=shown)
        pool, value = shown["pool"], shown.get("value")
        if pool not in self.pools:
            raise Wrong(f"there is no pool {pool!r}: {', '.join(self.pools) or 'none is configured'}")
        if value is not None and not self.pools[pool]:
            raise Wrong(f"the pool {pool!r} is everybody's, it has no value")
        key = pool_key(pool, "claim", value) if value is not None else ""
        return Target("pool", key=key, name=pool, shown=shown)


def read_query(raw: str) -> dict[str, str]:
    """Name → value, each once. Raises Wrong."""
    try:
        pairs = parse_qsl(raw, keep_blank_values=True, strict_parsing=bool(raw), errors="strict", max_num_fields=20)
    except ValueError:
        raise Wrong("the query cannot be read", 400, "bad_query") from None
    found = dict(pairs)
    unknown = sorted(name for name in found if name not in _QUERY and not name.startswith(_CLAIM))
    if unknown:
        raise Wrong(f"the query names {unknown[0]!r}, which is not known here", 400, "bad_query")
    if len(found) < len(pairs):
        raise Wrong("the query names something twice", 400, "bad_query")
    return found


def claims_of(query: Mapping[str, str]) -> dict[str, str]:
    """`claim.team=red` → team, red."""
    return {name.removeprefix(_CLAIM): value for name, value in query.items() if name.startswith(_CLAIM)}


def read_change(raw: bytes, configured: Configured, by: str, now: datetime) -> tuple[str, Target, Change]:
    """The key, what is bound, and the change that a body asks for. Raises Wrong."""
    try:
        wish = msgspec.convert(parse_object(raw), _Body)
    except JSONError as error:
        raise Wrong(str(error), 400, "bad_body") from None
    except msgspec.ValidationError as error:
        raise Wrong(str(error)) from None
    given = {name: getattr(wish, name) for name in _QUERY[:5]}
    target = configured.target(given)
    limits = _limits(wish.limits, configured, target)
    _text("why", wish.why)
    change = Change(dict(target.shown), limits, _ms(_until(wish, now)), by, wish.why, _ms(now))
    return configured.key(wish.organisation), target, change


def _limits(wished: Mapping[str, bool | int | float], configured: Configured, target: Target) -> dict[str, int]:
    if not wished:
        raise Wrong("limits is empty: to take a change back, DELETE it")
    allowed, found = configured.allowed(target), {}
    for name, value in wished.items():
        if name not in LIMITS:
            raise Wrong(f"limits.{name:.80}: is no limit; there are {', '.join(LIMITS)}")
        if name not in allowed:
            have = ", ".join(sorted(allowed, key=LIMITS.index))
            raise Wrong(
                f"limits.{name}: the configuration sets none for all whom this binds, and only what it sets can be "
                f"changed: {have}"
            )
        try:
            found[name] = limit_of(name, value)
        except ValueError as error:
            raise Wrong(f"limits.{name}: {error}") from None
    return found


def _until(wish: _Body, now: datetime) -> datetime:
    if wish.until is not None and wish.for_s is not None:
        raise Wrong("until and for_s say the same: give one of them")
    if wish.until is not None:
        if wish.until.tzinfo is None:
            raise Wrong("until: needs a time zone, as in 2026-12-31T18:00:00Z")
        until = wish.until.astimezone(UTC)
    else:
        seconds = FOR_S if wish.for_s is None else wish.for_s
        if not 1 <= seconds <= MOST_S:
            raise Wrong(f"for_s: must be from 1 to {MOST_S} seconds")
        until = now + timedelta(seconds=seconds)
    if not now < until <= now + timedelta(seconds=MOST_S):
        raise Wrong(f"until: must be a time from now on, at most {MOST_S // 86400} days away")
    return until


def _text(name: str, value: str) -> str:
    if not 0 < len(value) <= MAX_TEXT or not _SHOWN.fullmatch(value):
        raise Wrong(f"{name}: must be a text of 1 to {MAX_TEXT} characters, without control characters")
    return value


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def time_of(ms: int) -> str:
    """As answers have it."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def shown(change: Change) -> dict[str, Any]:
    """A change as answers have it."""
    return {
        **change.of,
        "limits": change.shown(),
        "until": time_of(change.until),
        "by": change.by,
        "why": change.why,
        "at": time_of(change.at),
    }
