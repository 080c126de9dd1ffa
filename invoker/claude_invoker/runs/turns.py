"""Whose turn it is in a conversation, over all replicas: a lock in Redis that has a number for each that holds it.

Who is paused while holding it and comes back finds that another has taken it since: what he says of the conversation
then is refused by the script that would say it (`_COMMIT`), whatever he has sent to the store by that time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable
from typing import Any

from redis.exceptions import RedisError

from claude_invoker import redis_clients
from claude_invoker.ending import ended
from claude_invoker.problem import Problem

_log = logging.getLogger(__name__)
_PREFIX = "claude:{runs}:session:"
LEASE_S = 15.0
_BEAT_S = 3.0
_BUSY_S = 1.0
"""For so long whoever has it may be one that only sends what the store could not have."""
_COMMIT_S = 15.0
"""For so long a Redis that is away is waited for at a turn's end."""
_NOW = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
"""
# A conversation is a hash: head (the version that is current), saved (whether the store has it), tree (its directory's
# name), away (what a job has left in it, `sessions.line_of`), fence (how many have held it), owner and until (who
# does). It lives as long as a session after its last turn.
_TAKE = (
    _NOW
    + """
if redis.call('EXISTS', KEYS[1]) == 0 and ARGV[3] == '0' then return {'none'} end
local owner, till = unpack(redis.call('HMGET', KEYS[1], 'owner', 'until'))
if owner and owner ~= '' and owner ~= ARGV[1] and tonumber(till) > now then return {'busy'} end
local fence = redis.call('HINCRBY', KEYS[1], 'fence', 1)
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'until', now + ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
local head, saved, tree, away = unpack(redis.call('HMGET', KEYS[1], 'head', 'saved', 'tree', 'away'))
return {'taken', fence, head or '', saved or '0', tree or '', away or ''}
"""
)
_RENEW = (
    _NOW
    + """
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'until', now + ARGV[2])
return 1
"""
)
# Said again by one whose first answer was lost on the way: it holds.
_COMMIT = """
if redis.call('HGET', KEYS[1], 'head') == ARGV[2] then return 1 end
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'head', ARGV[2], 'saved', ARGV[3], 'tree', ARGV[5], 'away', ARGV[6], 'owner', '')
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1
"""
_RELEASE = """
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 0 end
if redis.call('HGET', KEYS[1], 'head') == false then return redis.call('DEL', KEYS[1]) end
redis.call('HSET', KEYS[1], 'owner', '')
return 1
"""
_END = """
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""
_SAVED = """
if redis.call('HGET', KEYS[1], 'head') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'saved', '1')
return 1
"""


class Lost(Exception):
    """Another has the conversation. `for_certain`: and has not gone on from this turn's version."""

    def __init__(self, *, for_certain: bool) -> None:
        super().__init__()
        self.for_certain = for_certain


class Turn:
    """One that has been taken. `head`: the version that the conversation is at, empty for a new one; `saved`: whether
    the store has that; `tree`: what its directory is called; `away`: what a job has left in it, as text; `next`: what
    this turn's version is."""

    def __init__(
        self, turns: Turns, name: str, fence: int, token: str, head: str, saved: bool, tree: str, away: str
    ) -> None:
        self.name, self.head, self.saved, self.tree, self.away = name, head, saved, tree, away
        self.next = f"{fence:012d}-{token}"
        self._turns = turns
        self._token = token
        self._beating: asyncio.Task[None] | None = None

    def keep(self, lost: Callable[[], None]) -> None:
        """Holds it from now on; `lost` is called once where that cannot be."""
        self._beating = asyncio.create_task(self._beat(lost))

    async def _beat(self, lost: Callable[[], None]) -> None:
        heard = time.monotonic()
        while True:
            await asyncio.sleep(_BEAT_S)
            try:
                if not await self._turns.ask(_RENEW, self.name, self._token, int(LEASE_S * 1000)):
                    lost()
                    return
                heard = time.monotonic()
            except (RedisError, OSError) as error:
                if time.monotonic() - heard > LEASE_S:
                    _log.warning("a session's turn may be taken by another invoker, Redis does not answer: %s", error)

    async def commit(self, tree: str, *, saved: bool, away: str = "") -> None:
        """This turn's version is the conversation's now, in a directory of that name. Raises Lost, Problem 503."""
        await self._rest()
        until = time.monotonic() + _COMMIT_S
        ttl, is_first = self._turns.ttl_ms, True
        while True:
            try:
                said = (self.next, str(int(saved)), ttl, tree, away)
                if not await self._turns.ask(_COMMIT, self.name, self._token, *said):
                    raise Lost(for_certain=is_first)
                return
            except (RedisError, OSError) as error:
                is_first = False
                if time.monotonic() > until:
                    raise _away() from error
                await asyncio.sleep(0.5)

    async def give_up(self) -> None:
        """The conversation is where it was. Raises nothing."""
        await self._rest()
        with contextlib.suppress(RedisError, OSError):
            await self._turns.ask(_RELEASE, self.name, self._token)

    async def end(self) -> None:
        """The conversation is over. Raises nothing."""
        await self._rest()
        with contextlib.suppress(RedisError, OSError):
            await self._turns.ask(_END, self.name, self._token)

    async def _rest(self) -> None:
        if self._beating is not None:
            await ended(self._beating)
            self._beating = None


class Turns:
    """`ttl_s`: how long a conversation lives after its last turn."""

    def __init__(self, redis_url: str, ttl_s: float) -> None:
        self.ttl_ms = int(ttl_s * 1000)
        self._redis: Any = redis_clients.client_of(redis_url, _PREFIX, socket_timeout=2.0)

    async def ask(self, script: str, name: str, *arguments: str | int) -> Any:
        """Raises RedisError, OSError."""
        return await self._redis.eval(script, 1, _PREFIX + name, *arguments)

    async def take(self, name: str, *, new: bool) -> Turn:
        """Raises Problem 404 where there is none and it is not to begin, 409 while it has a turn, 503."""
        token = secrets.token_hex(8)
        ttl = max(self.ttl_ms, int(2 * LEASE_S * 1000))
        until = time.monotonic() + _BUSY_S
        while True:
            try:
                said = await self.ask(_TAKE, name, token, int(LEASE_S * 1000), str(int(new)), ttl)
            except (RedisError, OSError) as error:
                raise _away() from error
            if said[0] != b"busy" or time.monotonic() > until:
                break
            await asyncio.sleep(0.1)
        if said[0] == b"none":
            raise Problem(404, "not-found", "there is no such session")
        if said[0] == b"busy":
            raise Problem(409, "conflict", "the session has a run in progress")
        head, saved, tree, away = (each.decode() for each in said[2:])
        return Turn(self, name, int(said[1]), token, head, saved == "1", tree, away)

    async def saved(self, name: str, version: str) -> None:
        """The store has that version. Raises RedisError, OSError."""
        await self.ask(_SAVED, name, version)

    async def exists(self, name: str) -> bool:
        """Raises RedisError, OSError."""
        return bool(await self._redis.exists(_PREFIX + name))

    async def close(self) -> None:
        await self._redis.aclose()


def _away() -> Problem:
    return Problem(503, "busy", "the Redis of the sessions does not answer", {"Retry-After": "2"})
