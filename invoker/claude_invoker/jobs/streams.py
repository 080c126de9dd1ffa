"""Followed streams: one connection of the process waits for all of them, however many follow."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from redis.exceptions import RedisError

_log = logging.getLogger(__name__)
_BLOCK_MS = 5000
_READ = 500  # entries at once
_KEPT = 1000  # entries that wait for a follower; one that is slower reads them again
_WAKE_TTL_S = 3600
Event = tuple[str, str, str]


class Stream:
    """One follower's place in a stream."""

    def __init__(self, streams: Streams, key: str, last: str) -> None:
        self._streams = streams
        self._key = key
        self._last = last
        self._waiting: deque[Event] = deque()
        self._changed = asyncio.Event()
        self._joined = False
        self._behind = True
        """Whether there may be entries that nobody has handed to us."""

    async def next(self, within_s: float) -> list[Event]:
        """(id, name, JSON) of some entries that follow; none where there are none for so long. Raises RedisError."""
        if found := await self._now():
            return found
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not found:
                    await self._changed.wait()
                    found = await self._now()
        return found

    async def rest(self) -> list[Event]:
        """The same of what is in Redis now. Raises RedisError."""
        self._behind = True
        return await self._now()

    async def _now(self) -> list[Event]:
        if self._behind:
            self._behind = False
            self._waiting.clear()
            try:
                found = await self._streams.read(self._key, self._last)
            except BaseException:
                self._behind = True
                raise
            if found:
                self._behind = True
                self._last = found[-1][0]
                return found
            if not self._joined:
                self._joined = True
                self._behind = await self._streams.join(self._key, self._last, self)
                if self._behind:
                    return await self._now()
        found = [event for event in self._waiting if _number(event[0]) > _number(self._last)]
        self._waiting.clear()
        self._changed.clear()
        if found:
            self._last = found[-1][0]
        return found

    def offer(self, events: list[Event]) -> None:
        """New entries, from the process's reader."""
        if not self._behind:
            self._behind = len(self._waiting) + len(events) > _KEPT
            if not self._behind:
                self._waiting.extend(events)
        self._changed.set()


class Streams:
    """`prefix`: of the key by which the waiting connection is told of further streams."""

    def __init__(self, redis: Any, prefix: str) -> None:
        self._redis = redis
        self._wake = f"{prefix}wake:{secrets.token_hex(8)}"
        self._followers: dict[str, list[Stream]] = {}
        self._read_up_to: dict[str, str] = {}
        self._reader: asyncio.Task[None] | None = None
        self.asking = asyncio.Semaphore(4)
        """Held while a follower asks Redis something: of connections there are a few, however many follow."""

    @asynccontextmanager
    async def following(self, key: str, last: str) -> AsyncIterator[Stream]:
        """Entries after the id `last` ("0-0": all)."""
        stream = Stream(self, key, last)
        try:
            yield stream
        finally:
            self._leave(key, stream)

    async def read(self, key: str, last: str) -> list[Event]:
        """Entries after `last` that are there now."""
        async with self.asking:
            return _events(await self._redis.xrange(key, f"({last}", count=_READ))

    async def join(self, key: str, last: str, stream: Stream) -> bool:
        """From now on the reader hands new entries to `stream`. Whether some after `last` may have gone by already."""
        known = key in self._followers
        self._followers.setdefault(key, []).append(stream)
        if known:
            return True
        self._read_up_to[key] = last
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read())
        else:
            async with self.asking, self._redis.pipeline(transaction=False) as pipe:
                pipe.xadd(self._wake, {"": ""}, maxlen=1, approximate=False)
                pipe.expire(self._wake, _WAKE_TTL_S)
                await pipe.execute()
        return False

    def _leave(self, key: str, stream: Stream) -> None:
        followers = self._followers.get(key, [])
        if stream in followers:
            followers.remove(stream)
        if key in self._followers and not followers:
            del self._followers[key], self._read_up_to[key]
        if not self._followers and self._reader is not None:
            self._reader.cancel()
            self._reader = None

    async def _read(self) -> None:
        """Waits for entries of every followed stream until nobody follows any."""
        wake = "0-0"
        async with self._redis.client() as connection:
            while True:
                asked = {**self._read_up_to, self._wake: wake}
                try:
                    found = await connection.xread(asked, count=_READ, block=_BLOCK_MS)
                except (RedisError, OSError) as error:
                    _log.warning("followed events come later: Redis (%s)", type(error).__name__)
                    await asyncio.sleep(0.5)
                    continue
                for key, entries in found or []:
                    if key == self._wake:
                        wake = entries[-1][0]
                    elif key in self._read_up_to:
                        self._read_up_to[key] = entries[-1][0]
                        for stream in self._followers[key]:
                            stream.offer(_events(entries))


def _events(entries: list[Any]) -> list[Event]:
    return [(entry_id, entry["event"], entry["data"]) for entry_id, entry in entries]


def _number(entry_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence)
