"""Limits hold exactly when many processes ask at once, and a crash leaves nothing behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from claude_contract import redis_place
from claude_contract.ledger import (
    DEPLOYMENT,
    Admission,
    Admit,
    Budget,
    Draw,
    Lease,
    Ledger,
    Peek,
    Shared,
    Slot,
    Terms,
    Window,
    Windows,
)
from claude_contract.redis_place import Place
from kong_claude.rate_tiers.local_ledger import LocalLedger
from kong_claude.rate_tiers.redis_ledger import RedisLedger, Settings
from tests.rate_tiers.servers import RedisProcess
from tests.rate_tiers.test_model import ClockedRedis
from tests.support.waiting import HANG_S, wait_for

fresh = multiprocessing.get_context("spawn")


def admit_many(url: str, times: int, limit: int, processes: int) -> int:
    """Run in processes of its own: how many were admitted. Starts when all are there."""
    own = RedisLedger(Settings(url, timeout=HANG_S))
    gate = redis_place.client(Place.parse(url))
    gate.incr("gate")
    while int(gate.get("gate")) < processes:
        time.sleep(0.001)
    one = Admit("claude", "team", Windows((Window("minute", limit), Window("hour", limit + 1))))
    return sum(own.admit(one).admitted for _ in range(times))


@pytest.mark.parametrize("limit", [50, 500])  # counted one by one, and in buckets
def test_eight_processes_share_a_limit(redis_server: RedisProcess, limit: int) -> None:
    with fresh.Pool(8) as pool:
        counts = pool.starmap(admit_many, [(redis_server.url, 1000, limit, 8)] * 8, chunksize=1)
    assert sum(counts) == limit
    assert sum(1 for count in counts if count) > 1, "the processes did not run at the same time"


@pytest.mark.parametrize("policy", ["redis", "local"])
def test_parallel_runs_cannot_overspend_a_budget(redis_server: RedisProcess, policy: str) -> None:
    """200 at once, each may cost $1, and the budget is $10."""
    slot = Slot(run_micro_usd=1_000_000, day_micro_usd=10_000_000)
    store: Ledger = RedisLedger(Settings(redis_server.url, timeout=HANG_S)) if policy == "redis" else LocalLedger()

    def one(_: int) -> Lease | None:
        lease = Lease.new("claude", "team", slot.run_micro_usd)
        admission = store.admit(Admit("claude", "team", lease=lease, slot=slot))
        assert admission.admitted or admission.exceeded == "usd_per_day"
        return lease if admission.admitted else None

    with ThreadPoolExecutor(50) as pool:
        leases = [lease for lease in pool.map(one, range(200)) if lease]
    assert len(leases) == 10
    # Cheaper runs free what they did not use; twice told is booked once.
    for lease in leases * 2:
        store.settle(lease, 250_000)
    usage = store.peek(Peek("claude", "team"))
    assert (usage.running, usage.reserved_micro_usd, usage.spent_day_micro_usd) == (0, 0, 2_500_000)
    with ThreadPoolExecutor(50) as pool:
        assert sum(1 for lease in pool.map(one, range(200)) if lease) == 7


def admit_and_hang(url: str, slot: Slot, told: object) -> None:
    lease = Lease.new("claude", "team", slot.run_micro_usd)
    RedisLedger(Settings(url, timeout=HANG_S)).acquire(lease, slot)
    told.set()  # type: ignore[attr-defined]
    time.sleep(600)


def test_a_crash_between_admission_and_settlement_leaks_nothing(redis_server: RedisProcess) -> None:
    slot = Slot(concurrent=1, run_micro_usd=1_000_000, day_micro_usd=1_000_000, ttl_ms=1500)
    store = RedisLedger(Settings(redis_server.url, timeout=HANG_S))
    told = fresh.Event()
    victim = fresh.Process(target=admit_and_hang, args=(redis_server.url, slot, told))
    victim.start()
    assert told.wait(HANG_S)
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()

    def attempt() -> Admission:
        return store.acquire(Lease.new("claude", "team", slot.run_micro_usd), slot)

    assert not attempt().admitted
    deadline = time.monotonic() + HANG_S
    while not (last := attempt()).admitted:
        assert time.monotonic() < deadline, last
        time.sleep(0.05)
    assert last.own.running == 1
    wait_for(lambda: not redis_server.client().keys("*team*"), what="the end of what has lapsed")


def test_the_process_forgets_what_has_lapsed() -> None:
    now = [1_790_000_000_000_000]
    local = LocalLedger(clock=lambda: now[0])
    windows = Windows((Window("second", 5), Window("minute", 60)))
    for n in range(20_000):
        now[0] += 100_000
        local.admit(Admit("claude", f"u{n}", windows))
    # A minute holds 600 subjects with two keys each; the sweep runs when the number has doubled.
    assert len(local._values) < 4 * 1200


HOUR_MS = 3_600_000


@pytest.mark.parametrize("hours", [0, 1 / 60, 1, 25, 24 * 9 + 1, 24 * 33 - 1])
def test_what_still_counts_is_not_forgotten_with_it(hours: float) -> None:
    """A ledger that has forgotten what it may says what one says that forgets nothing."""
    now = [1_790_000_000_000_000]
    tidy, untidy = (LocalLedger(clock=lambda: now[0]) for _ in range(2))
    team, budgets = Shared(DEPLOYMENT, ("pool.red",)), (Budget(99, "month", rolling=True), Budget(99, "day"))
    windows = Windows((Window("minute", 9, 9), Window("hour", 9), Window("day", 9), Window("month", 9)))
    slot = Slot(9, 5, ttl_ms=HOUR_MS, budgets=budgets, pools=(Terms(9, budgets),))
    leases = [Lease("claude", "ada", f"v1.{n}:5", team) for n in range(6)]

    def begin(local: LocalLedger) -> None:
        for lease, lives in zip(leases, (1, 2, 26, 24 * 9, 24 * 34, None), strict=True):
            assert local.admit(Admit("claude", "ada", windows, lease, slot, "reject", team, (windows,))).admitted
            local.draw(lease, slot, Draw(1, 0, 3, 3))
            if lives is not None:  # the last one lives for as long as it was drawn for
                local.renew(lease, lives * HOUR_MS)
        assert local.settle(leases[0], 4, final=False) and local.settle(leases[1], 6)

    def says(local: LocalLedger) -> list[object]:
        asked = Peek("claude", "ada", windows, slot, team, (windows,))
        found: list[object] = [local.peek(asked), *(local.renew(lease, HOUR_MS) for lease in leases[2:])]
        found += [local.draw(lease, slot, Draw(7, 0, 1, 1)) for lease in leases]
        found += [local.settle(lease, 9) for lease in (*leases, *leases)]
        return [*found, local.peek(asked)]

    for local in (tidy, untidy):
        begin(local)
    kept = len(tidy._values)
    now[0] += int(hours * HOUR_MS) * 1000
    with tidy._moment():
        tidy._sweep()
    assert (len(tidy._values) < kept) is (hours >= 1)
    assert says(tidy) == says(untidy)


def test_what_the_process_books_in_one_quarter_is_one_record() -> None:
    now = [1_790_000_100_000_000]
    local = LocalLedger(clock=lambda: now[0])
    for _ in range(3):
        local.settle(Lease.new("claude", "ada", 0), 1)
        now[0] += 1_000_000
    assert [len(book) for key, book in local._values.items() if key.endswith("spent")] == [1]


@pytest.mark.parametrize(("limit", "minutes"), [(3, 30), (2, 40), (1, 50)])
def test_one_waits_until_as_many_have_left_as_are_too_many(
    redis_server: RedisProcess, limit: int, minutes: int
) -> None:
    """Of three requests, ten minutes apart, ten minutes after the last; the limit was lowered since."""
    start, clocked = 1_790_000_000_000_000, ClockedRedis(redis_server)
    now = [start]
    local = LocalLedger(clock=lambda: now[0])

    def ask(most: int) -> set[tuple[bool, int]]:
        request = Admit("claude", "ada", Windows((Window("hour", most),)))
        return {(a.admitted, round(a.wait_ms / 60_000)) for a in (local.admit(request), clocked.admit(request, now[0]))}

    for _ in range(3):
        assert ask(3) == {(True, 0)}
        now[0] += 10 * 60_000_000
    assert ask(limit) == {(False, minutes)}
