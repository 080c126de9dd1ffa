"""The gateway's metrics, in prometheus_client's default registry; the plugin server serves them."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from kong_claude import in_flight

LABELS = ("status", "method", "route")
# A refusal takes milliseconds, a run up to half an hour.
BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)

REQUESTS = Counter("claude_requests_total", "Requests that Kong has answered.", LABELS)
DURATION = Histogram("claude_request_duration_seconds", "Seconds from request to end.", LABELS, buckets=BUCKETS)
ACTIVE = Gauge("claude_active_connections", "Requests let through to the invoker that are not over.")
ACTIVE.set_function(in_flight.count)
REFUSALS = Counter("claude_refusals_total", "Requests refused by the gateway.", ("plugin", "reason", "route", "tier"))
TOKENS = Counter("claude_tokens_total", "Tokens of runs answered at once (not streamed).", ("model", "tier", "kind"))
COST = Counter("claude_cost_usd_total", "Cost of runs answered at once (not streamed).", ("model", "tier"))
TIER_REQUESTS = Counter("claude_tier_requests_total", "Requests of callers whose tier is known.", ("tier", "route"))
LOG_DROPPED = Counter("claude_access_log_dropped_total", "Access log lines given up.", ("sink",))

MAX_VALUES = 100
"""Values of one label; what comes after them is counted as `other`."""


class Bounded:
    """The values one label may have: the first `limit` that come, then `other`."""

    def __init__(self, limit: int = MAX_VALUES) -> None:
        self.limit = limit
        self.seen: set[str] = set()

    def __call__(self, value: str) -> str:
        if value in self.seen:
            return value
        if len(self.seen) >= self.limit or len(value) > 100:
            return "other"
        # A lone surrogate cannot be encoded when scraped.
        if not value.isascii() or not value.isprintable():
            return "other"
        self.seen.add(value)
        return value


ROUTE, TIER, MODEL, PLUGIN, REASON = (Bounded() for _ in range(5))
