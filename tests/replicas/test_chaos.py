"""The shorter forms of `python -m tests.replicas`, and that what it counts can be seen."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest

from claude_contract import ledger
from kong_claude.rate_tiers.redis_ledger import RedisLedger
from kong_claude.rate_tiers.redis_ledger import Settings as RedisAddress
from tests.invoker.conftest import as_root
from tests.replicas.chaos import ZERO, Outcome, chaos, counted, rolling
from tests.replicas.crowd import Asked, Caller
from tests.replicas.stage import INVOKERS, WORKERS, Stage, staged
from tests.support.waiting import HANG_S

# `make test` has what is combined here by itself: test_replicas, test_sessions, test_once, jobs/test_workers, permissions/test_jobs.
pytestmark = [as_root, pytest.mark.xdist_group("replicas"), pytest.mark.timeout(300), pytest.mark.slow]


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    # A job whose worker is replaced while it runs goes back, and runs again.
    with staged(on_worker_loss="retry", worker_drain_s=0.1) as found:
        yield found


def without_faults(outcome: Outcome) -> dict[str, float]:
    figures, faults = outcome
    assert not any(figures[name] for name in ZERO), "\n".join(faults)
    return figures


def test_killed_processes_lose_mix_up_and_double_nothing(stage: Stage) -> None:
    names = (*INVOKERS, *WORKERS)
    figures = without_faults(asyncio.run(chaos(stage, 30, 1, seed=1, names=names)))
    assert [figures[f"kills_{name.replace('-', '_')}"] for name in names] == [1, 1, 1, 1]


def test_a_rolling_restart_under_load_fails_no_request(stage: Stage) -> None:
    figures = without_faults(asyncio.run(rolling(stage, 30, 1, seed=2)))
    assert [name for name in figures if name.startswith("broken_")] in ([], ["broken_cancelled"]), figures
    assert figures["failed"] == 0


async def test_where_the_redis_of_runs_is_full_runs_go_on_and_admission_does(stage: Stage) -> None:
    caller = Caller(stage, "when-full", random.Random(3))
    full = stage.runs.client()
    try:
        full.config_set("maxmemory", "1")
        for number in range(6):  # three at each invoker
            ran = await caller.send(None, "POST", "/claude/invoke", json={"prompt": f"job=full-{number} ok"})
            assert (ran.status_code, ran.json()["result"]) == (200, f"did full-{number}")
        left = await caller.once("GET", "/claude/limits")
        assert left.status_code == 200, left.text
        refused = await caller.once("POST", "/claude/jobs", json={"prompt": "job=none ok"})
        assert (refused.status_code, int(refused.headers["retry-after"]) > 0) == (503, True), refused.text
        assert "their Redis is full" in refused.text
        full.config_set("maxmemory", "0")
        await caller.job()
        await caller.plain()
        for asked in caller.asked:
            await caller.looked_at(asked)
            assert asked.result and not asked.faults, asked
    finally:
        full.config_set("maxmemory", "0")
        await caller.close()


async def test_what_is_counted_can_be_seen(stage: Stage) -> None:
    """Each figure of what must be zero, by doing what it counts."""
    caller, other = Caller(stage, "seen", random.Random(4)), Caller(stage, "seen-too", random.Random(5))
    try:
        await caller.plain()
        await other.job()
        asked, job = caller.asked[0], other.asked[0]
        assert asked.result and job.result
        # Booked once more, a place held, a run begun again, one forgotten, one seen by another, one that says nothing.
        store = RedisLedger(RedisAddress(stage.ledger.url, timeout=HANG_S))
        for name in ("seen", "seen-too"):
            lease = ledger.Lease.new(ledger.NAMESPACE, ledger.subject_key("subject", name), 250_000)
            assert store.acquire(lease, ledger.Slot(concurrent=4, run_micro_usd=250_000, ttl_ms=600_000)).admitted
            if name == "seen":
                assert store.settle(lease, 10_000)
        with stage.begun.open("a") as begun:
            begun.write(f"begin {asked.mark}\n")
        stage.runs.client().delete(f"claude:{{jobs}}:job:{job.place.rpartition('/')[2]}")
        await other.looked_at(job)
        await caller.spied_on(asked)
        nothing = Asked("seen-too", "seen-too-none", "plain", problem={"type": "about:blank"})
        figures, faults = await counted(stage, [asked, job, nothing], settled_s=0)
        seen = {name: figures[name] for name in ZERO}
        assert seen == dict.fromkeys(ZERO, 0) | {
            "doubled": 1, "leases": 1, "ran_twice": 1, "lost": 2, "wrong_owner": 1, "unclear": 1,
        }, faults  # fmt: skip
        stage.charges.path.write_text(stage.charges.path.read_text() * 3)
        figures, _ = await counted(stage, [asked], settled_s=0)
        assert figures["unpaid"] == 1
    finally:
        await caller.close()
        await other.close()
