"""What runs have spent is booked once, whoever is killed in between."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_contract import ledger
from claude_contract.attestation import HEADER
from claude_invoker.metering.journal import Entry, Journal, read
from kong_claude.rate_tiers.redis_ledger import RedisLedger
from kong_claude.rate_tiers.redis_ledger import Settings as RedisAddress
from tests.invoker.conftest import Invoker, wait_for
from tests.invoker.test_trust import SECRET, attestation
from tests.rate_tiers.servers import RedisProcess

# US dollars for a token of claude-opus-5-5, from Anthropic's price list.
INPUT, OUTPUT = Decimal("0.000004"), Decimal("0.000020")


class Books:
    """A ledger that knows each lease once, and may be away."""

    def __init__(self) -> None:
        self.booked: dict[str, int] = {}
        self.away = False

    async def book(self, lease: str, micro_usd: int) -> bool:
        if not self.away:
            self.booked.setdefault(lease, micro_usd)
        return not self.away


def killed(journal: Journal) -> None:
    """As a killed engine leaves it: everything submitted is written, the lock is gone, the file stays."""
    journal._thread.shutdown()
    assert journal._file is not None
    journal._file.close()


async def test_what_a_killed_engine_left_is_booked_by_the_next(tmp_path: Path) -> None:
    first, books = Journal(tmp_path), Books()
    first.open()
    first.note("a", Entry("lease-a", 5))
    first.note("b", Entry("lease-b", 1))
    first.note("a", Entry("lease-a", 9))
    first.booked("b")
    second = Journal(tmp_path)
    second.open()
    await second.settle(books.book)
    assert books.booked == {}, "the first one lives"
    killed(first)
    assert (second.spent("a"), second.spent("b")) == (9, 0)
    books.away = True
    await second.settle(books.book)
    assert len(list(tmp_path.iterdir())) == 2
    books.away = False
    await second.settle(books.book)
    assert books.booked == {"lease-a": 9}
    second.close()
    assert list(tmp_path.iterdir()) == []


async def test_what_the_ledger_did_not_take_is_tried_again(tmp_path: Path) -> None:
    journal, books = Journal(tmp_path), Books()
    journal.open()
    journal.note("a", Entry("lease-a", 5))
    await journal.settle(books.book)
    assert books.booked == {}, "the run goes on: to book it would end its lease"
    journal.ended("a")
    books.away = True
    await journal.settle(books.book)
    journal.note("b", Entry("lease-b", 7))
    books.away = False
    await journal.settle(books.book)
    assert books.booked == {"lease-a": 5}
    journal.close()
    (path,) = tmp_path.iterdir()
    assert read(path) == {"b": Entry("lease-b", 7)}


@given(st.data())
def test_a_file_that_was_cut_off_anywhere_is_read_as_far_as_it_goes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("journal")
    journal = Journal(directory)
    journal.open()
    states: list[dict[str, Entry]] = [{}]
    for _ in range(data.draw(st.integers(1, 8))):
        run, micro_usd = data.draw(st.sampled_from("abc")), data.draw(st.integers(0, 10**9))
        state = dict(states[-1])
        if data.draw(st.booleans()):
            journal.note(run, Entry(f"lease {run}", micro_usd))
            state[run] = Entry(f"lease {run}", micro_usd)
        elif run in state:
            journal.booked(run)
            del state[run]
        else:
            continue
        states.append(state)
    killed(journal)
    (path,) = directory.iterdir()
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    assert read(path) == states[whole[:cut].count(b"\n") + (cut > 0 and whole[cut - 1 : cut] == b"}")]


def test_a_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open()
    for number in range(3000):
        journal.note(str(number), Entry("lease", number))
        journal.booked(str(number))
    journal._thread.shutdown()
    assert journal._path.stat().st_size < 100_000
    assert read(journal._path) == {}


def test_a_killed_invokers_runs_are_booked(start_invoker: Callable[..., Invoker]) -> None:
    """The invoker is killed between two turns of a run: the next one books what the first turn has cost."""
    redis = RedisProcess()
    try:
        settings = {
            "trust": "attested",
            "attestation_key": SECRET,
            "redis_url": redis.url,
            "pool_size": 0,
            "idle_s": 60,
        }
        invoker = start_invoker(**settings)
        store = RedisLedger(RedisAddress(redis.url, timeout=10))
        slot = ledger.Slot(concurrent=2, run_micro_usd=1_000_000, day_micro_usd=10_000_000, ttl_ms=60_000)
        lease = ledger.Lease.new(ledger.NAMESPACE, ledger.subject_key("subject", "alice"), slot.run_micro_usd)
        assert store.acquire(lease, slot).admitted
        body = b'{"prompt": "[[tool Read {\\"file_path\\": \\"x\\"}]] [[delay 3000]] [[say a b c]]", "model": "claude-opus-5-5"}'
        header = attestation("POST", "/claude/invoke", body, lease=str(lease), slot=slot.claim())
        headers = {HEADER: header, "Accept": "text/event-stream"}
        with pytest.raises(httpx.HTTPError):
            with httpx.stream(
                "POST", f"{invoker.url}/claude/invoke", content=body, headers=headers, timeout=60
            ) as stream:
                wait_for(lambda: any(map(read, (invoker.state / "journal").iterdir())), what="the first turn")
                os.kill(invoker.pid, signal.SIGKILL)
                stream.read()
        used = store.peek(ledger.Peek(ledger.NAMESPACE, lease.subject_key))
        assert (used.running, used.spent_day_micro_usd) == (1, 0)
        start_invoker(after=invoker, **settings)
        wait_for(lambda: store.peek(ledger.Peek(ledger.NAMESPACE, lease.subject_key)).running == 0, what="the booking")
        turn = 12 * INPUT + OUTPUT
        spent = store.peek(ledger.Peek(ledger.NAMESPACE, lease.subject_key)).spent_day_micro_usd
        assert int(turn * 1_000_000) <= spent <= int(2 * turn * 1_000_000) + 1
    finally:
        redis.close()
