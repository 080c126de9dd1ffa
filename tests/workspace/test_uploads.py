"""What is kept of files that were put for later requests, at a store: how much, for how long, for whom."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from claude_invoker.caller import Caller
from claude_invoker.disk import Bounds
from claude_invoker.problem import Problem
from claude_invoker.store.place import Place
from claude_invoker.store.store import Store
from claude_invoker.workspace import uploads
from claude_invoker.workspace.files import Content, Uploaded
from claude_invoker.workspace.intake import Intake
from claude_invoker.workspace.uploads import Uploads

ALICE, BOB = (Caller(name).owner for name in ("alice", "bob"))


def opened(folder: Path, bounds: Bounds | None = None, kept_s: float = 60.0, *, shared: bool = False) -> Uploads:
    intake = Intake(folder / "intake", Bounds(), lambda size: None)
    intake.open()
    store = Store(Place("file", directory=folder / "store"), None) if shared else None
    found = Uploads(store, folder / "own", bounds or Bounds(), kept_s, intake)
    found.open()
    return found


async def put(at: Uploads, owner: str, content: bytes, folder: Path) -> str:
    name = hashlib.sha256(content).hexdigest()
    async with at.room(owner, name, len(content)):
        (folder / "sent").write_bytes(content)
        upload = await at.keep(owner, name, folder / "sent")
    assert (upload.sha256, upload.size) == (name, len(content))
    return name


def lying(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "sent"]


@pytest.mark.parametrize("shared", [False, True])
async def test_what_is_kept_is_its_owner_s_for_a_while(tmp_path: Path, shared: bool) -> None:
    at = opened(tmp_path, shared=shared)
    name = await put(at, ALICE, b"hello", tmp_path)
    assert list(await at.held(ALICE)) == [name] and await at.held(BOB) == {}
    (path,) = lying(tmp_path)
    assert path.is_relative_to(tmp_path / ("store" if shared else "own"))
    assert [each.bytes for each in await at.kept()] == ([] if shared else [5]), "a store is not this machine's disk"
    os.utime(path, (then := time.time() - 61, then))
    assert await at.held(ALICE) == {}
    with pytest.raises(Problem, match="expired"):
        await at.refuse_missing(ALICE, [("a", Uploaded(name))])
    await put(at, ALICE, b"hello", tmp_path)
    assert list(await at.held(ALICE)) == [name], "to put it again keeps it"
    os.utime(path, (then, then))
    await at.expire()
    assert lying(tmp_path) == []


@pytest.mark.parametrize(
    ("owner", "size", "limit"),
    [
        (ALICE, 30, ""),
        (ALICE, 31, "uploads_per_subject"),
        (BOB, 50, ""),
        (BOB, 51, "uploads_in_all"),
        (BOB, 71, "uploads_per_subject"),
    ],
)
async def test_what_is_kept_and_what_is_coming_is_bounded(tmp_path: Path, owner: str, size: int, limit: str) -> None:
    at = opened(tmp_path, Bounds(70, 100))
    await put(at, ALICE, b"x" * 25, tmp_path)
    async with at.room(ALICE, "another", 15), at.room(BOB, "left", 10):
        pass  # over: they count no more
    async with at.room(ALICE, "coming", 15), at.room(BOB, "coming", 0):
        if not limit:
            async with at.room(owner, "new", size + (10 if owner is BOB else 0)):
                return
        with pytest.raises(Problem) as refused:
            async with at.room(owner, "new", size + (10 if owner is BOB else 0)):
                pass
    assert (refused.value.status, (refused.value.extra or {})["limit"]) == (507, limit)


async def test_one_that_is_put_again_takes_no_second_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = opened(tmp_path, Bounds(10, 0))
    for _ in range(2):
        name = await put(at, ALICE, b"x" * 10, tmp_path)
    with pytest.raises(Problem):
        await put(at, ALICE, b"y", tmp_path)
    monkeypatch.setattr(uploads, "MOST_FILES", 1)
    (tmp_path / "many").mkdir()
    many = opened(tmp_path / "many")
    await put(many, ALICE, b"1", tmp_path)
    with pytest.raises(Problem, match="1 files"):
        await put(many, ALICE, b"2", tmp_path)
    await put(many, BOB, b"2", tmp_path)
    await at.delete(ALICE, name)
    await put(at, ALICE, b"y", tmp_path)


async def test_a_request_has_what_it_names_and_no_more_than_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = opened(tmp_path)
    name = await put(at, ALICE, b"x" * 10, tmp_path)
    files: list[tuple[str, Content | Uploaded]] = [("a", Uploaded(name)), ("b", b"y"), ("c/d", Uploaded(name))]
    async with at.brought("alice", ALICE, files) as brought:
        found = {path: content if isinstance(content, bytes) else content.read_bytes() for path, content in brought}
    assert found == {"a": b"x" * 10, "b": b"y", "c/d": b"x" * 10}
    assert list((tmp_path / "intake").iterdir()) == []
    with pytest.raises(Problem, match=r"files\[1\]\.upload: there is no such file of yours"):
        await at.refuse_missing(BOB, [("b", b"y"), ("a", Uploaded(name))])
    monkeypatch.setattr(uploads, "MOST_BYTES", 19)
    with pytest.raises(Problem, match="more than 19 bytes together"):
        await at.refuse_missing(ALICE, files)


async def test_what_somebody_has_changed_in_the_store_reaches_no_run(tmp_path: Path) -> None:
    at = opened(tmp_path)
    name = await put(at, ALICE, b"good", tmp_path)
    (path,) = lying(tmp_path)
    path.write_bytes(b"evil")
    with pytest.raises(Problem, match="not what was put"):
        async with at.brought("alice", ALICE, [("a", Uploaded(name))]):
            pass
    assert list((tmp_path / "intake").iterdir()) == []


async def test_a_store_that_is_away_is_said(tmp_path: Path) -> None:
    intake = Intake(tmp_path / "intake", Bounds(), lambda size: None)
    nowhere = Place("s3", bucket="none", endpoint="http://127.0.0.1:9")
    at = Uploads(Store(nowhere, None), tmp_path / "own", Bounds(), 60.0, intake)
    at.open()
    with pytest.raises(Problem) as refused:
        await at.held(ALICE)
    assert refused.value.status == 503 and "127.0.0.1" not in str(refused.value.detail)
    await at.expire()  # later


def test_an_owner_is_an_issuer_and_a_subject() -> None:
    """Whoever is called the same elsewhere is another, and no subject can be spelled so that it is."""
    callers = [
        Caller("a", issuer="i"),
        Caller("a"),
        Caller("i\0a"),
        Caller("\0a", issuer="i"),
        Caller("a", issuer="i\0"),
    ]
    assert len({caller.owner for caller in callers}) == len(callers)
    assert all(uploads.NAME.fullmatch(caller.owner) for caller in callers)
