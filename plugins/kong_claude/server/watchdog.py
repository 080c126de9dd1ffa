"""What watches the server from beside its loop: a blocked loop, overdue CPU-bound code, a parent that is gone."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import gevent
from gevent import monkey
from greenlet import getcurrent

from kong_claude.server.core import Server
from kong_claude.server.worker import EventEnd, Worker

BLOCKED_SECONDS = 0.2
TICK_SECONDS = 0.1
EVICTION_SECONDS = 30.0
HERE = str(Path(__file__).parent)


class Watchdog:
    """Beats in the hub; a native thread looks whether it still does.

    The thread names the plugin that keeps the loop, and when that event is overdue interrupts it by a signal: its
    handler runs in the greenlet that is running, so that plain Python code ends there. Code that never returns to
    the interpreter cannot be ended.
    """

    def __init__(self, server: Server, warn: Callable[[str], None]) -> None:
        self.server = server
        self.warn = warn  # from the thread
        self.parent = os.getppid()
        self.beat = time.monotonic()
        self.lag = 0.0
        self.blocked = 0
        self.stopped = False
        self._main: int = monkey.get_original("_thread", "get_ident")()

    def start(self) -> None:
        self.beat = time.monotonic()
        signal.signal(signal.SIGVTALRM, self._interrupt)
        monkey.get_original("_thread", "start_new_thread")(self._watch, ())

    def tick(self) -> bool:
        """One beat, from the hub. Returns False when the parent process has gone."""
        now = time.monotonic()
        self.lag = max(0.0, now - self.beat - TICK_SECONDS)
        self.beat = now
        return os.getppid() == self.parent

    def _watch(self) -> None:
        sleep = monkey.get_original("time", "sleep")
        reported = 0.0
        while not self.stopped:
            sleep(TICK_SECONDS)
            beat = self.beat
            blocked = time.monotonic() - beat
            if blocked < BLOCKED_SECONDS + TICK_SECONDS:
                continue
            try:
                who, worker = self._running()
            except AttributeError:  # the event has just ended
                continue
            if reported != beat:
                reported = beat
                self.blocked += 1
                self.warn(f"{who} has kept the loop for {blocked:.1f} s: all events wait")
            if worker is not None and time.monotonic() - worker.started > self.server.event_timeout:
                signal.pthread_kill(self._main, signal.SIGVTALRM)

    def _running(self) -> tuple[str, Worker | None]:
        """Who runs in the main thread, and where."""
        frame: FrameType | None = sys._current_frames().get(self._main)
        place, worker = "", None
        while frame is not None:
            code = frame.f_code
            if not place and not code.co_filename.startswith(HERE):
                place = f"{code.co_filename}:{frame.f_lineno}"
            if code is Worker.run.__code__:
                worker = frame.f_locals["self"]
            frame = frame.f_back
        if worker is not None and worker.id is not None:
            return f"plugin {worker.instance.plugin.name}, {worker.phase.name} ({place})", worker
        return f"code outside of events ({place})", None

    def _interrupt(self, _signal: int, frame: FrameType | None) -> None:
        worker: Any = getcurrent()
        now = time.monotonic()
        if type(worker) is not Worker or worker.id is None or now - worker.started <= self.server.event_timeout:
            return
        if frame is None or frame.f_code.co_filename.startswith(HERE):
            return  # between two states of the event: the next signal will do
        self.server.expire(worker, now)
        raise EventEnd


def start_ticks(server: Server, watchdog: Watchdog, parent_gone: Callable[[], None]) -> Any:
    """Beats in the hub itself (ending an event is for the hub only); returns the timer."""
    last_eviction = time.monotonic()

    def tick() -> None:
        nonlocal last_eviction
        if not watchdog.tick():
            parent_gone()
        server.sweep(watchdog.beat)
        if watchdog.beat - last_eviction > EVICTION_SECONDS:
            last_eviction = watchdog.beat
            server.evict(watchdog.beat)

    timer = gevent.get_hub().loop.timer(TICK_SECONDS, TICK_SECONDS)
    timer.start(tick)
    return timer
