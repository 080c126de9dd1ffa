"""What pools have used, for whoever asks for metrics: read from the ledger at that moment, by its one report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol
from weakref import WeakSet

from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from claude_contract.ledger import Ledger, LedgerUnavailable
from claude_contract.ledger.figures import PERIOD_LABELS, POOL_LABELS, PoolsSeen, pool_gauges


class Source(Protocol):
    """A plugin instance."""

    pools_seen: PoolsSeen

    @property
    def store(self) -> Ledger: ...


class PoolCollector(Collector):
    """Each pool once, however many instances have seen it. Where the ledger cannot be asked there are no figures."""

    def __init__(self) -> None:
        self.sources: WeakSet[Source] = WeakSet()

    def collect(self) -> Iterator[Metric]:
        money = GaugeMetricFamily("claude_pool_usd", "Money of pools seen here, in US dollars.", labels=POOL_LABELS)
        edges = GaugeMetricFamily(
            "claude_pool_period_timestamp_seconds", "Edges of their budgets' periods.", labels=PERIOD_LABELS
        )
        asked = {}
        for source in list(self.sources):
            for at, peek in source.pools_seen.peeks().items():
                asked[at] = (source.store, peek)
        for (_, tag, key), (store, peek) in asked.items():
            try:
                (standing,) = store.peek(peek).pools
            except LedgerUnavailable:
                continue
            for family, gauges in zip((money, edges), pool_gauges(tag, key, standing), strict=True):
                for gauge in gauges:
                    family.add_metric(gauge.labels, gauge.value)
        yield money
        yield edges


POOLS = PoolCollector()
REGISTRY.register(POOLS)
