"""What a worker does with a ticket: claim the next job, run it, end it, once; and so on until none is left for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from dataclasses import replace
from typing import Any, NamedTuple

from redis.exceptions import RedisError

from claude_contract.ledger import Lease
from claude_contract.versions import UnknownVersion
from claude_invoker.cli.walk import delete
from claude_invoker.ending import ended
from claude_invoker.jobs.ends import Ends
from claude_invoker.jobs.queue import (
    HEARTBEAT_S,
    Queues,
    enqueue_asking,
    enqueue_ticket,
)
from claude_invoker.jobs.record import Asks, Job, WaitsFor
from claude_invoker.jobs.recording import Watch, record
from claude_invoker.jobs.store import CANCELLED, Store
from claude_invoker.metering.drawn import pool_of
from claude_invoker.plan import plan
from claude_invoker.problem import Problem
from claude_invoker.runs import artifacts
from claude_invoker.runs.deferral import deferrable, resumed
from claude_invoker.runs.engine import Engine
from claude_invoker.runs.run import WANTED, Run
from claude_invoker.settings import Settings

_log = logging.getLogger(__name__)
BEAT_S = 1.0
FULL_S = 1.0  # a subject whose places are all taken is passed over for so long
PARKED_S = 60.0  # one whose budget is used up, or who is blocked, at most: an admin may change that meanwhile
RECONCILE_S = 5.0
DELIVERIES = 8  # at once
_PING_S = 3.0
_FENCED = "another worker has taken over"
_STOPPING = "the worker is stopping"


class _Waits(NamedTuple):
    """Why a job cannot run, and how many seconds its subject is passed over."""

    s: float
    told: str = ""  # for its record


class Worker:
    """Takes tickets and runs the jobs that they stand for."""

    def __init__(self, settings: Settings, engine: Engine, store: Store, queues: Queues, ends: Ends) -> None:
        self.settings = settings
        self.engine = engine
        self.store = store
        self.queues = queues
        self.ends = ends
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self.taken: set[str] = set()
        """Jobs that are in this process's hands, from the claim to the end."""
        self.current: dict[str, Run] = {}
        """Those of them that run."""
        self.tasks: list[asyncio.Task[None]] = []
        """All that goes on for jobs in this process, none of which ends before it."""
        self._stopping = False
        self._said = ""

    async def drain(self) -> None:
        """Takes no more jobs, and lets those that run go on for a while."""
        self._stopping = True
        await self._idle(self.settings.worker_drain_s)

    async def stop(self) -> None:
        """Cancels what runs; such jobs count as orphaned (see `Ends.orphaned`)."""
        self._stopping = True
        for run in list(self.current.values()):
            run.cancel(_STOPPING)
        await self._idle(15.0)

    @property
    def whole(self) -> bool:
        """Else only a new start helps."""
        return not any(task.done() for task in self.tasks)

    async def obstacle(self) -> str | None:
        """What keeps it from running jobs at the moment."""
        if self._no_more:
            return _STOPPING
        try:
            async with asyncio.timeout(_PING_S):
                await self.store.redis.ping()
        except (RedisError, OSError, TimeoutError) as error:
            return f"Redis cannot be used: {error or type(error).__name__}"
        return self.engine.obstacle

    @property
    def _no_more(self) -> bool:
        return self._stopping or self.engine.draining

    async def _idle(self, within_s: float) -> None:
        until = time.monotonic() + within_s
        while self.current and time.monotonic() < until:
            await asyncio.sleep(0.05)

    async def run_next(self, context: dict[str, Any]) -> None:
        """The SAQ function of a ticket: jobs, one after the other, until there is none that may run."""
        ticket = context["job"]
        beating = asyncio.create_task(_beat_ticket(ticket))
        try:
            while not self._no_more:
                try:
                    claimed = await self.store.claim(ticket.key, self.name)
                except UnknownVersion as error:
                    self._say_once(str(error))
                    return
                if claimed is None:
                    return
                job, before = claimed
                if before:
                    # The ticket came back. Either the job is orphaned, or the sweep was hasty and the run lives: here,
                    # however long this process was held up and did not say so, or elsewhere.
                    if job.id not in self.taken and await self.store.silent_s(job) > HEARTBEAT_S:
                        await self.ends.orphaned(job)
                    return
                self.taken.add(job.id)
                try:
                    await self._take(job)
                finally:
                    self.taken.discard(job.id)
            await enqueue_ticket(self.queues, at=time.time() + 1)  # for another worker
        finally:
            await ended(beating)

    def _say_once(self, text: str) -> None:
        if text != self._said:
            self._said = text
            _log.error("left to workers of another release: %s", text)

    async def _take(self, job: Job) -> None:
        if job.cancel:
            await self._withdraw(job)
        elif (waits := await self._waits(job)) is None:
            await self._run(job)
        elif await self.store.requeue(job, blocked_for=waits.s, waits=waits.told) == "cancelled":
            await self._withdraw(job)
        else:
            await enqueue_ticket(self.queues, at=time.time() + waits.s)

    async def _withdraw(self, job: Job) -> None:
        """Ends one whose run has not begun."""
        by = await self.store.cancelled_by(job)
        if await self.ends.cancelled(job, by):
            self.engine.on_withdrawn(job, by)

    async def _waits(self, job: Job) -> _Waits | None:
        """Takes the job's lease in the gateway's ledger: a tier's limits of runs at once and of money hold for jobs.
        What is said where it cannot be taken; None: it may run."""
        if self.engine.ledger is None:
            return None
        try:
            admission = await self.engine.ledger.acquire(replace(job.caller, queued=True))
        except Problem:
            return _Waits(FULL_S)
        if admission is None or admission.admitted:
            return None
        told = WaitsFor(limit=admission.exceeded)
        if admission.at and job.caller.lease is not None:
            told.pool = pool_of(Lease.parse(job.caller.lease), admission.at)
        wait_s = FULL_S  # a running one is in the way
        if admission.wait_ms:
            wait_s = admission.wait_ms / 1000
            told.until = round(time.time() + wait_s, 3)
        return _Waits(min(wait_s, PARKED_S), told.model_dump_json())

    async def _run(self, job: Job) -> None:
        try:
            engine = self.engine
            repository = engine.repository(job.caller)
            decided = plan(job.request, job.caller.clamp, self.settings, engine.boundary, repository, engine.catalog)
            decided = deferrable(decided, self.settings.approval_hold_s, self.settings.session_ttl_s)
            if job.deferral is not None:
                decided = resumed(decided, job.deferral)
        except Problem as problem:  # the operator's settings have become narrower
            await self.ends.book(job.caller, 0)
            await self.ends.end(job, "failed", error=problem.document())
            return
        # Of an attempt that died after it had kept its files.
        await asyncio.to_thread(delete, artifacts.directory(self.settings, job.id))
        run = self.engine.submit(
            decided, job.caller, job.id, earlier=job.deferral, decided=job.asks.decided, retry_of=job.retry_of
        )
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
            run.permissions.close()
            beating.cancel()
            self.current.pop(job.id, None)
            self.engine.forget(job.id)  # its record and its files say all; they are deleted with the record

    async def _end_as(self, job: Job, run: Run) -> None:
        fields: dict[str, Any] = {"cost_usd": repr(_cost_in_all(run)), "model": run.model}
        fields["progress"] = Watch(run).progress().model_dump_json()
        if run.earlier is None and run.first_token_s is not None:
            fields["first_token_s"] = repr(round(run.first_token_s, 3))
        if run.deferral is not None:
            await self.ends.defer(job, run.deferral, run.permissions, **fields)
            return
        if run.result is not None and run.problem is None:
            await self.ends.end(job, "done", result=run.result.model_dump_json(), **fields)
            return
        assert run.problem is not None
        problem, state = run.problem, "failed"
        if run.cancel_reason == _FENCED:
            return
        if run.cancel_reason in WANTED and problem.kind == "cancelled":
            state = "cancelled"
        elif problem.kind == "cancelled":
            if await self.ends.again(job, in_s=1.0 if self._no_more else 0.0):
                return
            problem = Problem(503, "worker-lost", "the worker was stopped; the run may have had effects")
        left = [artifact.model_dump(mode="json") for artifact in run.artifacts]
        await self.ends.end(job, state, error=problem.document() | {"artifacts": left}, **fields)

    async def _beat(self, job: Job, run: Run) -> None:
        watch = Watch(run)
        changed, told_of = asyncio.Event(), set[str]()
        run.permissions.on_change = changed.set
        while True:
            fields: dict[str, Any] = {
                "progress": watch.progress().model_dump_json(),
                "model": run.model,
                "cost_usd": repr(_cost_in_all(run)),
            }
            if run.work is not None:
                fields["work"] = str(run.work)
            asks = Asks(waiting=run.permissions.waiting, decided=list(run.permissions.decided.values()))
            if run.plan.rules or run.plan.asked:
                fields |= asks.fields()
            changed.clear()
            try:
                told = await self.store.update(job, **fields)
                if told > 0:
                    run.cancel_for(await self.store.cancelled_by(job))
                elif told:
                    run.cancel(_FENCED)
                for permission in asks.waiting:
                    if job.callback and permission.id not in told_of:
                        await enqueue_asking(self.queues, job.id, permission.id)
                        told_of.add(permission.id)
            except (RedisError, OSError) as error:
                _log.warning("job %s: its heartbeat is not stored (%s)", job.id, type(error).__name__)
            # Where it works must be known soon, for whoever finds it dead.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT_S if run.work else BEAT_S / 10):
                    await changed.wait()

    async def listen_for_cancels(self) -> None:
        """Cancels at once; where a message is lost the next beat does it."""
        while True:
            try:
                async with self.store.redis.pubsub() as channel:
                    await channel.subscribe(CANCELLED)
                    async for message in channel.listen():
                        if message["type"] == "message" and (run := self.current.get(message["data"])):
                            run.cancel_for(await self.store.cancelled_by(run))
            except (RedisError, OSError):
                await asyncio.sleep(0.5)


def _cost_in_all(run: Run) -> float:
    """With what it has cost before it was put away."""
    return run.cost_usd + (0.0 if run.earlier is None else run.earlier.so_far.cost_usd)


async def _beat_ticket(ticket: Any) -> None:
    while True:
        await asyncio.sleep(HEARTBEAT_S / 4)
        with contextlib.suppress(RedisError, OSError):
            await ticket.update()
