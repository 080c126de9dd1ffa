"""Where access log lines go: stdout, a file that may be rotated, an HTTP collector. None of them ever blocks Kong."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from urllib3 import PoolManager, Timeout
from urllib3.exceptions import HTTPError

from kong_claude.metrics.registry import LOG_DROPPED

REOPEN_SECONDS = 1.0  # how long a rotated file may still be written to
TRIES = 3
CLOSE_SECONDS = 5.0


class Sink(Protocol):
    def write(self, line: bytes) -> None:
        """One line with its newline. Never raises."""

    def close(self) -> None: ...


class Stdout:
    def write(self, line: bytes) -> None:
        try:
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
        except (OSError, ValueError):
            LOG_DROPPED.labels("stdout").inc()

    def close(self) -> None:
        pass


class File:
    """Appends with one write per line, so that several processes may share the file. A rotated or removed file is
    noticed within REOPEN_SECONDS and made anew; no signal is needed."""

    def __init__(self, path: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._clock = clock
        self._fd: int | None = None
        self._checked = 0.0

    def write(self, line: bytes) -> None:
        try:
            if os.write(self._current(), line) != len(line):
                LOG_DROPPED.labels("file").inc()
        except OSError:
            LOG_DROPPED.labels("file").inc()
            self.close()

    def _current(self) -> int:
        now = self._clock()
        if self._fd is not None and now - self._checked >= REOPEN_SECONDS:
            self._checked = now
            try:
                there, ours = Path(self.path).stat(), os.fstat(self._fd)
                moved = (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)
            except FileNotFoundError:
                moved = True
            if moved:
                self.close()
        if self._fd is None:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
            self._checked = now
        return self._fd

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class Http:
    """Batches to Loki's push API or as newline-delimited JSON (Vector, Fluent Bit). A full queue drops new lines."""

    def __init__(self, url: str, style: str, queue_size: int, flush_seconds: float, batch: int = 500) -> None:
        self.url = url
        self.style = style
        self.queue_size = queue_size
        self.flush_seconds = flush_seconds
        self.batch = batch
        self._lines: deque[tuple[int, bytes]] = deque()
        self._wake = threading.Event()
        self._closed = False
        self._deadline = float("inf")
        self._pool = PoolManager(timeout=Timeout(connect=2.0, read=5.0), retries=False)
        self._thread = threading.Thread(target=self._run, daemon=True, name="claude-access-log")
        self._thread.start()

    def write(self, line: bytes) -> None:
        if len(self._lines) >= self.queue_size:
            LOG_DROPPED.labels("http").inc()
            return
        self._lines.append((time.time_ns(), line))
        if len(self._lines) >= self.batch:
            self._wake.set()

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait(self.flush_seconds)
            self._wake.clear()
            self.flush()

    def flush(self) -> None:
        """Sends what waits, batch by batch."""
        while self._lines:
            lines = [self._lines.popleft() for _ in range(min(self.batch, len(self._lines)))]
            if not self._send(lines):
                LOG_DROPPED.labels("http").inc(len(lines))

    def _send(self, lines: list[tuple[int, bytes]]) -> bool:
        body, content_type = encode(lines, self.style)
        for attempt in range(TRIES):
            try:
                answer = self._pool.request("POST", self.url, body=body, headers={"Content-Type": content_type})
            except (HTTPError, OSError):
                status = 0
            else:
                status = answer.status
            if 200 <= status < 300:
                return True
            if 400 <= status < 500 and status != 429:
                return False  # it will not like the same lines better
            if time.monotonic() > self._deadline:
                return False
            time.sleep(0.2 * 2**attempt)
        return False

    def close(self) -> None:
        """Sends what waits, within a few seconds."""
        self._deadline = time.monotonic() + CLOSE_SECONDS
        self._closed = True
        self._wake.set()
        self._thread.join(CLOSE_SECONDS)
        self.flush()
        self._pool.clear()


def encode(lines: list[tuple[int, bytes]], style: str) -> tuple[bytes, str]:
    """Body and content type of one batch."""
    if style == "loki":
        values = [[str(at), line.decode("ascii").rstrip("\n")] for at, line in lines]
        document = {"streams": [{"stream": {"job": "kong-claude"}, "values": values}]}
        return json.dumps(document, separators=(",", ":")).encode(), "application/json"
    return b"".join(line for _, line in lines), "application/x-ndjson"
