"""How tasks that go on for ever are ended."""

from __future__ import annotations

import asyncio
from typing import Any

_AGAIN_S = 1.0


async def ended(*tasks: asyncio.Task[Any]) -> None:
    """Cancels them, and waits until they are over, however they end.

    Who goes on is cancelled again: redis-py sends by `asyncio.wait_for`, which in Python 3.11 swallows a cancellation
    that comes in the same turn as what it waits for. Not for what has to do something at its end that takes long.
    """
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_AGAIN_S)
    await asyncio.gather(*tasks, return_exceptions=True)
