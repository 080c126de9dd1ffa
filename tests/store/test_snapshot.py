"""A session's tree as objects: whatever is in it comes back, only what changed is moved, nothing leads out of it."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claude_invoker.cli import walk
from claude_invoker.cli.tree import Tree
from claude_invoker.runs import snapshot
from claude_invoker.runs.snapshot import PIECE, Entry, Manifest, Piece, Unusable
from tests.invoker.conftest import as_root
from tests.support.waiting import HANG_S


class Bucket:
    """Packs by name, and how much of them was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.fetched = folder, 0

    def save(self, tree: Tree, before: Manifest | None, name: str) -> Manifest:
        found = snapshot.save(tree, before, self.folder / name, name)
        return snapshot.decode(snapshot.encode(found))

    def restore(self, tree: Tree, wanted: Manifest, have: Manifest | None) -> None:
        for fetch in snapshot.prepare(tree, wanted, have):
            content = (self.folder / fetch.pack).read_bytes()[fetch.start : fetch.end]
            self.fetched += len(content)
            snapshot.place(fetch, content)
        snapshot.finish(tree, wanted)


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    (tmp_path / "packs").mkdir()
    return Bucket(tmp_path / "packs")


def tree_of(folder: Path, files: dict[str, bytes | str | None] | None = None) -> Tree:
    """bytes: a file, None: a directory, text: a link."""
    tree = Tree(folder)
    for part in snapshot.PARTS:
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name, content in (files or {}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir(exist_ok=True)
        elif isinstance(content, str):
            path.symlink_to(content)
        else:
            path.write_bytes(content)
    return tree


def seen(tree: Tree) -> dict[str, object]:
    found: dict[str, object] = {}
    for part in snapshot.PARTS:
        for path in (tree.root / part).rglob("*"):
            name = str(path.relative_to(tree.root))
            if path.is_symlink():
                found[name] = str(path.readlink())
            elif path.is_dir():
                found[name] = None
            else:
                found[name] = path.read_bytes(), path.stat().st_mode & 0o777, path.stat().st_mtime_ns
    return found


def test_all_comes_back_and_only_what_changed_is_moved(tmp_path: Path, bucket: Bucket) -> None:
    large = os.urandom(3 * PIECE + 5)
    one = tree_of(
        tmp_path / "one",
        {
            "work/a.txt": b"a", "work/deep/er/b.bin": large, "work/empty": b"", "work/dir": None, "work/link": "/etc/passwd",
            "work/ü\n": b"x", "config/projects/p/t.jsonl": large[:100], "config/settings.json": b"not kept", "home/x": b"nor this",
        },
    )  # fmt: skip
    (one.root / "work" / "a.txt").chmod(0o755)
    first = bucket.save(one, None, "1")
    other = tree_of(tmp_path / "other", {"work/old": b"goes", "work/dir": b"a file in its place"})
    bucket.restore(other, first, None)
    assert seen(other) == seen(one) and not (other.root / "home").exists()
    assert bucket.fetched >= len(large)
    # A turn later: a file that grew, one that is gone, one that became a directory.
    with (other.root / "work/deep/er/b.bin").open("ab") as grown:
        grown.write(b"more")
    (other.root / "work/a.txt").unlink()
    (other.root / "work/empty").unlink()
    (other.root / "work/empty").mkdir()
    second = bucket.save(other, first, "2")
    assert (bucket.folder / "2").stat().st_size == 9, "the last piece of what grew"
    bucket.fetched = 0
    bucket.restore(one, second, first)
    assert seen(one) == seen(other) and bucket.fetched == 9
    third = bucket.save(one, second, "3")
    assert (bucket.folder / "3").stat().st_size == 0 and third.packs == second.packs


def test_packs_that_nothing_needs_are_left_out_and_many_are_packed_anew(tmp_path: Path, bucket: Bucket) -> None:
    tree, now = tree_of(tmp_path / "t"), None
    for number in range(60):
        (tree.root / "work" / f"{number % 40}").write_bytes(b"%d" % number * 1000)
        now = bucket.save(tree, now, f"{number}")
        assert len(now.packs) <= snapshot._MOST_PACKS
    assert now is not None
    other = tree_of(tmp_path / "other")
    bucket.restore(other, now, None)
    assert seen(other) == seen(tree)
    for path in (tree.root / "work").iterdir():
        path.unlink()
    assert bucket.save(tree, now, "last").packs == ()


NAMES = st.text("ab", min_size=1, max_size=2)
TREES = st.dictionaries(st.tuples(NAMES, NAMES), st.binary(max_size=20), max_size=6)


@given(TREES, TREES, TREES)
@settings(max_examples=40, deadline=None)
def test_from_any_tree_to_any_other(
    tmp_path_factory: pytest.TempPathFactory, a: dict[tuple[str, str], bytes], b: dict[tuple[str, str], bytes], c: dict[tuple[str, str], bytes]
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("trees")
    (folder / "packs").mkdir()
    bucket = Bucket(folder / "packs")
    trees = [
        tree_of(folder / str(number), {f"work/{x}/{y}": content for (x, y), content in files.items()})
        for number, files in enumerate((a, b, c))
    ]
    before: Manifest | None = None
    at = tree_of(folder / "at")
    for number, tree in enumerate(trees):
        manifest = bucket.save(tree, before, str(number))
        bucket.restore(at, manifest, before)
        assert seen(at) == seen(tree)
        before = manifest


@pytest.mark.parametrize(
    "entry",
    [
        Entry(b"../x", "f", 0o600, 0), Entry(b"work/../../x", "f", 0o600, 0), Entry(b"/etc/x", "f", 0o600, 0),
        Entry(b"work/a/x", "f", 0o600, 0), Entry(b"home/x", "f", 0o600, 0), Entry(b"work/", "d", 0o700, 0),
        Entry(b"work/x\0", "f", 0o600, 0), Entry(b"work/x", "p", 0o600, 0), Entry(b"work", "l", 0, 0, target=b"/etc"),
        Entry(b"work/x", "f", 0o600, 0, 1, (Piece(b"", 3, 0, 1),)), Entry(b"work/x", "f", 0o600, 0, 1, (Piece(b"", 0, -1, 1),)),
    ],
)  # fmt: skip
def test_a_manifest_that_leads_out_of_the_tree_is_refused(tmp_path: Path, entry: Entry) -> None:
    tree = tree_of(tmp_path / "t")
    link = Entry(b"work/a", "l", 0o777, 0, target=b"/tmp")
    with pytest.raises(Unusable):
        snapshot.prepare(tree, Manifest("/t", (link, entry), (("p", 1),)), None)
    snapshot.prepare(tree, Manifest("/t", (link,), (("p", 1),)), None)  # the control


def test_what_is_no_manifest_is_refused() -> None:
    for wrong in (b"", b"\xc1", msgspec.msgpack.encode({"v": 1}), msgspec.msgpack.encode([1])):
        with pytest.raises(Unusable):
            snapshot.decode(wrong)


def test_a_tree_elsewhere_is_one_that_the_cli_finds(tmp_path: Path, bucket: Bucket) -> None:
    one = tree_of(tmp_path / "one")
    project = snapshot._project(one.work)
    assert project == "".join(c if c.isalnum() else "-" for c in str(one.work))
    (one.transcripts / project).mkdir()
    (one.transcripts / project / "id.jsonl").write_text(f'{{"cwd": "{one.work}"}}\n')
    manifest = bucket.save(one, None, "1")
    other = tree_of(tmp_path / "other")
    bucket.restore(other, manifest, None)
    assert snapshot.settle(other, manifest)
    assert (
        other.transcripts / snapshot._project(other.work) / "id.jsonl"
    ).read_text() == f'{{"cwd": "{other.work}"}}\n'
    assert not snapshot.settle(one, manifest)


OUTSIDE = {"projects/p/theirs.jsonl": b"theirs", "theirs": b"theirs"}


@as_root
@pytest.mark.parametrize("defended", [True, False])
def test_nothing_comes_back_that_gives_rights_or_is_no_file(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, defended: bool
) -> None:
    """As root writes it where the next turn lands."""
    if not defended:
        monkeypatch.setattr(snapshot, "_MODES", 0o7777)
    tree = tree_of(tmp_path / "t", {"work/suid": b"#!", "work/d": None, "work/f": b"1"})
    (tree.work / "suid").chmod(0o6755)
    (tree.work / "d").chmod(0o3777)
    os.link(tree.work / "f", tree.work / "hard")
    os.mkfifo(tree.work / "pipe")
    os.mknod(tree.work / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tree.work / "s"))
    other = tree_of(tmp_path / "other")
    bucket.restore(other, bucket.save(tree, None, "1"), None)
    assert {path.name for path in other.work.iterdir()} == {"suid", "d", "f", "hard"}
    found = {path.name: path.lstat() for path in other.work.iterdir()}
    special = [name for name, status in found.items() if stat.S_IMODE(status.st_mode) & 0o7000]
    assert sorted(special) == ([] if defended else ["d", "suid"])
    assert [found[name].st_nlink for name in ("f", "hard", "suid")] == [1, 1, 1]


def test_a_pipe_that_a_run_has_left_holds_up_nobody_who_writes_a_file_in_its_place(
    tmp_path: Path, bucket: Bucket
) -> None:
    """One turn leaves a pipe here, the next one a file of that name elsewhere, the third is here again: to open a pipe for
    writing, as root, would wait for ever."""
    here, there = tree_of(tmp_path / "here", {"work/f": b"1"}), tree_of(tmp_path / "there")
    os.mkfifo(here.work / "x")
    first = bucket.save(here, None, "1")
    assert not (here.work / "x").exists()
    bucket.restore(there, first, None)
    (there.work / "x").write_bytes(b"a file")
    second = bucket.save(there, first, "2")
    os.mkfifo(here.work / "x")  # however it came to be there
    restoring = threading.Thread(target=lambda: bucket.restore(here, second, first), daemon=True)
    restoring.start()
    restoring.join(HANG_S)
    assert not restoring.is_alive() and seen(here) == seen(there)


def test_two_names_of_one_file_are_two_files_where_one_of_them_has_changed(tmp_path: Path, bucket: Bucket) -> None:
    here, there = tree_of(tmp_path / "here", {"work/a": b"before"}), tree_of(tmp_path / "there")
    os.link(here.work / "a", here.work / "b")
    first = bucket.save(here, None, "1")
    bucket.restore(there, first, None)
    (there.work / "a").write_bytes(b"after!")
    (there.work / "b").chmod(0o600)
    second = bucket.save(there, first, "2")
    bucket.restore(here, second, first)
    assert seen(here) == seen(there) and (here.work / "b").read_bytes() == b"before"


@given(st.lists(st.sampled_from([b"/old/root", b"/old/roo", b"/old", b"t", b"x" * 5]), max_size=30), st.integers(1, 12))
@settings(max_examples=80, deadline=None)
def test_paths_are_renamed_wherever_pieces_end(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], piece: int
) -> None:
    folder, content = tmp_path_factory.mktemp("renamed"), b"".join(parts)
    (folder / "f").write_bytes(content)
    (folder / "f").chmod(0o640)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(snapshot, "PIECE", piece)
        snapshot._rename_within(folder / "f", b"/old/root", b"/new", folder / "made")
    assert (folder / "f").read_bytes() == content.replace(b"/old/root", b"/new")
    assert (folder / "f").stat().st_mode & 0o777 == 0o640 and not (folder / "made").exists()


