"""What somebody has done to an audit log: changed, moved, removed or cut. Reads, and changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import groupby
from pathlib import Path
from types import MappingProxyType

from claude_invoker.audit import line, moved, person
from claude_invoker.audit.line import BEGIN, Line
from claude_invoker.audit.log import LOCKS, Head, Pair, pairs, still
from claude_invoker.audit.moved import Upto

MOST_FINDINGS = 50
_CLOCKS = timedelta(minutes=1)
"""By which those of two machines may differ."""


@dataclass(frozen=True)
class Finding:
    """`kind`: changed, reordered, removed, cut, gone, or foreign."""

    kind: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}"


@dataclass
class Verdict:
    """`heads`: of the logs that were found, by name; `without_details`: how many lines have none any more; `moved`: how
    many lines are in the store alone, as a line says."""

    findings: list[Finding] = field(default_factory=list)
    heads: dict[str, Head] = field(default_factory=dict)
    without_details: int = 0
    moved: int = 0

    def found(self, kind: str, what: str) -> None:
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(Finding(kind, what))


@dataclass
class _Read:
    """A log as its files have it: each line's chain, and what must still be compared with a line that comes later."""

    chains: dict[int, bytes] = field(default_factory=dict)
    waiting: dict[int, Line] = field(default_factory=dict)
    misplaced: list[str] = field(default_factory=list)
    last: int = 0
    bare: dict[int, _Known] = field(default_factory=dict)
    """Lines without details."""
    forgotten: dict[str, int] = field(default_factory=dict)
    """Whose details were deleted, by the number of the last line that says so."""
    moved: Upto | None = None
    """Up to which line the log lies in its store alone."""


@dataclass(frozen=True)
class _Known:
    """Of a line: the digest of its details, whose they are, and when it was written, as it says."""

    digest: str
    whose: str
    at: str


def verify(
    directory: Path,
    anchors: Iterable[Head],
    forgotten: Mapping[str, datetime] = MappingProxyType({}),
    *,
    has_store: bool = False,
) -> Verdict:
    """What is found, with what is known of the log elsewhere. `forgotten`: whose details were deleted until when, as
    other logs say of this one. `has_store`: whether there is a store beside it, in which lines may be alone; otherwise
    whoever takes lines away could say so, and be believed. Raises OSError where it cannot be read."""
    verdict = Verdict()
    anchors = list(anchors)
    if not directory.is_dir():
        verdict.found("gone", f"{directory} is not there")
        return verdict
    with still(directory):
        logs: dict[str, list[Pair]] = {}
        for each in pairs(directory):
            logs.setdefault(each.log, []).append(each)
        _names(directory, logs, verdict)
        for log, files in logs.items():
            read = _read(files, verdict)
            if not has_store:
                read.moved = None
            _log(log, read, [anchor for anchor in anchors if anchor.log == log], forgotten, verdict)
    if not logs:
        verdict.found("gone", f"there is no log in {directory}")
    if len(logs) > 1:
        verdict.found("foreign", f"there are {len(logs)} logs in {directory}: {', '.join(sorted(logs))}")
    for anchor in anchors:
        if anchor.log not in logs:
            verdict.found("gone", f"the log {anchor.log} had {anchor.seq} lines and is not there")
    return verdict


def _names(directory: Path, logs: dict[str, list[Pair]], verdict: Verdict) -> None:
    known = {path.name for files in logs.values() for each in files for path in (each.lines, each.details)}
    known |= {*LOCKS, *[person.beside(each.details).name for files in logs.values() for each in files]}
    for path in sorted(directory.iterdir()):
        if path.name not in known:
            verdict.found("foreign", f"{path.name} is none of the log's files")


def _read(files: list[Pair], verdict: Verdict) -> _Read:
    read = _Read()
    for each in files:
        _details(each, _lines(each, read, verdict), read, verdict)
    return read


