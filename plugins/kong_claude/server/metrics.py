"""`/metrics`: prometheus_client's default registry with the server's own figures in it.

Plugins in this process add theirs by making metrics with prometheus_client as usual: no hook is needed.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gevent
from gevent.pywsgi import WSGIServer
from prometheus_client import REGISTRY, make_wsgi_app
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from kong_claude.server.core import Server
from kong_claude.server.estate import Estate
from kong_claude.server.plugins import LATENCY_BUCKETS
from kong_claude.server.siblings import Siblings
from kong_claude.server.watchdog import Watchdog

log = logging.getLogger("kong_claude.pluginserver")
PREFIX = "pluginserver"


class ServerCollector(Collector):
    """Reads the server's counters when scraped: an event itself only adds to plain integers."""

    def __init__(self, server: Server, watchdog: Watchdog) -> None:
        self.server = server
        self.watchdog = watchdog

    def collect(self) -> Iterator[Metric]:
        server = self.server
        labels = ["plugin", "phase"]
        counters = {
            "exits": "Events that plugin code ended by kong.response.exit or error",
            "exceptions": "Events that ended by an uncaught exception",
            "timeouts": "Events ended by the event timeout",
            "denied": "Events answered with 503 by the server itself",
            "calls": "PDK calls",
        }
        families = {
            name: CounterMetricFamily(f"{PREFIX}_event_{name}", text, labels=labels) for name, text in counters.items()
        }
        latency = HistogramMetricFamily(
            f"{PREFIX}_event_seconds", "Time from HandleEvent to the end of the event", labels=labels
        )
        for plugin in server.plugins.values():
            for phase, stats in plugin.stats.items():
                for name, family in families.items():
                    family.add_metric([plugin.name, phase], getattr(stats, name))
                total = 0
                buckets = []
                for bound, count in zip((*map(str, LATENCY_BUCKETS), "+Inf"), stats.buckets, strict=True):
                    total += count
                    buckets.append((bound, float(total)))
                latency.add_metric([plugin.name, phase], buckets, stats.seconds)
        yield from families.values()
        yield latency
        yield from _gauges(
            events_in_flight=(len(server.events), "Events that run now"),
            busy_greenlets=(server.busy_workers, "Greenlets of events, idle ones apart"),
            connections=(len(server.connections), "Open connections of Kong"),
            instances=(len(server.instances.by_id), "Plugin instances"),
            loop_lag_seconds=(self.watchdog.lag, "How late the last beat of the loop was"),
            resident_memory_bytes=(_rss(), "Resident memory"),
        )
        yield CounterMetricFamily(
            f"{PREFIX}_overloaded_events", "Events refused because of --max-in-flight", server.overloaded
        )
        yield CounterMetricFamily(
            f"{PREFIX}_protocol_errors", "Connections closed for what came on them", server.protocol_errors
        )
        yield CounterMetricFamily(
            f"{PREFIX}_loop_blocked", "Times the loop was kept for over 0.2 s", self.watchdog.blocked
        )


def _gauges(**values: tuple[float, str]) -> Iterator[Metric]:
    for name, (value, text) in values.items():
        yield GaugeMetricFamily(f"{PREFIX}_{name}", text, value)


def _rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def serve_metrics(
    address: tuple[str, int], server: Server, watchdog: Watchdog, siblings: Siblings
) -> Callable[[], None]:
    """Serves in the background, as soon as the address is free. Returns what gives it up for a successor, who has
    figures of all generations as we do."""
    REGISTRY.register(ServerCollector(server, watchdog))
    estate = Estate(REGISTRY, lambda: siblings.living)
    try:  # beside a predecessor at once, who leaves as soon as he sees us
        listener = _bound(address, shared=bool(siblings.living))
    except OSError:
        listener = None
    serving = gevent.spawn(_serve, address, readable(make_wsgi_app(estate)), listener)
    return lambda: serving.kill(block=False)


def readable(app: Any) -> Any:
    """The WSGI app, but 400 for an Accept header over which prometheus_client would raise."""

    def answer(environ: Any, start_response: Any) -> Any:
        try:
            choose_encoder(environ.get("HTTP_ACCEPT") or "")
        except Exception:
            start_response("400 Bad Request", [("Content-Type", "text/plain")])
            return [b"Accept is not understood\n"]
        return app(environ, start_response)

    return answer


def _serve(address: tuple[str, int], app: Any, listener: socket.socket | None) -> None:
    waiting = False
    while True:
        try:
            with closing(listener or _bound(address, shared=False)) as listening:
                WSGIServer(listening, app, log=None).serve_forever()
        except OSError as error:
            if not waiting:
                waiting = True
                log.error("metrics on %s:%d: %s; trying on", *address, error.strerror or error)
        listener = None
        gevent.sleep(1.0)


def _bound(address: tuple[str, int], shared: bool) -> socket.socket:
    """Listens there beside the generation before us (`shared`), which has then a moment to leave; beside nobody else.
    Raises OSError."""
    family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
    if not shared:
        with closing(socket.socket(family)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        listener.listen(64)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener
