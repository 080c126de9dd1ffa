"""What an answer says about limits. No I/O.

Kong's names as its rate-limiting plugin writes them (kong/plugins/rate-limiting/handler.lua), and the fields of
draft-ietf-httpapi-ratelimit-headers-10.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from claude_contract.ledger import Admission, Quota, Window

STYLES = ("both", "kong", "draft")
BUSY_RETRY_S = 5  # when a place comes back depends on other runs: a guess


def seconds(ms: int) -> int:
    """Whole seconds, rounded up, at least 1: nobody comes back too early."""
    return max(1, math.ceil(ms / 1000))


def reset(quota: Quota) -> int:
    """Seconds until a place comes back. The window's length at most, as clients of either header style expect."""
    return min(seconds(quota.reset_ms), max(quota.window.seconds, 1))


class Named(NamedTuple):
    """A quota, and whose it is: a pool's name, or nothing for the subject's own."""

    pool: str
    quota: Quota

    @property
    def name(self) -> str:
        return f"{self.pool}.{self.quota.window.name}" if self.pool else self.quota.window.name


def tightest(each: Sequence[Named]) -> Named:
    """The window with the least left; of equals the longer one, as Kong chooses."""
    return min(each, key=lambda one: (one.quota.remaining, -one.quota.window.seconds))


def named(admission: Admission, pools: Sequence[str]) -> list[Named]:
    """The quotas of a subject, then those of its pools, which have these names."""
    standings = zip(("", *pools), (admission.own, *admission.pools), strict=True)
    return [Named(pool, quota) for pool, standing in standings for quota in standing.quotas]


def limit_headers(each: Sequence[Named], style: str) -> dict[str, str]:
    """Kong's names have no room for pools: there each window's are the tightest's."""
    headers: dict[str, str] = {}
    if not each:
        return headers
    least = tightest(each)
    remaining = min(least.quota.remaining, least.quota.window.limit)
    if style != "draft":
        lengths = {one.quota.window.name: one.quota for one in reversed(each)}  # of equals the subject's own
        for one in each:
            if one.quota.remaining < lengths[one.quota.window.name].remaining:
                lengths[one.quota.window.name] = one.quota
        for window, quota in lengths.items():
            headers[f"X-RateLimit-Limit-{window.capitalize()}"] = str(quota.window.limit)
            headers[f"X-RateLimit-Remaining-{window.capitalize()}"] = str(min(quota.remaining, quota.window.limit))
        headers["RateLimit-Limit"] = str(least.quota.window.limit)
        headers["RateLimit-Remaining"] = str(remaining)
        headers["RateLimit-Reset"] = str(reset(least.quota))
    if style != "kong":
        headers["RateLimit-Policy"] = ", ".join(
            f'"{one.name}";q={one.quota.window.limit};w={one.quota.window.seconds}' for one in each
        )
        headers["RateLimit"] = f'"{least.name}";r={remaining};t={reset(least.quota)}'
    return headers


class LimitHeaders:
    """The headers of one tier: where it has no pools, what does not change from answer to answer is written once."""

    def __init__(self, windows: Sequence[Window], style: str, pools: Sequence[str] = ()) -> None:
        self._style, self._pools = style, pools
        self._fixed: dict[str, str] = {}
        self._kong, self._draft = style != "draft", style != "kong"
        self._remaining = []
        if self._kong:
            names = [window.name.capitalize() for window in windows]
            self._fixed |= {f"X-RateLimit-Limit-{n}": str(w.limit) for n, w in zip(names, windows, strict=True)}
            self._remaining = [f"X-RateLimit-Remaining-{name}" for name in names]
        if self._draft and windows:
            self._fixed["RateLimit-Policy"] = ", ".join(f'"{w.name}";q={w.limit};w={w.seconds}' for w in windows)

    def of(self, admission: Admission) -> dict[str, str]:
        """For the tier's windows, in their order."""
        if self._pools:
            return limit_headers(named(admission, self._pools), self._style)
        quotas = admission.own.quotas
        if not quotas:
            return {}
        headers = dict(self._fixed)
        for name, quota in zip(self._remaining, quotas, strict=False):
            headers[name] = str(min(quota.remaining, quota.window.limit))
        least = quotas[0]
        for quota in quotas[1:]:  # as `tightest`
            if quota.remaining < least.remaining or (
                quota.remaining == least.remaining and quota.window.seconds > least.window.seconds
            ):
                least = quota
        limit = least.window.limit
        remaining, wait = min(least.remaining, limit), reset(least)
        if self._kong:
            headers["RateLimit-Limit"] = str(limit)
            headers["RateLimit-Remaining"] = str(remaining)
            headers["RateLimit-Reset"] = str(wait)
        if self._draft:
            headers["RateLimit"] = f'"{least.window.name}";r={remaining};t={wait}'
        return headers


def retry_after(admission: Admission) -> int:
    """Seconds after which a refused request may succeed."""
    return seconds(admission.wait_ms) if admission.wait_ms else BUSY_RETRY_S
