"""What is done again and again while an engine runs; nothing that goes wrong with one thing keeps the others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

_log = logging.getLogger(__name__)
Step = Callable[[], Coroutine[Any, Any, object]]


class Sweeper:
    """Runs each of `steps` every `interval_s`, one after the other."""

    def __init__(self, steps: Mapping[str, Step], interval_s: float) -> None:
        self._steps = steps
        self._interval_s = interval_s
        self._task: asyncio.Task[None] | None = None
        self.failing: set[str] = set()
        """Steps that failed the last time."""
        self.swept_at = time.monotonic()

    def start(self) -> None:
        self._task = asyncio.create_task(self._sweep())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    @property
    def alive(self) -> bool:
        return self._task is not None and not self._task.done()

    async def _sweep(self) -> None:
        while True:
            for name, step in self._steps.items():
                try:
                    await step()
                except Exception:
                    if name not in self.failing:
                        _log.exception("%s does not work, it is tried again every %g s", name, self._interval_s)
                    self.failing.add(name)
                else:
                    self.failing.discard(name)
            self.swept_at = time.monotonic()
            await asyncio.sleep(self._interval_s)
