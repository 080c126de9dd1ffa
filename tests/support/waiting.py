"""Waiting for what happens, and never for a time: however busy the machine is, a test waits for the event itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

Found = TypeVar("Found")

HANG_S = 100.0
"""Seconds after which something is taken to hang: no measure of anything, and the same wherever a test waits. Below the
bound of a whole test, so that what was waited for is said."""


def wait_for(
    condition: Callable[[], Found], within_s: float = HANG_S, what: str = "the condition", every_s: float = 0.02
) -> Found:
    """What `condition` says once that is true. Raises AssertionError where it hangs."""
    deadline = time.monotonic() + within_s
    while True:
        spent = time.thread_time()
        if found := condition():
            return found
        assert time.monotonic() < deadline, f"{what} did not come true within {within_s} s"
        # A question that costs much is asked less often: what is awaited needs the core.
        time.sleep(max(every_s, 2 * (time.thread_time() - spent)))


async def until(condition: Callable[[], Awaitable[Found | None]], what: str) -> Found:
    """The same for a coroutine."""
    deadline = time.monotonic() + HANG_S
    while not (found := await condition()):
        assert time.monotonic() < deadline, f"{what}: not within {HANG_S} s"
        await asyncio.sleep(0.03)
    return found
