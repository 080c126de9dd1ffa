"""Metrics of all generations of the server as one: `kong reload` starts another, and its counters begin at zero.

Families are kept by the process that counted them and added up only to be shown, so that none is added twice. Who ends
leaves his to his successor.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from prometheus_client import Metric

from kong_claude import generations

COUNTED, LEFT = "metrics.counted", "metrics.left"
ADDED = ("counter", "histogram", "summary")
OWN = ("process", "python")  # prometheus_client's: of one process each
# What these say is true of all generations together. Other gauges are the newest's.
GAUGES = frozenset(
    {
        "claude_active_connections",
        "pluginserver_busy_greenlets",
        "pluginserver_connections",
        "pluginserver_events_in_flight",
        "pluginserver_instances",
        "pluginserver_resident_memory_bytes",
    }
)
FOLD_SECONDS = 300.0  # by then nobody has figures of a process that has ended

Family = Sequence[Any]  # name, type, text, [[sample's name, {label: value}, value]]
Registry = Any  # prometheus_client's, or what collects like it


class Estate:
    """`living`: process numbers of the generations that can be asked."""

    def __init__(
        self, registry: Registry, living: Callable[[], set[int]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.registry = registry
        self.living = living
        self._clock = clock
        self._base: list[Family] = []  # of those who ended long ago
        self._left: dict[int, tuple[float, list[Family]]] = {}  # by process: when it ended, what it left
        self._seen: dict[int, list[Family]] = {}  # what the living said last
        generations.answers |= {COUNTED: self._answer, LEFT: self._inherit}
        generations.bequests[LEFT] = lambda: list(self._known().items())

    def _inherit(self, left: Iterable[tuple[int, list[Family]]]) -> bool:
        self._left |= {pid: (self._clock(), families) for pid, families in left}
        return True

    def _answer(self, _: Any) -> list[tuple[int, list[Family]]]:
        return list(self._known().items())

    def _known(self) -> dict[int, list[Family]]:
        """By process, without asking anybody."""
        for pid in [pid for pid, (ended, _) in self._left.items() if self._clock() - ended > FOLD_SECONDS]:
            self._base = _added([self._base, self._left.pop(pid)[1]])
        own = _added([[_plain(f) for f in self.registry.collect() if _is_added(f)], self._base])
        return {pid: families for pid, (_, families) in self._left.items()} | {os.getpid(): own}

    def collect(self) -> Iterator[Metric]:
        """All families of the registry, with what the other generations have counted."""
        known: dict[int, list[Family]] = {}
        for said in generations.ask(COUNTED, None):
            known |= dict(said)
        living = self.living()
        self._seen = {pid: families for pid, families in (self._seen | known).items() if pid in living}
        everything = known | self._seen | self._known()
        shown = {family[0]: family for family in _added(everything.values())}
        for own in self.registry.collect():
            yield own if own.name not in shown else _metric(shown.pop(own.name))
        yield from map(_metric, shown.values())

    def restricted_registry(self, names: Iterable[str]) -> Restricted:
        """For `?name[]=`, as prometheus_client's."""
        return Restricted(self, frozenset(names))


class Restricted:
    """The families that have a sample of one of these names."""

    def __init__(self, estate: Estate, names: frozenset[str]) -> None:
        self.estate = estate
        self.names = names

    def collect(self) -> Iterator[Metric]:
        for metric in self.estate.collect():
            if any(sample.name in self.names for sample in metric.samples):
                yield metric


def _is_added(metric: Metric) -> bool:
    return (metric.type in ADDED and not metric.name.startswith(OWN)) or metric.name in GAUGES


def _plain(metric: Metric) -> Family:
    samples = [[s.name, dict(s.labels), s.value] for s in metric.samples]
    return [metric.name, metric.type, metric.documentation, samples]


def _metric(family: Family) -> Metric:
    name, kind, text, samples = family
    metric = Metric(name, text, kind)
    for sample, labels, value in samples:
        metric.add_sample(sample, labels, value)
    return metric


def _added(all_of: Iterable[Iterable[Family]]) -> list[Family]:
    """Families of several processes as one: values are added, of moments (`_created`) the first counts."""
    families: dict[str, tuple[Family, dict[Any, list[Any]]]] = {}
    for process in all_of:
        for family in process:
            _, samples = families.setdefault(family[0], (family, {}))
            for name, labels, value in family[3]:
                key = (name, *sorted(labels.items()))
                known = samples.get(key)
                if known is None:
                    samples[key] = [name, labels, value]
                else:
                    known[2] = min(known[2], value) if name.endswith("_created") else known[2] + value
    return [[*family[:3], list(samples.values())] for family, samples in families.values()]
