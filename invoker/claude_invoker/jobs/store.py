"""Jobs in Redis: records, queues, events. All keys share one hash tag, so that every script runs on one node."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal
from urllib.parse import unquote

from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from claude_contract.keys import escaped, joined
from claude_contract.ledger.warnings import OWED
from claude_contract.versions import UnknownVersion
from claude_invoker import redis_clients
from claude_invoker.caller import Caller
from claude_invoker.holding import Bounds, refusal
from claude_invoker.jobs.again import MOST_KEPT
from claude_invoker.jobs.fairness import fairly
from claude_invoker.jobs.record import (
    OVER,
    SUMMARY,
    VERSION,
    Asks,
    Delivery,
    Job,
    Turn,
    WaitsFor,
    caller_of,
    check_version,
    waits_in,
)
from claude_invoker.jobs.streams import Streams
from claude_invoker.model import PermissionDecision
from claude_invoker.place import Place
from claude_invoker.runs.deferral import Deferral
from claude_invoker.runs.run import Run

_log = logging.getLogger(__name__)
JOBS_TAG = "{jobs}"
PREFIX = f"claude:{JOBS_TAG}:"
CANCELLED = PREFIX + "cancelled"  # channel
TICKETS = PREFIX + "tickets"  # hash: ticket -> the job it holds
BLOCKED = PREFIX + "blocked"  # hash: joined queue and subject -> ms until which it is passed over
WAITING = PREFIX + "waiting"  # hash: queue -> count
RUNNING = PREFIX + "running"  # sorted set: job -> ms of its claim
CALLBACKS = PREFIX + "callbacks"  # sorted set: job -> ms since which its webhook is owed
DEFERRED = PREFIX + "deferred"  # sorted set: job that is put away -> ms at which it is denied what it asks
ALL = PREFIX + "all"  # sorted set: job -> s of its acceptance
NOTICES = 100  # looked at, at once
MOST_ASKING = 200  # jobs that are shown, at once
LOOKED_AT_ASKING = 5000  # jobs among which these are: some milliseconds of Redis
IDEMPOTENCY_TTL = 24 * 3600  # seconds
TOMBSTONE_TTL = 7 * 24 * 3600  # seconds for which an expired job is 410, not 404
MAX_EVENTS = 20_000
HELD = PREFIX + "held"  # hash: "all" and "of:<subject>" -> bytes
_COUNTING = ("add", "append", "drop", "finish", "forget")
"""Scripts that change what jobs hold: held.lua stands before them."""
Requeued = Literal["not ours", "requeued", "cancelled"]
PutAway = Literal["not ours", "put away", "cancelled"]
_TRIES = 30  # with the back-off below: about ten seconds of a Redis that restarts


def retry() -> Retry:
    return Retry(ExponentialBackoff(cap=0.5, base=0.02), _TRIES)


def connect(url: str, key: str = PREFIX) -> Any:
    """A client for keys with the hash tag of `key` that rides out a restart of Redis: connections are retried for some
    seconds. So any script may run twice; each is written for that."""
    return redis_clients.client_of(
        url,
        key,
        retry=retry(),
        retry_on_error=[RedisConnectionError, RedisTimeoutError, ConnectionError],
        decode_responses=True,
    )


@lru_cache
def _script(name: str) -> tuple[str, str]:
    def text(name: str) -> str:
        return files(__package__).joinpath(f"{name}.lua").read_text()

    known = f"local prefix, most_kept = '{PREFIX}', {MOST_KEPT}\n"
    source = known + text("held") + text(name) if name in _COUNTING else text(name)
    return source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


class Store:
    """`tiers`: names in order of priority; jobs of other tiers come last. `warned`: a client for what budgets are owed,
    where that is in another Redis than jobs are, or on another node of their Cluster."""

    def __init__(
        self,
        redis: Any,
        tiers: Sequence[str] = (),
        bounds: Bounds = Bounds(),  # noqa: B008 frozen
        warned: Any = None,
    ) -> None:
        self.redis = redis
        self._warned = warned or redis
        self.bounds = bounds
        self.streams = Streams(redis, PREFIX)
        self.queues = [escaped(":", tier) for tier in dict.fromkeys((*tiers, ""))]
        self._old_queues = [tier for tier in tiers if escaped(":", tier) != tier]  # where release 0.1.0 let jobs wait
        self._claims = 0

    @classmethod
    def open(cls, url: str, ledger_url: str, tiers: Sequence[str], bounds: Bounds) -> Store:
        """Raises BadPlace."""
        return cls(connect(url), tiers, bounds, connect(ledger_url, OWED))

    async def close(self) -> None:
        await self.redis.aclose()
        await self._warned.aclose()

    def queue(self, tier: str) -> str:
        """Where jobs of a tier wait, as it stands in keys."""
        queue = escaped(":", tier)
        return queue if queue in self.queues else ""

    async def run(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """The answer of one of the scripts beside this file, which Redis is sent once."""
        source, sha = _script(name)
        try:
            return await self.redis.evalsha(sha, len(keys), *keys, *args)
        except NoScriptError:
            return await self.redis.eval(source, len(keys), *keys, *args)

    async def add(self, job: Job, idempotency: tuple[str, str] | None = None) -> tuple[str, str]:
        """Stores a job. `idempotency`: (key, fingerprint of the body). Returns what happened and the job's id:
        `accepted`, `known` (the same request came before), or `conflict` (another body under this key).

        Where jobs hold too much those that are over are dropped, the oldest first. Raises Problem 429 or 507 where that
        is not enough."""
        queue = self.queue(job.tier)
        keys = [
            PREFIX + f"job:{job.id}",
            PREFIX + joined(":", "idem", *((job.subject, idempotency[0]) if idempotency else ())),
            _wait(queue, job.subject),
            _round_robin(queue),
            PREFIX + f"of:{job.subject}",
            ALL,
            WAITING,
        ]
        fields = [part for pair in job.fields().items() for part in pair]
        fingerprint = idempotency[1] if idempotency else ""
        bounds = (self.bounds.per_subject, self.bounds.in_all)
        args = [job.id, job.subject, job.created_at, fingerprint, IDEMPOTENCY_TTL, queue, *bounds, job.retry_of]
        reply = await self.run("add", keys, [*args, *fields])
        if reply[0] <= -2:
            raise refusal("subject" if reply[0] == -2 else "all", self.bounds)
        if reply[0] == 1:
            return "accepted", job.id
        return ("known", reply[1]) if reply[0] == 0 else ("conflict", "")

    async def known(self, subject: str, key: str) -> tuple[Job, str] | None:
        """The job that the subject's request with this `Idempotency-Key` has become, and the request's fingerprint.
        Raises UnknownVersion."""
        stored = await self.redis.hmget(PREFIX + joined(":", "idem", subject, key), "id", "fingerprint")
        job = await self.get(stored[0]) if stored[0] else None
        return None if job is None or job.subject != subject else (job, stored[1])

    async def claim(self, ticket: str, worker: str) -> tuple[Job, bool] | None:
        """The next job for a ticket, and whether the ticket had claimed it before. None: nothing to do.

        Raises UnknownVersion where there is nothing but a job for a worker of another release.
        """
        self._claims += 1
        # At every fourth claim another tier goes first, so that a busy high tier cannot starve the others.
        shift = (self._claims // 4) % len(self.queues) if self._claims % 4 == 0 else 0
        order = self.queues[shift:] + self.queues[:shift] + self._old_queues
        keys = [PREFIX + "job:", TICKETS, BLOCKED, WAITING, *(_round_robin(queue) for queue in order)]
        args = [ticket, worker, now_ms(), PREFIX + "wait:", RUNNING, secrets.token_hex(8), VERSION, *order]
        reply = await self.run("claim", keys, args)
        if reply and int(reply[1]) == 2:
            check_version(reply[0], str(reply[2]))
        job = await self.get(reply[0]) if reply else None
        return None if job is None else (job, bool(int(reply[1])))

    async def requeue(self, job: Job, blocked_for: float = 0.0, **fields: str) -> Requeued:
        """Back to the head of its queue. `blocked_for`: it has not run, and its subject is passed over for so many
        seconds. `cancelled`: it is still ours to end."""
        queue = self.queue(job.tier)
        keys = [
            PREFIX + f"job:{job.id}",
            TICKETS,
            BLOCKED,
            WAITING,
            _round_robin(queue),
            _wait(queue, job.subject),
            RUNNING,
            PREFIX + f"events:{job.id}",
        ]
        until = now_ms() + int(blocked_for * 1000) if blocked_for else 0
        if not blocked_for:
            fields = {"cost_usd": "0.0", "waits": "", "asks": "", "asking": "", "deferral": ""} | fields
        args = [job.id, job.attempt, job.subject, queue, until, *(part for pair in fields.items() for part in pair)]
        outcomes: tuple[Requeued, ...] = ("not ours", "requeued", "cancelled")
        return outcomes[int(await self.run("requeue", keys, args))]

    async def defer(self, job: Job, asks: Asks, deferral: Deferral, **fields: str) -> PutAway:
        """Puts a running job away until somebody decides what it asks; where `asks` says that nothing waits, it is
        decided already, and the job waits for its turn. `cancelled`: it is still ours to end."""
        queue = self.queue(job.tier)
        keys = [
            PREFIX + f"job:{job.id}",
            TICKETS,
            BLOCKED,
            RUNNING,
            PREFIX + f"events:{job.id}",
            DEFERRED,
            _wait(queue, job.subject),
            _round_robin(queue),
            WAITING,
        ]
        stored = asks.fields() | {"deferral": deferral.model_dump_json()} | fields
        until = int(deferral.permission.expires_at * 1000) if asks.waiting else ""
        args = [job.id, job.attempt, job.subject, queue, until, *(part for pair in stored.items() for part in pair)]
        outcomes: tuple[PutAway, ...] = ("not ours", "put away", "cancelled")
        return outcomes[int(await self.run("defer", keys, args))]

    async def resume(self, job: Job, decision: PermissionDecision) -> bool:
        """Lets a job that is put away wait for its turn, now that it is decided what it asks. False: it was before, or
        it is put away no more."""
        assert job.deferral is not None
        queue = self.queue(job.tier)
        keys = [
            PREFIX + f"job:{job.id}",
            _wait(queue, job.subject),
            _round_robin(queue),
            WAITING,
            PREFIX + f"events:{job.id}",
            DEFERRED,
        ]
        asks = Asks(decided=[*job.asks.decided, decision])
        said = decision.model_dump_json(exclude_none=True)
        fields = asks.fields() | {"deferral": job.deferral.model_dump_json()}
        args = [job.id, job.attempt, job.subject, queue, said, *(part for pair in fields.items() for part in pair)]
        return bool(await self.run("resume", keys, args))

    async def overdue(self) -> list[str]:
        """Jobs that are put away and whose time to be decided is over."""
        return list(await self.redis.zrangebyscore(DEFERRED, "-inf", now_ms()))

    async def not_deferred(self, job_id: str) -> None:
        """It is gone."""
        await self.redis.zrem(DEFERRED, job_id)

    async def finish(self, job: Job, state: str, retention: float, *, waiting: bool = False, **fields: Any) -> bool:
        """Ends a job once: as the attempt that holds it, or while it is `waiting`. False: it was over, or another's."""
        now, queue = time.time(), self.queue(job.tier)
        stored = {"finished_at": repr(now), "expires_at": repr(now + retention)}
        stored |= {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
        keys = [
            PREFIX + f"job:{job.id}",
            TICKETS,
            RUNNING,
            PREFIX + f"events:{job.id}",
            PREFIX + f"gone:{job.id}",
            _wait(queue, job.subject),
            _round_robin(queue),
            WAITING,
            BLOCKED,
            CALLBACKS,
            DEFERRED,
        ]
        seconds = max(1, int(retention))
        args = [job.id, "" if waiting else job.attempt, seconds, seconds + TOMBSTONE_TTL, job.subject, queue, now_ms()]
        return bool(await self.run("finish", keys, [*args, state, *(part for pair in stored.items() for part in pair)]))

    async def cancel(self, job: Job, retention: float, by: str = "") -> bool:
        """Ends a waiting job, or tells the worker of a running one, for the subject `by`. True where it is over now by
        this."""
        state = await self.run("cancel", [PREFIX + f"job:{job.id}"], [job.id, CANCELLED, by])
        return state in ("queued", "waiting_for_approval") and await self.finish(
            job, "cancelled", retention, waiting=True
        )

    async def cancelled_by(self, job: Job | Run) -> str:
        """The subject for whom a job is cancelled; "" where that is not known, or cannot be asked."""
        try:
            return await self.redis.hget(PREFIX + f"job:{job.id}", "cancel_by") or ""
        except (RedisError, OSError):
            return ""

    async def take_over(self, job: Job) -> bool:
        """True for one of those that find a job orphaned; should that one die, too, for another some seconds later."""
        key = f"{PREFIX}losing:{job.id}:{job.attempt}"
        return bool(await self.redis.set(key, 1, nx=True, ex=15))

    async def get(self, job_id: str) -> Job | None:
        """Raises UnknownVersion."""
        stored = await self.redis.hgetall(PREFIX + f"job:{job_id}")
        return Job.load(stored) if stored else None

    async def goes_on(self, job_id: str) -> bool:
        """Whether it is there and not over."""
        state = await self.redis.hget(PREFIX + f"job:{job_id}", "state")
        return state is not None and state not in OVER

    async def each(self, job_ids: Iterable[str]) -> AsyncIterator[tuple[str, Job | None]]:
        """Their records; None: it is gone. Of another release its own workers see to it; and a record that cannot be
        read keeps nobody from looking after the others."""
        for job_id in job_ids:
            try:
                job = await self.get(job_id)
            except UnknownVersion:
                continue
            except (ValueError, KeyError) as error:
                _log.error("job %s: its record cannot be read (%s)", job_id, type(error).__name__)
                continue
            yield job_id, job

    async def gone(self, job_id: str, subject: str | None) -> bool:
        """True where a job of the subject (None: of anybody) has expired."""
        owner = await self.redis.get(PREFIX + f"gone:{job_id}")
        return owner is not None and (subject is None or owner == subject)

    async def expired(self, job_id: str) -> bool:
        """True for a job that was here and is no more."""
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.exists(PREFIX + f"job:{job_id}")
            pipe.exists(PREFIX + f"gone:{job_id}")
            return (await pipe.execute()) == [0, 1]  # type: ignore[no-any-return]

    async def update(self, job: Job, *, held: bool = True, **fields: str) -> int:
        """Changes a record. `held`: only as the attempt that holds it. -1: it is gone, or another's by now;
        1: somebody wants it cancelled; 0: neither."""
        parts = [part for pair in fields.items() for part in pair]
        return int(await self.run("update", [PREFIX + f"job:{job.id}"], [job.attempt if held else "", *parts]))

    async def silent_s(self, job: Job) -> float:
        """For how many seconds the worker that runs this attempt has not shown that it lives; 0: it runs no more."""
        return int(await self.run("silence", [PREFIX + f"job:{job.id}"], [job.attempt])) / 1000

    async def turn(self, job: Job) -> Turn | None:
        """None where it does not wait."""
        queue = self.queue(job.tier)
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.lindex(_wait(queue, job.subject), 0)
            pipe.lpos(_wait(queue, job.subject), job.id)
            pipe.lpos(_round_robin(queue), job.subject)
            pipe.llen(_round_robin(queue))
            pipe.hgetall(WAITING)
            first, own, ahead, subjects, waiting = await pipe.execute()
        if own is None:
            return None
        waits_for = job.waits_for if own == 0 else await self._waits_for(first)
        urgent = sum(int(waiting.get(more, 0)) for more in self.queues[: self.queues.index(queue)])
        before = own * max(1, subjects) + (ahead or 0)
        return Turn(int(urgent + min(before, max(0, int(waiting.get(queue, 1)) - 1))), waits_for)

    async def _waits_for(self, first: str) -> WaitsFor | None:
        """Of the first of a subject's jobs, which all others of his wait behind: it alone is written that."""
        version, waits = await self.redis.hmget(PREFIX + f"job:{first}", "v", "waits")
        return waits_in(waits) if version == str(VERSION) else None

    async def waiting(self) -> dict[str, int]:
        """Waiting jobs by tier; "" for those of tiers without a queue of their own."""
        counts: dict[str, int] = {}
        for queue, count in (await self.redis.hgetall(WAITING)).items():
            counts[unquote(queue)] = counts.get(unquote(queue), 0) + int(count)
        return counts

    async def parked(self) -> int:
        """How many waiting jobs are passed over now."""
        now = now_ms()
        places = [name for name, until in (await self.redis.hgetall(BLOCKED)).items() if int(until) > now]
        async with self.redis.pipeline(transaction=False) as pipe:
            for place in places:
                pipe.llen(_wait(*place.split(":", 1)))
            return sum(await pipe.execute())

    async def oldest_waiting(self) -> float | None:
        """Seconds since the acceptance of the oldest job that waits, among the oldest 5,000 kept; None if none.

        A scrape's question: it looks from the oldest kept job on, some pages at most.
        """
        cursor = 0
        if not any((await self.waiting()).values()):
            return None
        while ids := await self.redis.zrange(ALL, cursor, cursor + 499, withscores=True):
            async with self.redis.pipeline(transaction=False) as pipe:
                for job_id, _ in ids:
                    pipe.hget(PREFIX + f"job:{job_id}", "state")
                states = await pipe.execute()
            for (_, accepted), state in zip(ids, states, strict=True):
                if state == "queued":
                    return max(0.0, time.time() - float(accepted))
            cursor += len(ids)
            if cursor >= 5000:
                break
        return None

    async def callers(self, job_ids: Sequence[str]) -> list[Caller | None]:
        """Whose jobs these are, with their leases and limits. None: it is gone, or of another release."""
        found = await self._fields(job_ids, ("caller", "v"))
        return [_readable_caller(job_id, *fields) for job_id, fields in zip(job_ids, found, strict=True)]

    async def transcript(self, job_id: str, count: int = MAX_EVENTS) -> list[tuple[str, str, str]]:
        """(id, name, JSON) of the events so far."""
        found = await self.redis.xrange(PREFIX + f"events:{job_id}", count=count)
        return [(event_id, entry["event"], entry["data"]) for event_id, entry in found]

    async def running(self) -> list[str]:
        return list(await self.redis.zrange(RUNNING, 0, -1))

    async def page(self, subject: str | None, before: Place | None, count: int) -> tuple[list[Job], Place | None]:
        """The newest jobs of a subject (None: of all) that come `before`, in short (`SUMMARY`), and where to go on.

        Without those that another release has stored.
        """
        begin = ("", "") if before is None else (repr(before.created_at), before.id)
        whichever = ("",) * 5  # see `finding`
        args = (f"{PREFIX}job:", *begin, count, count, *whichever)
        at, last, *ids = await self.run("find", [index_of(subject)], args)
        return await self.short(ids), Place(float(at), last) if last else None

    async def short(self, job_ids: Sequence[str]) -> list[Job]:
        """What lists show of these jobs (`SUMMARY`). Without those that are gone or that another release has stored."""
        return _readable(await self._fields(job_ids, SUMMARY), SUMMARY)

    async def asking(self, may: Callable[[str], bool] = lambda subject: True) -> tuple[list[Job], int]:
        """Jobs that wait to be allowed a call of a tool, of subjects whose jobs one `may` see, in short: those that are
        put away first, then by their claims; and how many there are. `MOST_ASKING` of them at most, of each subject as
        many as of any other."""
        asked = [(subject, job_id) for job_id, subject, _ in await self._asking() if may(subject)]
        names = (*SUMMARY, "asks")
        records = await self._fields(fairly(asked, MOST_ASKING), names)
        return [job for job in _readable(records, names) if job.waiting], len(asked)

    async def approvals(self) -> int:
        """How many calls these wait for, without what they are."""
        return sum(count for _, _, count in await self._asking())

    async def _asking(self) -> list[tuple[str, str, int]]:
        """Id, subject, and how many calls wait: of the first so many that are put away or run."""
        found = await self.run("asking", [DEFERRED, RUNNING], [f"{PREFIX}job:", LOOKED_AT_ASKING])
        return list(zip(found[::3], found[1::3], map(int, found[2::3]), strict=True))

    async def _fields(self, job_ids: Sequence[str], names: Sequence[str]) -> list[list[str | None]]:
        async with self.redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hmget(PREFIX + f"job:{job_id}", names)
            return list(await pipe.execute())

    async def forget(self, cursor: str, count: int = 500) -> tuple[int, str]:
        """Takes expired jobs out of the indexes: of the next `count` from `cursor` ("-inf": the oldest) on. Returns how
        many were, and the next cursor."""
        found = await self.redis.zrangebyscore(ALL, cursor, "+inf", start=0, num=count, withscores=True)
        async with self.redis.pipeline(transaction=False) as pipe:
            for job_id, _ in found:
                pipe.exists(PREFIX + f"job:{job_id}")
                pipe.get(PREFIX + f"gone:{job_id}")
            replies = await pipe.execute()
        expired = [(found[i][0], replies[2 * i + 1]) for i in range(len(found)) if not replies[2 * i]]
        if expired:
            await self.run("forget", [], [part for job_id, subject in expired for part in (job_id, subject or "")])
        # From the last one on, again: another may be of the same moment.
        return len(expired), repr(found[-1][1]) if len(found) == count else "-inf"

    async def append(self, job: Job, events: Sequence[tuple[int, str, bytes]]) -> None:
        """Adds (number within the attempt, name, JSON) events to the job's stream. Redis refuses what is there already
        and what comes behind the end, so repeating is harmless and a dead worker cannot add to its successor's. Beyond
        the bounds the oldest are forgotten."""
        bounds = (self.bounds.per_run, self.bounds.per_subject, self.bounds.in_all)
        args = [job.id, job.subject, job.attempt, *bounds, MAX_EVENTS]
        keys = [PREFIX + f"job:{job.id}", PREFIX + f"events:{job.id}"]
        await self.run("append", keys, [*args, *(part for event in events for part in event)])

    async def held(self) -> int:
        """Bytes that all jobs hold."""
        return int(await self.redis.hget(HELD, "all") or 0)

    async def follow(self, job_id: str, last: str, heartbeat: float) -> AsyncIterator[tuple[str, str, str] | None]:
        """(id, name, JSON) of every event after `last` until the job is over; None after `heartbeat` silent seconds."""
        async with self.streams.following(PREFIX + f"events:{job_id}", last) as stream:
            over = await self._over(job_id)
            while True:
                found = await (stream.rest() if over else stream.next(heartbeat))
                for event in found:
                    yield event
                if over and not found:
                    return
                if not found or found[-1][1].startswith("job."):
                    over = await self._over(job_id)
                    if not found and not over:
                        yield None

    async def event(self, job_id: str, event_id: str) -> str | None:
        """The data (JSON) of one event."""
        found = await self.redis.xrange(PREFIX + f"events:{job_id}", event_id, event_id, count=1)
        return found[0][1]["data"] if found else None

    async def has_events(self, job_id: str, last: str) -> bool:
        """Whether there are events after `last` now."""
        return bool(await self.redis.xrange(PREFIX + f"events:{job_id}", f"({last}", count=1))

    async def _over(self, job_id: str) -> bool:
        async with self.streams.asking:
            return await self.redis.hget(PREFIX + f"job:{job_id}", "state") in OVER

    async def owed(self, before_ms: int) -> list[str]:
        """Jobs whose webhooks are owed since before then."""
        return list(await self.redis.zrangebyscore(CALLBACKS, "-inf", before_ms))

    async def notices(self) -> list[str]:
        """What the operator is owed of budgets, the oldest first."""
        return list(await self._warned.zrange(OWED, 0, NOTICES - 1))

    async def is_owed(self, notice: str) -> bool:
        return await self._warned.zscore(OWED, notice) is not None

    async def told(self, *notices: str) -> None:
        """They are owed no more."""
        await self._warned.zrem(OWED, *notices)

    async def delivered(self, job: Job, delivery: Delivery, *, final: bool) -> None:
        """Adds a try to the job's delivery log; `final`: nothing is owed any more."""
        log = [*(known.model_dump() for known in job.deliveries), delivery.model_dump()][-20:]
        await self.update(job, held=False, deliveries=json.dumps(log))
        if final:
            await self.redis.zrem(CALLBACKS, job.id)


def _readable(records: Sequence[Sequence[str | None]], names: Sequence[str]) -> list[Job]:
    """Those that are there, of no other release. One that cannot be read hides no other. `names`: of their fields."""
    jobs = []
    for record in records:
        stored = {name: value for name, value in zip(names, record, strict=True) if value is not None}
        if not stored:
            continue
        try:
            jobs.append(Job.load(stored))
        except UnknownVersion:
            continue
        except (ValueError, KeyError) as error:
            _log.error("job %s: its record cannot be read (%s)", stored.get("id"), type(error).__name__)
    return jobs


def _round_robin(queue: str) -> str:
    """The list of subjects with waiting jobs, the next one first; named as release 0.1.0 named it."""
    return f"{PREFIX}ring:{queue}"


def _wait(queue: str, subject: str) -> str:
    """The list in which a subject's jobs wait; `queue` is escaped already. claim.lua makes the same."""
    return f"{PREFIX}wait:{queue}:{subject}"


def _readable_caller(job_id: str, stored: str | None, version: str | None) -> Caller | None:
    try:
        check_version(job_id, version)
    except UnknownVersion:
        return None
    return caller_of(stored) if stored else None


def index_of(subject: str | None) -> str:
    """Of a subject's jobs, or of all: a sorted set, job -> s of its acceptance."""
    return ALL if subject is None else f"{PREFIX}of:{subject}"


def now_ms() -> int:
    return int(time.time() * 1000)
