"""The runs of all replicas, in a Redis of their own: it may be full or away, and runs go on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Coroutine
from importlib.resources import files
from types import TracebackType
from typing import Any
from weakref import WeakValueDictionary

import msgspec
from redis import exceptions as of_redis
from redis.exceptions import RedisError

from claude_contract.attestation import Signer
from claude_invoker import redis_clients
from claude_invoker.ending import ended
from claude_invoker.holding import Bounds
from claude_invoker.model import OVER
from claude_invoker.place import Place
from claude_invoker.problem import Problem
from claude_invoker.replicas import record
from claude_invoker.replicas.record import RunRecord
from claude_invoker.runs import summary
from claude_invoker.runs.kept import ANSWERS
from claude_invoker.runs.run import Run
from claude_invoker.runs.summary import Filter, Summary
from claude_invoker.store.store import Away, Missing, Store

_log = logging.getLogger(__name__)
_PREFIX = "claude:{runs}:"
_KEY = _PREFIX + "key"
_REPLICAS = _PREFIX + "replicas"
_RUN = _PREFIX + "run:"
_ASKING = _PREFIX + "asking"  # hash: run that waits to be allowed something -> `AskingRun`
_OF, _SUMMARIES, _ALL = _PREFIX + "of:", _PREFIX + "summaries:", _PREFIX + "all"  # see listed.lua
_SIZES, _HELD, _ENDED = _PREFIX + "sizes", _PREFIX + "held", _PREFIX + "ended"
_KID = "claude-invoker replica"
LEASE_S = 10.0
_BEAT_S = 3.0
_TIMEOUT_S = 2.0
_HEARD_S = _BEAT_S + _TIMEOUT_S
"""In which every replica that lives has said so."""
_WRITE_S = 2.0
"""How long an answer waits for its run's record at most: as long as a Redis takes that is started again."""
_AGAIN_S = 0.1
_AWAY_S = 10.0
"""After which no answer waits for a Redis any more that is away."""
_STORE_S = 5.0
_LONGEST_RUN_S = 2 * 86_400
"""For which the record of a run that does not end is kept."""
_SAY_S = 10.0
_HERE = """
local now = redis.call('TIME')
now = now[1] + now[2] / 1000000
"""
# Leases are members of a hash without a lifetime of its own: of keys with one, a Redis that is full takes what has the
# shortest first (`volatile-ttl`), and a replica that is there would be taken for gone.
_BEAT = (
    _HERE
    + """
local known = redis.call('HGETALL', KEYS[1])
for at = 1, #known, 2 do
  if tonumber(known[at + 1]:match('^%S+')) < now then redis.call('HDEL', KEYS[1], known[at]) end
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.3f %s', now + ARGV[3], ARGV[2]))
redis.call('SET', KEYS[2], ARGV[4], 'NX')
return redis.call('GET', KEYS[2])
"""
)
_ADDRESS = (
    _HERE
    + """
local until_when, address = (redis.call('HGET', KEYS[1], ARGV[1]) or ''):match('^(%S+) (.*)$')
return address and tonumber(until_when) >= now and address or false
"""
)


def _script(name: str) -> str:
    """One that writes records, or reads what is written with them."""
    listed, own = (files(__package__).joinpath(f"{each}.lua").read_text() for each in ("listed", name))
    return f"local prefix = '{_PREFIX}'\n{listed}{own}"


_BEGIN, _KEEP, _GIVE_UP, _PAGE = map(_script, ("begin", "keep", "give_up", "page"))


class AskingRun(msgspec.Struct, frozen=True):
    """A run that is no job and waits to be allowed something: what that is its owner says."""

    id: str
    subject: str
    tier: str
    owner: str


_ENCODE = msgspec.msgpack.Encoder().encode
_DECODE = msgspec.msgpack.Decoder(AskingRun).decode


