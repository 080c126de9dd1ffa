"""A run as a stream in a vendor's language."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Protocol

from fastapi import Request
from fastapi.responses import StreamingResponse

from claude_invoker.api.languages import request_id
from claude_invoker.api.links import with_links
from claude_invoker.api.stream import HEADERS, cancel_if_alone, followed
from claude_invoker.api.waiting import replayed, until_heard
from claude_invoker.model import RunResult
from claude_invoker.problem import Problem
from claude_invoker.replicas.record import PastRun
from claude_invoker.runs.events import Event
from claude_invoker.runs.run import Run
from claude_invoker.services import services

_ATTACHED_S = 5.0
"""By then whoever asked is attached to the run."""


class Stream(Protocol):
    """What is sent: `begin`, then `take` for each event of the run (None: nothing has happened), `end` or `fail`."""

    def begin(self) -> bytes: ...
    def take(self, of_run: Event | None) -> Iterator[bytes]: ...
    def end(self, result: RunResult) -> Iterator[bytes]: ...
    def fail(self, problem: Problem, request_id: str) -> bytes: ...


async def told(request: Request, run: Run | PastRun, stream: Stream, headers: Mapping[str, str]) -> StreamingResponse:
    """The answer, once the model is heard. Raises Problem where the run failed before."""
    heartbeat_s = services(request).settings.heartbeat_s
    await until_heard(request, run, heartbeat_s)
    # Of a client that leaves right now nobody would know: the answer ends before it has begun.
    asyncio.get_running_loop().call_later(_ATTACHED_S, cancel_if_alone, run)
    return StreamingResponse(
        _pieces(request, run, stream, heartbeat_s),
        media_type="text/event-stream",
        headers={**HEADERS, "X-Claude-Run": run.id, **replayed(request), **headers},
    )


async def _pieces(request: Request, run: Run | PastRun, stream: Stream, heartbeat_s: float) -> AsyncIterator[bytes]:
    # A client that leaves and has no Idempotency-Key does not come back: its run ends at once.
    async with followed(run, 0, heartbeat_s, run.grace_s) as events:
        yield stream.begin()
        async for event in events:
            for piece in stream.take(event):
                yield piece
    if run.problem is not None:
        yield stream.fail(run.problem, request_id(request.headers))
    elif run.result is not None:
        for piece in stream.end(with_links(request, run.result)):
            yield piece
