"""The store: what its scripts promise, also when a broken connection makes them run twice."""

from __future__ import annotations

import asyncio
import collections
import hashlib
import itertools
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from claude_invoker.jobs import store as store_module
from claude_invoker.jobs.fairness import fairly
from claude_invoker.jobs.record import Asks, Delivery, Job
from claude_invoker.jobs.store import MOST_ASKING, PREFIX, Store, connect, now_ms
from claude_invoker.jobs.worker import Worker
from claude_invoker.model import Permission
from claude_invoker.place import Place
from tests.jobs.conftest import job
from tests.rate_tiers.servers import RedisProcess
from tests.support.waiting import HANG_S

MB = 1 << 20


async def accepted(store: Store, *jobs: Job) -> None:
    for each in jobs:
        assert await store.add(each) == ("accepted", each.id)


async def claims(store: Store, count: int) -> list[Job]:
    found = []
    for n in range(count):
        claimed = await store.claim(f"t{n}-{time.monotonic_ns()}", "w")
        assert claimed is not None
        assert not claimed[1]
        found.append(claimed[0])
    return found


async def again(store: Store, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on every call of this script is sent twice, as after a lost answer."""
    once = store.run

    async def twice(script: str, keys: object, args: object) -> object:
        if script == name:
            await once(script, keys, args)  # type: ignore[arg-type]
        return await once(script, keys, args)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "run", twice)


async def test_subjects_take_turns(store: Store) -> None:
    await accepted(store, *[job("greedy") for _ in range(50)])
    await accepted(store, job("modest"), job("other"), job("other"))
    order = [claimed.subject for claimed in await claims(store, 7)]
    assert order.index("modest") <= 1
    assert order == ["greedy", "modest", "other", "greedy", "other", "greedy", "greedy"]


async def test_urgent_tiers_go_first_and_starve_nobody(store: Store) -> None:
    await accepted(store, *[job("free", "free") for _ in range(20)])
    await accepted(store, *[job("pro", "pro") for _ in range(20)], *[job("team", "team") for _ in range(20)])
    order = [claimed.tier for claimed in await claims(store, 24)]
    assert collections.Counter(order[:3]) == {"team": 3}
    counts = collections.Counter(order)
    assert counts["team"] > counts["pro"] + counts["free"] - 8
    assert counts["free"] >= 1
    assert counts["pro"] >= 1


async def test_cancelling_gives_no_second_turn(store: Store) -> None:
    """A subject whose queue ran empty by cancelling must not stand in the round robin twice."""
    for _ in range(5):
        fleeting = job("cheat")
        await accepted(store, fleeting)
        assert await store.cancel(fleeting, 60)
    await accepted(store, *[job("cheat") for _ in range(6)], *[job("honest") for _ in range(6)])
    order = [claimed.subject for claimed in await claims(store, 6)]
    assert collections.Counter(order) == {"cheat": 3, "honest": 3}


async def test_the_same_key_and_body_are_the_same_job(store: Store) -> None:
    first, second, third = job(), job(), job()
    assert await store.add(first, ("k", "f")) == ("accepted", first.id)
    assert await store.add(second, ("k", "f")) == ("known", first.id)
    assert await store.add(third, ("k", "other")) == ("conflict", "")
    assert await store.get(second.id) is None
    stranger = job("bob")
    assert await store.add(stranger, ("k", "other")) == ("accepted", stranger.id)
    await store.redis.delete(PREFIX + f"job:{first.id}")  # as expiry does
    assert await store.add(third, ("k", "other")) == ("accepted", third.id)


@dataclass(frozen=True)
class Defences:
    """Of an idempotency key: each is enough. Switched off, the keys are as they were."""

    keys: bool = True
    subject: bool = True

    def apply(self, monkeypatch: pytest.MonkeyPatch) -> None:
        if not self.keys:
            monkeypatch.setattr(store_module, "joined", lambda separator, *parts: separator.join(parts))
        if not self.subject:
            source, _ = store_module._script("add")
            careless = source.replace("redis.call('HGET', prefix .. 'job:' .. known[1], 'subject') == subject", "true")
            assert careless != source
            sha = hashlib.sha1(careless.encode(), usedforsecurity=False).hexdigest()
            monkeypatch.setattr(store_module, "_script", lambda name: (careless, sha))


@pytest.mark.parametrize(
    ("defences", "taken"),
    [
        (Defences(), False),
        (Defences(keys=False), False),
        (Defences(subject=False), False),
        (Defences(keys=False, subject=False), True),  # the control
    ],
    ids=str,
)
async def test_no_idempotency_key_names_anothers_job(
    store: Store, defences: Defences, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Subject `u` with the key `k:z` and subject `u:k` with the key `z`."""
    defences.apply(monkeypatch)
    victims, attackers = job("u"), job("u:k")
    await store.add(victims, ("k:z", "f"))
    happened, job_id = await store.add(attackers, ("z", "f"))
    assert (job_id == victims.id) is taken
    assert happened == ("known" if taken else "accepted")


async def test_an_idempotency_key_from_before_an_upgrade_is_known(store: Store) -> None:
    before = job("alice@example.com")
    await accepted(store, before)
    await store.redis.hset(PREFIX + "idem:alice@example.com:review", mapping={"id": before.id, "fingerprint": "f"})
    assert await store.add(job("alice@example.com"), ("review", "f")) == ("known", before.id)


@pytest.mark.parametrize("control", [False, True], ids=["defended", "control"])
async def test_lines_and_subjects_with_colons_stay_apart(
    redis_server: RedisProcess, control: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tier `a` with subject `b:x` and tier `a:b` with subject `x`: no waiting list and no block in common."""
    if control:
        monkeypatch.setattr(store_module, "escaped", lambda separator, part: part)
    redis = connect(redis_server.url)
    store = Store(redis, ("a", "a:b"))
    theirs, ours = job("b:x", "a"), job("x", "a:b")
    await accepted(store, theirs, ours)
    assert await store.waiting() == {"a": 1, "a:b": 1}
    first = await store.claim("t1", "w")
    assert first is not None
    await store.requeue(first[0], blocked_for=30)  # no place for its subject now: the other's is not touched
    second = await store.claim("t2", "w")
    await redis.aclose()
    assert (second is not None and second[0].id == ours.id) is not control


async def test_of_many_at_once_with_one_key_one_is_accepted(store: Store) -> None:
    replies = await asyncio.gather(*[store.add(job(), ("k", "f")) for _ in range(30)])
    assert collections.Counter(reply[0] for reply in replies) == {"accepted": 1, "known": 29}
    assert len({reply[1] for reply in replies}) == 1
    assert await store.waiting() == {"": 1}


@pytest.mark.parametrize("script", ["add", "claim", "finish", "requeue", "cancel", "update"])
async def test_a_script_that_runs_twice_does_it_once(
    store: Store, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await again(store, script, monkeypatch)
    kept, gone = job(), job("bob")
    await accepted(store, kept, gone)
    assert await store.waiting() == {"": 2}
    claimed = await store.claim("t", "w")
    assert claimed is not None
    assert claimed[1] is False  # ours, not a dead worker's
    await store.requeue(claimed[0], blocked_for=0.0)
    assert await store.waiting() == {"": 2}
    await store.cancel(gone, 60)
    assert (await store.get(gone.id)).state == "cancelled"  # type: ignore[union-attr]
    claimed = await store.claim("t2", "w")
    assert claimed is not None
    assert (claimed[0].id, claimed[0].attempt) == (kept.id, 2)
    await store.update(claimed[0], model="m")
    await store.finish(claimed[0], "done", 60)
    assert (await store.get(kept.id)).state == "done"  # type: ignore[union-attr]
    assert sum((await store.waiting()).values()) == 0
    assert await store.claim("t3", "w") is None
    assert await store.running() == []
    assert await store.redis.hlen(PREFIX + "tickets") == 0


async def test_a_ticket_that_comes_back_claims_nothing_else(store: Store) -> None:
    await accepted(store, job(), job())
    first = await store.claim("t", "w1")
    again = await store.claim("t", "w2")
    assert first is not None
    assert again is not None
    assert again[0].id == first[0].id
    assert again[1] is True
    assert await store.finish(first[0], "done", 60)
    later = await store.claim("t", "w2")
    assert later is not None
    assert later[0].id != first[0].id


@pytest.mark.parametrize("whose", ["its own", "another's"])
async def test_who_was_held_up_does_not_take_its_own_job_for_lost(store: Store, whose: str) -> None:
    """Nobody has shown for so long that he works on it, and the ticket comes back: to the process that does."""
    lost: list[str] = []

    async def orphaned(job: Job) -> None:
        lost.append(job.id)

    parts: Any = SimpleNamespace(draining=False, orphaned=orphaned)
    worker = Worker(parts, parts, store, parts, parts)
    await accepted(store, job())
    claimed = await store.claim("t", worker.name)
    assert claimed is not None
    held, _ = claimed
    await store.redis.hset(PREFIX + f"job:{held.id}", "beat", now_ms() - 1_000_000)
    if whose == "its own":
        worker.taken.add(held.id)
    await worker.run_next({"job": SimpleNamespace(key="t")})
    assert lost == ([] if whose == "its own" else [held.id])


async def test_who_was_thought_lost_is_fenced(store: Store) -> None:
    await accepted(store, job())
    (old,) = await claims(store, 1)
    await store.append(old, [(1, "a", b"{}"), (2, "b", b"{}")])
    await store.append(old, [(1, "a", b"{}"), (2, "b", b"{}")])  # again: nothing is added
    assert await store.requeue(old) == "requeued"
    (new,) = await claims(store, 1)
    assert (old.attempt, new.attempt) == (1, 2)
    assert await store.update(old, model="late") == -1
    assert await store.requeue(old) == "not ours"
    assert not await store.finish(old, "done", 60)
    await store.append(new, [(1, "c", b"{}")])
    await store.append(old, [(3, "late", b"{}")])
    assert await store.finish(new, "done", 60)
    await store.append(new, [(2, "late", b"{}")])
    names = [name for _, name, _ in await store.transcript(new.id)]
    assert names == ["a", "b", "job.requeued", "c", "job.done"]
    assert not await store.finish(new, "failed", 60)
    assert not await store.finish(new, "cancelled", 60, waiting=True)


async def test_cancelling_while_it_waits_runs_and_is_over(store: Store) -> None:
    waiting, running = job(), job("bob")
    await accepted(store, running)
    (held,) = await claims(store, 1)
    await accepted(store, waiting)
    assert await store.cancel(waiting, 60) is True
    assert await store.waiting() == {"": 0}
    assert await store.claim("t", "w") is None
    assert await store.cancel(running, 60) is False
    assert await store.update(held, model="m") == 1
    assert await store.requeue(held, blocked_for=1) == "cancelled"  # nobody's place is worth waiting for
    assert await store.finish(held, "cancelled", 60)
    assert await store.cancel(running, 60) is False


async def test_a_cancelled_retry_can_be_ended(store: Store) -> None:
    await accepted(store, job())
    (held,) = await claims(store, 1)
    assert await store.requeue(held) == "requeued"
    assert await store.cancel(held, 60) is True
    assert [name for _, name, _ in await store.transcript(held.id)] == ["job.requeued", "job.cancelled"]


async def test_a_full_subject_is_passed_over(store: Store) -> None:
    full, free = job("full"), job("free")
    await accepted(store, full, job("full"), free)
    (held,) = await claims(store, 1)
    assert held.id == full.id
    assert await store.requeue(held, blocked_for=30) == "requeued"
    assert [claimed.id for claimed in await claims(store, 1)] == [free.id]
    assert await store.claim("x", "w") is None
    await store.redis.hset(PREFIX + "blocked", ":full", now_ms() - 1)
    (back,) = await claims(store, 1)
    assert (back.id, back.attempt) == (full.id, 1)  # it had not run


async def test_an_end_frees_its_subjects_place(store: Store) -> None:
    await accepted(store, job(), job())
    (running,) = await claims(store, 1)
    (refused,) = await claims(store, 1)
    await store.requeue(refused, blocked_for=30)
    assert await store.claim("x", "w") is None
    await store.finish(running, "done", 60)
    assert [claimed.id for claimed in await claims(store, 1)] == [refused.id]


@hypothesis(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    jobs=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["team", "free"])), min_size=1, max_size=12),
    taken=st.integers(0, 5),
)
def test_no_job_starts_after_more_than_its_position_says(
    redis_server: RedisProcess, jobs: list[tuple[str, str]], taken: int
) -> None:
    async def check() -> None:
        redis_server.client().flushall()
        redis = connect(redis_server.url)
        store = Store(redis, ("team",))
        waiting = [job(subject, tier) for subject, tier in jobs]
        await accepted(store, *waiting)
        for n in range(min(taken, len(jobs))):
            await store.claim(f"before-{n}", "w")
        store._claims = 0  # without the claims in which other tiers go first, which positions leave out
        states = {each.id: (await store.get(each.id)).state for each in waiting}  # type: ignore[union-attr]
        turns = {each.id: await store.turn(each) for each in waiting}
        order: list[str] = []
        while claimed := await store.claim(f"t{len(order)}", "w"):
            store._claims = 0
            order.append(claimed[0].id)
        assert sorted(order) == sorted(i for i, state in states.items() if state == "queued")
        for place, job_id in enumerate(order):
            turn = turns[job_id]
            assert turn is not None
            assert place <= turn.position < len(order)
        assert all(turns[i] is None for i in states if i not in order)
        assert sum((await store.waiting()).values()) == 0
        await redis.aclose()

    asyncio.run(check())


async def test_pages_show_each_job_once_and_no_prompts(store: Store) -> None:
    jobs = [job(created_at=1000.0 + n / 7, prompt="x" * 5000) for n in range(25)]
    await accepted(store, *jobs, job("bob"))
    seen, cursor = [], None
    for _ in range(5):
        page, cursor = await store.page("alice", cursor, 10)
        seen += [shown.id for shown in page]
        assert all(shown.request_json == "" and len(shown.title) == 160 for shown in page)
        if cursor is None:
            break
    assert seen == [each.id for each in reversed(jobs)]
    everybody, _ = await store.page(None, None, 100)
    assert len(everybody) == 26


@pytest.mark.parametrize("size", [1, 2, 3])
async def test_no_page_loses_a_job_that_was_accepted_at_the_same_moment(store: Store, size: int) -> None:
    """Also where those that a cursor names are gone, and of a cursor of an older release, which is a time."""
    jobs = [job(created_at=1000.0 + n // 3) for n in range(9)]
    await accepted(store, *jobs)
    expected = sorted((each.place for each in jobs), reverse=True)
    seen, before = list[Place](), None
    while True:
        page, before = await store.page("alice", before, size)
        seen += [each.place for each in page]
        if before is None:
            break
        assert Place.parse(str(before)) == before == seen[-1]
        await store.run("forget", [], [before.id, "alice"])
    assert seen == expected
    old, _ = await store.page(None, Place(1002.0, ""), 9)
    assert {each.created_at for each in old} <= {1001.0, 1000.0}


async def test_what_is_counted_of_all_that_jobs_ask_is_not_read(store: Store) -> None:
    found = job()
    await accepted(store, found)
    (held,) = await claims(store, 1)
    asked = Permission(id="perm_1", tool="Write", input={"content": "x" * MB}, why="rule", asked_at=1.0, expires_at=2.0)
    fields: dict[str, Any] = dict(Asks(waiting=[asked, asked]).fields())
    await store.update(held, **fields)

    async def read() -> int:
        return int((await store.redis.info("stats"))["total_net_output_bytes"])

    before = await read()
    assert await store.approvals() == 2
    assert await read() - before < MB
    assert sum(len(each.waiting) for each in (await store.asking())[0]) == 2
    assert await read() - before > 2 * MB, "the control: what they are"
    await store.requeue(held)
    assert await store.approvals() == 0


async def test_who_asks_a_lot_hides_nobody_who_asks(store: Store) -> None:
    """The first 200 of all were one caller's, and an approver saw no other's."""
    for subject, number in (("flood", MOST_ASKING + 30), ("quiet", 2), ("other", 1), ("silent", 1)):
        for _ in range(number):
            await accepted(store, job(subject))
    asked = Permission(id="perm_1", tool="Write", input={}, why="rule", asked_at=1.0, expires_at=9e9)
    held = await claims(store, MOST_ASKING + 34)
    for each in sorted(held, key=lambda each: each.subject != "flood"):
        if each.subject != "silent":
            fields: dict[str, Any] = dict(Asks(waiting=[asked]).fields())
            await store.update(each, **fields)

    async def seen(*subjects: str) -> tuple[collections.Counter[str], int]:
        jobs, in_all = await store.asking(lambda subject: not subjects or subject in subjects)
        assert len({each.id for each in jobs}) == len(jobs)
        return collections.Counter(each.subject for each in jobs), in_all

    assert await seen() == ({"flood": MOST_ASKING - 3, "quiet": 2, "other": 1}, MOST_ASKING + 33)
    assert await seen("quiet", "silent") == ({"quiet": 2}, 2)
    assert await seen("flood") == ({"flood": MOST_ASKING}, MOST_ASKING + 30)
    assert await store.approvals() == MOST_ASKING + 33


@given(st.lists(st.sampled_from("abcd"), max_size=30), st.integers(0, 12))
def test_a_page_is_shared_fairly(owners: list[str], most: int) -> None:
    found = fairly([(owner, at) for at, owner in enumerate(owners)], most)
    assert found == sorted(set(found)) and len(found) == min(most, len(owners))
    shown, have = collections.Counter(owners[at] for at in found), collections.Counter(owners)
    for owner, other in itertools.permutations(have, 2):
        assert shown[owner] == have[owner] or shown[owner] >= shown[other] - 1, "nobody gives way to who has more"
    for owner in have:
        its = [at for at in range(len(owners)) if owners[at] == owner]
        assert [at for at in found if owners[at] == owner] == its[: shown[owner]], "each's first ones"


async def test_expired_jobs_leave_the_indexes(store: Store) -> None:
    jobs = [job(subject) for subject in ("alice", "bob", "alice")]
    await accepted(store, *jobs)
    ended = (await claims(store, 3))[0]
    await store.finish(ended, "done", 60)
    await store.redis.delete(PREFIX + f"job:{ended.id}")
    assert await store.gone(ended.id, ended.subject)
    assert not await store.gone(ended.id, "bob")
    assert await store.gone(ended.id, None)
    assert await store.expired(ended.id)
    assert not await store.expired(jobs[1].id)
    assert await store.forget("-inf") == (1, "-inf")
    assert await store.redis.zcard(PREFIX + "all") == 2
    assert await store.redis.zcard(PREFIX + "of:alice") == 1


async def test_a_record_that_is_gone_is_not_written_again(store: Store) -> None:
    lone = job(callback_url="https://x.example/")
    await accepted(store, lone)
    (held,) = await claims(store, 1)
    await store.finish(held, "done", 60)
    assert await store.owed(now_ms() + 1) == [lone.id]
    await store.redis.delete(PREFIX + f"job:{lone.id}")
    await store.delivered(held, Delivery(at=1.0, status=200), final=True)
    assert await store.get(lone.id) is None
    assert await store.owed(now_ms() + 1) == []


async def test_following_ends_with_the_job(store: Store) -> None:
    lone = job()
    await accepted(store, lone)
    (held,) = await claims(store, 1)
    seen: list[str] = []

    async def follow() -> None:
        async for event in store.follow(lone.id, "0-0", 0.1):
            seen.append("-" if event is None else event[1])

    following = asyncio.create_task(follow())
    await asyncio.sleep(0.3)
    await store.append(held, [(1, "a", b"{}")])
    await store.finish(held, "done", 60)
    await asyncio.wait_for(following, HANG_S)
    assert "-" in seen
    assert [name for name in seen if name != "-"] == ["a", "job.done"]
    rest = [event async for event in store.follow(lone.id, "1-1", 5)]
    assert [event[1] for event in rest if event] == ["job.done"]
