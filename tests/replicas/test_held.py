"""What the records of runs that are over take in Redis is bounded, a subject's and all, and the oldest go."""

from __future__ import annotations

import asyncio
import gc
import os
from types import SimpleNamespace
from typing import Any, cast

import pytest
import redis

from claude_invoker.holding import Bounds
from claude_invoker.model import RunView
from claude_invoker.replicas.register import Register
from claude_invoker.runs.events import Event, EventLog
from claude_invoker.runs.run import Run
from tests.rate_tiers.servers import RedisProcess
from tests.support.waiting import HANG_S, until

SIZE = 100_000


class AsRun(SimpleNamespace):
    """What a register looks at of a run; unlike its base it can be forgotten, by a weak reference."""


def over(name: str, subject: str, *, retention_s: int = 600, created_at: float = 5.0) -> Run:
    """One whose events are of SIZE, and cannot be compressed."""
    view = RunView(id=name, state="succeeded", created_at=5.0, finished_at=6.0)
    events = EventLog.of([Event(1, "text", os.urandom(SIZE))])
    return cast(
        Run,
        AsRun(
            id=name,
            subject=subject,
            is_job=False,
            state="succeeded",
            created_at=created_at,
            finished_at=6.0,
            plan=SimpleNamespace(session=None, repository=None, tags=()),
            session=None,
            model="m",
            cost_usd=0.0,
            tier="",
            first_token_s=None,
            lease=None,
            retention_s=retention_s,
            events=events,
            view=lambda: view,
        ),
    )


async def write(register: Register, *runs: Run) -> None:
    for run in runs:
        await register.finished(run)
    assert register.unwritten == 0


async def known(register: Register, *names: str) -> list[bool]:
    return [await register.find(name) is not None for name in names]


def held(server: RedisProcess) -> dict[str, int]:
    with redis.Redis.from_url(server.url) as found:
        return {name.decode(): int(value) for name, value in found.hgetall("claude:{runs}:held").items()}


async def test_a_subjects_oldest_go_and_nobody_elses(own_redis: RedisProcess) -> None:
    bounds = Bounds(per_subject=3 * SIZE + SIZE // 2, in_all=100 * SIZE)
    async with Register(own_redis.url, "http://a", bounds) as one, Register(own_redis.url, "http://b", bounds) as two:
        await write(one, over("of_bob", "bob"))
        for number in range(6):  # by whichever replica
            await write((one, two)[number % 2], over(f"run_{number}", "alice smith"))
        assert await known(one, *(f"run_{number}" for number in range(6))) == [False] * 3 + [True] * 3
        assert await known(two, "of_bob") == [True]
    found = held(own_redis)
    assert found["of:alice smith"] <= bounds.per_subject and found["all"] == found["of:alice smith"] + found["of:bob"]


async def test_of_all_the_oldest_go(own_redis: RedisProcess) -> None:
    async with Register(own_redis.url, "http://a", Bounds(in_all=3 * SIZE + SIZE // 2)) as one:
        await write(one, *(over(f"run_{number}", f"s{number}") for number in range(5)))
        assert await known(one, *(f"run_{number}" for number in range(5))) == [False] * 2 + [True] * 3
    assert set(held(own_redis)) == {"all", "of:s2", "of:s3", "of:s4"}


async def test_within_the_bounds_all_stay(own_redis: RedisProcess) -> None:
    """The control of both."""
    async with Register(own_redis.url, "http://a") as one:
        await write(one, *(over(f"run_{number}", "alice") for number in range(6)))
        assert all(await known(one, *(f"run_{number}" for number in range(6))))


async def test_one_alone_stays_however_large_it_is(own_redis: RedisProcess) -> None:
    async with Register(own_redis.url, "http://a", Bounds(per_subject=SIZE // 2, in_all=SIZE // 2)) as one:
        await write(one, over("first", "alice"), over("second", "alice"))
        assert await known(one, "first", "second") == [False, True]


async def test_what_is_written_twice_counts_once_and_what_has_expired_not_at_all(own_redis: RedisProcess) -> None:
    async with Register(own_redis.url, "http://a") as one:
        await write(one, over("short", "alice", retention_s=1), over("again", "bob"), over("again", "bob"))
        assert held(own_redis)["of:bob"] < 2 * SIZE
        while any(await known(one, "short")):
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.05)
        await write(one, over("last", "bob"))
        assert "of:alice" not in held(own_redis)


async def test_who_runs_much_fills_no_redis(own_redis: RedisProcess) -> None:
    """As it is set up (`noeviction`): where it is full, other tenants' jobs are refused."""

    async def rest(bounds: Bounds) -> int:
        with redis.Redis.from_url(own_redis.url) as server:
            server.flushall()
        async with Register(own_redis.url, "http://a", bounds) as one:
            for number in range(60):
                await write(one, over(f"run_{number}", "mallory"))
        with redis.Redis.from_url(own_redis.url) as server:
            info: Any = server.info("memory")
        return int(info["used_memory"])

    without, within = await rest(Bounds()), await rest(Bounds(per_subject=10 * SIZE))
    assert without - within > 40 * SIZE


async def test_an_answer_waits_for_a_redis_that_is_started_again(
    own_redis: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be had by its caller, and lost with this process."""
    monkeypatch.setattr("claude_invoker.replicas.register._WRITE_S", HANG_S)
    async with Register(own_redis.url, "http://a") as register:
        own_redis.kill()
        finishing = asyncio.create_task(register.finished(over("kept", "alice")))
        await asyncio.sleep(0.5)
        assert not finishing.done()
        await asyncio.to_thread(own_redis.start)
        await finishing
        assert await known(register, "kept") == [True] and register.unwritten == 0


async def test_no_answer_waits_for_a_redis_that_is_away_for_long(
    own_redis: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("claude_invoker.replicas.register._WRITE_S", HANG_S)
    monkeypatch.setattr("claude_invoker.replicas.register._AWAY_S", 0.0)
    async with Register(own_redis.url, "http://a") as register:
        own_redis.kill()
        async with asyncio.timeout(HANG_S / 2):
            await register.finished(over("kept", "alice"))
        assert register.unwritten == 1
    own_redis.start()


async def test_what_could_not_be_written_is_written_when_it_can_be(own_redis: RedisProcess) -> None:
    """As long as somebody remembers it: of a run that is forgotten nobody asks any more."""
    async with Register(own_redis.url, "http://a") as register:
        own_redis.client().config_set("maxmemory", "1")
        kept, forgotten = over("kept", "alice"), over("forgotten", "alice")
        for run in (kept, forgotten):
            await register.finished(run)
        assert register.unwritten == 2 and await known(register, "kept", "forgotten") == [False, False]
        del run, forgotten
        gc.collect()
        own_redis.client().config_set("maxmemory", "0")

        async def written() -> bool:
            return await known(register, "kept", "forgotten") == [True, False]

        await until(written, "its record")
        own_redis.client().config_set("maxmemory", "1")
        last = over("last", "alice")
        await register.finished(last)
        own_redis.client().config_set("maxmemory", "0")
    assert own_redis.client().exists("claude:{runs}:run:last"), "a replica that stops leaves nothing unsaid"
