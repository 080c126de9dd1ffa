"""Walking through hostile trees: what is deleted, handed over and seen, and that nothing outside is."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claude_invoker.cli.tree import Discarded
from claude_invoker.cli.walk import Bounds, TooMuch, delete, give, take_back, walk
from claude_invoker.runs import artifacts
from tests.invoker.conftest import as_root, wait_for

WIDE = Bounds(10**6, 10**6)
NAMES = st.sampled_from(["a", "b", "\udcff", "x\ny", "‮", "-rf", "…", "work"])
KINDS = st.sampled_from(["file", "closed file", "link out", "link up", "dangling", "fifo", "hard in", "hard out"])
TREES = st.recursive(
    KINDS, lambda inner: st.dictionaries(NAMES, inner, max_size=4).map(lambda entries: ("d", entries)), max_leaves=25
)


def build(at: Path, shape: object, outside: Path) -> None:
    match shape:
        case ("d", dict(entries)):
            at.mkdir()
            for name, inner in entries.items():
                build(at / name, inner, outside)
            at.chmod(0 if len(entries) % 2 else 0o755)
        case "file":
            at.write_text("x")
        case "closed file":
            at.write_text("x")
            at.chmod(0)
        case "link out":
            at.symlink_to(outside)
        case "link up":
            at.symlink_to("..")
        case "dangling":
            at.symlink_to("nowhere")
        case "fifo":
            os.mkfifo(at)
        case "hard in":
            at.write_text("x")
            at.with_name("twin").unlink(missing_ok=True)
            at.with_name("twin").hardlink_to(at)
        case "hard out":
            at.hardlink_to(outside / "kept")


def facts(path: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.lstat().st_uid, p.lstat().st_mode) for p in [path, *path.rglob("*")]}


@given(st.dictionaries(NAMES, TREES, max_size=4))
@settings(max_examples=60, deadline=None)
def test_any_tree_goes_and_nothing_else(entries: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        outside = folder / "outside"
        outside.mkdir()
        (outside / "kept").write_text("kept")
        before = facts(outside)
        build(folder / "tree", ("d", entries), outside)
        if os.geteuid() == 0:
            give(folder / "tree", 64_321, WIDE)
            mine = [entry for entry in walk(folder / "tree", WIDE) if entry.status.st_uid != 64_321]
            assert all(entry.status.st_nlink > 1 for entry in mine), "only what is linked from outside stays"
            assert facts(outside) == before, "and that belongs to whom it belonged"
            take_back(folder / "tree", 64_321, WIDE)
            assert all(entry.status.st_uid == 0 for entry in walk(folder / "tree", WIDE))
            assert (folder / "tree").stat().st_mode & 0o777 == 0o700
        delete(folder / "tree")
        assert facts(outside) == before
        assert [path.name for path in folder.iterdir()] == ["outside"]


@pytest.mark.parametrize("depth", [10, 3_000])
def test_depth_is_no_matter(tmp_path: Path, depth: int) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    opened = len(os.listdir("/proc/self/fd"))
    seen = 0
    for _ in walk(tmp_path / "d", Bounds(depth, depth)):
        seen += 1
        assert len(os.listdir("/proc/self/fd")) <= opened + 4 or seen % 100
    assert seen == depth - 1
    delete(tmp_path / "d")
    assert list(tmp_path.iterdir()) == []


def test_the_control_of_that(tmp_path: Path) -> None:
    """Python's own walk cannot do it here (from 3.13 on it wants a descriptor for each level)."""
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(3_000):
        os.mkdir("d", dir_fd=here)
        here = os.open("d", os.O_RDONLY, dir_fd=here)
    os.closerange(here - 2_999, here + 1)
    with pytest.raises((RecursionError, OSError)):
        shutil.rmtree(tmp_path / "d")
    delete(tmp_path / "d")


def test_several_may_delete_the_same(tmp_path: Path) -> None:
    """Two steps of a sweep did, and what the first had taken was the second's failure, which left a run's files in the
    store."""
    with ThreadPoolExecutor(4) as pool:
        for number in range(50):
            for name in ("a/b", "a/c", "d"):
                (tmp_path / "t" / name).mkdir(parents=True)
                (tmp_path / "t" / name / "x").write_text("x")
            together = threading.Barrier(4)

            def delete_it(together: threading.Barrier = together) -> None:
                together.wait()
                delete(tmp_path / "t")

            for each in [pool.submit(delete_it) for _ in range(4)]:
                each.result()
            assert list(tmp_path.iterdir()) == [], number


def test_more_subdirectories_than_one_batch(tmp_path: Path) -> None:
    for number in range(1_200):
        (tmp_path / "t" / f"{number}" / "x").mkdir(parents=True)
    delete(tmp_path / "t")
    assert list(tmp_path.iterdir()) == []


