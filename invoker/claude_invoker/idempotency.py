"""Which run an Idempotency-Key stands for: who repeats a request has the run of the first, and pays once.

https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header-07
"""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

import msgspec
from redis.exceptions import RedisError

from claude_contract.keys import joined
from claude_invoker import redis_clients
from claude_invoker.caller import Caller
from claude_invoker.jobs.record import JOB
from claude_invoker.model import InvokeRequest, RunView
from claude_invoker.problem import PREFIX, Problem

KEPT_S = 24 * 3600
BEGINNING_S = 10.0
"""For so long the run of a claim may not be there yet: the request that has claimed it is just being taken in."""
_MOST = 10_000
_KEY = "claude:{runs}:once:"
_REPLACE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3]) end
return 1
"""


class Claim(msgspec.Struct, frozen=True):
    """`run`: or the job that the request has become; `at`: when it was made, in seconds since the epoch, by its maker's
    clock."""

    fingerprint: str
    run: str
    at: float

    @property
    def is_job(self) -> bool:
        return self.run.startswith(JOB)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Claim).decode


def fingerprint_of(path: str, wanted: InvokeRequest, caller: Caller) -> str:
    """Of what is asked for, whatever bytes it is said in: with what the gateway adds from headers (`X-Repo`), without
    the id of the request, which is another each time. `path` as it was routed: that of a URL ends at an escaped `?`."""
    context = {name: value for name, value in (wanted.context or {}).items() if value != caller.request_id}
    meaning = wanted.model_copy(update={"context": context or None}).model_dump(mode="json", exclude_defaults=True)
    written = json.dumps(meaning, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(joined("\0", path, written).encode()).hexdigest()


def fingerprint_of_retry(job_id: str) -> str:
    """The same of a request that a job's is tried again: what that was does not change."""
    return hashlib.sha256(joined("\0", "retry", job_id).encode()).hexdigest()


def begins_anew(view: RunView) -> bool:
    """Whether a repetition is for a run of its own: the first has only been refused, and has cost nothing."""
    error = view.error or {}
    kind = str(error.get("type")).removeprefix(PREFIX)
    refused = kind == "limited" or (error.get("status") in (409, 429, 503) and kind != "worker-lost")
    return view.state == "failed" and refused and not view.cost_usd


class Claims:
    """Who has which key, for a day: in the Redis of the runs where there is one, so that all replicas know, else in
    this process."""

    def __init__(self, redis_url: str | None) -> None:
        self._redis: Any = None
        if redis_url is not None:
            self._redis = redis_clients.client_of(redis_url, _KEY, socket_timeout=2.0)
        self._known: dict[str, Claim] = {}

    async def claim(self, subject: str, key: str, mine: Claim) -> Claim:
        """What holds: `mine` where nobody had the key. Raises Problem 503."""
        name = joined(":", subject, key)
        if self._redis is None:
            self._forget(mine.at)
            return self._known.setdefault(name, mine)
        try:
            for _ in range(3):  # what held may go away between the two
                if await self._redis.set(_KEY + name, _encode(mine), nx=True, ex=KEPT_S):
                    return mine
                if (held := await self._redis.get(_KEY + name)) is not None:
                    return _decode(held)
        except (RedisError, OSError) as error:
            raise _unknown() from error
        raise _unknown()

    async def held(self, subject: str, key: str) -> Claim | None:
        """What holds now. Raises Problem 503."""
        name = joined(":", subject, key)
        if self._redis is None:
            known = self._known.get(name)
            return known if known is not None and known.at > time.time() - KEPT_S else None
        try:
            held = await self._redis.get(_KEY + name)
        except (RedisError, OSError) as error:
            raise _unknown() from error
        return None if held is None else _decode(held)

    async def is_beginning(self, subject: str, key: str, held: Claim) -> bool:
        """Whether it is so new that its run may not be there yet; by Redis's clock, since two replicas may differ by
        more than that takes. Raises Problem 503."""
        if self._redis is None:
            return time.time() - held.at < BEGINNING_S
        try:
            left_ms = await self._redis.pttl(_KEY + joined(":", subject, key))
        except (RedisError, OSError) as error:
            raise _unknown() from error
        return int(left_ms) > 1000 * (KEPT_S - BEGINNING_S)

    async def replace(self, subject: str, key: str, held: Claim, by: Claim | None) -> bool:
        """Whether `held` did hold: now `by` does, or (None) nobody. Raises Problem 503."""
        name = joined(":", subject, key)
        if self._redis is None:
            if self._known.get(name) != held:
                return False
            self._known.pop(name)
            if by is not None:
                self._known[name] = by
            return True
        try:
            written = b"" if by is None else _encode(by)
            return bool(await self._redis.eval(_REPLACE, 1, _KEY + name, _encode(held), written, KEPT_S))
        except (RedisError, OSError) as error:
            raise _unknown() from error

    async def close(self) -> None:
        if self._redis is not None:
            await self._redis.aclose()

    def _forget(self, now: float) -> None:
        """The oldest first, as they stand in the dictionary."""
        for name, known in list(self._known.items()):
            if len(self._known) < _MOST and known.at > now - KEPT_S:
                return
            del self._known[name]


def claim_of(path: str, wanted: InvokeRequest, caller: Caller, run_id: str) -> Claim:
    return Claim(fingerprint_of(path, wanted, caller), run_id, time.time())


def _unknown() -> Problem:
    detail = "whether this Idempotency-Key was used before cannot be found out now"
    return Problem(503, "busy", detail, {"Retry-After": "2"})
