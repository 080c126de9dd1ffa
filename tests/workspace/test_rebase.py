"""A session's files that are brought to another commit: all of them, or none."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

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
