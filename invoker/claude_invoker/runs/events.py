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


def on_one_line(data: bytes) -> bytes:
    """JSON text that is one line for any client; of JSON without ends of lines between its tokens."""
    for end, escape in _ESCAPED:
        data = data.replace(end, escape)  # itself, where there is none
    return data


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
        self._final: Event | None = None
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
        event = self._next(name, data)
        self._add(event)
        return event

    def _next(self, name: str, data: bytes) -> Event:
        return Event(self._last + 1, name, on_one_line(data))

    def _add(self, event: Event) -> None:
        self._last = event.id
        self._events.append(event)
        self._count(len(event.data) + _OVERHEAD)
        while self._size > self._most and self.forget_oldest():
            pass
        self._wake()

    def forget_oldest(self) -> bool:
        """Forgets the oldest event, but never the last."""
        if len(self._events) <= 1:
            return False
        self._count(-len(self._events.popleft().data) - _OVERHEAD)
        return True

    def _count(self, by: int) -> None:
        self._size += by
        self.on_size(by)

    def finish(self, name: str, document: dict[str, Any]) -> Event:
        """The last event, which readers are shown when the log is closed."""
        self._final = self._next(name, orjson.dumps(document))
        return self._final

    def whole(self) -> list[Event]:
        """All that are kept, with the last one also before anybody is shown it."""
        return [*self._events, *([self._final] if self._final is not None else [])]

    def find(self, number: int) -> Event | None:
        """None where it is not there yet, or was forgotten."""
        found = self.since(number - 1)[:1]
        return found[0] if found and found[0].id == number else None

    def close(self) -> None:
        """No more events will come; readers end after the last."""
        self.closed = True
        if self._final is not None:
            self._add(self._final)
            self._final = None
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
