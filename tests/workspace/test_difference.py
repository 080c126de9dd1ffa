"""What a run has changed, told by git of ours, whatever the run has left in its tree."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from claude_invoker.cli.tree import Tree
from claude_invoker.cli.walk import delete
from claude_invoker.isolation.box import Box
from claude_invoker.workspace import difference as module
from claude_invoker.workspace.checkout import Confined
from claude_invoker.workspace.difference import Difference, NoDifference, difference, parse
from claude_invoker.workspace.git import Bounds
from tests.support.git_server import git as served
from tests.workspace.conftest import Place


@dataclass
class Unbound:
    """In a launcher's place: no boundary, since there is no run."""

    box: Box | None = None
    killer: None = None


CONFINED = Confined(cast(Any, Unbound()), Bounds())


async def checked_out(place: Place, name: str, **files: str) -> tuple[Tree, Any]:
    place.server.create(name)
    place.server.commit(name, {path.replace("__", "/"): text for path, text in files.items()})
    found = await place.ready(name)
    tree = Tree(place.folder / "tree")
    delete(tree.root)
    tree.create(None)
    await CONFINED.check_out(tree, None, found)
    return tree, found


async def compared(place: Place, tree: Tree, found: Any, most: int = 1 << 20) -> Difference:
    into = place.folder / "artifacts"
    delete(into)
    return await difference(CONFINED, tree, None, found, into, most)


def applied(place: Place, name: str, found: Any, patch: bytes) -> Path:
    """A clone of the server's at the named commit, with the patch on it."""
    clone = place.folder / "clone"
    delete(clone)
    served(place.folder, "clone", "--quiet", str(place.server.root / f"{name}.git"), str(clone))
    served(clone, "checkout", "--quiet", found.commit)
    served(clone, "apply", "--index", "-", stdin=patch)
    return clone


async def test_the_patch_applies_to_the_named_commit(place: Place) -> None:
    tree, found = await checked_out(place, "org/p", a="one\ntwo\n", src__b="x\n", gone="y\n", run="z\n")
    (tree.work / "a").write_text("one\nthree\nfour\n")
    (tree.work / "gone").unlink()
    (tree.work / "run").chmod(0o755)
    (tree.work / "new").mkdir()
    (tree.work / "new" / "c d\u00e9\n").write_bytes(b"\0\1\2")
    (tree.work / "link").symlink_to("a")
    (tree.work / ".gitignore").write_text("build\n")
    (tree.work / "build").write_text("not a part of it")
    os.mkfifo(tree.work / "pipe")
    told = await compared(place, tree, found)
    assert [(change.path, change.status, change.added, change.removed) for change in told.changes] == [
        (".gitignore", "added", 1, 0),
        ("a", "modified", 2, 1),
        ("gone", "deleted", 0, 1),
        ("link", "added", 1, 0),
        ("new/c d\\xe9\\n", "added", None, None),
        ("run", "modified", 0, 0),
    ]
    assert told.patch is not None
    patch = (place.folder / "artifacts" / told.patch.path).read_bytes()
    assert len(patch) == told.patch.size
    clone = applied(place, "org/p", found, patch)
    assert (clone / "a").read_text() == "one\nthree\nfour\n" and (
        clone / "new" / "c d\u00e9\n"
    ).read_bytes() == b"\0\1\2"
    assert (clone / "link").readlink() == Path("a") and os.access(clone / "run", os.X_OK)
    assert not (clone / "gone").exists() and not (clone / "build").exists()
    assert (tree.work / "a").exists(), "the tree is where it was"


async def test_nothing_has_changed(place: Place) -> None:
    tree, found = await checked_out(place, "org/same", a="x\r\n", b="y")
    (tree.work / "b").write_text("z")
    (tree.work / "b").write_text("y")
    assert await compared(place, tree, found) == Difference([], None)


async def test_a_hostile_tree_runs_nothing_and_hides_nothing(place: Place) -> None:
    """With the control: git that reads the tree's own configuration runs what it says."""
    tree, found = await checked_out(place, "org/hostile", a="x\n", sub__b="x\n")
    mark = place.folder / "mark"
    program = place.folder / "program"
    program.write_text(f"#!/bin/sh\necho ran >> {mark}\ncat\n")
    program.chmod(0o755)
    nested = tree.work / "nested"
    nested.mkdir()
    served(nested, "init", "--quiet")
    (nested / "c").write_text("hidden\n")
    served(nested, "add", "c")
    served(nested, "commit", "--quiet", "-m", "x")
    for where in (tree.work, nested):
        for name in ("core.fsmonitor", "filter.evil.clean", "diff.external", "diff.evil.textconv"):
            served(where, "config", name, str(program))
    (tree.work / ".gitattributes").write_text("* filter=evil diff=evil -text\n")
    (tree.work / "a").write_text("changed\n")
    served(tree.work, "update-index", "--assume-unchanged", "a")
    mark.unlink(missing_ok=True)
    told = await compared(place, tree, found)
    assert not mark.exists()
    assert [change.path for change in told.changes] == [".gitattributes", "a", "nested/c"]
    assert not list(tree.work.rglob(".git"))

    tree, found = await checked_out(place, "org/hostile2", a="x\n")
    served(tree.work, "config", "core.fsmonitor", str(program))
    subprocess.run(["git", "-c", "safe.directory=*", "status"], cwd=tree.work, capture_output=True)
    assert mark.exists(), "the control"


async def test_what_is_no_directory_any_more_leads_nowhere(place: Place) -> None:
    tree, found = await checked_out(place, "org/moved", a="x\n")
    outside = place.folder / "outside"
    tree.work.rename(outside)
    tree.work.symlink_to(outside)
    with pytest.raises(NoDifference):
        await compared(place, tree, found)
    assert (outside / ".git").exists()


async def test_what_is_too_much_to_be_compared_stays_where_it_is(place: Place) -> None:
    """All that a run had left was deleted, and a session's files with it."""
    tree, found = await checked_out(place, "org/deep", a="x\n")
    (tree.work / "left").write_text("y")
    at = os.open(tree.work, os.O_RDONLY)
    for _ in range(300):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    with pytest.raises(NoDifference, match="directories deep"):
        await compared(place, tree, found)
    assert (tree.work / "left").read_text() == "y"
    assert [path.name for path in place.folder.glob("tree*")] == ["tree"]
    delete(tree.work / "d")
    assert [change.path for change in (await compared(place, tree, found)).changes] == ["left"]  # the control


async def test_a_patch_that_is_too_large_is_none(place: Place) -> None:
    tree, found = await checked_out(place, "org/big", a="x\n")
    (tree.work / "b").write_bytes(os.urandom(100_000))
    told = await compared(place, tree, found, most=10_000)
    assert told.patch is None and told.without == "it has more than 10,000 bytes (INVOKER_ARTIFACT_MAX_BYTES)"
    assert [change.path for change in told.changes] == ["b"], "what has changed is told all the same"
    assert not (place.folder / "artifacts" / module.PATCH).exists()
    assert (await compared(place, tree, found)).patch is not None  # the control


def test_what_git_prints_is_read() -> None:
    raw = b":100644 100755 1 2 M\0a\0:000000 100644 0 3 A\0:b\0" + b"3\t1\ta\0-\t-\t:b\0"
    assert [(one.path, one.status, one.added) for one in parse(raw)] == [("a", "modified", 3), (":b", "added", None)]