class Register:
    """Use as an async context manager. `address` is where other replicas reach this one, e.g. `http://10.0.0.7:8100`.
    `bounds`: what records of runs that are over may take; beyond it the oldest go. `store`: where answers are kept that
    are large for a Redis."""

    def __init__(
        self,
        redis_url: str,
        address: str,
        bounds: Bounds = Bounds(),  # noqa: B008 frozen
        store: Store | None = None,
    ) -> None:
        self.name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._address = address
        self._bounds = bounds
        self._store = store
        self._redis: Any = redis_clients.client_of(redis_url, _KEY, socket_timeout=_TIMEOUT_S)
        self._writing: dict[str, asyncio.Task[None]] = {}
        self._owed: WeakValueDictionary[str, Run] = WeakValueDictionary()
        """Runs of which something could not be written, as long as anybody else remembers them."""
        self._beating: asyncio.Task[None] | None = None
        self._key: bytes | None = None
        self._said = -_SAY_S
        self._away_since: float | None = None
        self.unwritten = 0
        """Records that could not be written, since the start."""

    async def __aenter__(self) -> Register:
        with contextlib.suppress(RedisError, OSError):  # the next beat tries again
            await self._beat()
            await self._forget_asking()
        self._beating = asyncio.create_task(self._keep())
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        assert self._beating is not None
        await ended(self._beating)
        await asyncio.gather(*self._writing.values())
        await self._write_owed()
        with contextlib.suppress(RedisError, OSError):
            await self._redis.hdel(_REPLICAS, self.name)
        await self._redis.aclose()

    def began(self, run: Run) -> None:
        """Writes the run's record, beside what goes on. (A job has its own, see `jobs.store`.)"""
        if not run.is_job:
            self._write(run, self._put_begin)

    async def finished(self, run: Run) -> None:
        """The same of its end: its answer, and its events as far as there is room. Returns as `written` does."""
        if not run.is_job:
            self._write(run, self._put_end)
            await self.written(run)

    def asks(self, run: Run) -> None:
        """Says whether something of the run waits to be allowed. (A job's record says it.)"""
        if not run.is_job:
            self._write(run, self._put_asking)

    async def asking(self) -> list[AskingRun]:
        """Runs of other replicas that wait to be allowed something, as far as they are known. Raises Problem 503."""
        try:
            stored, there = await self._redis.hvals(_ASKING), await self._redis.hkeys(_REPLICAS)
        except (RedisError, OSError) as error:
            raise _away() from error
        others = {name.decode() for name in there} - {self.name}
        found = []
        for each in stored:
            with contextlib.suppress(msgspec.MsgspecError):  # of another release
                found.append(_DECODE(each))
        return [each for each in found if each.owner in others]

    async def written(self, run: Run) -> None:
        """Returns once what was said of the run is written, or cannot be soon."""
        if writing := self._writing.get(run.id):
            await asyncio.wait((writing,), timeout=_WRITE_S)

    async def find(self, run_id: str) -> RunRecord | None:
        """Raises Problem 503 where Redis, or the store of a large answer, does not answer, UnknownVersion."""
        try:
            stored = await self._redis.get(_run(run_id))
        except (RedisError, OSError) as error:
            raise _away() from error
        return None if stored is None else await self._whole(record.decode(stored))

    async def _whole(self, known: RunRecord) -> RunRecord | None:
        if not known.body:
            return known
        if self._store is None:
            raise Problem(503, "not-configured", "its answer is in a store: set INVOKER_STORE as at the other invokers")
        try:
            return record.together(known, await self._store.get(known.body))
        except Missing:
            return None
        except Away as error:
            raise Problem(503, "busy", "the store of the answers does not answer", {"Retry-After": "5"}) from error

    async def page(
        self, subject: str | None, wanted: Filter, before: Place | None, count: int
    ) -> tuple[list[Summary], Place | None]:
        """So many of a subject's runs (None: of all) in the wanted span of time, the newest first (fewer where some
        have lapsed), and where to go on. Raises Problem 503."""
        upper, after = "+inf" if wanted.until is None else f"({wanted.until!r}", ""
        if before is not None and (wanted.until is None or before.created_at < wanted.until):
            upper, after = repr(before.created_at), before.id
        lower = "-inf" if wanted.since is None else repr(wanted.since)
        try:
            index = _ALL if subject is None else _OF + subject
            at, last, *found = await self._redis.eval(_PAGE, 1, index, subject or "", upper, lower, after, count)
        except (RedisError, OSError) as error:
            raise _away() from error
        return summary.known(found), Place(float(at), last.decode()) if last else None

    async def ended(self, run_id: str) -> RunRecord | None:
        """The record of a run whose events are over, as soon as its replica has written that; as it is where that does
        not come soon. Raises Problem 503."""
        until = time.monotonic() + _WRITE_S
        while True:
            known = await self.find(run_id)
            if known is None or known.is_over or time.monotonic() > until:
                return known
            await asyncio.sleep(0.02)

    async def address_of(self, owner: str) -> str | None:
        """Where a replica is reached; None where it is gone. Raises Problem 503.

        One that is not found is looked for again a beat later: a Redis that was away or full has heard nobody for a
        while, and a run that goes on would be given up."""
        for again in (False, True):
            if again:
                await asyncio.sleep(_HEARD_S)
            try:
                address = await self._redis.eval(_ADDRESS, 1, _REPLICAS, owner)
            except (RedisError, OSError) as error:
                raise _away() from error
            if address is not None:
                return str(address.decode())
        return None

    async def give_up(self, known: RunRecord) -> RunRecord:
        """Says that a run has ended with its replica, unless somebody has said something else meanwhile. What holds
        then. Raises Problem 503."""
        try:
            listed = await self._redis.hget(_SUMMARIES + known.subject, known.id)
            short = summary.known([listed] if listed else [])
            lost = record.lost(known, short[0].tags if short else ())
            what = (known.id, known.subject, record.encode(known), record.encode(lost), summary.given_up(listed))
            await self._redis.eval(_GIVE_UP, 1, _run(known.id), *what)
        except (RedisError, OSError) as error:
            raise _away() from error
        return await self.find(known.id) or lost

    def signer(self, audience: str) -> Signer | None:
        """Of what replicas ask each other in a caller's name. None while Redis has not told the key."""
        if self._key is None:
            return None
        return Signer(_KID, self._key, {_KID: self._key}, issuer="claude-invoker", audience=audience)

    def _write(self, run: Run, work: Callable[[Run], Coroutine[Any, Any, None]]) -> None:
        run_id = run.id
        task = asyncio.create_task(self._written(run, self._writing.get(run_id), work))
        self._writing[run_id] = task
        task.add_done_callback(lambda done: self._writing.pop(run_id) if self._writing.get(run_id) is done else None)

    async def _put(self, run: Run, work: Callable[[Run], Coroutine[Any, Any, None]]) -> None:
        """Also where Redis comes back in a moment: whoever has an answer finds it again, should this process be killed.
        Raises RedisError, OSError."""
        until = time.monotonic() + _WRITE_S
        while True:
            try:
                await work(run)
            except (of_redis.ConnectionError, of_redis.TimeoutError, OSError):
                now = time.monotonic()
                self._away_since = self._away_since or now
                if now + _AGAIN_S > min(until, self._away_since + _AWAY_S):
                    raise
                await asyncio.sleep(_AGAIN_S)
            else:
                self._away_since = None
                return

    async def _written(
        self, run: Run, before: asyncio.Task[None] | None, work: Callable[[Run], Coroutine[Any, Any, None]]
    ) -> None:
        if before is not None:
            await asyncio.wait((before,))
        try:
            await self._put(run, work)
        except (RedisError, OSError) as error:
            self.unwritten += 1
            self._owed[run.id] = run
            if time.monotonic() - self._said >= _SAY_S:
                self._said = time.monotonic()
                _log.warning("records of runs are not written, other replicas do not know them: %s", error)

    async def _write_owed(self) -> None:
        """What could not be written, until the first that cannot be now either."""
        for run in list(self._owed.values()):
            if run.id not in self._writing:
                del self._owed[run.id]
                self._write(run, self._put_end if run.state in OVER else self._put_begin)
                await asyncio.wait((self._writing[run.id],))
                if run.id in self._owed:
                    return

    async def _put_asking(self, run: Run) -> None:
        if run.permissions.waiting:
            known = AskingRun(run.id, run.subject, run.tier, self.name)
            await self._redis.hset(_ASKING, run.id, _ENCODE(known))
            await self._redis.expire(_ASKING, _LONGEST_RUN_S)
        else:
            await self._redis.hdel(_ASKING, run.id)

    async def _put_begin(self, run: Run) -> None:
        first = RunRecord(run.id, run.subject, self.name, "running", run.created_at)
        what = (*self._listed(run), record.encode(first), _LONGEST_RUN_S)
        await self._redis.eval(_BEGIN, 1, _run(run.id), *what)

    async def _put_end(self, run: Run) -> None:
        view = run.view().model_dump_json().encode()
        most = record.MAX_EVENTS if self._store is None else record.MAX_EVENTS_IN_STORE
        all_of_them = run.events.whole()
        events, last = await asyncio.to_thread(record.pack, all_of_them, most), all_of_them[-1].id
        end = RunRecord(run.id, run.subject, self.name, run.state, run.created_at, view, events, last)
        keys = (_run(run.id), _SIZES, _HELD, _ENDED, f"{_ENDED}:{run.subject}")
        what = (*self._listed(run), record.encode(await self._lightened(end)), max(1, int(run.retention_s)))
        may = (self._bounds.per_subject, self._bounds.in_all)
        await self._redis.eval(_KEEP, len(keys), *keys, *what, *may)

    def _listed(self, run: Run) -> tuple[str, str, str, bytes]:
        short = summary.summary_of(run, self.name)
        return run.id, run.subject, repr(run.created_at), summary.encode(short)

    async def _lightened(self, end: RunRecord) -> RunRecord:
        """Without what the store has of it; all of it where that is not to be had now."""
        if self._store is None or len(end.view) + len(end.events) <= record.INLINE or self._store.seems_away:
            return record.small(end)
        light, body = record.apart(end, f"{ANSWERS}/{end.id}")
        try:
            async with asyncio.timeout(_STORE_S):
                await self._store.put(light.body, body)
        except (Away, TimeoutError):
            return record.small(end)
        return light

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(_BEAT_S)
            try:
                await self._beat()
                await self._write_owed()
            except (RedisError, OSError) as error:
                _log.warning("this replica cannot be found by the others: %s", error)

    async def _forget_asking(self) -> None:
        """Of replicas that died while their runs waited. Raises RedisError, OSError."""
        there = set(await self._redis.hkeys(_REPLICAS))
        for run, stored in (await self._redis.hgetall(_ASKING)).items():
            with contextlib.suppress(msgspec.MsgspecError):
                if _DECODE(stored).owner.encode() not in there:
                    await self._redis.hdel(_ASKING, run)

    async def _beat(self) -> None:
        key = secrets.token_bytes(32)
        self._key = await self._redis.eval(_BEAT, 2, _REPLICAS, _KEY, self.name, self._address, LEASE_S, key)


def _run(run_id: str) -> str:
    return _RUN + run_id


def _away() -> Problem:
    return Problem(503, "busy", "the Redis of the runs does not answer", {"Retry-After": "2"})
