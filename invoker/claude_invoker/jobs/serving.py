"""One process's part in the jobs: taking tickets, delivering webhooks, reconciling."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from claude_invoker.ending import ended
from claude_invoker.jobs.calls import listen
from claude_invoker.jobs.delivery import Deliveries
from claude_invoker.jobs.ends import Ends
from claude_invoker.jobs.queue import ASK, DELIVER, NOTIFY, RUN, Queues, ticket_worker
from claude_invoker.jobs.reconciler import Reconciler
from claude_invoker.jobs.store import Store
from claude_invoker.jobs.worker import Worker
from claude_invoker.runs import artifacts
from claude_invoker.runs.engine import Engine
from claude_invoker.settings import Settings

DELIVERIES = 8  # at once


@asynccontextmanager
async def serving(settings: Settings, engine: Engine, store: Store, queues: Queues) -> AsyncIterator[Worker]:
    """Opens the engine and takes tickets while the block runs; what runs at its end counts as orphaned."""
    ends = Ends(settings, engine.ledger, engine.metering, store, queues, engine.keeping)
    worker = Worker(settings, engine, store, queues, ends)
    reconciler = Reconciler(ends, store, queues, artifacts.root(settings), worker.taken, engine.on_decided)
    await engine.reclaim()  # nothing of what dead workers ran is alive
    await reconciler.recover()
    deliveries = Deliveries(settings, store)
    takers = [
        ticket_worker(queues.tickets, {RUN: worker.run_next}, settings.worker_concurrency),
        ticket_worker(
            queues.deliveries, {DELIVER: deliveries.deliver, ASK: deliveries.ask, NOTIFY: deliveries.notify}, DELIVERIES
        ),
    ]
    async with engine:
        tasks = [asyncio.create_task(taker.start()) for taker in takers]
        tasks += [
            asyncio.create_task(worker.listen_for_cancels()),
            asyncio.create_task(listen(store, worker.current.get)),
            asyncio.create_task(reconciler.reconcile()),
        ]
        worker.tasks = tasks
        try:
            yield worker
        finally:
            await worker.stop()
            for taker in takers:
                await taker.stop()
            await ended(*tasks)
