"""A run's events as server-sent events (WHATWG HTML, section 9.2), resumable by `Last-Event-ID`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from claude_invoker.api.events import shortened
from claude_invoker.head import asked_method
from claude_invoker.replicas.record import PastRun
from claude_invoker.runs.events import Event
from claude_invoker.runs.run import Run

HEADERS = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}
GONE = "the client went away"
# Neither has an empty line behind it: that would be an event without data for clients that do not drop those.
HEARTBEAT = b": heartbeat\n"
RETRY = b"retry: 1000\n"
"""Begins a stream that a client may come back to: after so many milliseconds it does."""


def encode(number: int | str, name: str, data: bytes, root: str) -> bytes:
    """One event of those below the path `root`; its data is JSON on one line."""
    shown = shortened(name, data, f"{root}/{number}")
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (str(number).encode(), name.encode(), shown)


def without_events(request: Request, *, nothing_left: bool, headers: dict[str, str]) -> Response | None:
    """The answer to who asks for the head only, and to who comes back after the last event, whom only 204 tells not to
    come again (WHATWG HTML, section 9.2.3)."""
    if nothing_left:
        return Response(status_code=204, headers=HEADERS | headers)
    if asked_method(request) == "HEAD":
        return Response(media_type="text/event-stream", headers=HEADERS | headers)
    return None


def event_stream(
    run: Run | PastRun,
    last_id: int,
    *,
    root: str,
    heartbeat_s: float,
    grace_s: float | None,
    headers: dict[str, str],
    begin: bytes = b"",
) -> StreamingResponse:
    """The answer that follows a run. `root`: the path of the run itself. When the last client has been gone for
    `grace_s` the run is cancelled (None: never)."""
    return StreamingResponse(
        _encoded(run, last_id, f"{root}/events", heartbeat_s, grace_s, begin),
        media_type="text/event-stream",
        headers=HEADERS | headers,
    )


async def _encoded(
    run: Run | PastRun, last_id: int, root: str, heartbeat_s: float, grace_s: float | None, begin: bytes
) -> AsyncIterator[bytes]:
    async with followed(run, last_id, heartbeat_s, grace_s) as events:
        if begin:
            yield begin
        async for event in events:
            yield HEARTBEAT if event is None else encode(event.id, event.name, event.data, root)


@asynccontextmanager
async def followed(
    run: Run | PastRun, last_id: int, heartbeat_s: float, grace_s: float | None
) -> AsyncIterator[AsyncIterator[Event | None]]:
    """A run's events for one client, None after each `heartbeat_s` without one. See `event_stream` for `grace_s`."""
    run.watchers += 1
    try:
        async with aclosing(_with_heartbeats(run, last_id, heartbeat_s)) as events:
            yield events
    finally:
        run.watchers -= 1
        if grace_s is not None and run.watchers == 0 and not run.is_over:
            asyncio.get_running_loop().call_later(grace_s, cancel_if_alone, run)


async def _with_heartbeats(run: Run | PastRun, last_id: int, heartbeat_s: float) -> AsyncGenerator[Event | None, None]:
    events = run.events.follow(last_id)
    upcoming: asyncio.Future[Event] | None = None
    try:
        while True:
            upcoming = upcoming or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait((upcoming,), timeout=heartbeat_s)
            if not done:
                yield None
                continue
            try:
                event = upcoming.result()
            except StopAsyncIteration:
                return
            upcoming = None
            yield event
    finally:
        if upcoming is not None:
            upcoming.cancel()
            with suppress(asyncio.CancelledError, StopAsyncIteration):
                await upcoming


def cancel_if_alone(run: Run | PastRun) -> None:
    """Cancels a run that no client is attached to."""
    if run.watchers == 0:
        run.cancel(GONE)
