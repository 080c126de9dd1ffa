"""What of an audit log lies in its store alone. That it does is a line itself, with the chain from which the rest goes
on: lines that are gone and of which none says so were taken away."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from claude_invoker.audit.line import Entry
from claude_invoker.audit.log import Log, Pair, locked, pairs, size_of, sync_directory

MOVED = "log.moved"
_UPTO = re.compile(r"([1-9][0-9]{0,17}) ([0-9a-f]{64})")


@dataclass(frozen=True)
class Upto:
    """The last line that is gone, and its chain."""

    seq: int
    chain: str


def read(members: Mapping[str, Any]) -> Upto | None:
    """What a line says of this; None: nothing."""
    if members.get("kind") != MOVED or (found := _UPTO.fullmatch(str(members.get("subject")))) is None:
        return None
    return Upto(int(found[1]), found[2])


def may_go(log: Log, sent: int, most_bytes: int) -> list[Pair]:
    """The oldest files, beyond so many bytes, of which all lines have a number up to `sent`; never the newest. Raises
    OSError."""
    found = pairs(log.directory)
    left = sum(size_of(each) for each in found)
    going: list[Pair] = []
    for each, after in itertools.pairwise(found):
        if left <= most_bytes or after.first > sent + 1:
            break
        going.append(each)
        left -= size_of(each)
    return going


def let_go(log: Log, going: list[Pair]) -> Upto:
    """Writes down that these, the oldest, are gone, and deletes them. Raises OSError, ValueError."""
    after = next(each for each in pairs(log.directory) if each.first > going[-1].first)
    chain = log.chain_at(after.first - 1)
    if chain is None:
        raise ValueError(f"line {after.first - 1} is missing")
    upto = Upto(after.first - 1, chain)
    log.append([Entry(MOVED, "", f"{upto.seq} {upto.chain}")])  # before: what is gone unsaid was taken away
    with locked(log.directory):
        for each in going:
            each.details.unlink(missing_ok=True)
            each.lines.unlink()
        sync_directory(log.directory)
    return upto
