"""What the audit log says of one person: all of it together, and the details deleted, so that the chain holds.

Of a person are the lines that are about them, and those of what they did that are about nobody else: what an admin did
to somebody else's limits stays with that somebody. That details were deleted is a line itself: those that are gone and
of which none says so were taken away.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from claude_invoker.audit import line
from claude_invoker.audit.line import Entry
from claude_invoker.audit.log import Log, locked, pairs, rows, still

FORGET = "log.forget"
"""The kind of the line that says of whom details were deleted."""


def export(directory: Path, subject: str) -> list[dict[str, Any]]:
    """Each of the person's lines with its details, None where those are deleted. Raises OSError, ValueError for lines
    that cannot be read."""
    found: list[dict[str, Any]] = []
    with still(directory):
        for each in pairs(directory):
            own = {int(members["seq"]): members for members in _own(rows(each.lines), subject)}
            details = {line.seq_of_details(row): json.loads(row)["details"] for row in rows(each.details)}
            found += [members | {"details": details.get(seq)} for seq, members in own.items()]
    return found


def forget(directory: Path, subject: str, by: str) -> int:
    """Deletes the details of the person's lines, and writes down that `by` has; how many. May be done while the log is
    written. Raises as `export`, and ValueError where there is no log to say it in."""
    if not pairs(directory):
        raise ValueError(f"there is none in {directory}")
    said = Log(directory).append([Entry(FORGET, by, subject)])  # before: what is gone unsaid was taken away
    deleted = 0
    with locked(directory):
        for each in pairs(directory):
            left, gone = without(rows(each.lines), rows(each.details), subject, before=said.seq)
            if gone:
                _replace(each.details, left)
                deleted += gone
    return deleted


def without(
    lines: Iterable[bytes], details: Iterable[bytes], subject: str, before: int | None = None
) -> tuple[bytes, int]:
    """The details, without those of the person's lines (`before` a number), and how many those were. Raises
    ValueError."""
    found = [members for members in _own(lines, subject) if members.get("kind") != FORGET]
    own = {seq for members in found if (seq := int(members["seq"])) < (before or seq + 1)}
    all_of_them = list(details)
    left = [row + b"\n" for row in all_of_them if line.seq_of_details(row) not in own]
    return b"".join(left), len(all_of_them) - len(left)


def forgotten_in(directories: Iterable[Path]) -> dict[str, datetime]:
    """Whose details were deleted, by what the logs in these directories say, and when last. Raises OSError; a line that
    cannot be read says nothing."""
    found: dict[str, datetime] = {}
    for each in itertools.chain.from_iterable(map(pairs, directories)):
        for row in rows(each.lines):
            with contextlib.suppress(ValueError):
                members = line.read(row).members if FORGET.encode() in row else {}
                if members.get("kind") == FORGET and (at := line.time_of(str(members.get("at")))) is not None:
                    found[whose(members)] = max(at, found.get(whose(members), at))
    return found


def _own(lines: Iterable[bytes], subject: str) -> Iterator[dict[str, Any]]:
    for row in lines:
        members = dict(line.read(row).members)
        if whose(members) == subject:
            yield members


def whose(members: Mapping[str, Any]) -> str:
    """The person that a line is of."""
    return str(members.get("subject") or members.get("actor"))


def beside(details: Path) -> Path:
    """Where they are written anew, before they take the place of what was there."""
    return details.with_name(details.name + ".new")


def _replace(path: Path, content: bytes) -> None:
    """All of it, or nothing: a crash leaves what was there."""
    file = os.open(beside(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(file, "wb") as new:
        if os.geteuid() == 0:  # who writes the log may be another, and goes on with it
            was = path.stat()
            os.fchown(new.fileno(), was.st_uid, was.st_gid)
        new.write(content)
        new.flush()
        os.fsync(new.fileno())
    beside(path).replace(path)
