"""Delivering webhooks: what SAQ calls for each that is owed."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

from claude_contract.ledger import warnings
from claude_invoker.jobs import webhook
from claude_invoker.jobs.queue import DELIVERY_TRIES
from claude_invoker.jobs.record import Delivery
from claude_invoker.jobs.store import CALLBACKS, Store
from claude_invoker.settings import Settings

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Deliveries:
    settings: Settings
    store: Store

    async def deliver(self, context: dict[str, Any], *, job_id: str) -> None:
        """The SAQ function of a webhook. Raises NotDelivered where another try may help."""
        job = await self.store.get(job_id)
        if job is None:
            await self.store.redis.zrem(CALLBACKS, job_id)
            return
        status, error = await webhook.send(webhook.event(job, self.settings.prefix), job.callback, self.settings)
        final = is_final(status) or context["job"].attempts >= DELIVERY_TRIES
        await self.store.delivered(job, Delivery(at=time.time(), status=status, error=error), final=final)
        if not is_final(status):
            raise webhook.NotDelivered(error or f"answered {status}")

    async def ask(self, context: dict[str, Any], *, job_id: str, permission_id: str) -> None:
        """The same of what the job asks, as long as it waits. Raises NotDelivered where another try may help."""
        job = await self.store.get(job_id)
        asked = [permission for permission in job.waiting if permission.id == permission_id] if job is not None else []
        if job is None or not asked:
            return
        status, error = await webhook.send(
            webhook.asking(job, asked[0], self.settings.prefix), job.callback, self.settings
        )
        await self.store.delivered(job, Delivery(at=time.time(), status=status, error=error), final=False)
        if not is_final(status):
            raise webhook.NotDelivered(error or f"answered {status}")

    async def notify(self, context: dict[str, Any], *, notice: str) -> None:
        """The same of what the operator is owed."""
        if not await self.store.is_owed(notice):
            return
        status, error = await webhook.notify(warnings.decode(notice), self.settings)
        taken = status is not None and 200 <= status < 300
        if is_final(status) or context["job"].attempts >= DELIVERY_TRIES:
            await self.store.told(notice)
        if not taken:
            what = error or f"answered {status}"
            _log.warning("INVOKER_BUDGET_WEBHOOK has not taken notice %s: %s", warnings.decode(notice).id, what)
            if not is_final(status):
                raise webhook.NotDelivered(what)


def is_final(status: int | None) -> bool:
    """Whether a receiver that answers so shall hear no more: it has it; it has moved, and where to is not followed; or
    it says that nobody is there any more (410, as in Standard Webhooks)."""
    return status is not None and (200 <= status < 400 or status == 410)
