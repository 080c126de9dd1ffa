"""What somebody has done to an audit log: changed, moved, removed or cut. Reads, and changes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from claude_invoker.audit import line, person
from claude_invoker.audit.line import BEGIN, Line
from claude_invoker.audit.log import LOCKS, Head, Pair, pairs, still

MOST_FINDINGS = 50


@dataclass(frozen=True)
class Finding:
    """`kind`: changed, reordered, removed, cut, gone, or foreign."""

    kind: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}"


@dataclass
class Verdict:
    """`heads`: of the logs that were found, by name; `without_details`: how many lines have none any more."""

    findings: list[Finding] = field(default_factory=list)
    heads: dict[str, Head] = field(default_factory=dict)
    without_details: int = 0

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


def verify(directory: Path, anchors: Iterable[Head]) -> Verdict:
    """What is found, with what is known of the log elsewhere. Raises OSError where it cannot be read."""
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
            _log(log, files, [anchor for anchor in anchors if anchor.log == log], verdict)
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


def _log(log: str, files: list[Pair], anchors: list[Head], verdict: Verdict) -> None:
    read = _Read()
    for each in files:
        _details(each, _lines(each, read, verdict), verdict)
    chains = read.chains
    if not chains:
        verdict.found("gone", f"the log {log} has no lines")
        return
    last = max(chains)
    for what in read.misplaced:
        verdict.found("reordered", what)
    _missing(chains, last, verdict)
    for seq, found in read.waiting.items():
        if seq - 1 in chains and not found.follows(chains[seq - 1].hex()):
            _unlike(seq, verdict)
    verdict.heads[log] = Head(log, last, chains[last].hex())
    for anchor in anchors:
        if anchor.seq > last:
            verdict.found("cut", f"the last {anchor.seq - last} lines are gone: there were {anchor.seq}")
        elif anchor.seq in chains and chains[anchor.seq].hex() != anchor.chain:
            verdict.found("changed", f"up to line {anchor.seq} the log was written anew: its chain was another")


def _lines(each: Pair, read: _Read, verdict: Verdict) -> dict[int, str]:
    """The lines of a file, as number → digest of its details."""
    rows = each.lines.read_bytes().split(b"\n")
    if rows.pop():
        verdict.found("changed", f"{each.lines.name} does not end with a whole line")
    details: dict[int, str] = {}
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
        details[seq] = str(members.get("details"))
        read.chains[seq] = bytes.fromhex(found.chain)
        read.last = seq
    return details


def _unlike(seq: int, verdict: Verdict) -> None:
    before = f", or line {seq - 1} before it," if seq > 1 else ""
    verdict.found("changed", f"line {seq}{before} is not as it was written")


def _missing(chains: dict[int, bytes], last: int, verdict: Verdict) -> None:
    if len(chains) == last:
        return
    begin = None
    for seq in range(1, last + 1):
        if seq not in chains:
            begin = seq if begin is None else begin
        elif begin is not None:
            verdict.found("removed", f"line {begin}" if begin == seq - 1 else f"lines {begin} to {seq - 1}")
            begin = None


def _details(each: Pair, lines: dict[int, str], verdict: Verdict) -> None:
    """Details that are not there have been deleted; those that are there must be right."""
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
        if seq in seen or lines.get(seq) != line.digest_of(row):
            verdict.found("changed", f"{each.details.name}, line {number} is not as it was written")
        seen.add(seq)
    verdict.without_details += len(lines.keys() - seen)
