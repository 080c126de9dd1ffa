"""`claude-invoker worker`: runs queued jobs until SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import signal

from claude_invoker.audit import runs as audit_of
from claude_invoker.audit.writer import open_audit
from claude_invoker.jobs.queue import open_queues
from claude_invoker.jobs.serving import serving
from claude_invoker.jobs.store import Store
from claude_invoker.ledger import Ledger
from claude_invoker.metrics import Metrics
from claude_invoker.metrics_server import serving_metrics
from claude_invoker.pulse import pulse
from claude_invoker.runs.engine import Engine
from claude_invoker.runs.run import Run
from claude_invoker.settings import Settings
from claude_invoker.tracing.export import Tracing

_log = logging.getLogger(__name__)


async def serve(settings: Settings) -> None:
    """Takes jobs until SIGTERM or SIGINT; those that run then may go on for `worker_drain_s`, or until a second one."""
    assert settings.redis_url is not None and settings.jobs_redis_url is not None
    stop, stop_now = asyncio.Event(), asyncio.Event()

    def stopped() -> None:
        (stop_now if stop.is_set() else stop).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped)
    ledger = Ledger(settings.redis_url)
    queues = open_queues(settings.jobs_redis_url)
    engine = Engine(settings, ledger)
    tracing = Tracing(settings)
    audit = open_audit(settings)
    metrics = Metrics(engine)
    ledger.on_warning = metrics.warned

    def finished(run: Run) -> None:
        audit.note(audit_of.ended(run))
        metrics.observe(run)
        tracing.record(run)

    engine.on_start = lambda run: audit.note(audit_of.began(run))
    engine.on_finish = finished
    engine.on_withdrawn = lambda *told: audit.note(audit_of.withdrawn(*told))
    engine.on_decided = lambda *told: audit.note(audit_of.decided(*told))
    store = Store.open(settings.jobs_redis_url, settings.redis_url, settings.tier_priority, settings.held)
    engine.places.job_goes_on = store.goes_on
    async with (
        serving_metrics(settings.metrics_listen, metrics) as place,
        audit,
        serving(settings, engine, store, queues) as worker,
        pulse(settings.health_path, worker),
    ):
        _log.info("worker ready, %d runs at once", settings.worker_concurrency)
        if place is not None:
            _log.info("metrics on %s port %d", *place)
        await stop.wait()
        draining, stopping = asyncio.create_task(worker.drain()), asyncio.create_task(stop_now.wait())
        await asyncio.wait((draining, stopping), return_when=asyncio.FIRST_COMPLETED)
        draining.cancel()
        stopping.cancel()
    await asyncio.to_thread(tracing.close)
    await queues.close()
    await store.close()
    await ledger.close()