def _log(log: str, read: _Read, anchors: list[Head], forgotten: Mapping[str, datetime], verdict: Verdict) -> None:
    chains = read.chains
    if not chains:
        verdict.found("gone", f"the log {log} has no lines")
        return
    last = max(chains)
    begin = _elsewhere(read)
    verdict.moved += begin
    for what in read.misplaced:
        verdict.found("reordered", what)
    for lines in _runs(seq for seq in range(begin + 1, last) if seq not in chains):
        verdict.found("removed", lines)
    verdict.without_details += len(read.bare)
    gone = 0 if read.moved is None else read.moved.seq  # and a crash may have left the lines of one file
    bare = {seq: known for seq, known in read.bare.items() if seq > gone}
    for lines in _runs(seq for seq in sorted(bare) if not _is_said(seq, bare[seq], read, forgotten)):
        verdict.found("removed", f"the details of {lines}, and no line says that they were to be deleted")
    for seq, found in read.waiting.items():
        if seq - 1 in chains and not found.follows(chains[seq - 1].hex()):
            _unlike(seq, verdict)
    verdict.heads[log] = Head(log, last, chains[last].hex())
    for anchor in anchors:
        if anchor.seq > last:
            verdict.found("cut", f"the last {anchor.seq - last} lines are gone: there were {anchor.seq}")
        elif anchor.seq in chains and chains[anchor.seq].hex() != anchor.chain:
            verdict.found("changed", f"up to line {anchor.seq} the log was written anew: its chain was another")


def _elsewhere(read: _Read) -> int:
    """The last line that is in the store alone, as a line says; 0: none."""
    upto, first = read.moved, min(read.chains)
    if upto is None or first == 1:
        return 0
    if first == upto.seq + 1:
        read.chains[upto.seq] = bytes.fromhex(upto.chain)  # from which the rest has to go on
    return min(upto.seq, first - 1)


def _is_said(seq: int, known: _Known, read: _Read, forgotten: Mapping[str, datetime]) -> bool:
    """Whether a line says that the details of this one were deleted."""
    if seq < read.forgotten.get(known.whose, 0):
        return True
    until, at = forgotten.get(known.whose), line.time_of(known.at)
    return until is not None and at is not None and at <= until + _CLOCKS


def _lines(each: Pair, read: _Read, verdict: Verdict) -> dict[int, _Known]:
    """The lines of a file by their numbers."""
    rows = each.lines.read_bytes().split(b"\n")
    if rows.pop():
        verdict.found("changed", f"{each.lines.name} does not end with a whole line")
    details: dict[int, _Known] = {}
    for number, row in enumerate(rows, start=1):
        try:
            found = line.read(row)
            members = found.members
        except ValueError:
            verdict.found("changed", f"{each.lines.name}, line {number} cannot be read")
            continue
        seq = found.seq
        if seq in read.chains:
            verdict.found("changed", f"there are two lines {seq}")
            continue
        if not details and seq != each.first:
            verdict.found("changed", f"{each.lines.name} begins with line {seq}")
        if seq < read.last:
            read.misplaced.append(f"line {seq} stands behind line {read.last}")
        if seq == 1 and members.get("subject") != each.log:
            verdict.found("changed", f"the first line is of another log than {each.log}")
        before = BEGIN if seq == 1 else read.chains[seq - 1].hex() if seq - 1 in read.chains else None
        if before is None:
            read.waiting[seq] = found
        elif not found.follows(before):
            _unlike(seq, verdict)
        whose = person.whose(members)
        details[seq] = _Known(str(members.get("details")), whose, str(members.get("at")))
        if members.get("kind") == person.FORGET:
            read.forgotten[whose] = seq
        read.moved = moved.read(members) or read.moved
        read.chains[seq] = bytes.fromhex(found.chain)
        read.last = seq
    return details


def _unlike(seq: int, verdict: Verdict) -> None:
    before = f", or line {seq - 1} before it," if seq > 1 else ""
    verdict.found("changed", f"line {seq}{before} is not as it was written")


def _runs(numbers: Iterable[int]) -> Iterator[str]:
    """Ascending ones in words."""
    for _, each in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in each]
        yield f"line {run[0]}" if len(run) == 1 else f"lines {run[0]} to {run[-1]}"


def _details(each: Pair, lines: dict[int, _Known], read: _Read, verdict: Verdict) -> None:
    """Those that are there must be right; of those that are not a line must say so."""
    try:
        rows = each.details.read_bytes().split(b"\n")
    except FileNotFoundError:
        rows = [b""]
    if rows.pop():
        verdict.found("changed", f"{each.details.name} does not end with a whole line")
    seen = set()
    for number, row in enumerate(rows, start=1):
        try:
            seq = line.seq_of_details(row)
        except ValueError:
            verdict.found("changed", f"{each.details.name}, line {number} cannot be read")
            continue
        known = lines.get(seq)
        if seq in seen or known is None or known.digest != line.digest_of(row):
            verdict.found("changed", f"{each.details.name}, line {number} is not as it was written")
        seen.add(seq)
    read.bare |= {seq: lines[seq] for seq in lines.keys() - seen}
