"""What a worker says of itself: in a file, since nobody can ask it anything (docs/jobs.md)."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from claude_invoker.ending import ended

PERIOD_S = 5.0
READY = "ready"
_log = logging.getLogger(__name__)


class Patient(Protocol):
    """Whose health is told."""

    @property
    def whole(self) -> bool:
        """False: only a new start helps."""

    async def obstacle(self) -> str | None:
        """What keeps it from its work at the moment."""


@asynccontextmanager
async def pulse(file: Path | None, patient: Patient) -> AsyncIterator[None]:
    """While the block runs the file is written anew every few seconds: `ready`, or what keeps it from being so.

    It grows old where the process hangs or is not whole, and is gone at the end. Raises OSError where it cannot be
    written at the beginning.
    """
    if file is None:
        yield
        return
    _write(file, await patient.obstacle())
    beating = asyncio.create_task(_beat(file, patient))
    try:
        yield
    finally:
        await ended(beating)
        file.unlink(missing_ok=True)


async def _beat(file: Path, patient: Patient) -> None:
    while patient.whole:
        try:
            _write(file, await patient.obstacle())
        except OSError as error:  # a full disk is none of the jobs' concern
            _log.warning("cannot say in %s how this worker is: %s", file, error.strerror)
        await asyncio.sleep(PERIOD_S)
    _log.error("a part of this worker has ended, which only a new start mends; %s is not written any more", file)


def _write(file: Path, obstacle: str | None) -> None:
    """In one go, so that nobody reads half of it."""
    half = file.with_name(f"{file.name}.{os.getpid()}")
    half.write_text(f"{obstacle or READY}\n")
    half.replace(file)
