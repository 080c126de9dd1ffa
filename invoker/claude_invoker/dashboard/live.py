"""What the pages are sent as it changes: server-sent events."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi.responses import StreamingResponse

from claude_invoker.api.stream import HEADERS as STREAM
from claude_invoker.dashboard.guard import HEADERS

LIVE_S = 300.0  # then the browser asks again, so that a token that has expired is noticed
TICK_S = 1.0


def live_part(look: Callable[[], Awaitable[str]], is_over: Callable[[], bool] = lambda: False) -> StreamingResponse:
    """A part of a page, whenever it has changed; `is_over` says that it will not any more."""

    async def fragments() -> AsyncIterator[str]:
        shown, until = "", time.monotonic() + LIVE_S
        while time.monotonic() < until:
            was_over, now = is_over(), await look()
            yield event("fragment", now) if now != shown else ": still\n\n"
            shown = now
            if was_over:
                yield event("end", "{}")
                return
            await asyncio.sleep(TICK_S)

    return StreamingResponse(fragments(), media_type="text/event-stream", headers=HEADERS | STREAM)


def event(name: str, data: str, event_id: str = "") -> str:
    """One server-sent event. A carriage return ends a line there, too, and may be a user's."""
    lines = "".join(f"data: {line}\n" for line in re.split("\r\n|\r|\n", data))
    return f"{f'id: {event_id}' + chr(10) if event_id else ''}event: {name}\n{lines}\n"
