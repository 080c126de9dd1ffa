"""Jobs whose budget is used up wait until its period turns: parked, not asked for again and again."""

from __future__ import annotations

import asyncio
import functools
import re
import time
from pathlib import Path
from typing import Any

import pytest

from claude_contract import ledger
from claude_contract.ledger import AsyncLedger, calls
from claude_invoker.jobs import reconciler
from claude_invoker.jobs.store import BLOCKED, PREFIX, TICKETS, Store, now_ms
from claude_invoker.jobs.worker import PARKED_S
from tests.jobs.conftest import Gateway, job, serving, terms, until
from tests.rate_tiers.servers import RedisProcess, one_server
from tests.rate_tiers.test_model import CLOCK
from tests.rate_tiers.test_pools import at
from tests.rate_tiers.test_store import FromAsyncio

SLOT = terms(concurrent=9)


class Clock:
    """That of the ledger, in Redis and here, which the test moves; jobs have the machine's."""

    def __init__(self, redis_server: RedisProcess, monkeypatch: pytest.MonkeyPatch) -> None:
        one_server("its clock is a key of its own, which scripts read")
        self.redis, self.now_ms = redis_server.client(), 0
        real = calls.script

        @functools.cache
        def clocked(name: str) -> calls.Script:
            return calls.Script(CLOCK + real(name).source, f"no such script: {name}")

        monkeypatch.setattr(calls, "script", clocked)
        monkeypatch.setattr(calls, "_now_ms", lambda: self.now_ms)

    def set(self, text: str) -> None:
        now = at(text)
        self.now_ms = now // 1000
        with self.redis.pipeline() as pipe:
            pipe.delete("clock")
            pipe.rpush("clock", now // 1_000_000, now % 1_000_000)
            pipe.execute()


@pytest.fixture
def clock(redis_server: RedisProcess, monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(redis_server, monkeypatch)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """For whom the ledger was asked for a lease, again and again."""
    names: list[str] = []
    real = AsyncLedger.admit

    async def admit(self: AsyncLedger, request: ledger.Admit) -> ledger.Admission:
        names.append(request.subject_key)
        return await real(self, request)

    monkeypatch.setattr(AsyncLedger, "admit", admit)
    return names


def used_up(redis_server: RedisProcess, subject: str) -> None:
    """A run of a thousand dollars, which is the day's budget."""
    store = FromAsyncio(redis_server.url)
    assert store.settle(ledger.Lease.new(ledger.NAMESPACE, subject, 250_000), 10**9)
    store.close()


async def queued(gateway: Gateway, subject: str) -> dict[str, Any]:
    lease = str(ledger.Lease.new(ledger.NAMESPACE, subject, 250_000))
    claims = {"lease": lease, "slot": SLOT.claim(), "queue": True}
    answer = await gateway.ask("POST", "/claude/jobs", subject, json={"prompt": "job=p"}, claims=claims)
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


async def parked(gateway: Gateway, created: dict[str, Any], subject: str) -> dict[str, Any]:
    async def waits() -> Any:
        found = (await gateway.ask("GET", created["links"]["self"], subject)).json()
        return found.get("waits_for")

    return dict(await until(waits, "it waits for its budget"))


async def test_a_job_waits_until_its_period_turns_and_is_not_polled(
    redis_server: RedisProcess, state: Path, clock: Clock, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By workers that look for jobs without a ticket all the time. The control: where they take the parked for such."""
    monkeypatch.setattr(reconciler, "EVERY_S", 0.1)
    claims: list[str] = []
    real = Store.claim

    async def claim(self: Store, ticket: str, worker: str) -> Any:
        claims.append(ticket)
        return await real(self, ticket, worker)

    monkeypatch.setattr(Store, "claim", claim)
    clock.set("2026-11-30T12:00")
    for subject in ("alice", "bob"):
        await asyncio.to_thread(used_up, redis_server, subject)
    async with serving(redis_server, state) as gateway:
        store: Store = gateway.app.state.services.jobs.store
        began = time.time()
        jobs = [await queued(gateway, "bob") for _ in range(5)]
        waits = await parked(gateway, jobs[0], "bob")
        assert waits["limit"] == "usd_per_day" and 43_190 < waits["until"] - began < 43_300
        behind = await parked(gateway, jobs[-1], "bob")
        assert behind["limit"] == "usd_per_day" and abs(behind["until"] - waits["until"]) < 5
        page = (await gateway.ask("GET", f"/claude/dashboard/jobs/{jobs[-1]['id']}", "bob")).text
        assert re.search('id="waits">waits for usd_per_day until 20', page)
        blocked = int(await store.redis.hget(BLOCKED, ":bob"))
        assert 0 < blocked - now_ms() <= PARKED_S * 1000, "an admin may raise the budget meanwhile"

        async def quiet() -> bool:
            return await gateway.app.state.services.jobs.queues.tickets.due() == 0 and await store.parked() == 5

        await until(quiet, "there are tickets for later only")
        before = len(claims)
        await asyncio.sleep(1)
        assert len(claims) == before and asked.count("bob") <= 5, "each once, where several workers were as fast"

        clock.set("2026-11-30T23:59:57.500")
        created = await queued(gateway, "alice")
        assert (await parked(gateway, created, "alice"))["limit"] == "usd_per_day"
        clock.set("2026-12-01T00:00:00.500")
        assert (await gateway.see(created))["state"] == "done"
        # The machine's clock may have been a moment faster than the test's: then it was asked for once more.
        assert asked.count("alice") in (2, 3) and asked.count("bob") <= 5

        async def none(self: Store) -> int:
            return 0

        monkeypatch.setattr(Store, "parked", none)
        before = len(claims)

        async def polled() -> bool:
            return len(claims) > before + 5

        await until(polled, "tickets without end")


async def test_only_those_of_a_subject_that_is_passed_over_are_parked(store: Store) -> None:
    jobs = [job(subject, tier="pro") for subject in ("a:b", "a:b", "c")]
    for each in jobs:
        await store.add(each)
    held = await store.claim("t", "w")
    assert held is not None and await store.parked() == 0
    await store.requeue(held[0], blocked_for=30, waits='{"limit": "usd_per_day", "until": 5}')
    subjects = held[0].subject
    assert await store.parked() == (2 if subjects == "a:b" else 1)
    # Of those that wait behind it nothing is written, and they are told the same; of others not.
    assert await store.redis.hget(f"{PREFIX}job:{jobs[1].id}", "waits") is None or held[0].id == jobs[1].id
    for each in jobs:
        found = await store.get(each.id)
        turn = None if found is None else await store.turn(found)
        assert turn is not None and (turn.waits_for is not None) == (each.subject == subjects)
    await store.redis.hset(f"{PREFIX}job:{held[0].id}", "v", "99")
    behind = [await store.turn(each) for each in jobs if each.subject == subjects and each.id != held[0].id]
    assert all(turn is not None and turn.waits_for is None for turn in behind), "of another release nothing is read"
    await store.redis.hset(f"{PREFIX}job:{held[0].id}", "v", "1")
    await store.redis.hset(BLOCKED, f"pro:{subjects}", now_ms() - 1)
    assert await store.parked() == 0
    while claimed := await store.claim("t", "w"):
        assert claimed[0].waits_for is None, "it is tried now, and what it waited for is over"
        await store.redis.hdel(TICKETS, "t")
