"""Files that a run left behind: found without following anything, kept for a while, typed by content.

The tree was written by a run that may be hostile, so nothing is collected before all its processes ended, it is walked
through within bounds, every open is O_NOFOLLOW in the directory it was listed in, and hard links are left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from claude_invoker.cli import walk
from claude_invoker.model import Artifact, LeftOut
from claude_invoker.runs.media import HEAD, content_type
from claude_invoker.settings import Settings

_log = logging.getLogger(__name__)
_WALK = walk.Bounds(depth=64, entries=100_000)
_MOST_NAMED = 100
_MAX_PATH = 1024  # bytes: what is kept lies under a path of ours
_IGNORED = frozenset((".git", ".claude", "node_modules", "__pycache__"))

Seen = dict[str, tuple[int, int, int]]


@dataclass(frozen=True)
class Bounds:
    max_bytes: int
    max_count: int


def root(settings: Settings) -> Path:
    """Where the files of runs and jobs are kept, a directory for each."""
    return settings.state_dir / "artifacts"


def directory(settings: Settings, run_id: str) -> Path:
    return root(settings) / run_id


def survey(work: Path) -> Seen:
    """What is there before the run: relative path → (inode, size, mtime). Never raises; of a tree that is too large or
    deep the part that was seen."""
    seen: Seen = {}
    try:
        for entry in walk.walk(work, _WALK, _IGNORED):
            if entry.is_regular:
                seen[entry.path] = _mark(entry.status)
    except (walk.TooMuch, OSError) as error:
        _log.warning("not all files of a run were seen: %s", error)
    return seen


@dataclass(frozen=True)
class Collected:
    kept: list[Artifact]
    """Sorted by path."""
    left_out: list[LeftOut]
    """New and changed files that are not kept, each with the reason: the first `_MOST_NAMED`, then how many more."""


def collect(
    work: Path,
    before: Seen,
    into: Path,
    bounds: Bounds,
    taken: frozenset[str] = frozenset(),
    first: str | None = None,
) -> Collected:
    """Copies new and changed regular files to `into`, where the names `taken` are, before all others the one that is to
    be `first`. A tree that is too large or deep is left where it becomes so. Never raises."""
    left_out = _LeftOut()
    new = _new_files(work, before, left_out)
    chosen: set[str] = set()
    total = 0
    for path, size in sorted(new, key=lambda file: (file[0] != first, file)):
        if path in taken or any(path.startswith(f"{name}/") for name in taken):
            left_out.add(path, "another file of the answer has that name")
        elif len(chosen) >= bounds.max_count:
            left_out.add(path, f"there are more than {bounds.max_count} files (INVOKER_ARTIFACT_MAX_COUNT)")
        elif total + size > bounds.max_bytes:
            left_out.add(path, f"all files together may have {bounds.max_bytes} bytes (INVOKER_ARTIFACT_MAX_BYTES)")
        else:
            chosen.add(path)
            total += size
    found: list[Artifact] = []
    room = bounds.max_bytes
    with contextlib.suppress(walk.TooMuch, OSError):  # as above: what it is now it was then
        for entry in walk.walk(work, _WALK, _IGNORED):
            if entry.path not in chosen:
                continue
            try:
                artifact = _keep(entry, into, room)
            except OSError as error:
                _log.error("a file of a run is not kept: %s", error.strerror)
                left_out.add(entry.path, f"it cannot be stored: {error.strerror}")
                continue
            if artifact is None:
                left_out.add(entry.path, "it changed while it was copied")
                continue
            room -= artifact.size
            found.append(artifact)
    return Collected(sorted(found, key=lambda artifact: artifact.path), left_out.named())


class _LeftOut:
    def __init__(self) -> None:
        self._named: list[LeftOut] = []
        self._more = 0

    def add(self, path: str, reason: str) -> None:
        if len(self._named) < _MOST_NAMED:
            self._named.append(
                LeftOut(path=path if _is_speakable(path) else ascii(path)[1:-1][:_MAX_PATH], reason=reason)
            )
        else:
            self._more += 1

    def named(self) -> list[LeftOut]:
        rest = [LeftOut(path="", reason=f"{self._more} more are left out")] if self._more else []
        return sorted(self._named, key=lambda left: left.path) + rest


def changed(work: Path, before: Seen, most: int) -> list[str]:
    """Paths of the new and changed files that could be kept, the first `most`, as far as the tree is seen."""
    return sorted(path for path, _ in _new_files(work, before, _LeftOut()))[:most]


def _new_files(work: Path, before: Seen, left_out: _LeftOut) -> list[tuple[str, int]]:
    """(path, size) of each file to keep, as far as the tree is seen."""
    new = []
    try:
        for entry in walk.walk(work, _WALK, _IGNORED):
            if not entry.is_regular or before.get(entry.path) == _mark(entry.status):
                continue
            if entry.status.st_nlink != 1:
                left_out.add(entry.path, "it has several names (hard links)")
            elif not _is_speakable(entry.path):
                left_out.add(entry.path, "its name has characters that an answer cannot have, or is too long")
            else:
                new.append((entry.path, entry.status.st_size))
    except (walk.TooMuch, OSError) as error:
        _log.warning("not all files of a run are kept: %s", error)
        reason = str(error) if isinstance(error, walk.TooMuch) else "it cannot be read"
        left_out.add("", f"a part of the tree: {reason}")
    return new


def _is_speakable(path: str) -> bool:
    """Whether the name can be said in JSON and in a URL."""
    return path.isprintable() and "\\" not in path and len(path.encode()) <= _MAX_PATH


def _mark(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _keep(entry: walk.Entry, into: Path, room: int) -> Artifact | None:
    """Copies one file, hashing it on the way. None where it is not what was listed, or grew."""
    path = entry.path
    try:
        source = walk.open_file(entry)
    except OSError:
        return None
    with open(source, "rb") as reader:
        if not stat.S_ISREG(os.fstat(source).st_mode):
            return None
        target = into / path
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        digest, size, head = hashlib.sha256(), 0, b""
        try:
            with target.open("xb") as writer:
                while chunk := reader.read(1 << 20):
                    head = head or chunk[:HEAD]
                    size += len(chunk)
                    if size > room:
                        target.unlink()
                        return None
                    digest.update(chunk)
                    writer.write(chunk)
        except OSError:  # the disk is full
            target.unlink(missing_ok=True)
            raise
    return Artifact(path=path, size=size, type=content_type(path, head), sha256=digest.hexdigest())
