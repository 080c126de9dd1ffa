"""A deadline that is missed says how much a machine has to do, and nothing about what was tried: it is tried again."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable
from typing import TypeVar

_log = logging.getLogger(__name__)

WITHIN_S = 60.0
"""How long a program may take that is tried and takes some milliseconds: so long only where it hangs."""

_T = TypeVar("_T")


def again(what: str, attempt: Callable[[], _T]) -> _T:
    """What `attempt` returns, the second one where the first was too late. Raises TimeoutError where both were, and
    what `attempt` raises."""
    try:
        return attempt()
    except subprocess.TimeoutExpired:
        say_once_more(what, WITHIN_S)
    try:
        return attempt()
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(too_late(WITHIN_S)) from error


def say_once_more(what: str, within_s: float) -> None:
    _log.warning("%s: no end within %g s, it is tried once more (has this machine too much to do?)", what, within_s)


def too_late(within_s: float) -> str:
    """The reason."""
    return (
        f"not found out: twice there was no end within {within_s:g} s. Start it again when the machine has less to do; "
        "where that does not help, what was tried hangs"
    )
