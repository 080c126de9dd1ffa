"""The audit log: what is done to its files is found, and what a crash does to them is mended."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from claude_invoker.audit import anchor, cli, line, log
from claude_invoker.audit.anchor import FileAnchor, RedisAnchor
from claude_invoker.audit.line import Entry
from claude_invoker.audit.log import Head, Log, pairs
from claude_invoker.audit.verify import Verdict, verify
from tests.support.waiting import HANG_S

COUNT = 12


def entry(number: int) -> Entry:
    return Entry("limits.change", "root", f"subject-{number}", {"why": f"because {number} \u2028\n", "n": number})


def filled(directory: Path, count: int = COUNT, rotate_bytes: int = log.ROTATE_BYTES) -> Log:
    """A log of the first line and `count` more."""
    made = Log(directory, rotate_bytes)
    made.open()
    for number in range(count):
        made.append([entry(number)])
    return made


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "audit"


def lines_of(directory: Path, number: int = 0) -> Path:
    return pairs(directory)[number].lines


def details_of(directory: Path, number: int = 0) -> Path:
    return pairs(directory)[number].details


def kinds(verdict: Verdict) -> set[str]:
    return {finding.kind for finding in verdict.findings}


def test_what_was_written_is_found_as_it_was(directory: Path) -> None:
    made = filled(directory)
    verdict = verify(directory, [made.head])
    assert verdict.findings == [] and verdict.heads == {made.head.log: made.head} and verdict.without_details == 0
    first, *rest = [json.loads(row) for row in lines_of(directory).read_bytes().splitlines()]
    assert (first["kind"], first["subject"]) == ("log.begin", made.head.log)
    assert [row["seq"] for row in rest] == list(range(2, COUNT + 2))
    assert {"seq", "at", "kind", "actor", "subject", "details", "chain"} == set(rest[0])
    details = [json.loads(row) for row in details_of(directory).read_bytes().splitlines()]
    assert details[3]["details"]["why"].startswith("because 2") and len({row["salt"] for row in details}) == COUNT + 1


def test_nobody_else_can_read_it(directory: Path) -> None:
    filled(directory)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in directory.iterdir())


# What is done to it


def edit(path: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


def forged(rows: list[bytes], at: int) -> list[bytes]:
    """Another subject in a line, and the chain from there on as it should be."""
    before = line.read(rows[at - 1].rstrip()).chain
    found = []
    for number, row in enumerate(rows[at:]):
        body = line.read(row.rstrip()).body
        if number == 0:
            body = body.replace(b'"actor":"root"', b'"actor":"nobody"')
        before = line.chained(before, body)
        found.append(body + b',"chain":"' + before.encode() + b'"}\n')
    return rows[:at] + found


TAMPERING: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "a subject changed": (
        lambda d: edit(lines_of(d), lambda r: [row.replace(b"subject-3", b"subject-9") for row in r]), "changed", "line 5"),
    "a line written anew by itself": (
        lambda d: edit(lines_of(d), lambda r: forged(r, 4)[:5] + r[5:]), "changed", "line 6, or line 5"),
    "all lines from one on written anew": (
        lambda d: edit(lines_of(d), lambda r: forged(r, 4)), "changed", "written anew"),
    "two lines exchanged": (
        lambda d: edit(lines_of(d), lambda r: [*r[:4], r[5], r[4], *r[6:]]), "reordered", "line 5 stands behind line 6"),
    "a line removed": (lambda d: edit(lines_of(d), lambda r: r[:4] + r[5:]), "removed", "line 5"),
    "lines removed": (lambda d: edit(lines_of(d), lambda r: r[:4] + r[8:]), "removed", "lines 5 to 8"),
    "the first line removed": (lambda d: edit(lines_of(d), lambda r: r[1:]), "removed", "line 1"),
    "the last line cut": (lambda d: edit(lines_of(d), lambda r: r[:-1]), "cut", "the last 1 lines"),
    "the last five lines cut": (lambda d: edit(lines_of(d), lambda r: r[:-5]), "cut", "the last 5 lines"),
    "a line twice": (lambda d: edit(lines_of(d), lambda r: [*r, r[-1]]), "changed", "two lines 13"),
    "a line of one's own added": (
        lambda d: edit(lines_of(d), lambda r: [*r, b'{"seq":14,"kind":"x"}\n']), "changed", "cannot be read"),
    "half a line": (lambda d: lines_of(d).write_bytes(lines_of(d).read_bytes()[:-9]), "changed", "whole line"),
    "the file gone": (lambda d: lines_of(d).unlink(), "gone", "is not there"),
    "all gone": (lambda d: shutil.rmtree(d), "gone", "is not there"),
    "the file under another name": (
        lambda d: lines_of(d).rename(lines_of(d).with_name(lines_of(d).name.replace("01.jsonl", "02.jsonl"))),
        "changed", "begins with line 1"),
    "details changed": (
        lambda d: edit(details_of(d), lambda r: [row.replace(b"because 3", b"because 4") for row in r]),
        "changed", "line 5 is not as it was written"),
    "details of another line": (
        lambda d: edit(details_of(d), lambda r: [row.replace(b'"seq":5', b'"seq":6') for row in r]), "changed", "details"),
    "details taken away": (lambda d: details_of(d).unlink(), "removed", "the details of lines 1 to 13"),
    "another file beside it": (lambda d: (d / "audit-copy.jsonl").touch(), "foreign", "audit-copy.jsonl"),
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERING)
def test_each_kind_of_tampering_is_found(directory: Path, name: str) -> None:
    head = filled(directory).head
    tamper, kind, says = TAMPERING[name]
    assert verify(directory, [head]).findings == [], "the control: nothing was done yet"
    tamper(directory)
    found = verify(directory, [head])
    assert any(finding.kind == kind and says in finding.what for finding in found.findings), found.findings


@pytest.mark.parametrize("name", ["the last five lines cut", "all lines from one on written anew"])
def test_control_without_an_anchor_whoever_has_the_file_writes_it_anew(directory: Path, name: str) -> None:
    filled(directory)
    TAMPERING[name][0](directory)
    found = verify(directory, []).findings
    assert all("details" in finding.what for finding in found), "only the details of what was cut are left over"
    known = {line.read(row).seq for row in lines_of(directory).read_bytes().splitlines()}
    edit(details_of(directory), lambda rows: [row for row in rows if line.seq_of_details(row) in known])
    assert verify(directory, []).findings == []


@pytest.mark.parametrize("number", [0, 1, -1])
def test_a_file_of_several_that_is_gone_is_found(directory: Path, number: int) -> None:
    head = filled(directory, rotate_bytes=1000).head
    assert len(pairs(directory)) > 3 and verify(directory, [head]).findings == []
    lines_of(directory, number).unlink()
    assert kinds(verify(directory, [head])) & {"removed", "cut"}


def test_a_log_that_takes_the_place_of_another_is_found(directory: Path) -> None:
    before = filled(directory).head
    shutil.rmtree(directory)
    after = filled(directory).head
    found = verify(directory, [before, after]).findings
    assert [(finding.kind, before.log in finding.what) for finding in found] == [("gone", True)]


def test_details_can_be_deleted_and_the_chain_holds(directory: Path) -> None:
    """The one finding is that no line says so (`test_person.py`)."""
    made = filled(directory)
    edit(details_of(directory), lambda rows: [row for row in rows if b'"n":3' not in row])
    found = verify(directory, [made.head])
    assert kinds(found) == {"removed"} and found.without_details == 1
    made.append([entry(99)])
    details_of(directory).unlink()
    found = verify(directory, [made.head])
    assert kinds(found) == {"removed"} and found.without_details == COUNT + 2


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Head]:
    directory = tmp_path_factory.mktemp("untouched") / "audit"
    made = filled(directory, rotate_bytes=1500)
    assert len(pairs(directory)) > 2
    return directory, made.head


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_single_edit_of_any_file_is_found(untouched: tuple[Path, Head], data: st.DataObject) -> None:
    """Bytes replaced, put in or taken out anywhere, whole lines too."""
    directory, head = untouched
    path = data.draw(st.sampled_from(sorted(p for p in directory.iterdir() if p.name != "lock")))
    before = path.read_bytes()
    ends = [0, *[n + 1 for n, byte in enumerate(before) if byte == 10]]
    place = st.sampled_from(ends) | st.integers(0, len(before))
    begin, end = sorted((data.draw(place), data.draw(place)))
    rows = before.splitlines(keepends=True)
    new = data.draw(st.binary(max_size=4) | st.sampled_from([*rows, b'"', b"\n", b" ", b"0", b"1"]))
    after = before[:begin] + new + before[end:]
    assume(after != before)
    found = Verdict()
    try:
        path.write_bytes(after)
        found = verify(directory, [head])
    finally:
        path.write_bytes(before)
    assert found.findings


# Crashes


@given(cut=st.integers(1, 400), details_too=st.booleans())
@example(cut=1, details_too=False)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_a_crash_left_of_a_line_is_cut_off_and_the_log_goes_on(
    tmp_path_factory: pytest.TempPathFactory, cut: int, details_too: bool
) -> None:
    """A power cut takes bytes off the end: of the line, which is written last, then of the details."""
    directory = tmp_path_factory.mktemp("crash") / "audit"
    filled(directory, 4)
    for path in (lines_of(directory), *([details_of(directory)] if details_too else [])):
        whole = path.read_bytes()
        last = len(whole.splitlines(keepends=True)[-1])
        path.write_bytes(whole[: -min(cut, last - 1)])
    again = Log(directory)
    again.open()
    assert again.head.seq == 4, "the line that was not whole had not been noted"
    again.append([entry(7), entry(8)])
    found = verify(directory, [again.head])
    assert found.findings == [] and found.without_details == 0 and again.head.seq == 6


def test_a_crash_right_after_a_new_file_was_begun(directory: Path) -> None:
    made = filled(directory)
    new = log.pair(directory, made.head.log, made.head.seq + 1)
    new.lines.touch()
    new.details.touch()
    again = Log(directory)
    again.open()
    assert again.head == made.head
    again.append([entry(7)])
    assert verify(directory, [again.head]).findings == [] and len(pairs(directory)) == 2


def test_a_full_disk_leaves_no_half_line_and_the_next_one_is_written(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = filled(directory)
    real, calls = os.write, []

    def short(file: int, what: bytes) -> int:
        calls.append(1)
        if len(calls) == 2:  # the details were written
            real(file, bytes(what[:10]))
            raise OSError(28, "No space left on device")
        return real(file, what)

    monkeypatch.setattr(os, "write", short)
    with pytest.raises(OSError, match="No space"):
        made.append([entry(1)])
    monkeypatch.undo()
    made.append([entry(2)])
    found = verify(directory, [made.head])
    assert found.findings == [] and found.without_details == 0 and made.head.seq == COUNT + 2


def test_a_process_that_is_killed_while_it_writes(directory: Path) -> None:
    filled(directory, 0)
    source = (
        "import sys; from pathlib import Path; from claude_invoker.audit.log import Log; "
        "from claude_invoker.audit.line import Entry\n"
        "made = Log(Path(sys.argv[1])); made.open(); print('ready', flush=True)\n"
        "while True: made.append([Entry('k', 'a', 's', {'x': 'y' * 5000})] * 20)"
    )
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", source, directory], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.15)
            process.kill()
    again = Log(directory)
    again.open()
    again.append([entry(1)])
    found = verify(directory, [again.head])
    assert found.findings == [] and found.without_details == 0 and again.head.seq > 21


def test_several_processes_write_one_log(directory: Path) -> None:
    source = (
        "import sys; from pathlib import Path; from claude_invoker.audit.log import Log; "
        "from claude_invoker.audit.line import Entry\n"
        "made = Log(Path(sys.argv[1]), 10_000); made.open()\n"
        "for _ in range(15): made.append([Entry('k', 'a', 's')] * 2)"
    )
    each = [subprocess.Popen([sys.executable, "-c", source, directory]) for _ in range(3)]
    assert [process.wait(HANG_S) for process in each] == [0, 0, 0]
    again = Log(directory)
    again.open()
    assert again.head.seq == 91 and len(pairs(directory)) > 1
    found = verify(directory, [again.head])
    assert found.findings == [] and found.without_details == 0


def test_details_that_are_too_long_are_left_out(directory: Path) -> None:
    made = filled(directory, 0)
    made.append([Entry("k", "a", "s", {"x": "y" * line.MAX_DETAILS})])
    assert verify(directory, [made.head]).findings == []
    assert details_of(directory).stat().st_size < 1000


# Anchors


@pytest.fixture(params=["file", "redis"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> anchor.Anchor:
    if request.param == "file":
        return FileAnchor(tmp_path / "heads")
    return RedisAnchor(request.getfixturevalue("redis_server").url)


def test_an_anchor_goes_on_with_the_log_and_never_back(
    directory: Path, kept: anchor.Anchor, caplog: pytest.LogCaptureFixture
) -> None:
    made = filled(directory)
    assert anchor.advance(made, [kept]) == []
    made.append([entry(1)])
    assert anchor.advance(made, [kept]) == []
    assert kept.heads()[-1] == (anchor.place_of(directory), made.head) and not caplog.records
    anchored = made.head

    edit(lines_of(directory), lambda rows: rows[:-5])
    details_of(directory).unlink()
    again = Log(directory)
    again.open()
    anchor.advance(again, [kept])
    assert "cut or changed" in caplog.text and kept.heads()[-1][1] == anchored
    for number in range(10):
        again.append([entry(number)])
    anchor.advance(again, [kept])
    assert kept.heads()[-1][1] == anchored, "also where the log is longer than it was"
    heads = anchor.relevant([kept], directory, [again.head.log])
    assert "written anew" in str(verify(directory, heads).findings)


def test_an_anchor_knows_a_log_that_was_thrown_away(
    directory: Path, kept: anchor.Anchor, caplog: pytest.LogCaptureFixture
) -> None:
    anchor.advance(filled(directory), [kept])
    shutil.rmtree(directory)
    new = filled(directory)
    anchor.advance(new, [kept])
    assert "is gone" in caplog.text
    heads = anchor.relevant([kept], directory, [new.head.log])
    assert kinds(verify(directory, heads)) == {"gone"}


def test_two_who_write_one_log_anchor_it_in_turn(
    directory: Path, kept: anchor.Anchor, caplog: pytest.LogCaptureFixture
) -> None:
    one = filled(directory)
    other = Log(directory)
    other.open()
    for _ in range(3):
        for each in (one, other):
            each.append([entry(1)])
            anchor.advance(each, [kept])
        anchor.advance(one, [kept])  # which knows less than was anchored
    assert not caplog.records
    heads = anchor.relevant([kept], directory, [one.head.log])
    assert max(head.seq for head in heads) == other.head.seq and verify(directory, heads).findings == []


# The command


@pytest.fixture
def command(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    for name in list(os.environ):
        if name.startswith("INVOKER_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("INVOKER_AUDIT_DIR", str(directory))
    monkeypatch.setenv("INVOKER_AUDIT_ANCHOR", str(tmp_path / "heads"))

    def run(*arguments: str) -> int:
        return cli.main(["verify", *arguments])

    return run


def test_the_command_finds_what_was_done(
    directory: Path, tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    made = filled(directory)
    anchor.advance(made, [FileAnchor(tmp_path / "heads")])
    assert command() == 0
    printed = capsys.readouterr()
    assert printed.out == "" and "13 lines, 13 of them anchored" in printed.err
    edit(lines_of(directory), lambda rows: rows[:-2])
    details_of(directory).unlink()
    assert command() == 1
    assert capsys.readouterr().out == (
        "removed: the details of lines 1 to 11, and no line says that they were to be deleted\n"
        "cut: the last 2 lines are gone: there were 13\n"
    )
    assert command("--json") == 1
    assert [each["kind"] for each in json.loads(capsys.readouterr().out)["findings"]] == ["removed", "cut"]
    (tmp_path / "empty").touch()
    assert command("--anchor", str(tmp_path / "empty")) == 1, "an anchor that knows nothing proves nothing"
    assert "no anchor knows this log" in capsys.readouterr().out
    assert command("--anchor", str(tmp_path / "none")) == 2 and "is not there" in capsys.readouterr().err
    assert command("--anchor", "redis") == 2 and "INVOKER_REDIS_URL" in capsys.readouterr().err
    shutil.rmtree(directory)
    assert command() == 1
    printed = capsys.readouterr()
    assert "gone" in printed.out and "--dir or INVOKER_AUDIT_DIR" in printed.err


def test_the_command_says_where_an_anchor_is_named(
    directory: Path,
    tmp_path: Path,
    command: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = filled(directory)
    anchor.advance(made, [FileAnchor(tmp_path / "heads")])
    assert command() == 0 and "no anchor was asked" not in capsys.readouterr().err
    monkeypatch.delenv("INVOKER_AUDIT_ANCHOR")
    assert command() == 1, "nobody vouches for its end"
    printed = capsys.readouterr()
    assert printed.out.startswith("cut: no anchor knows this log") and "set INVOKER_REDIS_URL" in printed.err