def test_bounds(tmp_path: Path) -> None:
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    assert {entry.path for entry in walk(tmp_path, Bounds(3, 3))} == {"a", "a/b", "a/b/c"}
    with pytest.raises(TooMuch, match="2 directories deep"):
        list(walk(tmp_path, Bounds(2, 3)))
    with pytest.raises(TooMuch, match="more than 2 entries"):
        list(walk(tmp_path, Bounds(3, 2)))


def test_artifacts_of_a_tree_that_is_too_large_are_those_in_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "_WALK", Bounds(2, 50))
    (tmp_path / "work" / "a" / "b" / "c").mkdir(parents=True)
    for number in range(20):
        (tmp_path / "work" / f"{number}.txt").write_text("x")
    collected = artifacts.collect(tmp_path / "work", {}, tmp_path / "kept", artifacts.Bounds(1000, 100))
    found = collected.kept
    assert [left.path for left in collected.left_out] == [""], "what lies too deep"
    assert "2 directories deep" in collected.left_out[0].reason
    assert {artifact.path for artifact in found} <= {f"{number}.txt" for number in range(20)}
    assert all((tmp_path / "kept" / artifact.path).exists() for artifact in found)
    assert artifacts.survey(tmp_path / "work").keys() <= {f"{number}.txt" for number in range(20)}


@as_root
def test_a_moved_directory_is_noticed(tmp_path: Path) -> None:
    """Somebody who still works in the tree moves the directory in which a walk stands to somewhere else."""
    (tmp_path / "tree" / "a" / "b").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(OSError, match="moved"):
        for entry in walk(tmp_path / "tree", WIDE):
            if entry.name == "b":
                (tmp_path / "tree" / "a").rename(tmp_path / "elsewhere" / "a")
    assert (tmp_path / "elsewhere" / "a" / "b").exists()


def test_a_deletion_that_is_not_wanted_any_more(tmp_path: Path) -> None:
    (tmp_path / "t" / "a").mkdir(parents=True)
    with pytest.raises(InterruptedError):
        delete(tmp_path / "t", lambda: False)
    assert (tmp_path / "t").exists()


def test_two_may_delete_the_same(tmp_path: Path) -> None:
    """As invokers that share a state directory do."""
    (tmp_path / "discarded").mkdir()
    for attempt in range(5):
        tree = tmp_path / "discarded" / f"t{attempt}"
        for number in range(200):
            (tree / f"{number % 7}" / f"{number}" / "x").mkdir(parents=True)
        both = [Discarded(tmp_path / "discarded") for _ in range(2)]
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(Discarded.empty, both))
        assert list((tmp_path / "discarded").iterdir()) == []
        assert [found.stuck for found in both] == [{}, {}]


@as_root
def test_nobody_else_can_go_on_filling_what_is_deleted(tmp_path: Path) -> None:
    """A run may open its directories to another, which is inside when the first one ends."""
    tree = Path(tempfile.mkdtemp(prefix="walk-"))
    inner = tree / "work" / "inner"
    inner.mkdir(parents=True)
    for path in (tree, tree / "work", inner):
        os.chown(path, 239_701, 239_701)
        path.chmod(0o777)
    filling = "n=0; while :; do n=$((n+1)); mkdir $n 2>/dev/null && : > $n/f || : ; [ $n -ge 3 ] && [ ! -e ../up ] && : > ../up; done"
    other = subprocess.Popen(["/bin/sh", "-c", filling], cwd=inner, user=239_702, group=239_702, extra_groups=())
    try:
        wait_for(lambda: (tree / "work" / "up").exists(), what="the other run")
        for _ in range(3):  # what it makes until its directory is closed may be in the way of the first
            with contextlib.suppress(OSError):
                delete(tree)
        assert not tree.exists()
    finally:
        other.kill()
        other.wait()
        shutil.rmtree(tree, ignore_errors=True)


@as_root
def test_the_owner_may_have_closed_his_directories_to_himself() -> None:
    """As Go's module cache is: readable, not writable. Who is not root could not remove what is in it."""
    folder = Path(tempfile.mkdtemp(prefix="walk-"))
    folder.chmod(0o777)
    child = os.fork()
    if not child:  # an invoker that is not root
        status = 1
        try:
            os.setgroups([])
            os.setresgid(239_703, 239_703, 239_703)
            os.setresuid(239_703, 239_703, 239_703)
            inner = folder / "tree" / "a" / "b"
            inner.mkdir(parents=True)
            (inner / "f").write_text("x")
            inner.chmod(0o555)
            inner.parent.chmod(0o555)
            delete(folder / "tree")
            status = int((folder / "tree").exists())
        finally:
            os._exit(status)
    try:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        shutil.rmtree(folder)
