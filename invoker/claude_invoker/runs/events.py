"""The events of one run: numbered, kept, and readable from any number on, by any number of readers."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import orjson

_OVERHEAD = 256
"""What an event takes in memory beside its data."""


_ENDS = ("\u0085", "\u2028", "\u2029")
"""Ends of a line for many a client (Python's `splitlines`, by which httpx reads lines), though not in an event stream.
JSON escapes all others, and lets these stand."""
_ESCAPED = tuple((end.encode(), f"\\u{ord(end):04x}".encode()) for end in _ENDS)


@dataclass(frozen=True)
class Event:
    """`id` counts from 1 within the run; `name` is the SSE event name; `data` is JSON text, one line for any client."""

    id: int
    name: str
    data: bytes

    @property
    def document(self) -> Any:
        return orjson.loads(self.data)


class EventLog:
    """Append-only. Beyond `most` bytes the oldest events are forgotten; a late reader begins later."""

    def __init__(self, most: int = 32 << 20) -> None:
        self._most = most
        self.on_size: Callable[[int], None] = lambda by: None
        """Told how many bytes more (or less) are kept."""
        self._events: deque[Event] = deque()
        self._size = 0
        self._last = 0
        self._changed = asyncio.Event()
        self.closed = False

    @classmethod
    def of(cls, events: list[Event]) -> EventLog:
        """One that is closed already, of events in order."""
        log = cls()
        log._events.extend(events)
        log._last = events[-1].id if events else 0
        log.closed = True
        return log

    @property
    def last_id(self) -> int:
        return self._last

    def append(self, name: str, document: dict[str, Any]) -> Event:
        return self.append_json(name, orjson.dumps(document))

    def append_json(self, name: str, data: bytes) -> Event:
        """`data`: JSON text without ends of lines between its tokens."""
        for end, escape in _ESCAPED:
            data = data.replace(end, escape)  # itself, where there is none
        self._last += 1
        event = Event(self._last, name, data)
        self._events.append(event)
        self._count(len(event.data) + _OVERHEAD)
        while self._size > self._most and self.forget_oldest():
            pass
        self._wake()
        return event

    def forget_oldest(self) -> bool:
        """Forgets the oldest event, but never the last."""
        if len(self._events) <= 1:
            return False
        self._count(-len(self._events.popleft().data) - _OVERHEAD)
        return True

    def _count(self, by: int) -> None:
        self._size += by
        self.on_size(by)

    def close(self) -> None:
        """No more events will come; readers end after the last."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def since(self, last_id: int) -> list[Event]:
        """The kept events after `last_id`."""
        new = min(len(self._events), max(0, self._last - last_id))
        return list(itertools.islice(reversed(self._events), new))[::-1]

    async def follow(self, last_id: int = 0) -> AsyncIterator[Event]:
        """Each event after `last_id`, as they come, until the log is closed."""
        while True:
            changed = self._changed
            for event in self.since(last_id):
                last_id = event.id
                yield event
            if self.closed and last_id >= self._last:
                return
            if changed is self._changed:
                await changed.wait()
