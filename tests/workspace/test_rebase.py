"""A session's files that are brought to another commit: all of them, or none."""

from __future__ import annotations

import asyncio
import resource
import signal
from pathlib import Path
from typing import Any, cast

import pytest

from claude_invoker.cli.tree import Checkout, Tree
from claude_invoker.workspace import continuing
from claude_invoker.workspace.checkout import Confined
from claude_invoker.workspace.git import Bounds, GitFailed
from tests.workspace.conftest import Place
from tests.workspace.test_difference import CONFINED, Unbound, checked_out

LINES = "".join(f"{number:09}\n" for number in range(6_000))
MOST = 100_000
"""More than either side's file has, and less than the merged one."""


def content_of(work: Path) -> dict[str, bytes | None]:
    found = (path for path in work.rglob("*") if ".git" not in path.relative_to(work).parts)
    return {str(path.relative_to(work)): path.read_bytes() if path.is_file() else None for path in found}


async def half_way(place: Place, name: str) -> tuple[Any, Any, Any]:
    """A session's tree, what it works on, and a commit of which the merged `big.txt` is larger than a file may be."""
    tree, base = await checked_out(place, name, **{"a.txt": "one\n", "big.txt": LINES, "gone.txt": "x\n"})
    (tree.work / "big.txt").write_text("ours\n" * 6_000 + LINES)
    (tree.work / "mine.txt").write_text("mine\n")
    (tree.work / "gone.txt").unlink()
    theirs = {"a.txt": "theirs\n", "aa/new.txt": "new\n", "big.txt": LINES + "theirs\n" * 4_000, "z.txt": "z\n"}
    place.server.commit(name, theirs)
    return tree, base, await place.ready(name)


@pytest.mark.parametrize("weakened", [False, True])
async def test_a_rebase_that_breaks_in_the_middle_leaves_what_there_was(
    place: Place, weakened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if weakened:

        async def nothing(*_: Any) -> None:
            pass

        monkeypatch.setattr(continuing, "_put_back", nothing)
    tree, base, onto = await half_way(place, f"org/half-{weakened}".lower())
    before = content_of(tree.work)
    with pytest.raises(GitFailed):
        await continuing.rebase(Confined(cast(Any, Unbound()), Bounds(file_size=MOST)), tree, None, base, onto)
    assert (content_of(tree.work) != before) == weakened
    if not weakened:  # and the next one, for which there is room, finds it ready
        await continuing.rebase(CONFINED, tree, None, base, onto)
        after = content_of(tree.work)
        assert after["a.txt"] == b"theirs\n" and after["mine.txt"] == b"mine\n" and "gone.txt" not in after
        assert b"ours" in (after["big.txt"] or b"") and b"theirs" in (after["big.txt"] or b"")


async def test_who_leaves_while_it_is_rebased_breaks_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, base, onto = await half_way(place, "org/left")
    before = content_of(tree.work)
    git = Confined.git

    async def left(self: Confined, *arguments: Any, **more: Any) -> bytes:
        done = await git(self, *arguments, **more)
        if "checkout" in arguments:  # all of it is written, and nobody is told
            raise asyncio.CancelledError
        return done

    monkeypatch.setattr(Confined, "git", left)
    with pytest.raises(asyncio.CancelledError):
        await continuing.rebase(CONFINED, tree, None, base, onto)
    assert content_of(tree.work) == before


def noted(tree: Tree, commit: str) -> None:
    with continuing.noting(tree, None, Checkout("org/x", "main", commit, "main", Path("none"))):
        pass


def test_what_a_session_works_on_is_noted_whole_or_as_it_was(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its note a session's next turn is taken for the first one: what it had changed was reset."""
    tree = Tree(place.folder / "noted")
    tree.create(None)
    noted(tree, "one")
    with monkeypatch.context() as full:
        full.setattr("claude_invoker.workspace.continuing.json.dumps", lambda _: "x" * 200_000)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        was = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # for want of a disk that is full
        try:
            with pytest.raises(OSError, match="File too large"):
                noted(tree, "two")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, was)
    with pytest.raises(RuntimeError), continuing.noting(tree, None, Checkout("x", None, "three", "", Path("none"))):
        raise RuntimeError  # what was to be done has failed
    assert continuing.remembered(tree) == continuing.Base("main", "main", "one")
    (tree.transcripts / "checkout").unlink()
    (tree.transcripts / "checkout").mkdir()
    (tree.transcripts / "checkout.new").symlink_to("/etc/passwd")
    noted(tree, "four")
    assert continuing.remembered(tree) == continuing.Base("main", "main", "four")
    assert [path.name for path in tree.transcripts.iterdir()] == ["checkout"]
