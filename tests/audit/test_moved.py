"""An audit log whose oldest files lie in its store alone: it is whole, and what was taken away is still found."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from claude_invoker.audit import cli, moved, person, shipping
from claude_invoker.audit.anchor import FileAnchor, advance
from claude_invoker.audit.line import Entry
from claude_invoker.audit.log import Log, Pair, pairs, size_of
from claude_invoker.audit.shipping import Shipping
from claude_invoker.audit.verify import verify
from claude_invoker.audit.writer import Audit
from claude_invoker.store.store import Store
from tests.audit.test_shipping import entries, filled, lines_in

MOST = 2_000


@pytest.fixture
def made(tmp_path: Path) -> Log:
    """Of several files."""
    found = filled(tmp_path / "audit", 20, rotate_bytes=900)
    assert sum(map(size_of, pairs(found.directory))) > 3 * MOST
    return found


def kinds(log: Log) -> set[str]:
    return {found.kind for found in verify(log.directory, [log.head], has_store=True).findings}


async def test_beyond_the_bound_the_oldest_go_and_the_log_is_whole(made: Log, store: Store) -> None:
    before, of_alice = lines_in(made.directory), person.export(made.directory, "alice")
    sending = Shipping(made, store)
    await sending.send()
    await sending.let_go(MOST)
    first = pairs(made.directory)[0].first
    assert first > 10 and sum(map(size_of, pairs(made.directory))) < MOST + 1_000
    verdict = verify(made.directory, [made.head], has_store=True)
    assert (verdict.findings, verdict.moved) == ([], first - 1)
    # It goes on, here and there.
    made.append(entries(7))
    await sending.send()
    await sending.let_go(MOST)
    assert verify(made.directory, [made.head], has_store=True).findings == [] and pairs(made.directory)[0].first > first
    async with shipping.fetched(store) as places:
        there = places[made.head.log]
        await sending.send()
        assert lines_in(there).startswith(before)
        assert person.export(there, "alice")[: len(of_alice)] == of_alice
        assert verify(there, []).findings == []
    # Whoever starts again goes on from there, too.
    again = Log(made.directory, 900)
    again.open()
    assert again.head == made.head
    sending.close()
    anew = Shipping(again, store)
    await anew.send()
    assert (await shipping.heads_in(store)) == [again.head]
    anew.close()


async def test_within_the_bound_and_the_newest_nothing_goes(made: Log, store: Store) -> None:
    sending = Shipping(made, store)
    await sending.let_go(0)  # nothing was sent yet
    await sending.send()
    before = pairs(made.directory)
    await sending.let_go(1 << 20)
    assert pairs(made.directory) == before
    await sending.let_go(0)
    assert pairs(made.directory)[0] == before[-1], "not even then, since the next line is numbered by it"
    sending.close()


def test_what_was_not_sent_stays(made: Log) -> None:
    first, second, *_ = pairs(made.directory)
    assert moved.may_go(made, second.first - 2, 0) == []
    assert moved.may_go(made, second.first - 1, 0) == [first]


@pytest.mark.parametrize("of", ["lines", "details"])
async def test_what_the_store_has_not_as_it_is_here_stays(made: Log, store: Store, of: str) -> None:
    sending = Shipping(made, store)
    await sending.send()
    first = pairs(made.directory)[0]
    name = (first.lines if of == "lines" else first.details).name
    await store.put(name, (await store.get(name)).replace(b"0", b"1", 1))
    before = pairs(made.directory)
    await sending.let_go(MOST)
    assert pairs(made.directory) == before
    sending.close()


def gone(log: Log, *, said: bool) -> list[Pair]:
    """The first two files, as whoever has the directory may delete them."""
    going = pairs(log.directory)[:2]
    if said:
        moved.let_go(log, going)
    else:
        for each in going:
            each.lines.unlink()
            each.details.unlink()
    return going


def test_what_nobody_has_said_is_found(made: Log) -> None:
    gone(made, said=False)
    assert kinds(made) == {"removed"}


def test_what_was_said_is_not(made: Log) -> None:
    """The control of the others."""
    gone(made, said=True)
    assert kinds(made) == set()


def test_more_than_was_said_is_found(made: Log) -> None:
    gone(made, said=True)
    gone(made, said=False)
    assert kinds(made) == {"removed"}


def test_from_another_chain_it_does_not_go_on(made: Log) -> None:
    going = gone(made, said=False)
    upto = pairs(made.directory)[0].first - 1
    made.append([Entry(moved.MOVED, "", f"{upto} {'a' * 64}")])
    assert going and kinds(made) == {"changed"}


@pytest.mark.parametrize("what", ["", "7", f"0 {'a' * 64}", f"7 {'A' * 64}", f"x {'a' * 64}", f"7 {'a' * 64} "])
def test_what_cannot_be_read_says_nothing(made: Log, what: str) -> None:
    made.append([Entry(moved.MOVED, "", what)])
    gone(made, said=False)
    assert kinds(made) == {"removed"}


def test_without_a_store_no_line_says_where_others_are(
    made: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever has the directory could write that line before it deletes what it likes."""
    assert advance(made, [FileAnchor(tmp_path / "heads")]) == []
    monkeypatch.setenv("INVOKER_AUDIT_DIR", str(made.directory))
    monkeypatch.setenv("INVOKER_AUDIT_ANCHOR", str(tmp_path / "heads"))
    assert cli.main(["verify"]) == 0, "the control: nothing was done yet"
    upto = gone(made, said=True)[-1].first
    capsys.readouterr()
    assert cli.main(["verify"]) == 1 and "removed: lines 1 to " in capsys.readouterr().out
    monkeypatch.setenv("INVOKER_AUDIT_STORE", f"file://{tmp_path}/store")
    assert upto > 1 and cli.main(["verify", "--anchor", str(tmp_path / "heads")]) == 0, "the control: there is one"