@pytest.fixture(params=["defended", "control"])
def defended(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether links in the place of directories are removed. Where not, the attacks below succeed."""
    if request.param == "control":
        monkeypatch.setattr(Tree, "straighten", lambda self: None)
    return bool(request.param == "defended")


def with_a_link(folder: Path, part: str) -> tuple[Tree, Path]:
    """A tree of which a run has replaced a directory by a link to somebody else's."""
    outside = tree_of(folder / "outside", dict(OUTSIDE)).root
    tree = tree_of(folder / "tree", {"work/mine": b"mine"})
    (tree.root / part).rename(folder / "gone")
    (tree.root / part).symlink_to(outside)
    return tree, outside


def test_a_link_in_the_place_of_a_directory_brings_nobody_elses_files(
    tmp_path: Path, bucket: Bucket, defended: bool
) -> None:
    tree, _ = with_a_link(tmp_path, "config")
    saved = bucket.save(tree, None, "1")
    assert any(b"theirs" in entry.path for entry in saved.entries) is not defended


@pytest.mark.parametrize("part", ["work", "config"])
def test_nothing_is_written_where_a_link_leads(tmp_path: Path, bucket: Bucket, defended: bool, part: str) -> None:
    """Its next turn was elsewhere, and what that has left comes here as root writes it."""
    tree, outside = with_a_link(tmp_path, part)
    have = bucket.save(tree, None, "1")
    kept = seen(Tree(outside))
    later = tree_of(tmp_path / "later", {"work/new": b"new", "config/projects/q/new.jsonl": b"new"})
    wanted = bucket.save(later, have, "2")
    bucket.restore(tree, wanted, have)
    written = any(path.name.startswith("new") for path in outside.rglob("*"))
    assert written is not defended
    if defended:
        assert (seen(Tree(outside)), seen(tree)) == (kept, seen(later))


def test_holes_come_back_as_holes(tmp_path: Path, bucket: Bucket) -> None:
    """A file of 64 MiB that takes 4 KiB is one of 64 MiB that takes 4 KiB: else a pack of a megabyte fills a disk."""
    tree = tree_of(tmp_path / "t")
    sparse, size = tree.work / "sparse", 64 << 20
    with sparse.open("wb") as file:
        file.write(b"begin")
        file.truncate(size)
    first = bucket.save(tree, None, "1")
    other = tree_of(tmp_path / "other")
    bucket.restore(other, first, None)
    restored = other.work / "sparse"
    assert restored.stat().st_size == size and restored.read_bytes() == sparse.read_bytes()
    assert restored.stat().st_blocks * 512 <= 2 * PIECE < size
    # What was written and is nothing again is nothing again there, too.
    with sparse.open("r+b") as file:
        file.write(bytes(5))
    second = bucket.save(tree, first, "2")
    bucket.restore(other, second, first)
    assert seen(other) == seen(tree)


def deep(tree: Tree, levels: int) -> None:
    """Directories of long names in each other, by descriptor: their path is longer than any call takes."""
    at = os.open(tree.work, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d" * 255, dir_fd=at)
        below = os.open("d" * 255, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)


def test_a_path_that_nobody_could_make_again_is_too_much(tmp_path: Path, bucket: Bucket) -> None:
    """It could be saved and never restored: the session was 503 at every other invoker, for ever."""
    tree, other = tree_of(tmp_path / "t"), tree_of(tmp_path / "other")
    deep(tree, 11)
    bucket.restore(other, bucket.save(tree, None, "1"), None)
    assert seen(other) == seen(tree), "the control: what fits comes back"
    deeper = tree_of(tmp_path / "deeper")
    deep(deeper, 17)
    with pytest.raises(walk.TooMuch):
        bucket.save(deeper, None, "2")
    walk.delete(deeper.root)


@pytest.mark.parametrize("name", [b"\xff\xfe", b"x" * 255, b"new\nline", "ü".encode()])
def test_any_name_comes_back(tmp_path: Path, bucket: Bucket, name: bytes) -> None:
    tree, other = tree_of(tmp_path / "t"), tree_of(tmp_path / "other")
    path = os.fsencode(tree.work) + b"/" + name
    with open(path, "wb") as file:
        file.write(b"content")
    os.mkfifo(tree.work / "fifo")
    bucket.restore(other, bucket.save(tree, None, "1"), None)
    assert os.listdir(os.fsencode(other.work)) == [name], "and no FIFO"


def test_a_piece_that_is_not_what_was_saved_is_not_written(tmp_path: Path, bucket: Bucket) -> None:
    tree, other = tree_of(tmp_path / "t", {"work/a": b"as it was"}), tree_of(tmp_path / "other")
    saved = bucket.save(tree, None, "1")
    (bucket.folder / "1").write_bytes(b"as it is ")
    with pytest.raises(Unusable):
        bucket.restore(other, saved, None)
    assert b"as it is" not in (other.work / "a").read_bytes()


_CLOSED = """
import os, sys
from pathlib import Path
from claude_invoker.cli.tree import Tree
from claude_invoker.runs import artifacts, snapshot
os.setuid(65534)
tree = Tree(Path(sys.argv[1]))
closed = tree.work / "closed"
closed.write_bytes(b"content")
closed.chmod(0)
saved = snapshot.save(tree, None, tree.root / "pack", "1")
kept = artifacts.collect(tree.work, {}, tree.root / "kept", artifacts.Bounds(1000, 10))
print([(entry.mode, entry.size) for entry in saved.entries], [each.size for each in kept.kept], oct(closed.stat().st_mode))
"""


@as_root
def test_a_file_that_a_run_has_closed_keeps_no_session_from_being_saved(tmp_path: Path) -> None:
    """An invoker that is not root's may not read it, though it is its own: the turn ended as an internal error."""
    folder = Path(tempfile.mkdtemp(prefix="closed-"))
    try:
        tree_of(folder / "t")
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 65534, 65534)
        done = subprocess.run(
            [sys.executable, "-c", _CLOSED, folder / "t"], capture_output=True, text=True, check=False
        )
        assert done.stdout.strip() == "[(0, 7)] [7] 0o100000", done.stderr
    finally:
        walk.delete(folder)
