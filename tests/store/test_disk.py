"""What goes where there is too much on the disk: pure, and of real sessions and mirrors."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_invoker.cli.contained import Contained
from claude_invoker.cli.tree import Discarded
from claude_invoker.disk import Bounds, Disk, Kept, Kind, excess, subject_digest
from claude_invoker.problem import Problem
from claude_invoker.runs import watch as watching
from claude_invoker.runs.sessions import Sessions
from claude_invoker.runs.watch import Watch
from claude_invoker.workspace.intake import Intake
from claude_invoker.workspace.mirror import Mirror
from tests.support.waiting import HANG_S


def kept(name: str, subject: str | None = "a", used_at: float = 0, size: int = 10, **more: bool) -> Kept:
    return Kept(name, subject, used_at, size, **more)


@pytest.mark.parametrize(
    ("found", "bounds", "gone"),
    [
        ([kept("1"), kept("2", used_at=1)], Bounds(), []),
        ([kept("1"), kept("2", used_at=1)], Bounds(20, 20), []),
        ([kept("2", used_at=1), kept("1")], Bounds(19, 0), ["1"]),
        ([kept("1", in_use=True), kept("2", used_at=1)], Bounds(19, 0), ["2"]),
        ([kept("1", in_use=True), kept("2", in_use=True)], Bounds(1, 1), []),
        ([kept("1"), kept("2", used_at=1, is_spare=True)], Bounds(19, 0), ["2"]),
        ([kept("1"), kept("2", "b", 1)], Bounds(10, 0), []),
        ([kept("1"), kept("2", "b", 1)], Bounds(10, 19), ["1"]),
        ([kept("1", None), kept("2", None, 1)], Bounds(1, 0), []),  # nobody's
        ([kept("1", "b"), kept("2", "a", 1), kept("3", "a", 2)], Bounds(10, 20), ["2"]),  # his own first
    ],
)  # fmt: skip
def test_what_goes(found: list[Kept], bounds: Bounds, gone: list[str]) -> None:
    assert [each.name for each in excess(found, bounds)] == gone


THINGS = st.lists(
    st.builds(
        Kept, st.uuids().map(str), st.sampled_from(["a", "b", None]), st.floats(0, 9), st.integers(0, 50), st.booleans(), st.booleans()
    ),
    max_size=12,
)  # fmt: skip


@given(THINGS, st.builds(Bounds, st.integers(0, 100), st.integers(0, 100)))
def test_the_rest_is_within_the_bounds_or_in_use(found: list[Kept], bounds: Bounds) -> None:
    gone = excess(found, bounds)
    rest = [each for each in found if each not in gone]
    assert len(gone) + len(rest) == len(found) and not any(each.in_use for each in gone)
    of = Counter[str | None]()
    for each in rest:
        of[each.subject] += each.bytes
    for subject, size in of.items():
        idle = [each for each in rest if each.subject == subject and not each.in_use]
        assert subject is None or not bounds.per_subject or size <= bounds.per_subject or not idle
    assert not bounds.in_all or of.total() <= bounds.in_all or all(each.in_use for each in rest)
    if not bounds.per_subject:  # nothing goes that is newer than what stays
        for one in gone:
            younger = [each for each in rest if not each.in_use and each.is_spare >= one.is_spare]
            assert all(each.used_at >= one.used_at for each in younger if each.is_spare == one.is_spare)


class Folder:
    """Sessions of a directory, of 100,000 bytes each."""

    def __init__(self, at: Path) -> None:
        for part in ("trees", "records", "discarded"):
            (at / part).mkdir(parents=True)
        self.sessions = Sessions(at / "trees", at / "records", Discarded(at / "discarded"), 3600)

    def begun(self, subject: str, age_s: float) -> str:
        with self.sessions.hold(subject, "new") as session:
            (session.tree.root / "file").write_bytes(os.urandom(100_000))
        os.utime(self.sessions._records / session.name, (time.time() - age_s, time.time() - age_s))
        return session.id

    def has(self, subject: str, session: str) -> bool:
        try:
            with self.sessions.hold(subject, session):
                return True
        except Problem:
            return False

    async def kept(self) -> list[Kept]:
        return self.sessions.kept()

    async def drop(self, name: str) -> bool:
        return self.sessions.drop(name)


async def test_a_subjects_oldest_sessions_go_and_nobody_elses_and_none_that_has_a_run(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    of_bob = folder.begun("bob", 500)
    held, old, new = (folder.begun("alice", age) for age in (400, 300, 200))
    disk = Disk({"sessions": folder}, {"sessions": Bounds(250_000, 0)}, 0, ())
    with folder.sessions.hold("alice", held):
        await disk.clear()
    assert [folder.has("alice", each) for each in (held, old, new)] == [True, False, True]
    assert folder.has("bob", of_bob)
    assert disk.used["sessions"] == sum(each.bytes for each in folder.sessions.kept()) < 350_000


async def test_who_has_too_much_in_use_is_refused_and_nobody_else(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    held = folder.begun("alice", 0)
    disk = Disk({"sessions": folder}, {"sessions": Bounds(50_000, 0)}, 0, ())
    await disk.clear()
    assert not folder.has("alice", held), "the control: what nobody uses goes"
    held = folder.begun("alice", 0)
    folder.sessions.kept()
    with folder.sessions.hold("alice", held):
        await disk.clear()
        with pytest.raises(Problem) as refused:
            disk.refuse("alice")
        assert (refused.value.status, refused.value.extra["limit"]) == (507, "sessions_per_subject")
        assert refused.value.extra["setting"] == "INVOKER_SESSIONS_PER_SUBJECT"
        disk.refuse("bob")


async def test_a_size_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session of 200,000 files takes a second to count."""
    folder = Folder(tmp_path)
    session = folder.begun("alice", 100)
    (before,) = folder.sessions.kept()
    with monkeypatch.context() as patched:
        patched.setattr("claude_invoker.cli.usage.files", None)
        assert folder.sessions.kept() == [before]
    with folder.sessions.hold("alice", session) as held:
        (held.tree.root / "more").write_bytes(os.urandom(100_000))
    (after,) = folder.sessions.kept()
    assert after.bytes - before.bytes >= 100_000 and after.subject == before.subject == subject_digest("alice")


