"""The HTTP server, and how it stops: what runs may end first, and can be looked at and cancelled meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from claude_invoker.passthrough.desk import Desk
from claude_invoker.runs.engine import Engine

_log = logging.getLogger(__name__)
LAST_ANSWERS_S = 5
"""For the answers of runs that have been ended, and what else is still being sent when the server closes."""
_LOOK_S, _LOOK_DRAINING_S = 1.0, 0.1


class DrainingServer(uvicorn.Server):
    """On SIGTERM it is not ready and starts no run, but answers everything else until no run is left or `grace_s` have
    passed, which ends those that are. Another signal, or SIGINT, stops it at once."""

    def __init__(self, config: uvicorn.Config, engine: Engine, desk: Desk, grace_s: float) -> None:
        super().__init__(config)
        self._engine = engine
        self._desk = desk
        self._grace_s = grace_s
        self._until: float | None = None
        self._cut_off = False
        self._wake: Callable[[], object] = lambda: None

    async def main_loop(self) -> None:
        """Looks once a second, and when a signal comes; uvicorn's own looks ten times a second, which is most of what
        an invoker takes that has nothing to do."""
        loop, signalled = asyncio.get_running_loop(), asyncio.Event()
        self._wake = lambda: loop.call_soon_threadsafe(signalled.set)
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S if self._until is None else _LOOK_DRAINING_S):
                    await signalled.wait()
            signalled.clear()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGTERM and self.started and self._until is None:
            self._engine.draining = True
            self._until = time.monotonic() + self._grace_s
        else:
            super().handle_exit(sig, frame)
        self._wake()

    async def on_tick(self, counter: int) -> bool:
        if self._until is not None and not self.should_exit:
            self._drain(self._until - time.monotonic())
        return await super().on_tick(counter)

    def _drain(self, left_s: float) -> None:
        engine = self._engine
        running = engine.running + engine.waiting + self._desk.under_way
        if running and left_s <= 0 and not self._cut_off:
            _log.warning(
                "%d runs and messages have not ended within INVOKER_STOP_GRACE_S (%g s)", running, self._grace_s
            )
            self._cut_off = True
            engine.stop_runs()
        elif not running or left_s <= -LAST_ANSWERS_S:
            super().handle_exit(signal.SIGTERM, None)
