"""Locks on files by which processes of a machine keep out of each other's way (flock(2))."""

from __future__ import annotations

import fcntl
from typing import IO, Any


def locked(file: IO[Any]) -> bool:
    """Whether the file is ours alone from now on, until it is closed; False where another has it. Raises OSError."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
