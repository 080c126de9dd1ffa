"""Which limit binds a subject, from where it comes, and what is left of it. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from claude_contract.ledger import Standing, Terms, Usage, Windows, usd
from claude_contract.ledger.figures import seconds
from claude_contract.ledger.live import BLOCKED, Change, Target, shown_limit
from kong_claude.rate_tiers.headers import reset
from kong_claude.rate_tiers.tiers import Tier
from kong_claude.rate_tiers.wishes import shown

Row = dict[str, Any]


def explanation(
    tier: Tier, usage: Usage, changes: Mapping[str, Change], targets: Sequence[Sequence[Target]]
) -> dict[str, Any]:
    """`tier` as configured; `changes` those that hold, by field; `targets` of each account, the most specific first."""
    now = tier.now(usage.changed)
    rows: list[Row] = []
    blocked = None
    accounts = [(None, now.windows, now.slot.own), *[(pool.name, pool.windows, pool.terms) for pool in now.pools]]
    before = [(tier.windows, tier.slot.own), *[(pool.windows, pool.terms) for pool in tier.pools]]
    for at, (pool, windows, terms) in enumerate(accounts):
        standing = usage.pools[at - 1] if at else usage.own
        changed = {limit for n, limit, _ in usage.changed if n == at}
        for found in _rows(windows, terms, standing, now.slot.run_micro_usd):
            name = found["limit"]
            row: Row = ({"pool": pool} if pool else {}) | found
            if name in changed:
                row["configured"] = shown_limit(name, _configured(*before[at], name))
                made_by = _source(name, changes, targets[at])
                row["from"] = shown(made_by) if made_by else "a change that ended just now"
            else:
                row["from"] = "configuration"
            rows.append(row)
        source = _source(BLOCKED, changes, targets[at])
        if source is not None and source.limits[BLOCKED] and blocked is None:
            blocked = ({"pool": pool} if pool else {}) | shown(source)
    binds = min(rows, key=_in_the_way, default=None)
    if blocked is not None:
        binds = {"limit": BLOCKED, "from": blocked}
    return {"blocked": blocked, "limits": rows, "binds": binds}


def _in_the_way(row: Row) -> tuple[bool, float, float]:
    """The least binds first: what refuses the next run before all else, and of several the one that does for longest,
    as `admit.lua` has it. When a place, or money that others hold, comes back nobody knows: that counts as soonest."""
    needs = row.get("needs")
    if row["left"] >= (1 if needs is None else needs):
        return True, 0, row["share_left"]
    known = needs is None or round(row["used"] + needs, 6) > row["allowed"]
    return False, -row.get("turns_in_s", 0) if known else 0, row["share_left"]


def _source(limit: str, changes: Mapping[str, Change], targets: Sequence[Target]) -> Change | None:
    """As `live.lua` chooses: the most specific change that names the limit."""
    for target in targets:
        change = changes.get(target.field)
        if change is not None and limit in change.limits:
            return change
    return None


def _rows(windows: Windows, terms: Terms, standing: Standing, hold: int) -> Iterator[Row]:
    """`hold`: micro-USD that a run needs of a budget to start. Of one that has less, no share is left."""
    for quota in standing.quotas:
        whole = 1 + quota.window.burst if quota.window.burst >= 0 else quota.window.limit
        left = min(quota.remaining, whole)
        yield {
            "limit": quota.window.name,
            "allowed": quota.window.limit,
            "used": whole - left + quota.over,
            "left": left,
            "share_left": round(left / whole, 4),
            "turns_in_s": reset(quota) if quota.reset_ms else 0,
        }
    if terms.concurrent is not None:
        left = max(terms.concurrent - standing.running, 0)
        yield {
            "limit": "concurrent",
            "allowed": terms.concurrent,
            "used": standing.running,
            "left": left,
            "share_left": round(left / terms.concurrent, 4),
        }
    reserved = standing.reserved_micro_usd
    for spent in standing.spent:
        if spent.budget not in terms.budgets:
            continue
        allowed = spent.budget.micro_usd
        left = max(allowed - spent.micro_usd - reserved, 0)
        yield {
            "limit": spent.budget.name,
            **({} if spent.budget.rolling else {"zone": spent.budget.zone}),
            "allowed": usd(allowed),
            "used": usd(spent.micro_usd),
            "reserved": usd(reserved),
            "left": usd(left),
            "needs": usd(hold),
            "share_left": round(left / allowed, 4) if left >= hold else 0.0,
            "turns_in_s": seconds(spent.reset_ms) if spent.reset_ms else 0,
        }


def _configured(windows: Windows, terms: Terms, limit: str) -> int:
    if limit == "concurrent":
        return terms.concurrent or 0
    limits = {w.name: w.limit for w in windows.each} | {b.name: b.micro_usd for b in terms.budgets}
    return limits[limit]
