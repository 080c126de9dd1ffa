"""How a job ends: once, by whoever holds it, its lease settled and its webhook owed."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, replace
from typing import Any

from redis.exceptions import RedisError

from claude_contract.ledger import Lease, micro_usd
from claude_invoker.caller import Caller
from claude_invoker.jobs.orphan import left_in
from claude_invoker.jobs.queue import Queues, enqueue_delivery, enqueue_ticket
from claude_invoker.jobs.record import Asks, Job, caller_json, retention
from claude_invoker.jobs.store import Store
from claude_invoker.ledger import Ledger
from claude_invoker.metering.control import Metering, NoProxy
from claude_invoker.problem import Problem
from claude_invoker.runs.deferral import Deferral
from claude_invoker.runs.kept import Keeping
from claude_invoker.runs.permissions import Permissions
from claude_invoker.runs.run import who_cancelled
from claude_invoker.settings import Settings

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ends:
    settings: Settings
    ledger: Ledger | None
    metering: Metering
    store: Store
    queues: Queues
    keeping: Keeping

    async def end(self, job: Job, state: str, **fields: Any) -> bool:
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

    async def defer(self, job: Job, deferral: Deferral, permissions: Permissions, **fields: Any) -> None:
        """Puts a job away whose run has been, however long Redis takes to come back. The run has given its lease back;
        the next part takes another. What was decided while its process ended is stored in the same step: whoever
        decided it was told so."""
        caller = job.caller
        if caller.lease is not None:
            caller = replace(caller, lease=str(Lease.parse(caller.lease).again()))
        deferral = permissions.as_decided(deferral)
        asks = Asks(waiting=permissions.waiting, decided=list(permissions.decided.values()))
        while True:
            try:
                put = await self.store.defer(job, asks, deferral, caller=caller_json(caller), **fields)
                if put == "put away" and not asks.waiting:
                    await enqueue_ticket(self.queues)
                break
            except (RedisError, OSError) as error:
                _log.warning("job %s: that it is put away is not stored yet (%s)", job.id, type(error).__name__)
                await asyncio.sleep(1)
        if put == "cancelled":
            await self.cancelled(job, await self.store.cancelled_by(job), **fields)

    async def cancelled(self, job: Job, by: str, **fields: Any) -> bool:
        """Ends a job that this subject wants cancelled; the same otherwise."""
        problem = Problem(499, "cancelled", who_cancelled(job.subject, by))
        return await self.end(job, "cancelled", error=problem.document(), **fields)

    async def book(self, caller: Caller, micro_usd: int, *, final: bool = True) -> None:
        """Ends the caller's lease. Never raises."""
        if self.ledger is not None and caller.lease is not None:
            tier = caller.tier or ""
            await self.ledger.book(caller.lease, micro_usd, final=final, slot=caller.slot, tier=tier)

    async def again(self, job: Job, *, in_s: float = 0.0) -> bool:
        """Lets a job wait again where the operator wants that. With a new lease: the old one is given back or settled,
        and a settled one cannot be settled twice."""
        if self.settings.on_worker_loss != "retry":
            return False
        caller = job.caller
        if caller.lease is not None:
            caller = replace(caller, lease=str(Lease.parse(caller.lease).again()))
        if await self.store.requeue(job, caller=caller_json(caller)) != "requeued":
            return False
        await self.book(job.caller, await self._spent(job), final=False)
        await enqueue_ticket(self.queues, at=time.time() + in_s if in_s else 0.0)
        return True

    async def orphaned(self, job: Job) -> None:
        """A running job whose worker died. By default it fails with what it has left, since a run has side effects.

        What it has spent is in a journal, if this is its worker's machine, else in the record as of the last beat; a
        journal that turns up later adds what is missing."""
        if not await self.store.take_over(job):
            return
        _log.warning("job %s is orphaned: its worker %s died", job.id, job.worker)
        if await self.again(job):
            return
        found = await asyncio.to_thread(left_in, job, self.settings)
        kept = await self.keeping.keep(job.id, job.caller.subject, found, retention(job, self.settings))
        left = [artifact.model_dump(mode="json") for artifact in kept]
        problem = Problem(500, "worker-lost", "the worker that ran the job died; the run may have had effects")
        state = "cancelled" if job.cancel else "failed"
        spent = await self._spent(job)
        cost_usd = (_booked(job) + spent) / 1_000_000
        fields = {"error": problem.document() | {"artifacts": left}, "cost_usd": repr(cost_usd)}
        if await self.end(job, state, **fields):
            await self.book(job.caller, spent, final=False)

    async def _spent(self, job: Job) -> int:
        """Micro-USD of the part that was lost, as far as it is known."""
        try:
            noted = await self.metering.spent(job.id, job.caller.lease)
        except NoProxy:
            noted = None
        return max(noted or 0, micro_usd(job.cost_usd) - _booked(job))


def _booked(job: Job) -> int:
    """What it has cost before it was put away, which was booked then."""
    return 0 if job.deferral is None else micro_usd(job.deferral.so_far.cost_usd)
