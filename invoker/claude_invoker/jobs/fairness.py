"""A page of what belongs to many. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def fairly(found: Sequence[tuple[str, T]], most: int) -> list[T]:
    """At most so many of them, in their order: of each owner as many as of any other, as far as there are, so that
    nobody who has many hides what others have. `found`: each with whose it is."""
    if len(found) <= most:
        return [each for _, each in found]
    seen: dict[str, int] = defaultdict(int)
    ranked = []
    for at, (owner, _) in enumerate(found):
        ranked.append((seen[owner], at))
        seen[owner] += 1
    return [found[at][1] for at in sorted(at for _, at in sorted(ranked)[:most])]
