"""What is left of a caller's limits, and what a refusal says of them: as JSON. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from claude_contract.ledger import (
    Admission,
    Blocked,
    Figures,
    Quota,
    Spent,
    Standing,
    Terms,
    Usage,
    Window,
    dollars,
    figures_of,
    usd,
)
from claude_contract.ledger.figures import seconds
from kong_claude.rate_tiers.headers import reset, retry_after
from kong_claude.rate_tiers.tiers import Tier


def refusal(admission: Admission, tier: Tier) -> dict[str, Any]:
    """Which limit is in the way, of which pool where it is one's, and for how long."""
    detail: dict[str, Any] = {"limit": admission.exceeded, "tier": tier.name, "retry_after": retry_after(admission)}
    if tier.kind == "message":
        detail["of"] = "messages"
    pool, standing, terms = _in_the_way(admission, tier)
    if pool:
        detail["pool"] = pool
    limit = _limit(admission, standing)
    match limit:
        case Window():
            return detail | {"allowed": limit.limit}
        case Spent():
            return detail | {
                "allowed": usd(limit.budget.micro_usd),
                "spent": usd(limit.micro_usd),
                "reserved": usd(standing.reserved_micro_usd),
                **({} if tier.kind == "message" else {"needs": usd(tier.slot.run_micro_usd)}),
            }
    return detail | {"allowed": terms.concurrent, "frees": "when one of the running executions ends"}


def in_words(admission: Admission, tier: Tier) -> str:
    """The same as a clause: many clients show nothing of an answer but its message."""
    pool, standing, terms = _in_the_way(admission, tier)
    limit = _limit(admission, standing)
    things = "message" if tier.kind == "message" else "request"
    match limit:
        case Window():
            what = f"{_counted(limit.limit, things)} {_article(limit.name)} {limit.name}"
        case Spent():
            budget, needs = limit.budget, tier.slot.run_micro_usd
            what = f"{dollars(budget.micro_usd)} {'in any' if budget.rolling else _article(budget.per)} {budget.per}"
            what += f", of which {dollars(limit.micro_usd)} is spent"
            if standing.reserved_micro_usd:
                what += f" and {dollars(standing.reserved_micro_usd)} held by what runs"
            if needs and tier.kind != "message":
                what += f", and a run needs {dollars(needs)}"
        case _:
            what = f"{_counted(terms.concurrent or 0, things)} at a time"
    whose = f"the pool {pool}" if pool else f"tier {tier.name}"
    if any((at, name) == (admission.at, admission.exceeded) for at, name, _ in admission.changed):
        what = f"an administrator allows {whose if pool else 'this caller'}, for now, {what}"
    else:
        what = f"{whose} allows {what}"
    if isinstance(limit, Spent) and tier.kind != "message" and limit.budget.micro_usd < tier.least_hold:
        return f"{what}: none can start"  # however long one waits
    return f"{what}; try again in {_lasting(retry_after(admission))}"


def _in_the_way(admission: Admission, tier: Tier) -> tuple[str, Standing, Terms]:
    """The pool's name ("": the caller's own), how it stands, and what it allows."""
    if not admission.at:
        return "", admission.own, tier.slot.own
    pool = tier.pools[admission.at - 1]
    return pool.name, admission.pools[admission.at - 1], pool.terms


def _limit(admission: Admission, standing: Standing) -> Window | Spent | None:
    """What refuses; None: the number of those that run at once."""
    if admission.exceeded == "concurrent":
        return None
    for quota in standing.quotas:
        if quota.window.name == admission.exceeded:
            return quota.window
    (spent,) = [spent for spent in standing.spent if spent.budget.name == admission.exceeded]
    return spent


