"""Mutants that make no difference, by hand: `equivalents.txt`, of each the file, the lines, what becomes of them, why."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.mutants.mutant import Mutant

FILE = Path(__file__).with_name("equivalents.txt")
_LINE = re.compile(r"(?P<path>\S+): (?P<before>.+?) → (?P<after>.*?)  # (?P<why>.+)")


class Equivalent(NamedTuple):
    """Its lines rather than their numbers, which every edit would move."""

    path: str
    before: str
    after: str
    why: str

    def fits(self, mutant: Mutant) -> bool:
        return self[:3] == (mutant.path, mutant.before, mutant.after)

    def __str__(self) -> str:
        return f"{self.path}: {self.before} → {self.after}"


def read(file: Path = FILE) -> list[Equivalent]:
    """Raises ValueError for a line that is none, or gives no reason."""
    found = []
    for line in file.read_text().splitlines():
        if line and not line.startswith("#"):
            match = _LINE.fullmatch(line)
            if match is None:
                raise ValueError(f"{file.name}: {line!r} is not `path: before → after  # why`")
            found.append(Equivalent(*match.group("path", "before", "after", "why")))
    return found


def stale(known: Iterable[Equivalent], mutants: Iterable[Mutant]) -> list[Equivalent]:
    """Those that fit none of the mutants."""
    all_of_them = {(m.path, m.before, m.after) for m in mutants}
    return [one for one in known if one[:3] not in all_of_them]
