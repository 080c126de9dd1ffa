"""What jobs may hold in Redis: bounded, the oldest that are over go first, and a body goes with its job's end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from claude_invoker.holding import Bounds
from claude_invoker.jobs.record import Job
from claude_invoker.jobs.store import ALL, CALLBACKS, HELD, PREFIX, Store, connect
from claude_invoker.problem import Problem
from tests.jobs.conftest import job, serving, until
from tests.rate_tiers.servers import RedisProcess, one_server
from tests.support.waiting import HANG_S

BODY = "x" * 900_000


@contextlib.asynccontextmanager
async def bounded(redis_server: RedisProcess, **bounds: int) -> AsyncIterator[Store]:
    redis = connect(redis_server.url)
    yield Store(redis, (), Bounds(**bounds))
    await redis.aclose()


async def in_redis(store: Store) -> int:
    """Bytes of the values of all records and streams, by the keys themselves."""
    total = 0
    for key in await store.redis.keys(PREFIX + "*"):
        total += int(await store.redis.memory_usage(key, samples=0) or 0)
    return total


async def test_forty_cancelled_jobs_leave_no_bodies(store: Store) -> None:
    """40 cancelled jobs of 0.9 MB stayed in Redis for their retention."""
    jobs = [job(prompt=BODY) for _ in range(40)]
    for each in jobs:
        await store.add(each)
    assert await in_redis(store) > 36_000_000, "bodies that wait are there"
    assert await store.held() > 36_000_000
    for each in jobs:
        assert await store.cancel(each, 3600)
    assert await in_redis(store) < 400_000
    assert await store.held() < 200_000
    found = await store.get(jobs[0].id)
    assert found is not None
    assert found.state == "cancelled"
    assert len(found.request_json) < 100


@pytest.mark.parametrize("state", ["done", "failed", "cancelled"])
async def test_a_body_goes_with_its_jobs_end(store: Store, state: str) -> None:
    await store.add(job(prompt=BODY))
    claimed = await store.claim("t", "w")
    assert claimed is not None
    assert claimed[0].request.prompt == BODY, "it runs with its body"
    assert await store.finish(claimed[0], state, 60, result="{}" if state == "done" else "")
    assert await store.redis.hstrlen(PREFIX + f"job:{claimed[0].id}", "request") < 100


async def test_a_job_that_waits_again_keeps_its_body(store: Store) -> None:
    await store.add(job(prompt=BODY))
    claimed = await store.claim("t", "w")
    assert claimed is not None
    assert await store.requeue(claimed[0]) == "requeued"
    again = await store.claim("t2", "w")
    assert again is not None
    assert again[0].request.prompt == BODY


async def test_a_subject_that_holds_too_much_is_refused_and_no_other(redis_server: RedisProcess) -> None:
    async with bounded(redis_server, per_subject=2_000_000) as store:
        first = job("greedy", prompt=BODY)
        await store.add(first)
        await store.add(job("greedy", prompt=BODY))
        with pytest.raises(Problem) as refused:
            await store.add(job("greedy", prompt=BODY))
        assert refused.value.status == 429
        assert refused.value.extra == {"limit": "held_per_subject", "allowed": 2_000_000}
        assert "INVOKER_HELD_PER_SUBJECT" in refused.value.detail
        await store.add(job("other", prompt=BODY))
        assert sum((await store.waiting()).values()) == 3, "a refused job waits nowhere"
        # The way out that the answer names.
        assert await store.cancel(first, 60)
        await store.add(job("greedy", prompt=BODY))
    async with bounded(redis_server, per_subject=20_000_000) as store:
        for _ in range(5):
            await store.add(job("greedy", prompt=BODY))


async def test_all_that_hold_too_much_are_refused(redis_server: RedisProcess) -> None:
    async with bounded(redis_server, in_all=2_000_000) as store:
        await store.add(job("a", prompt=BODY))
        await store.add(job("b", prompt=BODY))
        with pytest.raises(Problem) as refused:
            await store.add(job("c", prompt=BODY))
        assert refused.value.status == 507
        assert refused.value.extra["limit"] == "held_in_all"
        assert "INVOKER_HELD_IN_ALL" in refused.value.detail
    async with bounded(redis_server) as store:
        await store.add(job("c", prompt=BODY))


async def ended(store: Store, subject: str, result: str = "", callback: str = "") -> Job:
    """A job that is done, with a result of some size."""
    new = job(subject, callback_url=callback) if callback else job(subject)
    await store.add(new)
    claimed = await store.claim(f"ticket of {new.id}", "w")
    assert claimed is not None
    assert await store.finish(claimed[0], "done", 3600, note=result)
    return claimed[0]


async def test_the_oldest_that_are_over_make_room(redis_server: RedisProcess) -> None:
    async with bounded(redis_server, per_subject=2_000_000) as store:
        oldest = await ended(store, "alice", "r" * 800_000)
        newer = await ended(store, "alice", "r" * 800_000)
        others = await ended(store, "bob", "r" * 800_000)
        waits = job("alice")
        await store.add(waits)
        await store.add(job("alice", prompt=BODY))
        assert await store.get(oldest.id) is None
        assert await store.gone(oldest.id, "alice"), "it is 410, as any that has expired"
        assert oldest.id not in await store.redis.zrange(ALL, 0, -1)
        for kept in (newer, waits, others):
            assert await store.get(kept.id) is not None
        assert not await store.redis.exists(PREFIX + f"events:{oldest.id}")


async def test_one_whose_webhook_is_owed_is_not_dropped(redis_server: RedisProcess) -> None:
    async with bounded(redis_server, per_subject=2_000_000) as store:
        owed = await ended(store, "alice", "r" * 900_000, callback="https://example.com/hook")
        free = await ended(store, "alice", "r" * 900_000)
        await store.add(job("alice", prompt=BODY))
        assert await store.get(owed.id) is not None
        assert await store.get(free.id) is None
        with pytest.raises(Problem):
            await store.add(job("alice", prompt=BODY))
        await store.redis.zrem(CALLBACKS, owed.id)
        await store.add(job("alice", prompt=BODY))
        assert await store.get(owed.id) is None


async def test_a_jobs_events_are_bounded_the_last_ones_stay(redis_server: RedisProcess) -> None:
    async with bounded(redis_server, per_run=1_000_000) as store:
        await store.add(job())
        claimed = await store.claim("t", "w")
        assert claimed is not None
        for number in range(1, 2001, 100):
            await store.append(claimed[0], [(n, "e", b'"%s"' % (b"y" * 1000)) for n in range(number, number + 100)])
        kept = await store.transcript(claimed[0].id)
        assert kept[-1][0] == f"{claimed[0].attempt}-2000"
        assert 600 < len(kept) < 1000
        assert await store.held() <= 1_000_000
        # Redis counts more, for itself; but it does not grow with what was written.
        assert await in_redis(store) < 2_000_000


async def test_what_is_gone_counts_no_more(store: Store) -> None:
    jobs = [await ended(store, f"s{n}", "r" * 1000) for n in range(5)]
    for each in jobs:
        await store.append(each, [(1, "late", b"{}")])
        await store.redis.delete(PREFIX + f"job:{each.id}")  # as when it expires
    assert (await store.forget("-inf"))[0] == 5
    assert await store.redis.hgetall(HELD) == {}
    assert (await store.forget("-inf"))[0] == 0
    assert await store.redis.hgetall(HELD) == {}


async def test_what_is_counted_is_what_is_there(store: Store) -> None:
    """Whatever happened to jobs, the sum is that of the sizes, by subject and in all."""
    for n in range(12):
        await store.add(job(f"s{n % 3}", prompt="p" * (1 + 1000 * n)))
    for n in range(8):
        claimed = await store.claim(f"t{n}", "w")
        assert claimed is not None
        await store.append(claimed[0], [(1, "e", b"{}"), (2, "e", b"{}")])
        await store.append(claimed[0], [(1, "e", b"{}"), (2, "e", b"{}")])  # again: nothing is added
        if n % 3 == 0:
            await store.requeue(claimed[0])
        else:
            await store.finish(claimed[0], "done", 60, result="{}")
            await store.finish(claimed[0], "done", 60, result="{}")
    sizes = await store.redis.hgetall(PREFIX + "sizes")
    held = await store.redis.hgetall(HELD)
    assert int(held.pop("all")) == sum(map(int, sizes.values())) == sum(map(int, held.values()))


async def test_a_refusal_by_http_says_what_to_do(redis_server: RedisProcess, state: Path) -> None:
    async with serving(redis_server, state, held_per_subject=3_000_000, worker="none") as gateway:
        for _ in range(3):
            await gateway.create(BODY)
        answer = await gateway.ask("POST", "/claude/jobs", json={"prompt": BODY})
        assert answer.status_code == 429
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["retry-after"]
        assert answer.json()["limit"] == "held_per_subject"
        assert "cancel one" in answer.json()["detail"]
        await gateway.create(BODY, "bob")
        shown = (await gateway.client.get("/metrics")).text
        assert 'claude_invoker_held_allowed_bytes{where="redis"} 5.36870912e+08' in shown
        assert 'claude_invoker_held_bytes{where="redis"} 3.6' in shown


async def test_many_followers_share_a_connection(redis_server: RedisProcess) -> None:
    """One follower had one connection."""
    one_server("CLIENT LIST shows the connections of one of its nodes")
    async with bounded(redis_server) as store:
        jobs = []
        for n in range(20):
            await store.add(job(f"s{n}"))
            claimed = await store.claim(f"t{n}", "w")
            assert claimed is not None
            jobs.append(claimed[0])
        seen: dict[int, list[str]] = {n: [] for n in range(60)}

        async def follow(n: int) -> None:
            async for event in store.follow(jobs[n % 20].id, "0-0", 30):
                seen[n].append("-" if event is None else event[0])

        admin: Any = redis_server.client()
        others = len(admin.client_list())
        tasks = [asyncio.create_task(follow(n)) for n in range(60)]
        for number in range(1, 41):
            for each in jobs:
                await store.append(each, [(number, "e", b"{}")])
            await asyncio.sleep(0)

        async def all_seen() -> bool:
            return all(len(ids) == 40 for ids in seen.values())

        await until(all_seen, "every event at every follower")
        assert len(admin.client_list()) < others + 15

        async def one_waits() -> bool:  # who has got the last event has not yet asked for the next
            return sum("xread" in client["cmd"] for client in admin.client_list()) == 1

        await until(one_waits, "one connection that waits for all")
        for each in jobs:
            assert await store.finish(each, "done", 60)
        await asyncio.wait_for(asyncio.gather(*tasks), HANG_S)
        expected = [f"1-{n}" for n in range(1, 41)] + ["1-999999999"]
        assert all(ids == expected for ids in seen.values()), "none is missing, none comes twice"

        async def nobody_waits() -> bool:
            return not any("xread" in client["cmd"] for client in admin.client_list())

        await until(nobody_waits, "nobody waiting where nobody follows")


async def test_a_slow_follower_misses_nothing(redis_server: RedisProcess) -> None:
    """More comes than is kept for a follower, which then reads it from Redis."""
    async with bounded(redis_server) as store:
        await store.add(job())
        claimed = await store.claim("t", "w")
        assert claimed is not None
        slow, quick = store.follow(claimed[0].id, "0-0", 0.05), store.follow(claimed[0].id, "0-0", 0.05)
        assert await anext(slow) is None
        assert await anext(quick) is None
        for number in range(1, 5001, 500):
            await store.append(claimed[0], [(n, "e", b"{}") for n in range(number, number + 500)])
        await store.finish(claimed[0], "done", 60)
        for follower in (quick, slow):
            found = [event[0] async for event in follower if event is not None]
            assert found == [*(f"1-{n}" for n in range(1, 5001)), "1-999999999"]


@pytest.mark.parametrize("allowed", [1, 1000], ids=["bounded", "control"])
async def test_a_job_over_a_bound_of_the_machine_fails_once(
    redis_server: RedisProcess, state: Path, allowed: int
) -> None:
    """It would be over it again, so it is not repeated, also where jobs of lost workers are."""
    settings: dict[str, Any] = {"tree_entries_limit": allowed, "on_worker_loss": "retry", "pool_size": 0}
    async with serving(redis_server, state, **settings) as gateway:
        over = await gateway.see(await gateway.create(f"job=big sleep={30 if allowed == 1 else 2}"))
        if allowed == 1:
            assert over["state"] == "failed"
            assert over["error"]["limit"] == "tree_entries"
            assert "INVOKER_TREE_ENTRIES_LIMIT" in over["error"]["detail"]
        else:
            assert over["state"] == "done"
        assert over["attempt"] == 1