def _article(noun: str) -> str:
    return "an" if noun == "hour" else "a"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _lasting(seconds: int) -> str:
    """`42 s`, `13 min`, `7 h 12 min`, `3 d 4 h`: never less than it is."""
    if seconds <= 120:
        return f"{seconds} s"
    minutes = -(-seconds // 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours + (minutes > 0), 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def blocked(admission: Admission, tier: Tier) -> dict[str, Any]:
    """Of whom it is, and for how long. Why, is told to admins only."""
    found = Blocked(admission.at, admission.wait_ms, admission.of_tier)
    return {"limit": admission.exceeded, "tier": tier.name, **_blocked(tier, found)}


def whom(found: Mapping[str, Any]) -> str:
    """Of what `blocked` says, in words."""
    named = {"tier": f"the tier {found['tier']}", "pool": f"the pool {found.get('pool')}"}
    return named.get(found["of"], "this caller")


def _blocked(tier: Tier, found: Blocked) -> dict[str, Any]:
    lasts = {"for_s": seconds(found.for_ms)}
    if found.at:
        return {"of": "pool", "pool": tier.pools[found.at - 1].name, **lasts}
    return {"of": "tier" if found.of_tier else "caller", **lasts}


def exceeded(admission: Admission, tier: Tier) -> str:
    """For logs: `minute`, or `pool engineering: usd_per_month`."""
    return f"pool {tier.pools[admission.at - 1].name}: {admission.exceeded}" if admission.at else admission.exceeded


def limits(usage: Usage, tier: Tier, messages: Usage | None = None) -> dict[str, Any]:
    """What `GET /claude/limits` answers. `messages`: what is used of the tier's limits for them, where it has some."""
    day, month, *_ = usage.own.spent
    own = figures_of(usage.own)
    money: dict[str, Any] = {
        "reserved": usd(usage.reserved_micro_usd),
        "day": _of_utc(day, own),
        "month": _of_utc(month, own),
    }
    body = {
        "tier": tier.name,
        "windows": [_window(q) for q in usage.own.quotas],
        "concurrent": {"limit": tier.slot.concurrent, "running": usage.running},
        "usd": money,
        **{name: value for name, value in tier.clamp.to_claims().items() if name != "features"},
        "api_features": list(tier.clamp.api_features),  # as the tier's field is called
    }
    if tier.messages is not None and messages is not None:
        body["messages"] = {
            "windows": [_window(q) for q in messages.own.quotas],
            "concurrent": {"limit": tier.messages.slot.concurrent, "running": messages.running},
        }
    if usage.blocked:
        body["blocked"] = _blocked(tier, max(usage.blocked, key=lambda one: one.for_ms))
    if tier.slot.budgets:
        money["budgets"] = [found.document() for found in own if found.budget in tier.slot.budgets]
    if tier.pools:
        body["pools"] = [
            {
                "name": pool.name,
                "windows": [_window(q) for q in standing.quotas],
                "concurrent": {"limit": pool.terms.concurrent, "running": standing.running},
                "usd": {
                    "reserved": usd(standing.reserved_micro_usd),
                    "budgets": [found.document() for found in figures_of(standing)],
                },
            }
            for pool, standing in zip(tier.pools, usage.pools, strict=True)
        ]
        body["tightest"] = _tightest(usage, tier)
    return body


_FIGURES = ("tier", "blocked", "windows", "concurrent", "usd", "messages", "pools", "tightest")


def figures(said: Mapping[str, Any]) -> dict[str, Any]:
    """What `limits` says, without what the tier allows."""
    return {name: said[name] for name in _FIGURES if name in said}


def _tightest(usage: Usage, tier: Tier) -> dict[str, Any] | None:
    """Of all limits the one of which the smallest share is left (0 to 1; of a budget with less than a run holds: 0), of
    several of which nothing is left the one that stays in the way for longest."""
    names = ("", *[pool.name for pool in tier.pools])
    terms: Sequence[Terms] = (tier.slot.own, *tier.slot.pools)
    found = [
        (max(left, 0.0), -wait_ms, name, limit)
        for name, each, standing in zip(names, terms, (usage.own, *usage.pools), strict=True)
        for limit, left, wait_ms in _left(each, standing, tier.slot.run_micro_usd)
    ]
    if not found:
        return None
    left, _, name, limit = min(found, key=lambda one: one[:2])
    pool = {"pool": name} if name else {}
    return {**pool, "limit": limit, "left": round(left, 4)}


def _left(terms: Terms, standing: Standing, hold: int) -> Iterator[tuple[str, float, int]]:
    """Each limit's name, the share of it that is left, and in how many ms some comes back (0 where a run has it)."""
    for quota in standing.quotas:
        whole = 1 + quota.window.burst if quota.window.burst >= 0 else quota.window.limit
        yield quota.window.name, quota.remaining / whole, quota.reset_ms
    if terms.concurrent is not None:
        yield "concurrent", 1 - standing.running / terms.concurrent, 0
    for found in figures_of(standing):
        limit, left = found.budget.micro_usd, found.budget.micro_usd - found.used
        wait_ms = found.reset_ms if found.spent + hold > limit else 0
        yield found.budget.name, left / limit if left >= hold else 0.0, wait_ms


def _window(quota: Quota) -> dict[str, Any]:
    """`burst`: of one that is paced, of which 1 more may pass at once: `remaining` is of these."""
    window = quota.window
    return {
        "name": window.name,
        "limit": window.limit,
        "window_s": window.seconds,
        "remaining": quota.remaining,
        "reset_s": reset(quota) if quota.reset_ms else 0,
        **({"burst": window.burst} if window.burst >= 0 else {}),
    }


def _of_utc(spent: Spent, limited: Sequence[Figures]) -> dict[str, Any]:
    """A UTC day's or month's money, of which everybody is told, and what is left where it is limited."""
    limit = next(
        (found for found in limited if found.budget.name == spent.budget.name and found.budget.zone == "UTC"), None
    )
    told = {"limit": None, "spent": usd(spent.micro_usd), "reset_s": seconds(spent.reset_ms)}
    return told if limit is None else {name: limit.document()[name] for name in (*told, "left", "start", "end")}
