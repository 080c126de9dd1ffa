"""The audit log in a store: all of it arrives, once, and is what finds that the files were written anew."""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from claude_invoker.audit import cli, log, person, shipping
from claude_invoker.audit.anchor import FileAnchor
from claude_invoker.audit.line import Entry
from claude_invoker.audit.log import Log, pairs
from claude_invoker.audit.shipping import OtherLog, Shipping
from claude_invoker.audit.verify import verify
from claude_invoker.audit.writer import Audit
from claude_invoker.store.place import Key, Place
from claude_invoker.store.store import Away, Store
from tests.support.s3 import ID, S3, SECRET, away


def entries(count: int) -> list[Entry]:
    return [Entry("run.end", "alice", "alice" if number % 2 else "bob", {"n": number}) for number in range(count)]


def filled(directory: Path, count: int = 10, rotate_bytes: int = log.ROTATE_BYTES) -> Log:
    made = Log(directory, rotate_bytes)
    made.open()
    for number in range(count):
        made.append([entries(count)[number]])
    return made


def lines_in(directory: Path) -> bytes:
    return b"".join(each.lines.read_bytes() for each in pairs(directory))


async def same(store: Store, made: Log) -> None:
    """The store has what the directory has, and it is whole."""
    async with shipping.fetched(store) as places:
        assert lines_in(places[made.head.log]) == lines_in(made.directory)
        assert verify(places[made.head.log], [made.head]).findings == []
        assert person.export(places[made.head.log], "alice") == person.export(made.directory, "alice")
    assert await shipping.heads_in(store) == [made.head]


async def test_all_of_it_arrives_and_what_came_later_too(tmp_path: Path, store: Store) -> None:
    made = filled(tmp_path / "audit", rotate_bytes=900)
    assert len(pairs(made.directory)) > 2
    sending = Shipping(made, store)
    await sending.send()
    await same(store, made)
    made.append(entries(5))
    await sending.send()
    await sending.send()
    await same(store, made)
    sending.close()


async def test_who_starts_again_goes_on_where_the_store_is(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipping, "PIECE", 500)
    made = filled(tmp_path / "audit")
    for _ in range(3):
        sending = Shipping(Log(made.directory), store)
        sending._files.open()
        await sending.send()
        await same(store, made)
        sending.close()
        made.append(entries(4))


async def test_one_of_several_processes_sends(tmp_path: Path, store: Store) -> None:
    made = filled(tmp_path / "audit")
    first, second = Shipping(made, store), Shipping(made, store)
    await first.send()
    made.append(entries(1))
    await second.send()
    assert (await shipping.heads_in(store))[0].seq == made.head.seq - 1, "the first one has not ended"
    first.close()
    await second.send()
    await same(store, made)
    second.close()


