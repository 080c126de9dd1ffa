"""The requests of a person that jobs which are over have kept, to be tried again: all of them, and deleted."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from claude_invoker.jobs.store import PREFIX, Store, connect, index_of

_LOOKED_AT = 500  # jobs, at once


async def export(url: str, subject: str) -> list[dict[str, Any]]:
    """Each as a line of the audit log has it. `url`: of the Redis where jobs are. Raises RedisError, OSError."""
    found = []
    async with _jobs(url) as redis:
        ids = await redis.zrange(index_of(subject), 0, -1)
        for at in range(0, len(ids), _LOOKED_AT):
            async with redis.pipeline(transaction=False) as pipe:
                for job_id in ids[at : at + _LOOKED_AT]:
                    pipe.hmget(PREFIX + f"job:{job_id}", "again", "created_at", "id", "request")
                records = await pipe.execute()
            found += [_line(subject, *record) for again, *record in records if again == "kept"]
    return found


async def delete(url: str, subject: str) -> int:
    """How many were deleted; the same otherwise."""
    async with _jobs(url) as redis:
        return int(await Store(redis).run("drop", [index_of(subject)], [subject]))


@asynccontextmanager
async def _jobs(url: str) -> AsyncIterator[Any]:
    redis = connect(url)
    try:
        yield redis
    finally:
        await redis.aclose()


def _line(subject: str, created_at: str, job_id: str, request: str) -> dict[str, Any]:
    at = datetime.fromtimestamp(float(created_at), UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    details = {"job": job_id, "request": json.loads(request)}
    return {"at": at, "kind": "job.request", "actor": subject, "subject": subject, "details": details}
