"""What callers send that is too large for memory: on the disk from its first byte on, where no run comes to it."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from claude_invoker.cli import walk
from claude_invoker.problem import Problem

_FREE = 0.1
"""The part of the disk that is left to others, at least."""
_LEFT_S = 6 * 3600.0
"""What is older was left by an invoker that died: a run has long begun by then, or is over."""


class Intake:
    """A directory that only we can enter, of several invokers perhaps. `reserve`: bytes of the disk without which no
    run begins."""

    def __init__(self, directory: Path, reserve: int) -> None:
        self._directory = directory
        self._reserve = reserve
        self._coming = 0
        """Bytes that there is to be room for."""

    def open(self) -> None:
        """Makes the directory. Raises OSError."""
        self._directory.mkdir(mode=0o700, exist_ok=True)

    @contextlib.contextmanager
    def room(self, size: int) -> Iterator[None]:
        """As long as so many bytes are on their way. Raises Problem 507 where the disk would be full by them."""
        space = shutil.disk_usage(self._directory)
        if space.free - self._coming - size < max(space.total * _FREE, self._reserve):
            raise Problem(507, "too-much-held", "there is no room for what you send now", {"Retry-After": "60"})
        self._coming += size
        try:
            yield
        finally:
            self._coming -= size

    def make(self) -> Path:
        """A new directory for what one request brings. Raises OSError."""
        made = self._directory / secrets.token_hex(16)
        made.mkdir(mode=0o700)
        return made

    def sweep(self) -> None:
        """Deletes what nobody waits for any more."""
        for path in self._directory.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.lstat().st_mtime + _LEFT_S < time.time():
                    walk.delete(path)
