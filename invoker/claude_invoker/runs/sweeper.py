"""What is done again and again while an engine runs; nothing that goes wrong with one thing keeps the others."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from claude_invoker.ending import ended

_log = logging.getLogger(__name__)
Step = Callable[[], Coroutine[Any, Any, object]]
_LATE_S = 300.0
"""What a step may take; one that takes longer most likely hangs in a file system."""


class Sweeper:
    """Runs each of `steps` again and again, `interval_s` after it ended, and beside the others."""

    def __init__(self, steps: Mapping[str, Step], interval_s: float) -> None:
        self._steps = steps
        self._interval_s = interval_s
        self._tasks: list[asyncio.Task[None]] = []
        self._begun: dict[str, float] = {}
        self.failing: set[str] = set()
        """Steps that failed the last time."""

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._sweep(name, step)) for name, step in self._steps.items()]

    async def stop(self) -> None:
        await ended(*self._tasks)

    @property
    def alive(self) -> bool:
        return bool(self._tasks) and not any(task.done() for task in self._tasks)

    @property
    def troubled(self) -> list[str]:
        """Steps that failed the last time, or have been at it for too long."""
        now = time.monotonic()
        late = {name for name, begun in self._begun.items() if now - begun > _LATE_S}
        return sorted(self.failing | late)

    async def _sweep(self, name: str, step: Step) -> None:
        while True:
            self._begun[name] = time.monotonic()
            try:
                await step()
            except Exception:
                if name not in self.failing:
                    _log.exception("%s does not work, it is tried again every %g s", name, self._interval_s)
                self.failing.add(name)
            else:
                self.failing.discard(name)
            finally:
                del self._begun[name]
            await asyncio.sleep(self._interval_s)
