"""Waiting for what must not be broken off."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable


async def unbroken(work: Awaitable[object]) -> None:
    """Waits for the end of `work`, also when the caller is cancelled meanwhile: the cancellation comes after it."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled
