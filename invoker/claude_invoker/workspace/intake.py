"""What callers send that is too large for memory: on the disk from its first byte on, where no run comes to it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path

from claude_invoker.cli import walk
from claude_invoker.cli.unbroken import unbroken
from claude_invoker.disk import Bounds, refusal

_LEFT_S = 6 * 3600.0
"""What is older was left by an invoker that died: a run has long begun by then, or is over."""


class Intake:
    """A directory that only we can enter, of several invokers perhaps. What comes counts within `bounds`, as the files
    of runs do. `room`: raises Problem 507 where so many bytes more would leave too little of the disk."""

    def __init__(self, directory: Path, bounds: Bounds, room: Callable[[int], None]) -> None:
        self._directory = directory
        self._bounds = bounds
        self._room = room
        self._lock = threading.Lock()
        self._held: dict[Path, tuple[str, int]] = {}
        """Whose each is, and how many bytes it may become."""

    def open(self) -> None:
        """Makes the directory. Raises OSError."""
        self._directory.mkdir(mode=0o700, exist_ok=True)

    def make(self, subject: str, size: int) -> Path:
        """A new directory for what one request of the subject's brings, so many bytes at most; to be deleted by
        `delete`. Raises Problem 507, OSError."""
        made = self._directory / secrets.token_hex(16)
        with self._lock:
            self._check(subject, size)
            self._held[made] = subject, size
        try:
            made.mkdir(mode=0o700)
        except OSError:
            self.delete(made)
            raise
        return made

    async def made(self, subject: str, size: int) -> Path:
        """As `make`, beside the event loop. Who is cancelled meanwhile never learns of it: it is deleted again."""
        making = asyncio.ensure_future(asyncio.to_thread(self.make, subject, size))
        try:
            await unbroken(making)
        except asyncio.CancelledError:
            await asyncio.to_thread(self.delete, making.result())
            raise
        return making.result()

    def _check(self, subject: str, size: int) -> None:
        """Raises Problem 507."""
        in_all = sum(held for _, held in self._held.values()) + size
        of_subject = sum(held for whose, held in self._held.values() if whose == subject) + size
        if self._bounds.per_subject and of_subject > self._bounds.per_subject:
            raise refusal("trees", self._bounds, of_all=False)
        if self._bounds.in_all and in_all > self._bounds.in_all:
            raise refusal("trees", self._bounds, of_all=True)
        self._room(in_all)  # as if nothing of it was there yet

    def delete(self, made: Path) -> None:
        """Harmless for one that is gone. Blocks."""
        walk.delete(made)
        with self._lock:
            self._held.pop(made, None)

    def sweep(self) -> None:
        """Deletes what nobody waits for any more."""
        for path in self._directory.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.lstat().st_mtime + _LEFT_S < time.time():
                    self.delete(path)
