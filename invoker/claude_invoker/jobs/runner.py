"""What a worker does with a ticket: claim the next job, run it, end it, once; and so on until none is left for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from redis.exceptions import RedisError

from claude_contract.ledger import Lease
from claude_invoker.cli.walk import delete
from claude_invoker.jobs import webhook
from claude_invoker.jobs.queue import (
    DELIVER,
    DELIVERY_TRIES,
    HEARTBEAT_S,
    RUN,
    Queues,
    enqueue_delivery,
    enqueue_ticket,
    worker,
)
from claude_invoker.jobs.record import Delivery, Job, caller_json
from claude_invoker.jobs.recording import Watch, record
from claude_invoker.jobs.store import CALLBACKS, CANCELLED, RUNNING, Store, now_ms
from claude_invoker.jobs.wreck import is_wreck, left_in
from claude_invoker.plan import plan
from claude_invoker.problem import Problem
from claude_invoker.runs.engine import Engine
from claude_invoker.runs.run import Run
from claude_invoker.settings import Settings
from claude_invoker.trust import Caller

_log = logging.getLogger(__name__)
BEAT_S = 1.0
FULL_S = 1.0  # a subject whose places are all taken is passed over for so long
RECONCILE_S = 5.0
DELIVERIES = 8  # at once
_ASKED = "cancelled by its caller"
_FENCED = "another worker has taken over"
_STOPPING = "the worker is stopping"


class Runner:
    """One worker process's part in the jobs."""

    def __init__(self, settings: Settings, engine: Engine, store: Store, queues: Queues) -> None:
        self.settings = settings
        self.engine = engine
        self.store = store
        self.queues = queues
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self.current: dict[str, Run] = {}
        self._stopping = False

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Takes tickets while the block runs; what runs at its end counts as lost (see `lost`)."""
        workers = [
            worker(self.queues.tickets, RUN, self.run_next, self.settings.worker_concurrency),
            worker(self.queues.deliveries, DELIVER, self.deliver, DELIVERIES),
        ]
        tasks = [asyncio.create_task(w.start()) for w in workers]
        tasks += [asyncio.create_task(self._listen_for_cancels()), asyncio.create_task(self._reconcile())]
        try:
            yield
        finally:
            self._stopping = True
            for run in list(self.current.values()):
                run.cancel(_STOPPING)
            await self._idle(15.0)
            for w in workers:
                await w.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def drain(self) -> None:
        """Takes no more jobs, and lets those that run go on for a while."""
        self._stopping = True
        await self._idle(self.settings.worker_drain_s)

    async def _idle(self, within_s: float) -> None:
        until = time.monotonic() + within_s
        while self.current and time.monotonic() < until:
            await asyncio.sleep(0.05)

    async def salvage(self) -> None:
        """Ends the jobs of workers that died on this machine. To be called before the engine opens: that deletes what
        dead ones have left."""
        await self.engine.reclaim()  # nothing of what they ran is alive
        for job_id in await self.store.running():
            job = await self.store.get(job_id)
            if job is not None and await asyncio.to_thread(is_wreck, job):
                await self.lost(job)

    async def run_next(self, context: dict[str, Any]) -> None:
        """The SAQ function of a ticket: jobs, one after the other, until there is none that may run."""
        ticket = context["job"]
        beating = asyncio.create_task(_beat_ticket(ticket))
        try:
            while not self._stopping:
                claimed = await self.store.claim(ticket.key, self.name)
                if claimed is None:
                    return
                job, before = claimed
                if before:
                    # The ticket came back. Either its worker was lost, or the sweep was hasty and the run lives.
                    if now_ms() - job.beat > HEARTBEAT_S * 1000:
                        await self.lost(job)
                    return
                await self._take(job)
            await enqueue_ticket(self.queues, at=time.time() + 1)  # for another worker
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)

    async def _take(self, job: Job) -> None:
        if job.cancel:
            await self._end(job, "cancelled", error=Problem(499, "cancelled", _ASKED).document())
        elif await self._has_place(job):
            await self._run(job)
        elif await self.store.requeue(job, blocked_for=FULL_S) == "cancelled":
            await self._end(job, "cancelled", error=Problem(499, "cancelled", _ASKED).document())
        else:
            await enqueue_ticket(self.queues, at=time.time() + FULL_S)

    async def _has_place(self, job: Job) -> bool:
        """Takes the job's lease in the gateway's ledger: a tier's limits of runs at once and of money hold for jobs."""
        if self.engine.ledger is None:
            return True
        try:
            return await self.engine.ledger.acquire(replace(job.caller, queued=True))
        except Problem:
            return False

    async def _run(self, job: Job) -> None:
        try:
            decided = plan(job.request, job.caller.clamp, self.settings, isolated=self.engine.users.isolated)
        except Problem as problem:  # the operator's settings have become narrower
            await self._settle(job.caller, 0.0)
            await self._end(job, "failed", error=problem.document())
            return
        # Of an attempt that died after it had kept its files.
        kept = self.settings.state_dir / "artifacts" / job.id
        await asyncio.to_thread(delete, kept)
        run = self.engine.submit(decided, job.caller, job.id)
        run.traceparent = job.traceparent
        self.current[job.id] = run
        beating = asyncio.create_task(self._beat(job, run))
        try:
            await record(self.store, job, run)
            await run.done.wait()
        except asyncio.CancelledError:
            run.cancel(_STOPPING)
            await run.done.wait()
            raise
        finally:
            if run.done.is_set():
                await self._end_as(job, run)
            beating.cancel()
            self.current.pop(job.id, None)
            self.engine.runs.pop(job.id, None)  # its record and its files say all; they are deleted with the record

    async def _end_as(self, job: Job, run: Run) -> None:
        fields: dict[str, Any] = {"cost_usd": repr(run.cost_usd), "model": run.model}
        fields["progress"] = Watch(run).progress().model_dump_json()
        if run.result is not None and run.problem is None:
            await self._end(job, "done", result=run.result.model_dump_json(), **fields)
            return
        assert run.problem is not None
        problem, state = run.problem, "failed"
        if run.cancel_reason == _FENCED:
            return
        if run.cancel_reason == _ASKED and problem.kind == "cancelled":
            state = "cancelled"
        elif problem.kind == "cancelled":
            if await self._again(job):
                return
            problem = Problem(503, "worker-lost", "the worker was stopped; the run may have had effects")
        left = [artifact.model_dump(mode="json") for artifact in run.artifacts]
        await self._end(job, state, error=problem.document() | {"artifacts": left}, **fields)

    async def lost(self, job: Job) -> None:
        """A running job whose worker died. By default it fails with what it has left, since a run has side effects.

        Its cost is known to nobody, and booked as nothing."""
        if not await self.store.take_over(job):
            return
        _log.warning("job %s: its worker %s was lost", job.id, job.worker)
        if await self._again(job):
            return
        left = await asyncio.to_thread(left_in, job, self.settings)
        problem = Problem(500, "worker-lost", "the worker that ran the job died; the run may have had effects")
        state = "cancelled" if job.cancel else "failed"
        if await self._end(job, state, error=problem.document() | {"artifacts": left}):
            await self._settle(job.caller, 0.0)

    async def _again(self, job: Job) -> bool:
        """Lets a job wait again where the operator wants that. With a new lease: the old one is given back or settled,
        and a settled one cannot be settled twice."""
        if self.settings.on_worker_loss != "retry":
            return False
        caller = job.caller
        if caller.lease is not None:
            old = Lease.parse(caller.lease)
            caller = replace(caller, lease=str(Lease.new(old.namespace, old.tag, old.usd)))
        if await self.store.requeue(job, caller=caller_json(caller)) != "requeued":
            return False
        if self.engine.ledger is not None:
            await self.engine.ledger.release(job.caller)
        await enqueue_ticket(self.queues, at=time.time() + 1 if self._stopping else 0.0)
        return True

    async def _settle(self, caller: Caller, usd: float) -> None:
        if self.engine.ledger is not None:
            await self.engine.ledger.settle(caller, usd)

    async def _end(self, job: Job, state: str, **fields: Any) -> bool:
        """Ends the job, however long Redis takes to come back: the run cannot be repeated. False: it is another's."""
        while True:
            try:
                ended = await self.store.finish(job, state, retention(job, self.settings), **fields)
                if ended and job.callback:
                    await enqueue_delivery(self.queues, job.id)
                return ended
            except (RedisError, OSError) as error:
                _log.warning("job %s: its end is not stored yet (%s)", job.id, type(error).__name__)
                await asyncio.sleep(1)

    async def _beat(self, job: Job, run: Run) -> None:
        watch = Watch(run)
        while True:
            fields: dict[str, Any] = {
                "beat": str(now_ms()),
                "progress": watch.progress().model_dump_json(),
                "model": run.model,
            }
            if run.work is not None:
                fields["work"] = str(run.work)
            try:
                told = await self.store.update(job, **fields)
                if told:
                    run.cancel(_ASKED if told > 0 else _FENCED)
            except (RedisError, OSError) as error:
                _log.warning("job %s: no beat (%s)", job.id, type(error).__name__)
            # Where it works must be known soon, for whoever finds it dead.
            await asyncio.sleep(BEAT_S if run.work else BEAT_S / 10)

    async def _listen_for_cancels(self) -> None:
        """Cancels at once; where a message is lost the next beat does it."""
        while True:
            try:
                async with self.store.redis.pubsub() as channel:
                    await channel.subscribe(CANCELLED)
                    async for message in channel.listen():
                        if message["type"] == "message" and (run := self.current.get(message["data"])):
                            run.cancel(_ASKED)
            except (RedisError, OSError):
                await asyncio.sleep(0.5)

    async def _reconcile(self) -> None:
        """Heals what a crash between two writes leaves."""
        cursor = "-inf"
        while True:
            try:
                await self._tickets_for_all()
                await self._find_lost()
                for job_id in await self.store.owed(now_ms() - 30_000):
                    await enqueue_delivery(self.queues, job_id)
                _, cursor = await self.store.forget(cursor)
                await self._delete_files()
            except (RedisError, OSError) as error:
                _log.warning("reconcile: %s", type(error).__name__)
            await asyncio.sleep(RECONCILE_S)

    async def _tickets_for_all(self) -> None:
        """Each waiting job has a ticket; those of running jobs do not count."""
        waiting = sum((await self.store.waiting()).values())
        free = await self.queues.tickets.count("incomplete") - len(await self.store.running())
        for _ in range(min(waiting - free, 1000)):
            await enqueue_ticket(self.queues)

    async def _find_lost(self) -> None:
        for job_id in await self.store.running():
            job = await self.store.get(job_id)
            if job is None:
                await self.store.redis.zrem(RUNNING, job_id)
                continue
            silent = now_ms() - job.beat > 2 * HEARTBEAT_S * 1000
            if job_id not in self.current and (silent or await asyncio.to_thread(is_wreck, job)):
                await self.lost(job)

    async def _delete_files(self) -> None:
        """Artifacts go with their job's record, whichever worker kept them. Those of jobs that this Redis does not know
        are left to the engine, which deletes by age."""
        for path in (self.settings.state_dir / "artifacts").glob("job_*"):
            if await self.store.expired(path.name):
                await asyncio.to_thread(delete, path)

    async def deliver(self, context: dict[str, Any], *, job_id: str) -> None:
        """The SAQ function of a webhook. Raises where another try may help."""
        job = await self.store.get(job_id)
        if job is None:
            await self.store.redis.zrem(CALLBACKS, job_id)
            return
        status, error = await webhook.send(job, job.callback, self.settings)
        taken = error is None and status is not None and 200 <= status < 300
        final = taken or context["job"].attempts >= DELIVERY_TRIES
        await self.store.delivered(job, Delivery(at=time.time(), status=status, error=error), final=final)
        if not taken:
            raise webhook.NotDelivered(error or f"answered {status}")


def retention(job: Job, settings: Settings) -> float:
    """Seconds for which a job that is over is kept."""
    return settings.tier_retention_s.get(job.tier, settings.retention_s)


async def _beat_ticket(ticket: Any) -> None:
    while True:
        await asyncio.sleep(HEARTBEAT_S / 4)
        with contextlib.suppress(RedisError, OSError):
            await ticket.update()
