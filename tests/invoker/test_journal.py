"""What runs have cost is written down before it is known to anybody else, and read again however it was left."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_invoker.metering import journal as module
from claude_invoker.metering.journal import CannotWrite, Entry, Journal, read
from tests.support.waiting import HANG_S

CENT = Decimal("0.01")


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    found = os.open(tmp_path, os.O_RDONLY)
    yield found
    os.close(found)


def opened(directory: int) -> Journal:
    journal = Journal(directory)
    journal.open()
    return journal


def killed(journal: Journal) -> None:
    """As a killed proxy leaves it: the lock is gone, the file stays."""
    os.close(journal._file)


def test_what_a_killed_proxy_left_is_the_next_ones(directory: int, tmp_path: Path) -> None:
    first = opened(directory)
    for run in "abc":
        first.begin(run, f"lease-{run}")
        first.send(run, CENT)
    first.note("a", 1, CENT / 4)
    first.note("a", 1, CENT / 2)
    assert first.send("a", 3 * CENT) == 2
    first.booked("b")
    second = opened(directory)
    second.adopt()
    assert second.entries == {}, "the first one lives"
    killed(first)
    second.adopt()
    left = {"a": Entry("lease-a", {1: CENT / 2, 2: 3 * CENT}), "c": Entry("lease-c", {1: CENT})}
    assert second.entries == left
    assert (left["a"].micro_usd, left["a"].next_number) == (35_000, 3)
    killed(second)
    third = opened(directory)
    third.adopt()
    assert third.entries == left, "taken over twice it is the same"
    assert third.begin("a", "lease-a") is third.entries["a"], "a run that goes on goes on"
    third.booked("a")
    third.booked("c")
    third.close()
    assert list(tmp_path.iterdir()) == []


def test_what_the_release_before_left_is_read(directory: int, tmp_path: Path) -> None:
    lines = [
        b'{"v":1,"run":"a","lease":"lease-a","micro_usd":5}',
        b'{"v":1,"run":"b","lease":"lease-b","micro_usd":7}',
        b'{"v":1,"run":"a","lease":"lease-a","micro_usd":9}',
        b'{"v":1,"run":"b","booked":true}',
        b'{"v":9,"run":"c","lease":"lease-c","micro_usd":9}',
    ]
    (tmp_path / "old.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    journal = opened(directory)
    journal.adopt()
    assert [(run, entry.lease, entry.micro_usd) for run, entry in journal.entries.items()] == [("a", "lease-a", 9)]
    journal.close()


def test_a_link_in_the_directory_is_not_followed(directory: int, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b'{"v":2,"run":"a","lease":"lease-a"}\n')
    (tmp_path / "link.jsonl").symlink_to(elsewhere)
    journal = opened(directory)
    journal.adopt()
    assert journal.entries == {} and elsewhere.exists()
    killed(journal)


@given(st.data())
def test_a_file_that_was_cut_off_anywhere_is_read_as_far_as_it_goes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    directory = os.open(folder, os.O_RDONLY)
    journal = opened(directory)
    states = [""]
    for _ in range(data.draw(st.integers(1, 8))):
        run = data.draw(st.sampled_from("abc"))
        kind = data.draw(st.sampled_from(("begin", "send", "note", "booked")))
        if kind == "begin":
            journal.begin(run, f"lease {run}")
        elif run not in journal.entries:
            continue
        elif kind == "send":
            journal.send(run, Decimal(data.draw(st.integers(1, 10**9))) / 10**8)
        elif kind == "note" and (sent := list(journal.entries[run].requests)):
            journal.note(run, data.draw(st.sampled_from(sent)), Decimal(data.draw(st.integers(0, 10**9))) / 10**9)
        elif kind == "booked":
            journal.booked(run)
        if journal._written == len(states):
            states.append(repr(journal.entries))
    killed(journal)
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    states[0] = "{}"
    assert repr(read(cut)) == states[cut.count(b"\n") + (cut[-1:] == b"}")]
    os.close(directory)


async def test_a_file_does_not_grow_for_ever(directory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there is always a run."""
    monkeypatch.setattr(module, "_COMPACT_BYTES", 2_000)
    journal = opened(directory)
    journal.begin("long", "lease")
    number = journal.send("long", CENT)
    for count in range(300):
        journal.begin(str(count), "lease")
        journal.note("long", number, CENT * count)
        journal.booked(str(count))
        await journal.commit()
    assert os.fstat(journal._file).st_size < 5_000
    other = opened(directory)
    other.adopt()
    assert other.entries == {}, "the new file is locked as the old one was"
    killed(journal)
    other.adopt()
    assert other.entries == {"long": Entry("lease", {1: CENT * 299})}
    killed(other)


async def test_answers_at_the_same_time_share_a_commit(directory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = opened(directory)
    journal.begin("run", "lease")
    synced: list[int] = []
    real = os.fdatasync

    def sync(file: int) -> None:
        synced.append(file)
        real(file)

    monkeypatch.setattr(os, "fdatasync", sync)

    async def answer() -> None:
        journal.note("run", journal.send("run", CENT), CENT / 3)
        await journal.commit()
        assert journal._synced == journal._written

    await asyncio.gather(*(answer() for _ in range(50)))
    assert 1 <= len(synced) <= 3
    killed(journal)


async def test_who_does_not_wait_for_the_disk_shares_a_commit(directory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fdatasync

    def sync(file: int) -> None:
        synced.append(os.fstat(file).st_size)
        real(file)

    monkeypatch.setattr(os, "fdatasync", sync)
    monkeypatch.setattr(module, "_SOON_S", 0.2)
    journal = opened(directory)
    for number in range(3):
        journal.begin(f"run-{number}", None)
        journal.commit_soon()
        await asyncio.sleep(0)
    async with asyncio.timeout(HANG_S):
        while journal._synced < journal._written:
            await asyncio.sleep(0.01)
    assert synced == [os.fstat(journal._file).st_size]
    killed(journal)


def test_what_cannot_be_written_is_not_sent(directory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full in the middle of a line leaves the file as it was."""
    journal = opened(directory)
    journal.begin("run", "lease")
    journal.send("run", CENT)
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, bytes(data)[:9]) if len(data) > 9 else full())
    with pytest.raises(CannotWrite):
        journal.send("run", CENT)
    with pytest.raises(CannotWrite):
        journal.begin("other", "lease")
    monkeypatch.undo()
    journal.note("run", 1, CENT / 2)
    killed(journal)
    next_one = opened(directory)
    next_one.adopt()
    assert next_one.entries == {"run": Entry("lease", {1: CENT / 2})}
    killed(next_one)


def full() -> int:
    raise OSError(28, "No space left on device")
