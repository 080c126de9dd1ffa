"""The SAQ queue that carries tickets and webhook deliveries."""

from __future__ import annotations

import asyncio
from typing import Any

from redis.exceptions import RedisError
from saq import Job as Ticket
from saq.queue.redis import RedisQueue
from saq.worker import Worker

from claude_invoker.jobs.store import connect

NAME = "claude"
HEARTBEAT_S = 10  # a ticket without a sign of life for so long has lost its worker
SWEEP_S = 2
RUN = "run_next"
DELIVER = "deliver"


class Queue(RedisQueue):
    """SAQ's queue, patient: a Redis that restarts must not spin its workers, a lost worker must not hold the sweep."""

    async def sweep(self, lock: int = SWEEP_S, abort: float = 0.05) -> list[str]:
        return await super().sweep(lock=lock, abort=min(abort, 0.05))

    async def dequeue(self, timeout: float = 0.0, poll_interval: float = 0.0) -> Any:
        try:
            return await super().dequeue(timeout, poll_interval)
        except (RedisError, OSError):
            await asyncio.sleep(0.2)
            return None


def open_queue(redis_url: str) -> Queue:
    from redis.asyncio import Redis

    return Queue(Redis.from_url(redis_url, retry=connect(redis_url).get_retry()), name=NAME)


async def enqueue_ticket(queue: Queue, *, at: float = 0.0) -> None:
    """One more "run the next job", now or at `at` (seconds since the epoch).

    Retries stand for lost workers only: what a run ends in is the job's business, so a ticket that returns is done.
    """
    await queue.enqueue(
        Ticket(function=RUN, timeout=0, heartbeat=HEARTBEAT_S, retries=1000, ttl=-1, scheduled=int(at) if at else 0)
    )


async def enqueue_delivery(queue: Queue, job_id: str, url: str) -> None:
    """A webhook: eight tries, backing off from 2 s to 10 min."""
    await queue.enqueue(
        Ticket(
            function=DELIVER,
            kwargs={"job_id": job_id, "url": url},
            key=f"deliver:{job_id}",
            timeout=60,
            heartbeat=0,
            retries=8,
            retry_delay=2.0,
            retry_backoff=600.0,
            ttl=3600,
        )
    )


def worker(queue: Queue, functions: list[tuple[str, Any]], concurrency: int) -> Worker[Any]:
    """A SAQ worker without signal handlers of its own: whoever runs it decides when it stops."""
    made: Worker[Any] = Worker(
        queue,
        functions,
        concurrency=concurrency,
        timers={"schedule": 1, "worker_info": 10, "sweep": SWEEP_S, "abort": 1},
        cancellation_hard_deadline_s=10.0,
    )
    made.SIGNALS = []
    return made
