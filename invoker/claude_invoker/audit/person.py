"""What the audit log says of one person: all of it together, and the details deleted, so that the chain holds.

Of a person are the lines that are about them, and those of what they did that are about nobody else: what an admin did
to somebody else's limits stays with that somebody.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from claude_invoker.audit import line
from claude_invoker.audit.log import locked, pairs, still


def export(directory: Path, subject: str) -> list[dict[str, Any]]:
    """Each of the person's lines with its details, None where those are deleted. Raises OSError, ValueError for lines
    that cannot be read."""
    found: list[dict[str, Any]] = []
    with still(directory):
        for each in pairs(directory):
            own = {int(members["seq"]): members for members in _own(_rows(each.lines), subject)}
            details = {line.seq_of_details(row): json.loads(row)["details"] for row in _rows(each.details)}
            found += [members | {"details": details.get(seq)} for seq, members in own.items()]
    return found


def forget(directory: Path, subject: str) -> int:
    """Deletes the details of the person's lines; how many. May be done while the log is written. Raises as `export`."""
    deleted = 0
    with locked(directory):
        for each in pairs(directory):
            left, gone = without(_rows(each.lines), _rows(each.details), subject)
            if gone:
                _replace(each.details, left)
                deleted += gone
    return deleted


def without(lines: Iterable[bytes], details: Iterable[bytes], subject: str) -> tuple[bytes, int]:
    """The details, without those of the person's lines, and how many those were. Raises ValueError."""
    own = {int(members["seq"]) for members in _own(lines, subject)}
    rows = list(details)
    left = [row + b"\n" for row in rows if line.seq_of_details(row) not in own]
    return b"".join(left), len(rows) - len(left)


def _own(lines: Iterable[bytes], subject: str) -> Iterator[dict[str, Any]]:
    for row in lines:
        members = dict(line.read(row).members)
        about, actor = members.get("subject"), members.get("actor")
        if about == subject or (actor == subject and not about):
            yield members


def _rows(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []


def beside(details: Path) -> Path:
    """Where they are written anew, before they take the place of what was there."""
    return details.with_name(details.name + ".new")


def _replace(path: Path, content: bytes) -> None:
    """All of it, or nothing: a crash leaves what was there."""
    file = os.open(beside(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(file, "wb") as new:
        new.write(content)
        new.flush()
        os.fsync(new.fileno())
    beside(path).replace(path)
