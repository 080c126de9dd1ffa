"""What an answer says about limits. No I/O.

Kong's names as its rate-limiting plugin writes them (kong/plugins/rate-limiting/handler.lua), and the fields of
draft-ietf-httpapi-ratelimit-headers-10.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from claude_contract.ledger import Admission, Quota, Window

STYLES = ("both", "kong", "draft")
BUSY_RETRY_S = 5  # when a place comes back depends on other runs: a guess


def seconds(ms: int) -> int:
    """Whole seconds, rounded up, at least 1: nobody comes back too early."""
    return max(1, math.ceil(ms / 1000))


def reset(quota: Quota) -> int:
    """Seconds until a place comes back. The window's length at most, as clients of either header style expect."""
    return min(seconds(quota.reset_ms), max(quota.window.seconds, 1))


def tightest(quotas: Sequence[Quota]) -> Quota:
    """The window with the least left; of equals the longer one, as Kong chooses."""
    least = quotas[0]
    for quota in quotas[1:]:
        if quota.remaining < least.remaining or (
            quota.remaining == least.remaining and quota.window.seconds > least.window.seconds
        ):
            least = quota
    return least


class LimitHeaders:
    """The headers of one tier: what does not change from answer to answer is written once."""

    def __init__(self, windows: Sequence[Window], style: str) -> None:
        self._fixed: dict[str, str] = {}
        self._kong, self._draft = style != "draft", style != "kong"
        self._remaining = []
        if self._kong:
            names = [window.name.capitalize() for window in windows]
            self._fixed |= {f"X-RateLimit-Limit-{n}": str(w.limit) for n, w in zip(names, windows, strict=True)}
            self._remaining = [f"X-RateLimit-Remaining-{name}" for name in names]
        if self._draft and windows:
            self._fixed["RateLimit-Policy"] = ", ".join(f'"{w.name}";q={w.limit};w={w.seconds}' for w in windows)

    def of(self, quotas: Sequence[Quota]) -> dict[str, str]:
        """For the tier's windows, in their order."""
        if not quotas:
            return {}
        headers = dict(self._fixed)
        for name, quota in zip(self._remaining, quotas, strict=False):
            headers[name] = str(min(quota.remaining, quota.window.limit))
        least = tightest(quotas)
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
