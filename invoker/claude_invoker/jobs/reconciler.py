"""Healing what a crash between two writes leaves, again and again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from claude_invoker.cli.walk import delete
from claude_invoker.jobs.deferred import expire
from claude_invoker.jobs.ends import Ends
from claude_invoker.jobs.orphan import is_orphaned
from claude_invoker.jobs.queue import HEARTBEAT_S, Queues, enqueue_delivery, enqueue_notice, enqueue_ticket
from claude_invoker.jobs.record import Job
from claude_invoker.jobs.store import RUNNING, Store, now_ms
from claude_invoker.model import PermissionDecision

_log = logging.getLogger(__name__)
EVERY_S = 5.0


@dataclass(frozen=True)
class Reconciler:
    """`ours`: ids of the jobs that this process runs; `on_decided`: told of what nobody has decided about."""

    ends: Ends
    store: Store
    queues: Queues
    artifacts: Path
    ours: Collection[str]
    on_decided: Callable[[Job, PermissionDecision, Mapping[str, Any]], None]

    async def recover(self) -> None:
        """Ends the jobs of workers that died on this machine. Before the engine opens, which deletes what they left."""
        async for _, job in self.store.each(await self.store.running()):
            if job is not None and await asyncio.to_thread(is_orphaned, job):
                await self.ends.orphaned(job)

    async def reconcile(self) -> None:
        """Goes on until cancelled."""
        cursor = "-inf"
        while True:
            try:
                await self._tickets_for_all()
                await self._find_orphaned()
                for denied in await expire(self.store, self.queues):
                    self.on_decided(*denied)
                for job_id in await self.store.owed(now_ms() - 30_000):
                    await enqueue_delivery(self.queues, job_id)
                await self._tell_operator()
                _, cursor = await self.store.forget(cursor)
                await self._delete_files()
            except (RedisError, OSError) as error:
                _log.warning("orphaned and owed jobs are looked for again later: Redis (%s)", type(error).__name__)
            except Exception:
                _log.exception("a job could not be looked after, it is tried again")
            await asyncio.sleep(EVERY_S)

    async def _tickets_for_all(self) -> None:
        """Each job that may run now has a ticket. Those of running jobs do not count, nor those for later, which jobs
        have whose subject is passed over."""
        waiting = sum((await self.store.waiting()).values()) - await self.store.parked()
        free = await self.queues.tickets.due() - len(await self.store.running())
        for _ in range(min(waiting - free, 1000)):
            await enqueue_ticket(self.queues)

    async def _tell_operator(self) -> None:
        """What the gateway and the invoker have seen of budgets that are nearly used up."""
        notices = await self.store.notices()
        if self.ends.settings.budget_webhook is not None:
            for notice in notices:
                await enqueue_notice(self.queues, notice)
        elif notices:  # nobody wants them
            await self.store.told(*notices)

    async def _find_orphaned(self) -> None:
        async for job_id, job in self.store.each(await self.store.running()):
            if job is None:
                await self.store.redis.zrem(RUNNING, job_id)
                continue
            if job_id in self.ours:
                continue
            silent = await self.store.silent_s(job) > 2 * HEARTBEAT_S
            if silent or await asyncio.to_thread(is_orphaned, job):
                await self.ends.orphaned(job)

    async def _delete_files(self) -> None:
        """Artifacts go with their job's record, whichever worker kept them. Those of jobs that this Redis does not know
        are left to the engine, which deletes by age."""
        for path in self.artifacts.glob("job_*"):
            if await self.store.expired(path.name):
                await asyncio.to_thread(delete, path)
