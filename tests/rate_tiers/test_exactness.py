"""Limits hold exactly when many processes ask at once, and a crash leaves nothing behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from redis import Redis

from claude_contract import ledger
from claude_contract.ledger import Lease, Slot, Window
from kong_claude.rate_tiers.local_ledger import LocalLedger
from kong_claude.rate_tiers.redis_ledger import RedisLedger, Settings
from tests.rate_tiers.servers import RedisProcess

fresh = multiprocessing.get_context("spawn")


def admit_many(url: str, times: int, limit: int, processes: int) -> int:
    """Run in processes of its own: how many were admitted. Starts when all are there."""
    own = RedisLedger(Settings(url, timeout=10))
    gate = Redis.from_url(url)
    gate.incr("gate")
    while int(gate.get("gate")) < processes:  # type: ignore[arg-type]
        time.sleep(0.001)
    windows = (Window("minute", limit), Window("hour", limit + 1))
    call = ledger.admit("claude", "team", windows, None, Slot())
    return sum(own.run(call)[0] for _ in range(times))


@pytest.mark.parametrize("limit", [50, 500])  # counted one by one, and in buckets
def test_eight_processes_share_a_limit(redis_server: RedisProcess, limit: int) -> None:
    with fresh.Pool(8) as pool:
        counts = pool.starmap(admit_many, [(redis_server.url, 1000, limit, 8)] * 8, chunksize=1)
    assert sum(counts) == limit
    assert sum(1 for count in counts if count) > 1, "the processes did not run at the same time"


@pytest.mark.parametrize("policy", ["redis", "local"])
def test_parallel_runs_cannot_overspend_a_budget(redis_server: RedisProcess, policy: str) -> None:
    """200 at once, each may cost $1, and the budget is $10."""
    slot = Slot(usd=1_000_000, usd_day=10_000_000)
    run = RedisLedger(Settings(redis_server.url, timeout=10)).run if policy == "redis" else LocalLedger().run

    def one(_: int) -> Lease | None:
        lease = Lease.new("claude", "team", slot.usd)
        admission = ledger.parse_admission(run(ledger.admit("claude", "team", (), lease, slot)), ())
        assert admission.admitted or admission.culprit == "usd_per_day"
        return lease if admission.admitted else None

    with ThreadPoolExecutor(50) as pool:
        leases = [lease for lease in pool.map(one, range(200)) if lease]
    assert len(leases) == 10
    # Cheaper runs free what they did not use; twice told is booked once.
    for lease in leases * 2:
        run(ledger.settle(lease, 0.25))
    usage = ledger.parse_usage(run(ledger.peek("claude", "team", ())), ())
    assert (usage.running, usage.reserved, usage.spent_day) == (0, 0, 2_500_000)
    with ThreadPoolExecutor(50) as pool:
        assert sum(1 for lease in pool.map(one, range(200)) if lease) == 7


def admit_and_hang(url: str, slot: Slot, told: object) -> None:
    lease = Lease.new("claude", "team", slot.usd)
    RedisLedger(Settings(url, timeout=10)).run(ledger.admit("claude", "team", (), lease, slot))
    told.set()  # type: ignore[attr-defined]
    time.sleep(600)


def test_a_crash_between_admission_and_settlement_leaks_nothing(redis_server: RedisProcess) -> None:
    slot = Slot(concurrent=1, usd=1_000_000, usd_day=1_000_000, ttl_ms=1500)
    run = RedisLedger(Settings(redis_server.url, timeout=10)).run
    told = fresh.Event()
    victim = fresh.Process(target=admit_and_hang, args=(redis_server.url, slot, told))
    victim.start()
    assert told.wait(30)
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()

    def attempt() -> ledger.Admission:
        call = ledger.admit("claude", "team", (), Lease.new("claude", "team", slot.usd), slot)
        return ledger.parse_admission(run(call), ())

    assert not attempt().admitted
    deadline = time.monotonic() + 30
    while not (last := attempt()).admitted:
        assert time.monotonic() < deadline, last
        time.sleep(0.05)
    assert last.running == 1
    time.sleep(2)
    assert redis_server.client().keys() == []


def test_a_queued_run_takes_its_lease_when_it_starts(redis_server: RedisProcess) -> None:
    slot = Slot(concurrent=1, usd=2_000_000, usd_month=4_000_000)
    run = RedisLedger(Settings(redis_server.url, timeout=10)).run
    first, second = (Lease.new("claude", "team", slot.usd) for _ in range(2))

    def admit(lease: Lease) -> ledger.Admission:
        return ledger.parse_admission(run(ledger.admit("claude", "team", (), lease, slot, "queue")), ())

    def acquire(lease: Lease) -> ledger.Admission:
        travelled = Lease.parse(str(lease)), Slot.from_claim(slot.claim())
        return ledger.parse_admission(run(ledger.acquire(*travelled)), ())

    assert admit(first).admitted and not admit(first).queued
    assert admit(second).queued
    assert acquire(second).culprit == "concurrent"
    assert run(ledger.settle(first, 1.5)) == 1
    assert acquire(second).admitted
    assert acquire(second).running == 1, "taking it again changes nothing"
    assert run(ledger.settle(second, 2.5)) == 1
    third = acquire(Lease.new("claude", "team", slot.usd))
    assert (third.admitted, third.culprit, third.spent_month) == (False, "usd_per_month", 4_000_000)
    assert third.wait_ms > 0


async def test_an_asyncio_service_runs_the_same_scripts(redis_server: RedisProcess) -> None:
    from redis.asyncio import Redis

    slot = Slot(concurrent=2, usd=1_000_000)
    lease = Lease.new("claude", "team", slot.usd)
    redis_server.client().script_flush()
    async with Redis(unix_socket_path=redis_server.socket_path) as client:
        assert ledger.parse_admission(await ledger.run(client, ledger.acquire(lease, slot)), ()).admitted
        assert await ledger.run(client, ledger.renew(lease, 60)) == 1
        assert await ledger.run(client, ledger.settle(lease, 0.1)) == 1
        assert await ledger.run(client, ledger.renew(lease, 60)) == 0
        assert await ledger.run(client, ledger.release(lease)) == 0


def test_the_process_forgets_what_has_lapsed() -> None:
    now = [1_790_000_000_000_000]
    local = LocalLedger(clock=lambda: now[0])
    windows = (Window("second", 5), Window("minute", 60))
    for n in range(20_000):
        now[0] += 100_000
        local.run(ledger.admit("claude", f"u{n}", windows, None, Slot()))
    # A minute holds 600 subjects with two keys each; the sweep runs when the number has doubled.
    assert len(local._values) < 4 * 1200
