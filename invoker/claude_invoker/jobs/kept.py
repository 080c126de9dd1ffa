"""The requests of a person that jobs which are over have kept, to be tried again: all of them, and deleted."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from claude_invoker.jobs.store import PREFIX, Store, connect, index_of
from claude_invoker.settings import Settings

_LOOKED_AT = 500  # jobs, at once


async def export(settings: Settings, subject: str) -> list[dict[str, Any]]:
    """Each as a line of the audit log has it; none where there are no jobs. Raises RedisError, OSError."""
    found = []
    async with _jobs(settings) as redis:
        ids = [] if redis is None else await redis.zrange(index_of(subject), 0, -1)
        for at in range(0, len(ids), _LOOKED_AT):
            async with redis.pipeline(transaction=False) as pipe:
                for job_id in ids[at : at + _LOOKED_AT]:
                    pipe.hmget(PREFIX + f"job:{job_id}", "again", "created_at", "id", "request")
                records = await pipe.execute()
            found += [_line(subject, *record) for again, *record in records if again == "kept"]
    return found


async def delete(settings: Settings, subject: str) -> int:
    """How many were deleted. Raises RedisError, OSError."""
    async with _jobs(settings) as redis:
        return 0 if redis is None else int(await Store(redis).run("drop", [index_of(subject)], [subject]))


@asynccontextmanager
async def _jobs(settings: Settings) -> AsyncIterator[Any]:
    """Where jobs are; None: there are none."""
    redis = None if settings.jobs_redis_url is None else connect(settings.jobs_redis_url)
    try:
        yield redis
    finally:
        if redis is not None:
            await redis.aclose()


def _line(subject: str, created_at: str, job_id: str, request: str) -> dict[str, Any]:
    at = datetime.fromtimestamp(float(created_at), UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    details = {"job": job_id, "request": json.loads(request)}
    return {"at": at, "kind": "job.request", "actor": subject, "subject": subject, "details": details}
