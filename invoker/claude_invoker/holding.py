"""How much runs and jobs may hold: their input, events and results, in a process's memory and in Redis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from claude_invoker.problem import Problem

Full = Literal["subject", "all"]


@dataclass(frozen=True)
class Bounds:
    """Bytes: of one run's events, of all that a subject's runs hold, and of all runs. Once for this process's memory,
    once for the jobs in Redis, and once for the records there of runs that are over."""

    per_run: int = 32 << 20
    per_subject: int = 64 << 20
    in_all: int = 512 << 20


def refusal(full: Full, bounds: Bounds) -> Problem:
    """What a new run or job is answered for which there is no room, when all that is over has been dropped."""
    if full == "subject":
        return Problem(
            429,
            "too-much-held",
            f"your runs and jobs that wait or run hold more than {bounds.per_subject} bytes "
            "(INVOKER_HELD_PER_SUBJECT): wait until one has ended, or cancel one",
            {"Retry-After": "5"},
            extra={"limit": "held_per_subject", "allowed": bounds.per_subject},
        )
    return Problem(
        507,
        "too-much-held",
        f"the runs and jobs of all callers that wait or run hold more than {bounds.in_all} bytes "
        "(INVOKER_HELD_IN_ALL): try again later",
        {"Retry-After": "30"},
        extra={"limit": "held_in_all", "allowed": bounds.in_all},
    )
