"""What a run says, on its way into its job's record and stream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from redis.exceptions import RedisError

from claude_invoker.jobs.record import Job, Progress
from claude_invoker.jobs.store import Store
from claude_invoker.runs.run import Run

_log = logging.getLogger(__name__)
BATCH_S = 0.02  # events are written together for so long
BATCH = 500
TAIL = 400  # characters


class Watch:
    """How far a run has come; each event is looked at once."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._seen = 0
        self._now = Progress()

    def progress(self) -> Progress:
        for event in self._run.events.since(self._seen):
            self._seen = event.id
            self._now.events, self._now.last = event.id, event.name
            if event.name == "content_block_delta":
                text = text_of(event.document)
                self._now.characters += len(text)
                self._now.tail = (self._now.tail + text)[-TAIL:]
        return self._now


def text_of(delta: Mapping[str, Any]) -> str:
    """The text that a content_block_delta adds to the answer."""
    inside = delta.get("delta")
    return str(inside.get("text") or "") if isinstance(inside, dict) else ""


async def record(store: Store, job: Job, run: Run) -> None:
    """Copies the run's events into the job's stream until it is over, in small batches; a Redis that is away is waited
    for."""
    last = 0
    async for event in run.events.follow():
        if event.id <= last:  # written with an earlier one
            continue
        await asyncio.sleep(BATCH_S)
        while batch := run.events.since(last)[:BATCH]:
            try:
                await store.append(job, [(e.id, e.name, e.data) for e in batch])
            except (RedisError, OSError) as error:
                _log.warning("job %s: its events are not stored yet (%s)", job.id, type(error).__name__)
                await asyncio.sleep(0.5)
                continue
            last = batch[-1].id
