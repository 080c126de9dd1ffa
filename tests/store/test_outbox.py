"""What waits for the store: kept on the disk, sent when it is back, by whoever is there then."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

from claude_invoker.disk import Bounds, Disk
from claude_invoker.model import Artifact
from claude_invoker.problem import Problem
from claude_invoker.runs.kept import Keeping, name_of
from claude_invoker.settings import Settings
from claude_invoker.store import outbox
from claude_invoker.store.outbox import Letter, Outbox
from claude_invoker.store.place import Place
from claude_invoker.store.store import Store
from tests.support.s3 import ID, S3, SECRET
from tests.support.waiting import HANG_S

DIGEST = "0" * 64


def run_id() -> str:
    return "run_" + secrets.token_hex(12)


@pytest.fixture
def keeping(s3: S3, tmp_path: Path) -> Callable[[], Keeping]:
    place = Place.parse(s3.url(f"test-{secrets.token_hex(4)}"))

    def made() -> Keeping:
        settings = Settings(state_dir=tmp_path / "state", store=place, store_key=SecretStr(f"{ID}:{SECRET}"))
        return Keeping(settings, Store(place, settings.key_of_store))

    return made


def left(keeping: Keeping, run: str, path: str, content: bytes) -> Artifact:
    directory = keeping.files(run).directory
    (directory / path).parent.mkdir(parents=True, exist_ok=True)
    (directory / path).write_bytes(content)
    import hashlib

    return Artifact(path=path, size=len(content), type="text/plain", sha256=hashlib.sha256(content).hexdigest())


async def content(keeping: Keeping, run: str, artifact: Artifact) -> bytes:
    return b"".join([piece async for piece in await keeping.files(run).read(artifact)])


async def test_what_a_store_that_is_away_should_have_is_pending_until_it_is_back_also_after_a_restart(
    keeping: Callable[[], Keeping], s3: S3
) -> None:
    first, run = keeping(), run_id()
    assert first.outbox is not None
    first.outbox.start()
    there = left(first, run, "a", b"there")
    assert [a.pending for a in await first.keep(run, "alice", [there], 60)] == [False]
    s3.stop()
    try:
        other = run_id()
        (waits,) = await first.keep(other, "alice", [left(first, other, "b", b"waits")], 60)
        assert waits.pending
        assert (await first.now(other, [waits]))[0].pending
        assert await content(first, other, waits) == b"waits", "from the disk"
        await first.outbox.stop()
        second = keeping()
        assert second.outbox is not None
        second.outbox.start()
        assert other in second.outbox.runs
    finally:
        s3.start()
    until = time.monotonic() + 60
    while second.outbox.runs and time.monotonic() < until:
        await asyncio.sleep(0.05)
    assert not (await second.now(other, [waits]))[0].pending
    await second.outbox.stop()
    # Elsewhere, where nothing of it is on the disk:
    elsewhere = keeping()
    for path in elsewhere.files(other).directory.iterdir():
        path.unlink()
    assert await content(elsewhere, other, waits) == b"waits"
    await elsewhere.forget(other, [waits])
    with pytest.raises(Problem) as gone:
        await content(elsewhere, other, waits.model_copy(update={"pending": False}))
    assert gone.value.status == 404


async def test_what_the_disk_keeps_is_gone_from_the_store(
    keeping: Callable[[], Keeping], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, run = keeping(), run_id()
    assert one.outbox is not None and one.store is not None
    one.outbox.start()
    kept = await one.keep(run, "alice", [left(one, run, "a", b"there")], 60)

    def refused(path: Path) -> None:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr("claude_invoker.runs.kept.delete", refused)
    with pytest.raises(OSError, match="Input/output error"):
        await one.forget(run, kept)
    assert [found.name async for found in one.store.found(f"artifacts/{run}")] == []
    await one.outbox.stop()


async def test_two_that_share_a_directory_send_each_file_once(keeping: Callable[[], Keeping], tmp_path: Path) -> None:
    made = keeping()
    assert made.store is not None
    sent: list[str] = []

    class Counting(Store):
        async def put(self, name: str, content: bytes | Path) -> None:
            sent.append(name)
            await asyncio.sleep(0.2)

    counting = Counting(made.store.place, None)
    one, other = (Outbox(counting, tmp_path / "out", lambda run: tmp_path) for _ in range(2))
    one.start()
    over = one.put(Letter("run_x", (("n", "f"),), time.time() + 60))
    other.start()
    other.adopt()
    await over.wait()
    other.adopt()
    assert (sent, one.runs, other.runs) == (["n"], set(), set())
    await one.stop()
    await other.stop()


async def test_what_cannot_be_sent_any_more_keeps_nothing_else(
    keeping: Callable[[], Keeping], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is gone, one that nobody asks for any more, a note that cannot be read."""
    made = keeping()
    assert made.outbox is not None and made.store is not None
    with monkeypatch.context() as patched:
        patched.setattr(outbox, "_HALF_S", -1.0)
        notes = made.files("x").directory.parents[1] / "outbox"
        notes.mkdir(parents=True)
        (notes / "run_half.1").write_bytes(b'{"run": "ru')
        made.outbox.start()
        assert not (notes / "run_half.1").exists()
    lost, late, good = run_id(), run_id(), run_id()
    for run, keep_s in ((lost, 60), (late, -1), (good, 60)):
        artifact = left(made, run, "f", run.encode())
        made.outbox.put(Letter(run, ((name_of(run, artifact), "gone" if run == lost else "f"),), time.time() + keep_s))
    until = time.monotonic() + 60
    while made.outbox.runs and time.monotonic() < until:
        await asyncio.sleep(0.02)
    assert await made.store.folders("artifacts") == [good]
    assert list(notes.iterdir()) == []
    await made.outbox.stop()


