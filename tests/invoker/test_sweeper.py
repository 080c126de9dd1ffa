"""What is swept away again and again, and how long what is kept may get."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_invoker.runs import events, sweeper
from claude_invoker.runs.events import EventLog
from claude_invoker.runs.sweeper import Sweeper
from tests.support.waiting import HANG_S


async def test_a_step_that_fails_or_hangs_is_named_and_keeps_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeper, "_LATE_S", 0.05)
    done = 0

    async def works() -> None:
        nonlocal done
        done += 1

    async def fails() -> None:
        raise OSError("the disk is gone")

    async def hangs() -> None:
        await asyncio.Event().wait()

    found = Sweeper({"working": works, "failing": fails, "hanging": hangs}, 0.01)
    assert not found.alive
    found.start()
    deadline = time.monotonic() + HANG_S
    while not (done > 3 and found.troubled == ["failing", "hanging"]):
        assert time.monotonic() < deadline, (done, found.troubled)
        await asyncio.sleep(0.01)
    assert found.alive
    await found.stop()
    assert not found.alive


async def test_a_step_that_works_again_is_named_no_more() -> None:
    broken = True

    async def step() -> None:
        if broken:
            raise OSError("for now")

    found = Sweeper({"step": step}, 0.01)
    found.start()
    while not found.troubled:
        await asyncio.sleep(0.01)
    broken = False
    while found.troubled:
        await asyncio.sleep(0.01)
    await found.stop()


@given(st.lists(st.integers(0, 60), max_size=60), st.integers(0, 70))
def test_the_newest_events_are_kept_within_bounds(sizes: list[int], last: int) -> None:
    log = EventLog(10 * (events._OVERHEAD + 30))
    for size in sizes:
        log.append_json("ping", b"x" * size)
    kept = log.since(0)
    assert [event.id for event in kept] == list(range(len(sizes) - len(kept) + 1, len(sizes) + 1))
    assert sum(len(event.data) + events._OVERHEAD for event in kept) <= 10 * (events._OVERHEAD + 30)
    assert bool(kept) == bool(sizes)
    assert log.since(last) == [event for event in kept if event.id > last]


def test_a_million_events_of_nothing_are_bounded_and_soon_appended() -> None:
    """A list that lost its first item for each new one moved a hundred thousand others each time."""
    log = EventLog(1 << 25)
    for _ in range(300_000):
        log.append_json("ping", b"{}")
    assert len(log.since(0)) == (1 << 25) // (events._OVERHEAD + 2)
