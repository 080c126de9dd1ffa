"""What an answer says about limits. No I/O.

Kong's names as its rate-limiting plugin writes them (kong/plugins/rate-limiting/handler.lua), and the fields of
draft-ietf-httpapi-ratelimit-headers-10.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from claude_contract.ledger import Admission, Quota, Window
from claude_contract.ledger.figures import seconds

STYLES = ("both", "kong", "draft")
BUSY_RETRY_S = 5  # when a place comes back depends on other runs: a guess


def reset(quota: Quota) -> int:
    """Seconds until a place comes back. The window's length at most, as clients of either header style expect."""
    return min(seconds(quota.reset_ms), max(quota.window.seconds, 1))


def tightest(quotas: Sequence[Quota]) -> int:
    """The place of the window with the least left; of equals that of the longer one, as Kong chooses."""
    found, least = 0, quotas[0]
    for at in range(1, len(quotas)):
        quota = quotas[at]
        if quota.remaining < least.remaining or (
            quota.remaining == least.remaining and quota.window.seconds > least.window.seconds
        ):
            found, least = at, quota
    return found


class LimitHeaders:
    """The headers of one tier and its pools: what does not change from answer to answer is written once."""

    def __init__(
        self, windows: Sequence[Window], style: str, pools: Iterable[tuple[str, Sequence[Window]]] = ()
    ) -> None:
        """`pools`: each one's name and windows."""
        named = [(window.name, window) for window in windows]
        named += [(f"{pool}.{window.name}", window) for pool, inside in pools for window in inside]
        self._names = [name for name, _ in named]
        self._kong, self._draft = style != "draft", style != "kong"
        self._fixed: dict[str, str] = {}
        self._remaining: list[tuple[str, int]] = []
        """Header, and the place of the only window of that length."""
        self._several: list[tuple[str, list[int]]] = []
        """Length, and the places of the tier's window and its pools': Kong's names have no room for pools."""
        if self._kong:
            for length in dict.fromkeys(window.name for _, window in named):
                places = [at for at, (_, window) in enumerate(named) if window.name == length]
                if len(places) > 1:
                    self._several.append((length.capitalize(), places))
                    continue
                self._fixed[f"X-RateLimit-Limit-{length.capitalize()}"] = str(named[places[0]][1].limit)
                self._remaining.append((f"X-RateLimit-Remaining-{length.capitalize()}", places[0]))
        if self._draft and named:
            self._fixed["RateLimit-Policy"] = ", ".join(f'"{name}";q={w.limit};w={w.seconds}' for name, w in named)

    def of(self, admission: Admission) -> dict[str, str]:
        """The tier's windows and its pools', in their order."""
        quotas = admission.own.quotas
        for pool in admission.pools:
            quotas += pool.quotas
        if not quotas:
            return {}
        headers = dict(self._fixed)
        for header, place in self._remaining:
            quota = quotas[place]
            headers[header] = str(min(quota.remaining, quota.window.limit))
        for length, places in self._several:
            quota = min([quotas[place] for place in places], key=lambda one: one.remaining)
            headers[f"X-RateLimit-Limit-{length}"] = str(quota.window.limit)
            headers[f"X-RateLimit-Remaining-{length}"] = str(min(quota.remaining, quota.window.limit))
        at = tightest(quotas)
        least = quotas[at]
        limit = least.window.limit
        remaining, wait = min(least.remaining, limit), reset(least)
        if self._kong:
            headers["RateLimit-Limit"] = str(limit)
            headers["RateLimit-Remaining"] = str(remaining)
            headers["RateLimit-Reset"] = str(wait)
        if self._draft:
            headers["RateLimit"] = f'"{self._names[at]}";r={remaining};t={wait}'
        return headers


def retry_after(admission: Admission) -> int:
    """Seconds after which a refused request may succeed."""
    return seconds(admission.wait_ms) if admission.wait_ms else BUSY_RETRY_S