async def test_what_the_store_does_not_take_keeps_nothing_else(tmp_path: Path) -> None:
    """As a store that looks for viruses, or has a largest size: of one run, whose files wait, and are tried again."""
    store, lost, good = Store(Place("file", directory=tmp_path / "store"), None), run_id(), run_id()
    (tmp_path / "store" / "artifacts").mkdir()
    (tmp_path / "store" / "artifacts" / lost).write_text("where a directory is to be")
    (tmp_path / "f").write_text("content")
    box = Outbox(store, tmp_path / "outbox", lambda run: tmp_path)
    refused, sent = (box.put(Letter(run, ((f"artifacts/{run}/f", "f"),), time.time() + 60)) for run in (lost, good))
    box.start()
    await asyncio.wait_for(sent.wait(), HANG_S)
    assert await store.get(f"artifacts/{good}/f") == b"content"
    assert box.runs == {lost}
    (tmp_path / "store" / "artifacts" / lost).unlink()
    await asyncio.wait_for(refused.wait(), HANG_S)
    assert await store.get(f"artifacts/{lost}/f") == b"content"
    await box.stop()


async def test_what_waits_on_the_disk_has_a_bound(keeping: Callable[[], Keeping]) -> None:
    """What the store has goes first, then the oldest, and nothing of a run that goes on."""
    made = keeping()
    assert made.outbox is not None
    runs = [run_id() for _ in range(4)]
    sizes = {run: left(made, run, "f", os.urandom(100_000)) for run in runs}
    for age, run in enumerate(reversed(runs)):
        os.utime(made.files(run).directory, (1000 - age, 1000 - age))
    for run in runs[:3]:  # which nobody sends: the outbox is not started
        made.outbox.put(Letter(run, ((name_of(run, sizes[run]), "f"),), time.time() + 60))
    made.goes_on = lambda run: run == runs[0]

    async def bounded(most: int) -> list[bool]:
        await Disk({"artifacts": made}, {"artifacts": Bounds(0, most)}, 0, ()).clear()
        return [made.files(run).here(sizes[run]) is not None for run in runs]

    assert await bounded(1 << 30) == [True, True, True, True]
    assert await bounded(350_000) == [True, True, True, False], "the store has it"
    assert await bounded(250_000) == [True, False, True, False], "the oldest"
    assert await bounded(1) == [True, False, False, False]
    assert made.outbox.runs == {runs[0]}


@pytest.mark.parametrize(
    "hostile", ["../x", "/etc/passwd", "a/../../b", "..%2f", "\n", "a" * 1000, "artifacts/run_1/x"]
)
def test_nothing_that_a_run_names_is_in_a_name_of_the_store(hostile: str) -> None:
    artifact = Artifact(path=hostile, size=1, type="x/y", sha256=DIGEST)
    run = run_id()
    assert name_of(run, artifact) == f"artifacts/{run}/{DIGEST}"
    for wrong in (("run_../x", DIGEST), (hostile, DIGEST), (run, hostile)):
        with pytest.raises(Problem):
            name_of(wrong[0], artifact.model_copy(update={"sha256": wrong[1]}))
