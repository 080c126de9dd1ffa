"""What an answer says about limits. No I/O.

Kong's names as its rate-limiting plugin writes them (kong/plugins/rate-limiting/handler.lua), and the fields of
draft-ietf-httpapi-ratelimit-headers-10.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from claude_contract.ledger import Admission, Quota

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
    return min(quotas, key=lambda q: (q.remaining, -q.window.seconds))


def limit_headers(quotas: Sequence[Quota], style: str) -> dict[str, str]:
    headers: dict[str, str] = {}
    if not quotas:
        return headers
    least = tightest(quotas)
    remaining = min(least.remaining, least.window.limit)
    if style != "draft":
        for quota in quotas:
            name = quota.window.name.capitalize()
            headers[f"X-RateLimit-Limit-{name}"] = str(quota.window.limit)
            headers[f"X-RateLimit-Remaining-{name}"] = str(min(quota.remaining, quota.window.limit))
        headers["RateLimit-Limit"] = str(least.window.limit)
        headers["RateLimit-Remaining"] = str(remaining)
        headers["RateLimit-Reset"] = str(reset(least))
    if style != "kong":
        headers["RateLimit-Policy"] = ", ".join(
            f'"{q.window.name}";q={q.window.limit};w={q.window.seconds}' for q in quotas
        )
        headers["RateLimit"] = f'"{least.window.name}";r={remaining};t={reset(least)}'
    return headers


def retry_after(admission: Admission) -> int:
    """Seconds after which a refused request may succeed."""
    return seconds(admission.wait_ms) if admission.wait_ms else BUSY_RETRY_S
