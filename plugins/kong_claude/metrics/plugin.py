"""claude-metrics: one PDK call per request, in the log phase. A `response` phase would make Kong buffer streams."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from prometheus_client import Counter, Histogram

from kong_claude import in_flight
from kong_claude.metrics import registry, sinks
from kong_claude.metrics.entry import Entry, attestation_of, entry, parse, render
from kong_claude.metrics.schema import AccessLogConfig, MetricsConfig
from kong_claude.request import answer, text
from kong_claude.schema import read


class Plugin:
    """Counts every request and writes its access log line."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.sinks = open_sinks(read(MetricsConfig, config).access_log or AccessLogConfig())
        in_flight.watch(self)

    def log(self, kong: Any) -> None:
        serialized = parse(text(answer(kong.log.serialize())))
        attested = in_flight.end(attestation_of(serialized)) or in_flight.of_answer(serialized)
        found = entry(serialized, attested)
        count(found)
        if self.sinks:
            line = render(found.line)
            for sink in self.sinks:
                sink.write(line)

    def close(self) -> None:
        in_flight.unwatch(self)
        for sink in self.sinks:
            sink.close()


def count(found: Entry) -> None:
    """One request into the metrics."""
    route = registry.ROUTE(found.route)
    labels = (str(found.status) if found.status else "other", found.method, route)
    requests, duration = answered(*labels)
    requests.inc()
    duration.observe(found.seconds)
    tier = registry.TIER(found.tier or "none")
    if found.refusal:
        plugin, reason = found.refusal
        registry.REFUSALS.labels(registry.PLUGIN(plugin), registry.REASON(reason), route, tier).inc()
    if found.tier:
        in_tier(tier, route).inc()
    if found.model:
        model = registry.MODEL(found.model)
        registry.COST.labels(model, tier).inc(found.cost_usd)
        registry.TOKENS.labels(model, tier, "input").inc(found.input_tokens)
        registry.TOKENS.labels(model, tier, "output").inc(found.output_tokens)


# `labels` takes a lock and makes a tuple of texts each time, which costs more than to count.
@lru_cache(maxsize=4096)
def answered(status: str, method: str, route: str) -> tuple[Counter, Histogram]:
    labels = (status, method, route)
    return registry.REQUESTS.labels(*labels), registry.DURATION.labels(*labels)


@lru_cache(maxsize=4096)
def in_tier(tier: str, route: str) -> Counter:
    return registry.TIER_REQUESTS.labels(tier, route)


def open_sinks(config: AccessLogConfig) -> list[sinks.Sink]:
    """The sinks of the `access_log` section."""
    found: list[sinks.Sink] = []
    if config.stdout:
        found.append(sinks.Stdout())
    if config.file:
        found.append(sinks.File(config.file))
    if config.url:
        found.append(sinks.Http(config.url, config.url_style, config.queue_size, config.flush_seconds))
    return found
