"""claude-metrics: one PDK call per request, in the log phase. A `response` phase would make Kong buffer streams."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kong_claude.metrics.registry import DURATION, REQUESTS
from kong_claude.request import answer

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Plugin:
    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config

    def log(self, kong: Any) -> None:
        line = json.loads(answer(kong.log.serialize()))
        method = line["request"].get("method") or ""
        labels = (
            str(line["response"]["status"]),
            method if method in METHODS else "other",
            (line.get("route") or {}).get("name") or "",
        )
        REQUESTS.labels(*labels).inc()
        DURATION.labels(*labels).observe(line["latencies"]["request"] / 1000)
