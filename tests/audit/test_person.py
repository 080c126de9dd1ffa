"""What the log says of a person, and that deleted: the chain holds, and what is of others stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from claude_invoker.audit import cli, person
from claude_invoker.audit.line import Entry
from claude_invoker.audit.log import Log, pairs
from claude_invoker.audit.verify import verify

OF_ALICE = [
    Entry("run.start", "alice", "alice", {"run": "run_1"}),
    Entry("limits.change", "root", "alice", {"why": "asked for more"}),
    Entry("limits.refused", "alice", "", {"body": "{}"}),
]
OF_OTHERS = [
    Entry("limits.change", "alice", "bob", {"why": "alice is an admin, and this is bob's"}),
    Entry("run.start", "alice2", "alice2", {"run": "run_2"}),
    Entry("run.start", "Alice", "Alice", {"run": "run_3"}),
    Entry("limits.change", "root", "", {"why": "of a tier"}),
]


@pytest.fixture
def log(tmp_path: Path) -> Log:
    made = Log(tmp_path / "audit", rotate_bytes=700)
    made.open()
    for number in range(3):
        made.append([*OF_ALICE, *OF_OTHERS] if number % 2 else [*OF_OTHERS, *OF_ALICE])
    assert len(pairs(made.directory)) > 2
    return made


def details_of(log: Log, subject: str) -> list[object]:
    return [row["details"] for row in person.export(log.directory, subject)]


def test_what_is_there_about_a_person_and_nothing_else(log: Log) -> None:
    found = person.export(log.directory, "alice")
    assert [row["details"] for row in found] == [dict(entry.details) for entry in OF_ALICE] * 3
    assert [(row["kind"], row["actor"]) for row in found[:3]] == [(entry.kind, entry.actor) for entry in OF_ALICE]
    assert details_of(log, "bob") == [dict(OF_OTHERS[0].details)] * 3
    assert details_of(log, "nobody") == []


def test_what_is_deleted_is_gone_and_the_log_is_as_whole_as_before(log: Log) -> None:
    others = {name: details_of(log, name) for name in ("bob", "alice2", "Alice")}
    assert person.forget(log.directory, "alice", "root") == 9
    assert details_of(log, "alice") == [*[None] * 9, {}], "that there was something stays, for the chain"
    said = person.export(log.directory, "alice")[-1]
    assert (said["kind"], said["actor"], said["subject"]) == ("log.forget", "root", "alice")
    assert b"asked for more" not in b"".join(path.read_bytes() for path in log.directory.iterdir())
    assert {name: details_of(log, name) for name in others} == others
    verdict = verify(log.directory, [log.head])
    assert verdict.findings == [] and verdict.without_details == 9
    assert person.forget(log.directory, "alice", "root") == 0
    log.append([OF_ALICE[0]])
    assert details_of(log, "alice")[-1] == {"run": "run_1"}
    assert verify(log.directory, [log.head]).findings == []


GONE: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "one": (lambda rows: rows[:2] + rows[3:], "the details of line 3,"),
    "all": (lambda rows: [], "the details of lines 1 to 8,"),
}


@pytest.mark.parametrize("name", GONE)
def test_details_that_were_taken_away_are_found(tmp_path: Path, name: str) -> None:
    """Who has the files could else take away what somebody has changed, and call it data protection."""
    log = Log(tmp_path / "audit")
    log.open()
    log.append([*OF_ALICE, *OF_OTHERS])
    take_away, says = GONE[name]
    details = pairs(log.directory)[0].details
    details.write_bytes(b"".join(take_away(details.read_bytes().splitlines(keepends=True))))
    (found,) = verify(log.directory, [log.head]).findings
    assert found.kind == "removed" and says in found.what
    person.forget(log.directory, "bob", "root")
    assert verify(log.directory, [log.head]).findings, "it is another's that is said"
    if name == "one":
        person.forget(log.directory, "alice", "root")
        assert verify(log.directory, [log.head]).findings == [], "the control"


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another user")
def test_the_invoker_writes_on_after_root_has_deleted(log: Log) -> None:
    """It may be another user, who could not write what root has made."""
    for path in (log.directory, *log.directory.iterdir()):
        os.chown(path, 12345, 12345)
    assert person.forget(log.directory, "alice", "root") == 9
    assert {path.stat().st_uid for path in log.directory.iterdir()} == {12345}


def test_it_may_be_written_meanwhile(log: Log) -> None:
    stop = threading.Event()

    def write() -> None:
        other = Log(log.directory, rotate_bytes=700)
        other.open()
        while not stop.is_set():
            other.append([*OF_ALICE, *OF_OTHERS])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        deleted = sum(person.forget(log.directory, "alice", "root") for _ in range(30))
    finally:
        stop.set()
        writer.join()
    log.append([])
    verdict = verify(log.directory, [log.head])
    assert verdict.findings == [] and verdict.without_details == deleted > 9
    assert None not in details_of(log, "bob")


def test_what_a_crash_leaves_beside_is_no_finding(log: Log) -> None:
    """It is written whole before it takes the place of what was there."""
    beside = person.beside(pairs(log.directory)[0].details)
    beside.write_bytes(b"half of it")
    assert verify(log.directory, [log.head]).findings == []
    assert person.forget(log.directory, "alice", "root") == 9 and verify(log.directory, [log.head]).findings == []
    beside.with_name("details-of-my-own.jsonl.new").write_bytes(b"")
    assert [finding.kind for finding in verify(log.directory, [log.head]).findings] == ["foreign"], "the control"


def test_the_commands(log: Log, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("INVOKER_AUDIT_DIR", str(log.directory))
    assert cli.main(["export", "--subject", "alice"]) == 0
    printed = capsys.readouterr()
    rows = [json.loads(row) for row in printed.out.splitlines()]
    assert len(rows) == 9 and rows[0]["at"] <= rows[-1]["at"] and "9 lines about 'alice'" in printed.err
    assert cli.main(["forget", "--subject", "alice"]) == 0
    assert "details of 9 lines deleted" in capsys.readouterr().err
    assert cli.main(["export", "--subject", "alice"]) == 0
    assert [json.loads(row)["details"] for row in capsys.readouterr().out.splitlines()] == [*[None] * 9, {}]
    with pytest.raises(SystemExit):
        cli.main(["forget", "--subject", ""])  # whose lines are about nobody
    lines = pairs(log.directory)[0].lines
    lines.write_bytes(b"{}\n" + lines.read_bytes())
    assert cli.main(["export", "--subject", "alice"]) == 2
    assert "claude-invoker audit verify" in capsys.readouterr().err
    assert cli.main(["export", "--subject", "alice", "--store"]) == 2
    assert "INVOKER_AUDIT_STORE is not set" in capsys.readouterr().err
    assert cli.main(["export", "--subject", "alice", "--dir", str(log.directory / "none")]) == 2


def test_who_reads_no_further_ends_the_command_quietly(log: Log) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [
        sys.executable,
        "-m",
        "claude_invoker",
        "audit",
        "export",
        "--subject",
        "alice",
        "--dir",
        str(log.directory),
    ]
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}  # what is left is written at the end
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, env=buffered)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "9 lines about 'alice'\n")
