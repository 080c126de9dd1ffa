"""What a worker does with a ticket: claim the next job, run it, end it, once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from claude_invoker.jobs import webhook
from claude_invoker.jobs.queue import DELIVER, HEARTBEAT_S, RUN, Queue, enqueue_delivery, enqueue_ticket, worker
from claude_invoker.jobs.record import Delivery, Job, Progress
from claude_invoker.jobs.store import CANCELLED, Store, now_ms, text_of
from claude_invoker.plan import plan
from claude_invoker.problem import Problem
from claude_invoker.runs import artifacts
from claude_invoker.runs.engine import Engine
from claude_invoker.runs.run import Run
from claude_invoker.settings import Settings

_log = logging.getLogger(__name__)
BEAT_S = 2.0
BATCH_S = 0.02  # events are written together for so long
FULL_S = 1.0  # a subject whose places are all taken is passed over for so long
RECONCILE_S = 5.0


class Runner:
    """One worker process's part in the jobs; `serve` runs until cancelled."""

    def __init__(self, settings: Settings, engine: Engine, store: Store, queue: Queue) -> None:
        self.settings = settings
        self.engine = engine
        self.store = store
        self.queue = queue
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self.current: dict[str, Run] = {}

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Takes tickets while the block runs."""
        tickets = worker(
            self.queue, [(RUN, self.run_next), (DELIVER, self.deliver)], concurrency=self.settings.worker_concurrency
        )
        tasks = [
            asyncio.create_task(tickets.start()),
            asyncio.create_task(self._listen_for_cancels()),
            asyncio.create_task(self._reconcile()),
        ]
        try:
            yield
        finally:
            for run in list(self.current.values()):
                run.cancel("the worker is stopping")
            await tickets.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def run_next(self, context: dict[str, Any]) -> None:
        """The SAQ function of a ticket."""
        ticket = context["job"]
        claimed = await self.store.claim(ticket.key, self.name)
        if claimed is None:
            return
        job, before = claimed
        if before:
            # The ticket came back. Either its worker was lost, or the sweep was hasty and the run lives.
            if job.state == "running" and now_ms() - job.beat > HEARTBEAT_S * 1000 and await self.lost(job):
                await enqueue_ticket(self.queue)
            return
        job.ticket = ticket.key
        if not await self._has_place(job):
            await self.store.requeue(job, ticket.key, blocked_for=FULL_S)
            await enqueue_ticket(self.queue, at=time.time() + FULL_S)
            return
        beating = asyncio.create_task(_beat_ticket(ticket))
        try:
            await self._run(job)
        finally:
            beating.cancel()

    async def lost(self, job: Job) -> bool:
        """A running job whose worker died. True where it waits again.

        By default it fails with what it has left, since a run has side effects.
        """
        _log.warning("job %s: its worker %s was lost", job.id, job.worker)
        if self.settings.on_worker_loss == "retry" and not job.cancel:
            return await self.store.requeue(job, job.ticket)
        left = await asyncio.to_thread(self._partial_artifacts, job)
        problem = Problem(500, "worker-lost", "the worker that ran the job died; it may have had effects")
        error = problem.document() | {"artifacts": left}
        if await self.store.finish(job, "failed", self._retention(job), error=error, cost_usd=repr(job.cost_usd)):
            if self.engine.ledger is not None:
                await self.engine.ledger.settle(job.caller, job.cost_usd)
            await self._announce(job)
        return False

    def _partial_artifacts(self, job: Job) -> list[dict[str, Any]]:
        """What a dead run has left in its directory, where this machine can see it."""
        if not job.work or not Path(job.work).is_dir():
            return []
        bounds = artifacts.Bounds(self.settings.artifact_max_bytes, self.settings.artifact_max_count)
        found, _ = artifacts.collect(Path(job.work), {}, self.settings.state_dir / "artifacts" / job.id, bounds)
        return [artifact.model_dump(mode="json") for artifact in found]

    async def _has_place(self, job: Job) -> bool:
        """Takes the job's lease in the gateway's ledger: a tier's limit of runs at once holds for jobs too."""
        if self.engine.ledger is None:
            return True
        try:
            return await self.engine.ledger.acquire(replace(job.caller, queued=True))
        except Problem:
            return False

    async def _run(self, job: Job) -> None:
        try:
            decided = plan(job.request, job.caller.clamp, self.settings, isolated=self.engine.users.isolated)
            run = self.engine.submit(decided, job.caller, job.id)
        except Problem as problem:
            await self._end(job, "failed", error=problem.document())
            if self.engine.ledger is not None:
                await self.engine.ledger.settle(job.caller, 0.0)
            return
        self.current[job.id] = run
        beating = asyncio.create_task(self._beat(job, run))
        try:
            await self._record(job, run)
            await run.done.wait()
        except asyncio.CancelledError:
            run.cancel("the worker is stopping")
            await run.done.wait()
            raise
        finally:
            beating.cancel()
            self.current.pop(job.id, None)
            if run.done.is_set():
                await self._end_as(job, run)

    async def _end_as(self, job: Job, run: Run) -> None:
        fields: dict[str, Any] = {"cost_usd": repr(run.cost_usd), "model": run.model}
        if run.result is not None and run.problem is None:
            await self._end(job, "done", result=run.result.model_dump_json(), **fields)
            return
        assert run.problem is not None
        left = [artifact.model_dump(mode="json") for artifact in run.artifacts]
        error = run.problem.document() | {"artifacts": left}
        state = "cancelled" if run.problem.kind == "cancelled" else "failed"
        await self._end(job, state, error=error, **fields)

    async def _end(self, job: Job, state: str, **fields: Any) -> None:
        if await self.store.finish(job, state, self._retention(job), **fields):
            await self._announce(job)

    async def _announce(self, job: Job) -> None:
        if job.request.callback_url:
            await enqueue_delivery(self.queue, job.id, job.request.callback_url)

    def _retention(self, job: Job) -> float:
        return self.settings.tier_retention_s.get(job.tier, self.settings.retention_s)

    async def _record(self, job: Job, run: Run) -> None:
        """Copies the run's events into the job's stream, in small batches."""
        last = 0
        async for event in run.events.follow():
            if event.id <= last:  # written with an earlier one
                continue
            await asyncio.sleep(BATCH_S)
            batch = run.events.since(last)
            last = batch[-1].id
            await self.store.append(job.id, [(e.name, e.data) for e in batch])

    async def _beat(self, job: Job, run: Run) -> None:
        progress, seen = Progress(), 0
        while True:
            for event in run.events.since(seen):
                seen = event.id
                progress.events, progress.last = event.id, event.name
                progress.characters += len(text_of(event.name, event.document))
            try:
                if run.work is not None and not job.work:
                    job.work = str(run.work)
                    await self.store.update(job, work=job.work)
                if await self.store.beat(job, progress, run.cost_usd, run.model):
                    run.cancel("cancelled by its caller")
            except (RedisError, OSError) as error:
                _log.warning("job %s: no beat (%s)", job.id, type(error).__name__)
            await asyncio.sleep(BEAT_S)

    async def _listen_for_cancels(self) -> None:
        """Cancels at once; where a message is lost the next beat does it."""
        while True:
            try:
                async with self.store.redis.pubsub() as channel:
                    await channel.subscribe(CANCELLED)
                    async for message in channel.listen():
                        if message["type"] == "message" and (run := self.current.get(message["data"])):
                            run.cancel("cancelled by its caller")
            except (RedisError, OSError):
                await asyncio.sleep(0.5)

    async def _reconcile(self) -> None:
        """Heals what a crash between two writes leaves: jobs that wait without a ticket or run without a worker."""
        while True:
            await asyncio.sleep(RECONCILE_S)
            try:
                missing = await self.store.waiting() - await self.queue.count("incomplete")
                for _ in range(min(missing, 1000)):
                    await enqueue_ticket(self.queue)
                for job_id in await self.store.running():
                    job = await self.store.get(job_id)
                    if job is None:
                        await self.store.redis.zrem("claude:{jobs}:running", job_id)
                    elif (
                        job.state == "running" and now_ms() - job.beat > 2 * HEARTBEAT_S * 1000 and await self.lost(job)
                    ):
                        await enqueue_ticket(self.queue)
            except (RedisError, OSError) as error:
                _log.warning("reconcile: %s", type(error).__name__)

    async def deliver(self, context: dict[str, Any], *, job_id: str, url: str) -> None:
        """The SAQ function of a webhook. Raises where another try may help."""
        del context
        job = await self.store.get(job_id)
        if job is None:
            return
        status, error = await webhook.send(job, url, self.settings)
        await self.store.delivered(job_id, Delivery(at=time.time(), status=status, error=error))
        if error is not None or not (status and 200 <= status < 300):
            raise webhook.NotDelivered(error or f"answered {status}")


async def _beat_ticket(ticket: Any) -> None:
    while True:
        await asyncio.sleep(HEARTBEAT_S / 4)
        with contextlib.suppress(RedisError, OSError):
            await ticket.update()
