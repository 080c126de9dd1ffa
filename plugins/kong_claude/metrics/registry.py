"""The gateway's metrics, in prometheus_client's default registry; the plugin server serves them."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

LABELS = ("status", "method", "route")
# A refusal takes milliseconds, a run up to half an hour.
BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)

REQUESTS = Counter("claude_requests_total", "Requests that Kong has answered.", LABELS)
DURATION = Histogram(
    "claude_request_duration_seconds", "Seconds from request to end.", LABELS, buckets=BUCKETS
)
ACTIVE = Gauge("claude_active_connections", "Requests that Kong is answering now.")
