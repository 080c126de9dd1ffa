"""Jobs in Redis: records, lines, events. All keys share one hash tag, so that every script runs on one node."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError
from redis.exceptions import TimeoutError as RedisTimeoutError

from claude_invoker.jobs.record import Delivery, Job, Progress

PREFIX = "claude:{jobs}:"
CANCELLED = PREFIX + "cancelled"  # channel
IDEMPOTENCY_TTL = 24 * 3600  # seconds
TOMBSTONE_TTL = 7 * 24 * 3600  # seconds for which an expired job is 410, not 404
MAX_EVENTS = 20_000
_TRIES = 30  # with the back-off below: about ten seconds of a Redis that restarts


def connect(url: str) -> Any:
    """A client that rides out a restart of Redis: connections are retried for some seconds."""
    retry = Retry(ExponentialBackoff(cap=0.5, base=0.02), _TRIES)
    return Redis.from_url(
        url,
        retry=retry,
        retry_on_error=[RedisConnectionError, RedisTimeoutError, ConnectionError],
        decode_responses=True,
    )


@lru_cache
def _script(name: str) -> tuple[str, str]:
    import hashlib

    source = files(__package__).joinpath(f"{name}.lua").read_text()
    return source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


class Store:
    """`tiers`: names in order of priority; jobs of other tiers come last."""

    def __init__(self, redis: Any, tiers: Sequence[str] = ()) -> None:
        self.redis = redis
        self.tiers = [*tiers, *([] if "" in tiers else [""])]
        self._turn = 0

    def line(self, tier: str) -> str:
        return tier if tier in self.tiers else ""

    async def _run(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        source, sha = _script(name)
        try:
            return await self.redis.evalsha(sha, len(keys), *keys, *args)
        except NoScriptError:
            return await self.redis.eval(source, len(keys), *keys, *args)

    async def accept(self, job: Job, idempotency: tuple[str, str] | None = None) -> tuple[str, str]:
        """Stores a job. `idempotency`: (key, fingerprint of the body). Returns what happened and the job's id:
        `accepted`, `known` (the same request came before), or `conflict` (another body under this key)."""
        line = self.line(job.tier)
        key = f"{PREFIX}idem:{job.subject}:{idempotency[0]}" if idempotency else ""
        keys = [
            PREFIX + f"job:{job.id}",
            key,
            PREFIX + f"wait:{line}:{job.subject}",
            PREFIX + f"ring:{line}",
            PREFIX + f"of:{job.subject}",
            PREFIX + "all",
            PREFIX + "waiting",
        ]
        fields = [part for pair in job.fields().items() for part in pair]
        fingerprint = idempotency[1] if idempotency else ""
        reply = await self._run(
            "accept", keys, [job.id, job.subject, job.created_at, fingerprint, IDEMPOTENCY_TTL, *fields]
        )
        if reply[0] == 1:
            return "accepted", job.id
        return ("known", reply[1]) if reply[0] == 0 else ("conflict", "")

    async def claim(self, ticket: str, worker: str) -> tuple[Job, bool] | None:
        """The next job for a ticket, and whether the ticket had claimed it before. None: nothing to do."""
        self._turn += 1
        # Every fourth turn another tier goes first, so that a busy high tier cannot starve the others.
        shift = (self._turn // 4) % len(self.tiers) if self._turn % 4 == 0 else 0
        order = self.tiers[shift:] + self.tiers[:shift]
        keys = [PREFIX + "job:", PREFIX + "tickets", PREFIX + "blocked", PREFIX + "waiting"]
        keys += [PREFIX + f"ring:{tier}" for tier in order]
        args = [ticket, worker, now_ms(), PREFIX + "wait:", PREFIX + "running", *order]
        reply = await self._run("claim", keys, args)
        if not reply:
            return None
        job = await self.get(reply[0])
        if job is None:  # expired in between
            await self.redis.hdel(PREFIX + "tickets", ticket)
            return None
        return job, bool(int(reply[1]))

    async def requeue(self, job: Job, ticket: str, blocked_for: float = 0.0) -> bool:
        """Back to the head of its line; `blocked_for` seconds its subject is passed over."""
        line = self.line(job.tier)
        keys = [
            PREFIX + f"job:{job.id}",
            PREFIX + "tickets",
            PREFIX + "blocked",
            PREFIX + "waiting",
            PREFIX + f"ring:{line}",
            PREFIX + f"wait:{line}:{job.subject}",
            PREFIX + "running",
        ]
        until = now_ms() + int(blocked_for * 1000) if blocked_for else 0
        return bool(await self._run("requeue", keys, [job.id, ticket, job.subject, line, until]))

    async def finish(self, job: Job, state: str, retention: float, *, mine: bool = True, **fields: Any) -> bool:
        """Ends a job once. `mine`: only as the attempt that holds it. False: it was over, or another's by now."""
        now = time.time()
        stored = {"finished_at": repr(now), "expires_at": repr(now + retention)}
        stored |= {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
        keys = [
            PREFIX + f"job:{job.id}",
            PREFIX + "tickets",
            PREFIX + "running",
            PREFIX + f"events:{job.id}",
            PREFIX + f"gone:{job.id}",
        ]
        seconds = max(1, int(retention))
        args = [job.id, job.ticket, str(job.attempt) if mine else "", seconds, seconds + TOMBSTONE_TTL, job.subject]
        args.append(state)
        return bool(await self._run("finish", keys, [*args, *(part for pair in stored.items() for part in pair)]))

    async def cancel(self, job: Job) -> str:
        """Takes a waiting job out of its line or tells its worker. Returns the state before."""
        line = self.line(job.tier)
        keys = [PREFIX + f"job:{job.id}", PREFIX + f"wait:{line}:{job.subject}", PREFIX + "waiting"]
        return str(await self._run("cancel", keys, [job.id, CANCELLED]) or "")

    async def get(self, job_id: str) -> Job | None:
        stored = await self.redis.hgetall(PREFIX + f"job:{job_id}")
        return Job.load(stored) if stored else None

    async def gone(self, job_id: str, subject: str | None) -> bool:
        """True where a job of the subject (None: of anybody) has expired."""
        owner = await self.redis.get(PREFIX + f"gone:{job_id}")
        return owner is not None and (subject is None or owner == subject)

    async def update(self, job: Job, **fields: str) -> None:
        await self.redis.hset(PREFIX + f"job:{job.id}", mapping=fields)

    async def beat(self, job: Job, progress: Progress, cost_usd: float, model: str) -> bool:
        """Says that the job's worker lives. True: somebody wants it cancelled."""
        key = PREFIX + f"job:{job.id}"
        fields = {
            "beat": str(now_ms()),
            "progress": progress.model_dump_json(),
            "cost_usd": repr(cost_usd),
            "model": model,
        }
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.hset(key, mapping=fields)
            pipe.hget(key, "cancel")
            return bool((await pipe.execute())[1])

    async def position(self, job: Job) -> int | None:
        """How many waiting jobs may start before this one: at most, since others may be cancelled. O(line)."""
        line = self.line(job.tier)
        ahead = self.tiers[: self.tiers.index(line)]
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.lpos(PREFIX + f"wait:{line}:{job.subject}", job.id)
            pipe.lpos(PREFIX + f"ring:{line}", job.subject)
            pipe.llen(PREFIX + f"ring:{line}")
            for tier in ahead:
                pipe.lrange(PREFIX + f"ring:{tier}", 0, 99)
            own, turn, subjects, *rings = await pipe.execute()
        if own is None:
            return None
        before = own * max(1, subjects) + (turn or 0)
        async with self.redis.pipeline(transaction=False) as pipe:
            for tier, ring in zip(ahead, rings, strict=True):
                for subject in ring:
                    pipe.llen(PREFIX + f"wait:{tier}:{subject}")
            urgent = sum(await pipe.execute())
        waiting = await self.waiting()
        return int(min(before + urgent, max(0, waiting - 1)))

    async def waiting(self) -> int:
        return int(await self.redis.get(PREFIX + "waiting") or 0)

    async def running(self) -> list[str]:
        return list(await self.redis.zrange(PREFIX + "running", 0, -1))

    async def page(self, subject: str | None, cursor: str | None, count: int) -> tuple[list[Job], str | None]:
        """The newest jobs of a subject (None: of all) before `cursor`, and the next cursor. Expired ones drop out."""
        index = PREFIX + ("all" if subject is None else f"of:{subject}")
        upper = f"({cursor}" if cursor else "+inf"
        found = await self.redis.zrevrangebyscore(index, upper, "-inf", start=0, num=count, withscores=True)
        async with self.redis.pipeline(transaction=False) as pipe:
            for job_id, _ in found:
                pipe.hgetall(PREFIX + f"job:{job_id}")
            records = await pipe.execute()
        missing = [job_id for (job_id, _), stored in zip(found, records, strict=True) if not stored]
        if missing:
            await self.redis.zrem(index, *missing)
        following = repr(found[-1][1]) if len(found) == count else None
        return [Job.load(stored) for stored in records if stored], following

    async def append(self, job_id: str, events: Sequence[tuple[str, bytes]]) -> None:
        """Adds (name, JSON) events to the job's stream."""
        async with self.redis.pipeline(transaction=False) as pipe:
            for name, data in events:
                entry = {"event": name, "data": data}
                pipe.xadd(PREFIX + f"events:{job_id}", entry, maxlen=MAX_EVENTS, approximate=True)
            await pipe.execute()

    async def follow(self, job_id: str, last: str, heartbeat: float) -> AsyncIterator[tuple[str, str, str] | None]:
        """(id, name, JSON) of every event after `last` until the job is over; None after `heartbeat` silent seconds."""
        while True:
            over = await self.redis.hget(PREFIX + f"job:{job_id}", "state") not in ("queued", "running")
            block = None if over else int(heartbeat * 1000)
            found = await self.redis.xread({PREFIX + f"events:{job_id}": last}, count=500, block=block)
            for _, entries in found or []:
                for last, entry in entries:
                    yield last, entry["event"], entry["data"]
            if not found:
                if over:
                    return
                yield None

    async def delivered(self, job_id: str, delivery: Delivery) -> None:
        """Adds a try to the job's delivery log."""
        key = PREFIX + f"job:{job_id}"
        log = json.loads(await self.redis.hget(key, "deliveries") or "[]")
        if await self.redis.exists(key):
            await self.redis.hset(key, "deliveries", json.dumps([*log, delivery.model_dump()][-20:]))


def now_ms() -> int:
    return int(time.time() * 1000)


def text_of(event: str, data: Mapping[str, Any]) -> str:
    """The text that an event adds to the answer."""
    return str((data.get("delta") or {}).get("text") or "") if event == "content_block_delta" else ""