@pytest.mark.parametrize("of", ["lines", "details"])
async def test_what_the_store_should_have_alone_is_missed_there(made: Log, store: Store, of: str) -> None:
    sending = Shipping(made, store)
    await sending.send()
    await sending.let_go(MOST)
    made.append(entries(3))
    await sending.send()
    sending.close()
    (objects,) = (await shipping.logs_in(store)).values()
    async with shipping.fetched(store) as places:
        assert verify(places[made.head.log], [made.head]).findings == [], "the control: nothing was done yet"
    assert len(objects) > 1 and objects[1].first > 1
    await store.delete([objects[0].details.name, *([objects[0].lines.name] if of == "lines" else [])])
    async with shipping.fetched(store) as places:
        found = verify(places[made.head.log], [made.head]).findings
    assert {finding.kind for finding in found} == {"removed"}


def states(log: Log) -> Iterator[str]:
    """What a crash leaves, from what was said to the last file that goes."""
    going = pairs(log.directory)[:2]
    unlinked = [path for each in going for path in (each.details, each.lines)]
    chain = log.chain_at(pairs(log.directory)[2].first - 1)
    log.append([Entry(moved.MOVED, "", f"{pairs(log.directory)[2].first - 1} {chain}")])
    yield "said"
    for path in unlinked:
        path.unlink()
        yield path.name


def test_a_crash_in_between_is_no_finding(made: Log) -> None:
    assert [(state, kinds(made)) for state in states(made) if kinds(made)] == []


async def test_the_writer_keeps_its_directory_within_the_bound(made: Log, store: Store, tmp_path: Path) -> None:
    anchor = FileAnchor(tmp_path / "anchor")
    async with Audit(made, [anchor], None, Shipping(made, store), MOST) as audit:
        for number in itertools.count():
            audit.note(Entry("run.end", "alice", "alice", {"n": number}))
            await asyncio.sleep(0.01)
            troubles = await audit._anchor()
            assert audit._shipping is not None
            await audit._send(audit._shipping, may_let_go=not troubles)
            if pairs(made.directory)[0].first > 15:
                break
    assert verify(made.directory, [head for _, head in anchor.heads()], has_store=True).findings == []


async def test_while_an_anchor_is_away_nothing_goes(made: Log, store: Store, tmp_path: Path) -> None:
    """It would be held against a line that is not there any more, and found to be cut."""
    nowhere = tmp_path / "none"
    nowhere.mkdir()
    before = pairs(made.directory)
    async with Audit(made, [FileAnchor(nowhere)], None, Shipping(made, store), MOST) as audit:
        troubles = await audit._anchor()
        assert troubles and audit._shipping is not None
        await audit._send(audit._shipping, may_let_go=not troubles)
    assert pairs(made.directory) == before