async def test_what_is_never_deleted_is_told(tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "log").write_bytes(os.urandom(100_000))
    disk = Disk({}, {}, 0, (), {"audit": tmp_path / "audit", "journal": tmp_path / "none"})
    await disk.clear()
    assert 100_000 <= disk.used["audit"] < 110_000 and disk.used["journal"] == 0
    assert (tmp_path / "audit" / "log").exists()


@pytest.mark.parametrize("kind", ["audit", "journal"])
async def test_books_that_are_too_long_refuse_runs_and_lose_nothing(tmp_path: Path, kind: Kind) -> None:
    (tmp_path / "log").write_bytes(os.urandom(100_000))
    for bound, limit in ((0, ""), (200_000, ""), (50_000, f"{kind}_in_all")):
        disk = Disk({}, {kind: Bounds(0, bound)}, 0, (), {kind: tmp_path})
        await disk.clear()
        if not limit:
            disk.refuse("alice")
            continue
        with pytest.raises(Problem) as found:
            disk.refuse("alice")
        assert (found.value.status, found.value.extra["limit"]) == (507, limit)
        assert found.value.extra["setting"] == f"INVOKER_{limit.upper()}" and "50000 bytes" in found.value.detail
    assert (tmp_path / "log").exists()


async def test_what_is_made_for_who_is_gone_by_then_holds_no_room(tmp_path: Path) -> None:
    """A client that leaves while its directory is made: else it would hold what it was to send for six hours."""
    begun, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def room(size: int) -> None:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait(HANG_S)

    intake = Intake(tmp_path / "intake", Bounds(100, 100), room)
    intake.open()
    making = asyncio.create_task(intake.made("alice", 100))
    await begun.wait()
    making.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert list((tmp_path / "intake").iterdir()) == []
    assert (await intake.made("alice", 100)).is_dir()


@pytest.mark.parametrize(
    ("subject", "size", "limit"),
    [
        ("alice", 40, ""),
        ("alice", 41, "trees_per_subject"),
        ("bob", 30, ""),
        ("bob", 71, "trees_per_subject"),
        ("carol", 40, ""),
        ("carol", 61, "trees_in_all"),
    ],
)
def test_what_comes_counts_by_what_it_may_become(tmp_path: Path, subject: str, size: int, limit: str) -> None:
    asked: list[int] = []
    intake = Intake(tmp_path / "intake", Bounds(70, 100), asked.append)
    intake.open()
    gone = intake.make("alice", 70)
    intake.delete(gone)
    made = [intake.make("alice", 30), intake.make("bob", 10)]
    if not limit:
        assert intake.make(subject, size).is_dir() and asked[-1] == 40 + size
        return
    with pytest.raises(Problem) as refused:
        intake.make(subject, size)
    assert (refused.value.status, (refused.value.extra or {})["limit"]) == (507, limit)
    assert sorted(made) == sorted((tmp_path / "intake").iterdir())


def test_a_mirror_goes_unless_somebody_has_just_asked_for_it(tmp_path: Path) -> None:
    mirror = Mirror(tmp_path / "m.git", None)
    mirror.path.mkdir()
    for name in ("m.lock", "m.fetched"):
        (tmp_path / name).touch()
    assert not mirror.drop() and mirror.path.exists()
    os.utime(tmp_path / "m.lock", (0, 0))
    assert mirror.drop() and not mirror.path.exists() and mirror.fetched_at == 0


@pytest.mark.parametrize(
    ("bounds", "ended"),
    [
        (Bounds(), []),
        (Bounds(60, 100), []),
        (Bounds(59, 0), ["alice's large one"]),
        (Bounds(15, 0), ["alice's large one", "alice's small one"]),
        (Bounds(0, 85), ["alice's large one"]),
        (Bounds(0, 45), ["alice's large one", "bob's"]),
    ],
)
def test_of_runs_that_have_too_much_together_the_largest_ends(bounds: Bounds, ended: list[str]) -> None:
    said: list[str] = []
    watch = Watch(watching.Bounds(), lambda: False, bounds)
    process = cast(Contained, None)
    for name, size in (("alice's large one", 40), ("alice's small one", 20), ("bob's", 30)):

        def exceeded(problem: Problem, name: str = name) -> None:
            assert problem.status == 422 and problem.extra["limit"].startswith("trees_")
            said.append(name)

        watched = watching._Watched(process, exceeded, name.split("'")[0], {"tree": size})
        watch._watched.append(watched)
    watch._judge_together("alice")
    assert said == ended