async def test_what_did_not_arrive_is_sent_again(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = filled(tmp_path / "audit")
    sending = Shipping(made, store)
    put = Store.put
    failing = {"audit"}

    async def fails(self: Store, name: str, content: bytes | Path) -> None:
        if any(name.startswith(kind) for kind in failing):
            raise Away("as the test wants it")
        await put(self, name, content)

    monkeypatch.setattr(Store, "put", fails)
    with pytest.raises(Away):
        await sending.send()  # the details are there, their lines are not
    assert await shipping.heads_in(store) == []
    made.append(entries(3))
    failing.clear()
    await sending.send()
    await same(store, made)
    sending.close()


async def test_a_store_that_is_away_gets_it_when_it_is_back(tmp_path: Path, s3: S3) -> None:
    store = Store(Place.parse(s3.url(f"test-{secrets.token_hex(4)}")), Key(ID, SECRET))
    made = filled(tmp_path / "audit")
    sending = Shipping(made, store)
    async with Audit(made, [], None, sending) as audit:
        with away(s3):
            audit.note(entries(1)[0])
            with pytest.raises(Away):
                await sending.send()
            await audit._send(sending)  # as the writer does it: no error, what waits is sent later
    await same(store, made)


async def test_a_log_that_was_written_anew_is_found_by_the_store_alone(
    tmp_path: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    made = filled(tmp_path / "audit")
    sending = Shipping(made, store)
    await sending.send()
    sending.close()
    heads = await shipping.heads_in(store)
    for each in pairs(made.directory):  # its first three lines, and others in the place of the rest
        for path in (each.lines, each.details):
            path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    forged = Log(made.directory)
    forged.open()
    forged.append(entries(20))
    assert verify(made.directory, []).findings == [], "the control: without the store nobody sees it"
    assert {found.kind for found in verify(made.directory, heads).findings} == {"changed"}
    again = Shipping(forged, store)
    with pytest.raises(OtherLog, match="cut or changed"):
        await again.send()
    again.close()
    async with Audit(forged, [], None, Shipping(forged, store)):
        pass
    assert "is not sent to its store" in caplog.text and caplog.records[-1].levelno == logging.ERROR
    assert await shipping.heads_in(store) == heads, "what the store has stays as it was"


async def test_what_is_deleted_is_deleted_in_the_store(tmp_path: Path, store: Store) -> None:
    made = filled(tmp_path / "audit", rotate_bytes=900)
    sending = Shipping(made, store)
    await sending.send()
    assert await shipping.forget(store, "alice") == 5 == person.forget(made.directory, "alice", "root")
    made.append([])
    await sending.send()
    await same(store, made)
    made.append(entries(2))
    await sending.send()
    await same(store, made)
    sending.close()
    async with shipping.fetched(store) as places:
        assert [row["details"] for row in person.export(places[made.head.log], "bob")] == [
            {"n": 0}, {"n": 2}, {"n": 4}, {"n": 6}, {"n": 8}, {"n": 0}]  # fmt: skip


STEPS = st.lists(
    st.tuples(st.just("append"), st.integers(1, 6))
    | st.tuples(st.sampled_from(["send", "restart", "forget", "fail"]), st.just(0)),
    max_size=12,
)


@given(steps=STEPS)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_happens_the_store_gets_the_log(steps: list[tuple[str, int]], tmp_path_factory: Any) -> None:
    place = tmp_path_factory.mktemp("any")
    store = Store(Place.parse(f"file://{place}/store"), None)
    made = Log(place / "audit", rotate_bytes=600)
    made.open()
    sending = Shipping(made, store)

    async def play() -> None:
        nonlocal sending
        for step, count in steps:
            if step == "append":
                made.append(entries(count))
            elif step == "forget":
                person.forget(made.directory, "alice", "root")
                made.append([])  # so that it knows the new head
                await shipping.forget(store, "alice")
            elif step == "restart":
                sending.close()
                sending = Shipping(made, store)
            elif step == "fail":
                folder = place / "store"
                folder.chmod(0o500)
                shutil.move(folder, place / "elsewhere")
                folder.write_bytes(b"")
                try:
                    await sending.send()
                except (Away, OSError):
                    pass
                folder.unlink()
                shutil.move(place / "elsewhere", folder)
                folder.chmod(0o700)
            else:
                await sending.send()
        await sending.send()
        await same(store, made)
        sending.close()

    _run(play())


def _run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def test_a_log_that_is_wholly_gone_from_the_store_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of several, and each by itself is whole."""
    place = f"file://{tmp_path}/store"
    monkeypatch.setenv("INVOKER_AUDIT_DIR", str(tmp_path / "0"))
    monkeypatch.setenv("INVOKER_AUDIT_STORE", place)
    monkeypatch.setenv("INVOKER_AUDIT_ANCHOR", str(tmp_path / "heads"))
    made = [filled(tmp_path / str(number)) for number in range(2)]

    async def send() -> None:
        for each in made:
            kept = FileAnchor(tmp_path / "heads")
            async with Audit(each, [kept], None, Shipping(each, Store(Place.parse(place), None))):
                pass

    _run(send())
    assert cli.main(["verify", "--store"]) == 0, "the control: nothing was done yet"
    for path in (tmp_path / "store").glob(f"*-{made[1].head.log}-*"):
        path.unlink()
    capsys.readouterr()
    assert cli.main(["verify", "--store"]) == 1
    assert capsys.readouterr().out == f"gone: the log {made[1].head.log} had 11 lines, and the store has none of them\n"


def test_who_deletes_in_the_store_says_so_in_a_log_of_it(tmp_path: Path) -> None:
    """Also of the logs of others, who have not deleted yet."""
    store = Store(Place.parse(f"file://{tmp_path}/store"), None)
    made = [filled(tmp_path / str(number)) for number in range(2)]

    async def findings(*, sent: bool) -> list[str]:
        if sent:
            for each in made:
                each.append([])
                sending = Shipping(each, store)
                await sending.send()
                sending.close()
        async with shipping.fetched(store) as places:
            forgotten = person.forgotten_in(places.values())
            return [str(finding) for each in places.values() for finding in verify(each, [], forgotten).findings]

    assert asyncio.run(findings(sent=True)) == []
    asyncio.run(shipping.forget(store, "alice"))
    assert len(asyncio.run(findings(sent=False))) == 10, "the control: nobody has said it"
    person.forget(made[0].directory, "alice", "root")
    assert asyncio.run(findings(sent=True)) == []


def test_the_command_looks_at_what_the_store_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = filled(tmp_path / "audit")
    monkeypatch.setenv("INVOKER_AUDIT_DIR", str(made.directory))
    monkeypatch.setenv("INVOKER_AUDIT_STORE", f"file://{tmp_path}/store")
    assert cli.main(["verify", "--store"]) == 1 and "the store has no log" in capsys.readouterr().out

    async def send() -> None:
        async with Audit(made, [], None, Shipping(made, Store(Place.parse(f"file://{tmp_path}/store"), None))):
            pass

    _run(send())
    assert cli.main(["verify"]) == 0 and "11 of them anchored" in capsys.readouterr().err
    assert cli.main(["verify", "--store"]) == 1, "the store is no anchor of itself"
    assert "no anchor knows" in capsys.readouterr().out
    assert cli.main(["export", "--store", "--subject", "alice"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert cli.main(["forget", "--subject", "alice"]) == 0
    assert "INVOKER_AUDIT_STORE: details of 5 lines deleted" in capsys.readouterr().err
    shutil.rmtree(made.directory)
    assert cli.main(["verify"]) == 1
