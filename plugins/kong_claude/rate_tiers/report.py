"""What is left of a caller's limits, and what a refusal says of them: as JSON. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from claude_contract.ledger import Admission, Quota, Spent, Standing, Terms, Usage, usd
from kong_claude.rate_tiers.headers import reset, retry_after, seconds
from kong_claude.rate_tiers.tiers import Tier


def refusal(admission: Admission, tier: Tier) -> dict[str, Any]:
    """Which limit is in the way, of which pool where it is one's, and for how long."""
    detail: dict[str, Any] = {"limit": admission.exceeded, "tier": tier.name, "retry_after": retry_after(admission)}
    standing, terms = admission.own, tier.slot.own
    if admission.at:
        pool = tier.pools[admission.at - 1]
        standing, terms = admission.pools[admission.at - 1], pool.terms
        detail["pool"] = pool.name
    quota = next((q for q in standing.quotas if q.window.name == admission.exceeded), None)
    if quota is not None:
        return detail | {"allowed": quota.window.limit}
    if admission.exceeded == "concurrent":
        return detail | {"allowed": terms.concurrent, "frees": "when one of the running executions ends"}
    (spent,) = [spent for spent in standing.spent if spent.budget.name == admission.exceeded]
    return detail | {
        "allowed": usd(spent.budget.micro_usd),
        "spent": usd(spent.micro_usd),
        "reserved": usd(standing.reserved_micro_usd),
    }


def blocked(admission: Admission, tier: Tier) -> dict[str, Any]:
    """Of whom it is, and for how long. Why, is told to admins only."""
    pool = {"pool": tier.pools[admission.at - 1].name} if admission.at else {}
    return {"limit": admission.exceeded, "tier": tier.name, **pool, "for_s": seconds(admission.wait_ms)}


def exceeded(admission: Admission, tier: Tier) -> str:
    """For logs: `minute`, or `pool engineering: usd_per_month`."""
    return f"pool {tier.pools[admission.at - 1].name}: {admission.exceeded}" if admission.at else admission.exceeded


def limits(usage: Usage, tier: Tier) -> dict[str, Any]:
    """What `GET /claude/limits` answers."""
    day, month, *_ = usage.own.spent
    money = {
        "reserved": usd(usage.reserved_micro_usd),
        "day": _of_utc(tier.slot.day_micro_usd, day),
        "month": _of_utc(tier.slot.month_micro_usd, month),
    }
    body = {
        "tier": tier.name,
        "windows": [_window(q) for q in usage.own.quotas],
        "concurrent": {"limit": tier.slot.concurrent, "running": usage.running},
        "usd": money,
        **tier.clamp.to_claims(),
    }
    if tier.slot.budgets:
        money["budgets"] = [_budget(spent) for spent in usage.own.spent if spent.budget in tier.slot.budgets]
    if tier.pools:
        body["pools"] = [
            {
                "name": pool.name,
                "windows": [_window(q) for q in standing.quotas],
                "concurrent": {"limit": pool.terms.concurrent, "running": standing.running},
                "usd": {
                    "reserved": usd(standing.reserved_micro_usd),
                    "budgets": [_budget(spent) for spent in standing.spent],
                },
            }
            for pool, standing in zip(tier.pools, usage.pools, strict=True)
        ]
        body["tightest"] = _tightest(usage, tier)
    return body


def _tightest(usage: Usage, tier: Tier) -> dict[str, Any] | None:
    """Of all limits the one of which the smallest share is left (0 to 1)."""
    names = ("", *[pool.name for pool in tier.pools])
    terms: Sequence[Terms] = (tier.slot.own, *tier.slot.pools)
    found = [
        (left, name, limit)
        for name, each, standing in zip(names, terms, (usage.own, *usage.pools), strict=True)
        for limit, left in _left(each, standing)
    ]
    if not found:
        return None
    left, name, limit = min(found, key=lambda one: one[0])
    pool = {"pool": name} if name else {}
    return {**pool, "limit": limit, "left": round(max(left, 0.0), 4)}


def _left(terms: Terms, standing: Standing) -> Iterator[tuple[str, float]]:
    """Each limit's name, and the share of it that is left."""
    for quota in standing.quotas:
        whole = 1 + quota.window.burst if quota.window.burst >= 0 else quota.window.limit
        yield quota.window.name, quota.remaining / whole
    if terms.concurrent is not None:
        yield "concurrent", 1 - standing.running / terms.concurrent
    for budget, spent, _ in standing.spent:
        if budget in terms.budgets:
            yield budget.name, 1 - (spent + standing.reserved_micro_usd) / budget.micro_usd


def _window(quota: Quota) -> dict[str, Any]:
    return {
        "name": quota.window.name,
        "limit": quota.window.limit,
        "window_s": quota.window.seconds,
        "remaining": quota.remaining,
        "reset_s": reset(quota) if quota.reset_ms else 0,
    }


def _of_utc(limit_micro_usd: int | None, spent: Spent) -> dict[str, Any]:
    limit = None if limit_micro_usd is None else usd(limit_micro_usd)
    return {"limit": limit, "spent": usd(spent.micro_usd), "reset_s": seconds(spent.reset_ms)}


def _budget(spent: Spent) -> dict[str, Any]:
    budget = spent.budget
    when = {"rolling": True} if budget.rolling else {"zone": budget.zone}
    return {
        "name": budget.name,
        "per": budget.per,
        **when,
        "limit": usd(budget.micro_usd),
        "spent": usd(spent.micro_usd),
        "reset_s": seconds(spent.reset_ms) if spent.reset_ms else 0,
    }
