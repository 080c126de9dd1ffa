"""What a rule yields."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Opening:
    """`rule`: stable word. `where`: route, plugin or variable. `fix`: what to do. `line`: in the file, from 1, where it
    is known."""

    rule: str
    where: str
    problem: str
    fix: str
    line: int | None = None
