"""Where a run or a job stands in lists, which is what their cursors say. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

_PLACE = re.compile(r"([0-9]{1,12}\.[0-9]{1,9})-((?:run|job)_[0-9a-f]{24})")


class Place(NamedTuple):
    """No two have the same, and what begins later has a greater one."""

    created_at: float
    id: str

    def __str__(self) -> str:
        return f"{self.created_at!r}-{self.id}"

    @classmethod
    def parse(cls, text: str) -> Place:
        """The inverse. Raises ValueError."""
        found = _PLACE.fullmatch(text)
        if found is None:
            raise ValueError("no place in a list")
        return cls(float(found[1]), found[2])
