"""The SAQ queues: one carries tickets, one webhook deliveries, so that no receiver holds up a run."""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError
from saq import Job as Ticket
from saq.queue.redis import RedisQueue
from saq.worker import Worker

from claude_contract.ledger import warnings
from claude_contract.redis_place import Kind, Place
from claude_invoker import redis_clients
from claude_invoker.ending import ended
from claude_invoker.jobs.store import JOBS_TAG, PREFIX, retry

HEARTBEAT_S = 10  # a ticket without a sign of life for so long has no worker any more
SWEEP_S = 2
RUN = "run_next"
DELIVER = "deliver"
ASK = "ask"
NOTIFY = "notify"
DELIVERY_TRIES = 8
DELIVERY_DELAY_S = 2.0  # doubled from try to try


class Queue(RedisQueue):
    """SAQ's queue, patient: a Redis that restarts must not spin its workers, a dead worker must not hold the sweep."""

    tag = ""
    """Stands in all its keys, those of its tickets too: on a Cluster the hash tag of what jobs have."""

    async def sweep(self, lock: int = SWEEP_S, abort: float = 0.05) -> list[str]:
        return await super().sweep(lock=lock, abort=min(abort, 0.05))

    async def due(self) -> int:
        """How many are queued or worked at, without those that are scheduled for later."""
        return int(await self.redis.zcount(self._incomplete, 0, time.time()))

    async def dequeue(self, timeout: float = 0.0, poll_interval: float = 0.0) -> Any:
        try:
            return await super().dequeue(timeout, poll_interval)
        except (RedisError, OSError):
            await asyncio.sleep(0.2)
            return None


class TicketWorker(Worker[Any]):
    """Without signal handlers: whoever runs it decides when it stops. And without SAQ's aborts: a sweep that was hasty
    marks a ticket so for a moment, and the run would be cancelled; a job's end is decided by its record alone."""

    SIGNALS: list[Any] = []  # noqa: RUF012  SAQ reads it from the instance

    async def abort(self, abort_threshold: float) -> None:
        return

    async def stop(self) -> None:
        """Cancels what is left first, which SAQ also does, but warns of each time."""
        self.event.set()
        await ended(*self.tasks)
        await super().stop()


@dataclass(frozen=True)
class Queues:
    tickets: Queue
    deliveries: Queue

    async def close(self) -> None:
        await self.tickets.disconnect()
        await self.deliveries.disconnect()


def open_queues(redis_url: str) -> Queues:
    """Raises BadPlace."""
    tag = JOBS_TAG if Place.parse(redis_url).kind is Kind.CLUSTER else ""

    def opened(name: str) -> Queue:
        queue = Queue(redis_clients.client_of(redis_url, PREFIX, retry=retry()), name=tag + name)
        queue.tag = tag
        return queue

    return Queues(opened("claude"), opened("claude-webhooks"))


async def enqueue_ticket(queues: Queues, *, at: float = 0.0) -> None:
    """One more "run the next job", now or not before `at` (seconds since the epoch; SAQ knows whole ones).

    Retries stand for dead workers only: what a run ends in is the job's business, so a ticket that returns is done.
    """
    scheduled = math.ceil(at)
    key = f"{queues.tickets.tag}{uuid.uuid4()}"
    await queues.tickets.enqueue(
        Ticket(function=RUN, key=key, timeout=0, heartbeat=HEARTBEAT_S, retries=1000, ttl=-1, scheduled=scheduled)
    )


async def enqueue_delivery(queues: Queues, job_id: str) -> None:
    """A job's webhook: eight tries, backing off from 2 s to 10 min. Harmless where it is enqueued already."""
    await _enqueue_webhook(queues, DELIVER, f"deliver:{job_id}", job_id=job_id)


async def enqueue_asking(queues: Queues, job_id: str, permission_id: str) -> None:
    """The webhook of a job that waits to be allowed a call of a tool, in the same way."""
    await _enqueue_webhook(queues, ASK, f"ask:{permission_id}", job_id=job_id, permission_id=permission_id)


async def enqueue_notice(queues: Queues, notice: str) -> None:
    """The operator's webhook, in the same way. `notice`: as it is owed."""
    await _enqueue_webhook(queues, NOTIFY, f"notify:{warnings.decode(notice).id}", notice=notice)


async def _enqueue_webhook(queues: Queues, function: str, key: str, **arguments: str) -> None:
    await queues.deliveries.enqueue(
        Ticket(
            function=function,
            kwargs=arguments,
            key=queues.deliveries.tag + key,
            timeout=60,
            retries=DELIVERY_TRIES,
            retry_delay=DELIVERY_DELAY_S,
            retry_backoff=600.0,
            ttl=-1,
        )
    )


def ticket_worker(queue: Queue, functions: Mapping[str, Any], concurrency: int) -> TicketWorker:
    return TicketWorker(
        queue,
        list(functions.items()),
        concurrency=concurrency,
        timers={"schedule": 1, "worker_info": 10, "sweep": SWEEP_S, "abort": 60},
        cancellation_hard_deadline_s=10.0,
    )
