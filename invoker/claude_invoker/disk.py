"""How much of this machine's disk runs may take together, of a subject and in all, and what goes first.

One place counts and clears: each kind of things says what it has (`Kept`), and what is beyond a bound goes, the oldest
first and nothing that is in use. Where that has not been enough, or the disk is nearly full, no run begins: it would
cost money and leave nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from claude_invoker.problem import Problem

_log = logging.getLogger(__name__)
Kind = Literal["trees", "sessions", "artifacts", "uploads", "repositories", "audit", "journal"]


@dataclass(frozen=True)
class Bounds:
    """Bytes on the disk, 0: any."""

    per_subject: int = 0
    in_all: int = 0


@dataclass(frozen=True)
class Kept:
    """Something of a kind. `subject`: its digest, None where it is nobody's, or not known; `used_at`: seconds since the
    epoch; `is_spare`: there is another of it elsewhere."""

    name: str
    subject: str | None
    used_at: float
    bytes: int
    in_use: bool = False
    is_spare: bool = False


def subject_digest(subject: str) -> str:
    """By which a subject is told from others, and from nothing that is on the disk."""
    return hashlib.sha256(subject.encode("utf-8", "surrogatepass")).hexdigest()


class Source(Protocol):
    """A kind of things on the disk. Raises OSError."""

    async def kept(self) -> list[Kept]: ...

    async def drop(self, name: str) -> bool:
        """Whether it is gone: it may be in use by now."""
        ...


def excess(kept: Iterable[Kept], bounds: Bounds) -> list[Kept]:
    """What has to go so that the rest is within the bounds, as far as that can be: what there is elsewhere before what
    is only here, then the oldest."""
    left = {each.name: each for each in kept}
    gone: list[Kept] = []

    def clear(group: Sequence[Kept], most: int) -> None:
        size = sum(each.bytes for each in group)
        for each in sorted(group, key=lambda each: (not each.is_spare, each.used_at)):
            if not most or size <= most:
                return
            if not each.in_use:
                gone.append(left.pop(each.name))
                size -= each.bytes

    of: dict[str, list[Kept]] = {}
    for each in left.values():
        if each.subject is not None:
            of.setdefault(each.subject, []).append(each)
    for group in of.values():
        clear(group, bounds.per_subject)
    clear(list(left.values()), bounds.in_all)
    return gone


_BOOKS: Mapping[Kind, str] = {
    "audit": "the audit log takes",
    "journal": "what runs have cost and nobody has booked takes",
}


def refusal(kind: Kind, bounds: Bounds, *, of_all: bool) -> Problem:
    """What a run is answered for which there is no room."""
    limit = f"{kind}_{'in_all' if of_all else 'per_subject'}"
    allowed = bounds.in_all if of_all else bounds.per_subject
    what = _BOOKS.get(kind, f"{kind} of {'all callers' if of_all else 'yours'} take")
    return _full(limit, allowed, f"{what[0].upper()}{what[1:]} more than {allowed} bytes of the disk")


def _full(limit: str, allowed: int, detail: str) -> Problem:
    setting = f"INVOKER_{limit.upper()}"
    extra = {"limit": limit, "allowed": allowed, "setting": setting}
    return Problem(507, "no-room", f"{detail} ({setting})", {"Retry-After": "30"}, extra=extra)


class Disk:
    """`reserve`: bytes that stay free on the file systems of `paths`, or no run begins. `counted`: directories that
    have a bound in all and nothing that may be deleted here."""

    def __init__(
        self,
        sources: Mapping[Kind, Source],
        bounds: Mapping[Kind, Bounds],
        reserve: int,
        paths: Sequence[Path],
        counted: Mapping[Kind, Path] | None = None,
    ) -> None:
        self._sources = sources
        self._bounds = bounds
        self._reserve = reserve
        self._paths = paths
        self._counted = counted or {}
        self._used: dict[Kind, Counter[str | None]] = {}
        self.used: dict[Kind, int] = dict.fromkeys([*sources, *self._counted], 0)
        """Bytes of each, when it was last looked at."""

    async def clear(self) -> None:
        """Deletes what is beyond the bounds. Raises OSError."""
        for kind, source in self._sources.items():
            bounds = self._bounds.get(kind, Bounds())
            found = {each.name: each for each in await source.kept()}
            gone = lost = 0
            for each in excess(found.values(), bounds):
                if await source.drop(each.name):
                    del found[each.name]
                    gone, lost = gone + 1, lost + (not each.is_spare)
            if lost:
                settings = " and ".join(f"INVOKER_{kind.upper()}_{of}" for of in ("PER_SUBJECT", "IN_ALL"))
                _log.warning(
                    "%d of %d %s are deleted early, the oldest: see %s", lost, gone + len(found), kind, settings
                )
            used: Counter[str | None] = Counter()
            for each in found.values():
                used[each.subject] += each.bytes
            self._used[kind] = used
            self.used[kind] = used.total()
        for kind, directory in self._counted.items():
            self.used[kind] = await asyncio.to_thread(_size, directory)
            self._used[kind] = Counter({None: self.used[kind]})

    def refuse(self, subject: str) -> None:
        """Raises Problem 507 where a run of the subject's would have no room."""
        for kind, used in self._used.items():
            bounds = self._bounds.get(kind, Bounds())
            if bounds.per_subject and used[subject_digest(subject)] > bounds.per_subject:
                raise refusal(kind, bounds, of_all=False)
            if bounds.in_all and used.total() > bounds.in_all:
                raise refusal(kind, bounds, of_all=True)
        self.room_for(0)

    def room_for(self, size: int) -> None:
        """Raises Problem 507 where so many bytes more would leave less than the reserve."""
        for path in self._paths:
            space = os.statvfs(path)
            if space.f_bavail * space.f_frsize < self._reserve + size:
                raise _full(
                    "disk_reserve", self._reserve, f"The disk of this invoker has less than {self._reserve} bytes left"
                )


def _size(directory: Path) -> int:
    """Of its files; what goes meanwhile counts as nothing."""
    found = 0
    for path in directory.iterdir() if directory.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):
            found += path.lstat().st_blocks * 512
    return found
