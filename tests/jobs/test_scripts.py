"""What each script leaves in Redis, exactly, and for how long: a job that is claimed twice, passed over for ever or forgotten
shows in a key that nobody would think of asking for."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from claude_contract.versions import UnknownVersion
from claude_invoker.holding import Bounds
from claude_invoker.jobs import store as store_module
from claude_invoker.jobs.record import VERSION as JOB_VERSION
from claude_invoker.jobs.record import Asks, Job
from claude_invoker.jobs.store import (
    BLOCKED,
    CANCELLED,
    DEFERRED,
    IDEMPOTENCY_TTL,
    PREFIX,
    TOMBSTONE_TTL,
    Store,
    now_ms,
)
from claude_invoker.model import Permission, PermissionDecision
from claude_invoker.problem import Problem
from claude_invoker.runs.deferral import Deferral
from tests.jobs.conftest import job
from tests.jobs.test_store import accepted, claims
from tests.support.waiting import HANG_S

RECORD, EVENT = 2048, 128  # bytes, as `held.lua` counts what a record and an event take beside their texts
BODY = '{"prompt":"-"}'
SLACK = 60  # seconds that a test may take beside a busy compiler


async def stored(store: Store) -> dict[str, Any]:
    """All that is there about jobs but their records and events: key without prefix → value, lists in their order."""
    found: dict[str, Any] = {}
    for key in await store.redis.keys(PREFIX + "*"):
        name, kind = key.removeprefix(PREFIX), await store.redis.type(key)
        if name.startswith(("job:", "events:")):
            continue
        read = {
            "hash": store.redis.hgetall,
            "string": store.redis.get,
            "list": lambda key: store.redis.lrange(key, 0, -1),
            "zset": lambda key: store.redis.zrange(key, 0, -1),
        }[kind]
        found[name] = await read(key)
    return found


async def record(store: Store, one: Job) -> dict[str, str]:
    return await store.redis.hgetall(PREFIX + f"job:{one.id}")  # type: ignore[no-any-return]


async def lives(store: Store, one: Job) -> tuple[int, int, int]:
    """Seconds until the job, its events and its tombstone are forgotten; -1: never, -2: there is none."""
    names = (f"job:{one.id}", f"events:{one.id}", f"gone:{one.id}")
    return tuple([await store.redis.ttl(PREFIX + name) for name in names])


def bytes_of(fields: dict[str, Any]) -> int:
    return RECORD + sum(len(name) + len(str(value)) for name, value in fields.items())


async def test_what_waits(store: Store) -> None:
    first, second, other = job("ada", "pro", created_at=1000.5), job("ada", "pro", created_at=1001.0), job("bob", "odd")
    await accepted(store, first, second, other)
    held = {one.id: str(bytes_of(one.fields())) for one in (first, second, other)}
    of_ada = int(held[first.id]) + int(held[second.id])
    assert await stored(store) == {
        "wait:pro:ada": [first.id, second.id],
        "wait::bob": [other.id],
        "ring:pro": ["ada"],
        "ring:": ["bob"],
        "of:ada": [first.id, second.id],
        "of:bob": [other.id],
        "all": [first.id, second.id, other.id],
        "waiting": {"pro": "2", "": "1"},
        "sizes": held,
        "held": {"all": str(of_ada + int(held[other.id])), "of:ada": str(of_ada), "of:bob": held[other.id]},
    }
    assert await store.redis.zscore(PREFIX + "all", first.id) == 1000.5
    assert await lives(store, first) == (-1, -2, -2), "what waits is never forgotten"


async def test_an_idempotency_key_lives_a_day_and_ends_with_its_job(store: Store) -> None:
    one = job("ada")
    assert await store.add(one, ("k", "f")) == ("accepted", one.id)
    key = PREFIX + "idem:ada:k"
    assert await store.redis.hgetall(key) == {"id": one.id, "fingerprint": "f"}
    assert IDEMPOTENCY_TTL - SLACK < await store.redis.ttl(key) <= IDEMPOTENCY_TTL
    without = await stored(store)
    assert await store.add(job("ada"), ("k", "f")) == ("known", one.id)
    assert await store.add(job("ada"), ("k", "g")) == ("conflict", "")
    assert await stored(store) == without


async def test_what_is_claimed(store: Store) -> None:
    one = job("ada", "pro")
    await accepted(store, one)
    before = now_ms()
    assert await store.claim("t", "w1") is not None
    found = await stored(store)
    assert {name: found[name] for name in ("tickets", "running", "waiting")} == {
        "tickets": {"t": one.id},
        "running": [one.id],
        "waiting": {"pro": "0"},
    }
    assert not {"wait:pro:ada", "ring:pro", "blocked"} & found.keys()
    held = await record(store, one)
    assert (held["state"], held["worker"], held["ticket"], held["attempt"]) == ("running", "w1", "t", "1")
    assert before <= await store.redis.zscore(PREFIX + "running", one.id) <= now_ms()
    assert before <= int(held["beat"]) <= now_ms()
    assert before <= round(float(held["started_at"]) * 1000) <= now_ms()
    assert await lives(store, one) == (-1, -2, -2), "what runs is never forgotten"


@pytest.mark.parametrize("ahead_s", [-3600, 0, 3600])
async def test_how_long_a_worker_is_silent_goes_by_the_clock_of_redis(
    store: Store, ahead_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever clocks the worker has and whoever asks."""
    await accepted(store, job("ada"))
    monkeypatch.setattr(store_module, "now_ms", lambda: now_ms() + ahead_s * 1000)
    claimed = await store.claim("t", "w1")
    assert claimed is not None
    held, _ = claimed
    assert 0 <= await store.silent_s(held) < HANG_S
    await store.redis.hset(PREFIX + f"job:{held.id}", "beat", now_ms() - 1_000_000)
    assert 1000 <= await store.silent_s(held) < 1000 + HANG_S
    await store.update(held, held=False, title="somebody else's")
    assert await store.silent_s(held) >= 1000
    await store.update(held, model="its own")
    assert await store.silent_s(held) < HANG_S
    # Not of another attempt, and of none that runs no more.
    await store.redis.hset(PREFIX + f"job:{held.id}", "beat", 1)
    assert await store.silent_s(replace(held, attempt=held.attempt + 1)) == 0
    assert await store.finish(held, "done", 600)
    assert await store.silent_s(held) == 0


async def test_a_job_that_has_ended_is_never_claimed_again(store: Store) -> None:
    """Also where its id still stands in a list, and where its ticket comes back."""
    ended, waits = job("ada"), job("ada")
    await accepted(store, ended)
    (held,) = await claims(store, 1)
    assert await store.finish(held, "done", 600)
    await store.redis.rpush(PREFIX + "wait::ada", ended.id)  # as a lost answer could leave it
    await store.redis.rpush(PREFIX + "ring:", "ada")
    await store.redis.hincrby(PREFIX + "waiting", "", 1)
    assert await store.claim("t9", "w") is None
    assert (await record(store, ended))["state"] == "done"
    assert await store.running() == []
    assert await store.waiting() == {"": 0}
    await store.redis.hset(PREFIX + "tickets", "t9", ended.id)
    assert await store.claim("t9", "w") is None
    assert "tickets" not in await stored(store), "what a ticket had is forgotten where it gets nothing"
    await store.redis.hset(PREFIX + "tickets", "t9", ended.id)
    await accepted(store, waits)
    claimed = await store.claim("t9", "w")
    assert claimed is not None
    assert (claimed[0].id, claimed[1]) == (waits.id, False)


async def test_a_subject_without_a_place_keeps_nobody_waiting_behind_it(store: Store) -> None:
    """Whatever stands in front of whom, and however often it is passed over."""
    full = [job("full", "pro") for _ in range(2)]
    free = [job(subject, "pro") for subject in ("ada", "bob", "full2")]
    await accepted(store, *full, *free)
    (held,) = await claims(store, 1)
    assert held.id == full[0].id
    assert await store.requeue(held, blocked_for=600) == "requeued"
    until = (await stored(store))["blocked"]
    assert until.keys() == {"pro:full"} and 540_000 < int(until["pro:full"]) - now_ms() <= 600_000
    found = await claims(store, 3)
    assert [one.id for one in found] == [one.id for one in free]
    for number in range(3):
        assert await store.claim(f"x{number}", "w") is None
    left = await stored(store)
    assert (left["ring:pro"], left["wait:pro:full"]) == (["full"], [one.id for one in full])
    assert left["waiting"] == {"pro": "2"}
    await store.redis.hset(BLOCKED, "pro:full", now_ms() - 1)
    back = await claims(store, 1)
    assert [one.id for one in back] == [full[0].id], "the one that was put back goes first"
    assert "blocked" not in await stored(store)


async def test_a_ticket_that_comes_back_finds_its_own_attempt_only(store: Store) -> None:
    one, other = job("ada"), job("ada")
    await accepted(store, one)
    first = await store.claim("t", "w")
    assert first is not None
    assert await store.requeue(first[0]) == "requeued"
    await store.claim("t2", "w2")
    await store.redis.hset(PREFIX + "tickets", "t", one.id)  # an old ticket of what another one holds now
    await accepted(store, other)
    again = await store.claim("t", "w")
    assert again is not None
    assert (again[0].id, again[1]) == (other.id, False)


async def test_a_job_of_another_release_stands_in_nobodys_way(store: Store) -> None:
    theirs, ours = job("ada"), job("bob")
    await accepted(store, theirs, ours)
    await store.redis.hset(PREFIX + f"job:{theirs.id}", "v", 9)
    assert [one.id for one in await claims(store, 1)] == [ours.id]
    for number in range(2):
        with pytest.raises(UnknownVersion, match=f"job {theirs.id} is of version 9"):
            await store.claim(f"t{number}", "w")
    left = await stored(store)
    assert (left["wait::ada"], left["ring:"], left["waiting"]) == ([theirs.id], ["ada"], {"": "1"})


@pytest.mark.parametrize(("behind", "taken"), [(-1, False), (0, True), (1, True), (2, False)])
async def test_a_job_of_the_release_before_is_run_and_no_other(store: Store, behind: int, taken: bool) -> None:
    """`behind`: how many versions of records its own is older than ours."""
    waits = job("ada")
    await accepted(store, waits)
    await store.redis.hset(PREFIX + f"job:{waits.id}", "v", JOB_VERSION - behind)
    if taken:
        assert [one.id for one in await claims(store, 1)] == [waits.id]
    else:
        with pytest.raises(UnknownVersion):
            await store.claim("t", "w")
        assert (await stored(store))["wait::ada"] == [waits.id], "it waits for a worker that can read it"


@pytest.mark.parametrize("retention", [60, 86_400])
async def test_an_end_is_kept_as_long_as_was_asked_for(store: Store, retention: int) -> None:
    """Answers were never deleted, by a change that no test noticed."""
    one, other = job("ada", "pro", callback_url="https://example.org/hook"), job("ada", "pro")
    await accepted(store, one, other)
    (held,) = await claims(store, 1)
    await store.append(held, [(1, "a", b"{}")])
    await store.redis.hset(BLOCKED, "pro:ada", now_ms() + 600_000)
    sizes, request = int((await stored(store))["sizes"][one.id]), len((await record(store, one))["request"])
    before = now_ms()
    assert await store.finish(held, "done", retention, result="r" * 50)
    found = await stored(store)
    written = {name: (await record(store, one))[name] for name in ("finished_at", "expires_at", "result")}
    added = sum(len(name) + len(value) for name, value in written.items()) + len(BODY) - request
    assert int(found["sizes"][one.id]) == sizes + added
    callbacks = found.pop("callbacks", [])
    assert callbacks == ([one.id] if "callback" in await record(store, one) else [])
    assert "blocked" not in found and "tickets" not in found and "running" not in found
    assert (found["ended"], found["ended:ada"], found["all"]) == ([one.id], [one.id], [one.id, other.id])
    assert before <= await store.redis.zscore(PREFIX + "ended", one.id) <= now_ms()
    assert found[f"gone:{one.id}"] == "ada"
    assert (found["wait:pro:ada"], found["ring:pro"], found["waiting"]) == ([other.id], ["ada"], {"pro": "1"})
    wanted = (retention, retention, retention + TOMBSTONE_TTL)
    assert all(ms - SLACK < has <= ms for has, ms in zip(await lives(store, one), wanted, strict=True))
    assert await lives(store, other) == (-1, -2, -2)
    fields = await record(store, one)
    assert (fields["state"], fields["request"], fields["result"]) == ("done", BODY, "r" * 50)
    assert float(fields["expires_at"]) - float(fields["finished_at"]) == pytest.approx(retention)
    events = await store.redis.xrange(PREFIX + f"events:{one.id}")
    assert events[-1] == ("1-999999999", {"event": "job.done", "data": f'{{"id":"{one.id}","state":"done"}}'})


async def test_a_waiting_job_ends_without_having_run(store: Store) -> None:
    first, second = job("ada", "pro"), job("ada", "pro")
    await accepted(store, first, second)
    await store.redis.hset(BLOCKED, "pro:ada", now_ms() + 600_000)
    assert await store.cancel(first, 60) is True
    found = await stored(store)
    assert (found["wait:pro:ada"], found["ring:pro"], found["waiting"]) == ([second.id], ["ada"], {"pro": "1"})
    assert found["blocked"].keys() == {"pro:ada"}, "the other one still has no place"
    assert await store.cancel(second, 60) is True
    found = await stored(store)
    assert not {"wait:pro:ada", "ring:pro", "blocked"} & found.keys()
    assert found["waiting"] == {"pro": "0"}
    events = await store.redis.xrange(PREFIX + f"events:{first.id}")
    assert [(number, entry["event"]) for number, entry in events] == [("1-999999999", "job.cancelled")]
    assert not await store.finish(first, "failed", 60, waiting=True)
    assert (await record(store, first))["state"] == "cancelled"


async def test_a_cancelled_job_carries_the_mark_until_it_ends(store: Store) -> None:
    """Whoever claims a waiting one between the two scripts of `cancel` finds it."""
    heard = store.redis.pubsub()
    await heard.subscribe(CANCELLED)
    await heard.get_message(timeout=HANG_S)
    for state in ("queued", "running"):
        one = job("ada")
        await accepted(store, one)
        if state == "running":
            (one,) = await claims(store, 1)
        key = PREFIX + f"job:{one.id}"
        assert await store.run("cancel", [key], [one.id, CANCELLED, "root"]) == state
        assert (await record(store, one))["cancel"] == "1"
        message = await heard.get_message(ignore_subscribe_messages=True, timeout=HANG_S)
        assert message is not None
        assert message["data"] == one.id
        if state == "queued":
            (one,) = await claims(store, 1)
        assert await store.update(one, model="m") == 1
        assert await store.run("cancel", [key], [one.id, CANCELLED, "late"]) == "running"
        assert await store.cancelled_by(one) == "root", "who was the first"
        await heard.get_message(ignore_subscribe_messages=True, timeout=HANG_S)
        assert await store.requeue(one, blocked_for=60) == "cancelled"
        assert (await record(store, one))["state"] == "running"
        assert await store.finish(one, "cancelled", 60)
        assert await store.run("cancel", [key], [one.id, CANCELLED, "late"]) == "cancelled"
    assert await heard.get_message(ignore_subscribe_messages=True, timeout=0.1) is None
    assert await store.run("cancel", [PREFIX + "job:none"], ["none", CANCELLED, "root"]) is None
    assert not await store.redis.exists(PREFIX + "job:none")
    await heard.aclose()


async def test_who_does_not_hold_a_record_changes_nothing_of_it(store: Store) -> None:
    """An old holder changed a record that had ended, or was another's by then."""
    one = job("ada")
    await accepted(store, one)
    assert await store.update(one, model="too early") == -1, "it waits"
    (old,) = await claims(store, 1)
    assert await store.update(old, model="m") == 0
    assert await store.requeue(old) == "requeued"
    assert await store.update(old, model="late") == -1
    (new,) = await claims(store, 1)
    assert await store.update(old, model="late") == -1
    assert await store.update(new, held=False, delivery="x") == 0
    assert await store.finish(new, "done", 60)
    for late in (old, new):
        assert await store.update(late, model="late") == -1
        assert not await store.finish(late, "failed", 60)
        assert await store.requeue(late) == "not ours"
    found = await record(store, one)
    assert (found["state"], found["model"], found["delivery"]) == ("done", "m", "x")
    assert await store.update(one, held=False, delivery="y") == 0
    await store.redis.delete(PREFIX + f"job:{one.id}")
    assert await store.update(one, held=False, delivery="z") == -1
    assert not await store.redis.exists(PREFIX + f"job:{one.id}"), "an expired record does not come back, for ever"


async def test_what_is_put_back(store: Store) -> None:
    first, second = job("ada", "pro"), job("ada", "pro")
    await accepted(store, first, second)
    (held,) = await claims(store, 1)
    await store.update(held, work="w")
    assert await store.requeue(held, cost_usd="0.5") == "requeued"
    found = await stored(store)
    assert (found["wait:pro:ada"], found["ring:pro"]) == ([first.id, second.id], ["ada"])
    assert found["waiting"] == {"pro": "2"}
    assert not {"tickets", "running", "blocked"} & found.keys()
    fields = await record(store, first)
    assert (fields["state"], fields["attempt"], fields["cost_usd"]) == ("queued", "1", "0.5")
    assert not {"worker", "ticket", "nonce", "beat", "started_at", "work"} & fields.keys()
    events = await store.redis.xrange(PREFIX + f"events:{first.id}")
    assert [(number, entry["event"]) for number, entry in events] == [("1-999999999", "job.requeued")]
    assert await store.requeue(held) == "not ours"
    assert await lives(store, first) == (-1, -1, -2)


def asks(until: float, decided: PermissionDecision | None = None) -> tuple[Asks, Deferral]:
    """What a job asks that is put away: about one call, which is denied at `until`, or has been decided meanwhile."""
    asked = Permission(id="perm_1", tool="Bash", input={}, why="Bash", asked_at=until - 60, expires_at=until)
    return (Asks(decided=[decided]) if decided else Asks(waiting=[asked])), Deferral(session="s", permission=asked)


DECIDED = PermissionDecision(id="perm_1", tool="Bash", decision="allow", reason="answered", by="ada", decided_at=1.0)
LATE = 2_000_000_000.25  # seconds since the epoch


async def events_of(store: Store, one: Job) -> list[tuple[str, str]]:
    return [(number, entry["event"]) for number, entry in await store.redis.xrange(PREFIX + f"events:{one.id}")]


@pytest.mark.parametrize("decided", [None, DECIDED])
@pytest.mark.parametrize("alone", [False, True])
async def test_a_job_that_is_put_away(store: Store, decided: PermissionDecision | None, alone: bool) -> None:
    """Nothing of its worker is left; it waits for a decision, or, where there is one, at the head of its subject's."""
    first, second = job("ada", "pro"), job("ada", "pro")
    await accepted(store, first, *([] if alone else [second]))
    (held,) = await claims(store, 1)
    await store.update(held, work="w")
    await store.redis.hset(BLOCKED, mapping={"pro:ada": now_ms() + 600_000, "pro:bob": 1})
    before = await stored(store)
    waiting, deferral = asks(LATE, decided)
    for _ in range(2):  # as where the answer was lost
        assert await store.defer(held, waiting, deferral, cost_usd="0.5") == "put away"
    found = await stored(store)
    behind = [] if alone else [second.id]
    queue = [first.id, *behind] if decided else behind
    assert found.get("wait:pro:ada", []) == queue
    assert found.get("ring:pro", []) == (["ada"] if queue else [])
    assert found["waiting"] == {"pro": str(len(queue))}
    assert found["blocked"] == {"pro:bob": "1"}, "its place is free"
    assert not {"tickets", "running"} & found.keys()
    assert found.get("deferred", []) == ([] if decided else [first.id])
    assert await store.redis.zscore(DEFERRED, first.id) == (None if decided else 2_000_000_000_250)
    assert (found["sizes"], found["held"]) == (before["sizes"], before["held"])
    fields = await record(store, first)
    assert fields["state"] == ("queued" if decided else "waiting_for_approval")
    assert (fields["attempt"], fields["cost_usd"]) == ("1", "0.5")
    assert (fields["asks"], fields["deferral"]) == (waiting.model_dump_json(), deferral.model_dump_json())
    assert not {"worker", "ticket", "nonce", "beat", "work"} & fields.keys()
    assert await events_of(store, first) == ([] if decided else [("1-999999990", "job.waiting_for_approval")])
    assert await lives(store, first) == (-1, -1 if not decided else -2, -2)


async def test_one_that_is_put_away_ends_as_one_that_waits(store: Store) -> None:
    one, running = job("ada", "pro"), job("bob", "pro")
    await accepted(store, one)
    (held,) = await claims(store, 1)
    assert await store.defer(held, *asks(LATE)) == "put away"
    assert not await store.finish(held, "done", 60), "nobody holds it"
    assert await store.cancel(held, 60) is True
    found = await stored(store)
    assert not {"deferred", "wait:pro:ada", "ring:pro", "blocked"} & found.keys()
    assert found["waiting"] == {"pro": "0"}
    assert (await record(store, one))["state"] == "cancelled"
    assert [name for _, name in await events_of(store, one)] == ["job.waiting_for_approval", "job.cancelled"]
    await accepted(store, running)
    (held,) = await claims(store, 1)
    for state in ("running", "done"):
        assert not await store.finish(held, "failed", 60, waiting=True), state
        await store.finish(held, "done", 60)
    assert (await record(store, running))["state"] == "done"


async def test_only_who_holds_a_job_puts_it_away(store: Store) -> None:
    (one, waiting, ended, cancelled, again) = jobs = [job(name) for name in ("ada", "bob", "cyd", "dan", "eve")]
    await accepted(store, one, ended, cancelled, again)
    _, over, marked, old = await claims(store, 4)
    await accepted(store, waiting)
    assert await store.finish(over, "done", 60)
    assert await store.cancel(marked, 60) is False
    assert await store.requeue(old) == "requeued"
    await store.redis.hset(PREFIX + f"job:{again.id}", "state", "running")  # its second attempt, another worker's
    await store.redis.hset(PREFIX + f"job:{again.id}", "attempt", "2")
    before = [await record(store, each) for each in jobs], await stored(store)
    for each, outcome in ((waiting, "not ours"), (over, "not ours"), (marked, "cancelled"), (old, "not ours")):
        assert await store.defer(each, *asks(LATE)) == outcome
    assert await store.defer(job("nobody"), *asks(LATE)) == "not ours"
    assert ([await record(store, each) for each in jobs], await stored(store)) == before


@pytest.mark.parametrize("alone", [False, True])
async def test_what_goes_on_when_it_is_decided(store: Store, alone: bool) -> None:
    first, second = job("ada", "pro"), job("ada", "pro")
    await accepted(store, first, *([] if alone else [second]))
    (held,) = await claims(store, 1)
    assert await store.defer(held, *asks(LATE)) == "put away"
    (away,) = [await store.get(first.id)]
    assert away is not None
    for _ in range(2):  # as where the answer was lost
        assert await store.resume(away, DECIDED)
    found = await stored(store)
    queue = [first.id] if alone else [first.id, second.id]
    assert (found["wait:pro:ada"], found["ring:pro"], found["waiting"]) == (queue, ["ada"], {"pro": str(len(queue))})
    assert "deferred" not in found
    fields = await record(store, first)
    assert (fields["state"], fields["asks"]) == ("queued", Asks(decided=[DECIDED]).model_dump_json())
    assert await events_of(store, first) == [
        ("1-999999990", "job.waiting_for_approval"),
        ("1-999999995", "permission.decided"),
    ]


async def test_a_job_is_let_go_on_once_and_only_while_it_is_put_away(store: Store) -> None:
    other = DECIDED.model_copy(update={"by": "bob"})
    one = job("ada")
    await accepted(store, one)
    (held,) = await claims(store, 1)
    assert await store.defer(held, *asks(LATE)) == "put away"
    away = await store.get(one.id)
    assert away is not None
    assert not await store.resume(replace(away, attempt=away.attempt + 1), DECIDED), "of another attempt"
    before = await stored(store)
    assert before["deferred"] == [one.id]
    assert await store.resume(away, DECIDED)
    assert not await store.resume(away, other), "somebody else has decided"
    (running,) = await claims(store, 1)
    assert await store.resume(away, DECIDED) and not await store.resume(away, other)
    assert (await record(store, one))["state"] == "running"
    assert await store.finish(running, "done", 60)
    for decision in (DECIDED, other):
        assert await store.resume(away, decision) == (decision is DECIDED)
    assert not {"wait::ada", "ring:", "deferred"} & (await stored(store)).keys()
    gone = replace(away, id="job_gone")
    assert not await store.resume(gone, DECIDED)
    assert not await store.redis.exists(PREFIX + "job:job_gone", PREFIX + "events:job_gone")


async def test_events_are_counted_and_the_oldest_go(store: Store) -> None:
    one = job("ada")
    await accepted(store, one)
    (held,) = await claims(store, 1)
    before = int((await stored(store))["held"]["all"])
    await store.append(held, [(1, "a", b"12345"), (2, "b", b"123")])
    await store.append(held, [(2, "b", b"123"), (3, "c", b"")])
    found = await stored(store)
    added = 8 + 3 * EVENT
    assert found["held"] == {"all": str(before + added), "of:ada": str(before + added)}
    assert found["sizes"] == {one.id: str(before + added)}
    gone = job("bob")
    await store.append(gone, [(1, "a", b"x")])  # no such job
    assert await stored(store) == found
    assert await store.finish(held, "done", 60)
    await store.append(held, [(4, "late", b"x")])
    assert [event[1] for event in await store.transcript(one.id)] == ["a", "b", "c", "job.done"]


async def test_nothing_is_left_of_what_has_expired(store: Store) -> None:
    one, another, other = job("ada"), job("cyd"), job("bob")
    await accepted(store, one, another, other)
    for held in await claims(store, 2):
        assert await store.finish(held, "done", 60)
    for each in (one, another):
        for name in ("job:", "events:"):
            await store.redis.delete(PREFIX + f"{name}{each.id}")
    assert await store.forget("-inf") == (2, "-inf")
    found = await stored(store)
    for each in (one, another):
        found.pop(f"gone:{each.id}")
    size_of_other = str(bytes_of(other.fields()))
    assert found == {
        "wait::bob": [other.id],
        "ring:": ["bob"],
        "of:bob": [other.id],
        "all": [other.id],
        "waiting": {"": "1"},
        "sizes": {other.id: size_of_other},
        "held": {"all": size_of_other, "of:bob": size_of_other},
    }
    assert await store.expired(one.id) and not await store.expired(other.id)


def bounded(store: Store, per_run: int = 10**9, per_subject: int = 10**9, in_all: int = 10**9) -> Store:
    return Store(store.redis, (), Bounds(per_run, per_subject, in_all))


async def test_a_bound_is_what_may_be_held_and_not_a_byte_more(store: Store) -> None:
    # At one moment, since not every moment is written with as many digits.
    one, same, other = (job(subject, created_at=1000.5) for subject in ("ada", "ada", "bob"))
    most = bytes_of(one.fields())
    with pytest.raises(Problem) as refused:
        await bounded(store, per_subject=most - 1).add(one)
    assert refused.value.status == 429
    with pytest.raises(Problem) as refused:
        await bounded(store, in_all=most - 1).add(one)
    assert refused.value.status == 507
    assert await stored(store) == {}, "what is refused leaves nothing"
    exactly = bounded(store, per_subject=most, in_all=2 * most)
    await accepted(exactly, one)
    with pytest.raises(Problem):
        await exactly.add(same)
    await accepted(exactly, other)
    with pytest.raises(Problem) as refused:
        await exactly.add(job("cyd", created_at=1000.5))
    assert refused.value.status == 507


@pytest.mark.parametrize("bound", ["per_run", "per_subject", "in_all"])
async def test_events_may_fill_each_bound_and_go_beyond_none(store: Store, bound: str) -> None:
    """The oldest go, the newest stays; and none of what the record itself holds."""
    one = job("ada")
    await accepted(store, one)
    (held,) = await claims(store, 1)
    before = int((await stored(store))["sizes"][one.id])
    of_bound = bounded(store, **{bound: before + 2 * (EVENT + 5)})
    await of_bound.append(held, [(1, "a", b"12345"), (2, "b", b"12345")])
    assert [event[1] for event in await store.transcript(one.id)] == ["a", "b"]
    await of_bound.append(held, [(3, "c", b"12345")])
    assert [event[1] for event in await store.transcript(one.id)] == ["c"]
    assert (await stored(store))["sizes"] == {one.id: str(before + EVENT + 5)}
    await of_bound.append(held, [(4, "d", b"x" * 9000)])
    assert [event[1] for event in await store.transcript(one.id)] == ["d"], "larger than the bound by itself"


@pytest.mark.parametrize("bound", ["per_subject", "in_all"])
async def test_events_take_the_place_of_what_is_over_only_where_there_is_none(store: Store, bound: str) -> None:
    over, one = job("ada"), job("ada")
    await accepted(store, over, one)
    ended, held = await claims(store, 2)
    assert await store.finish(ended, "done", 600)
    holds = int((await stored(store))["held"]["all"])
    of_bound = bounded(store, **{bound: holds + EVENT + 5})
    await of_bound.append(held, [(1, "a", b"12345")])
    assert (await stored(store))["ended"] == [over.id], "it just fits"
    await of_bound.append(held, [(2, "b", b"")])
    assert not {"ended", "ended:ada"} & (await stored(store)).keys()
    assert [event[1] for event in await store.transcript(one.id)] == ["a", "b"]


async def test_who_comes_when_a_job_is_over_drops_nothing_of_it(store: Store) -> None:
    """Its result may be more than there was room for: its events are there all the same."""
    one = job("ada")
    await accepted(store, one)
    (held,) = await claims(store, 1)
    of_bound = bounded(store, per_run=int((await stored(store))["sizes"][one.id]) + 2 * EVENT)
    await of_bound.append(held, [(1, "a", b""), (2, "b", b"")])
    assert await store.finish(held, "done", 60, result="x" * 9000)
    await of_bound.append(held, [(3, "late", b"")])
    assert [event[1] for event in await store.transcript(one.id)] == ["a", "b", "job.done"]


async def test_a_job_has_so_many_events_at_most(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("claude_invoker.jobs.store.MAX_EVENTS", 3)
    one = job("ada")
    await accepted(store, one)
    (held,) = await claims(store, 1)
    await store.append(held, [(number, str(number), b"") for number in range(1, 4)])
    assert len(await store.transcript(one.id, 10)) == 3
    await store.append(held, [(4, "4", b"")])
    assert [event[1] for event in await store.transcript(one.id, 10)] == ["4"]


async def test_what_is_over_makes_room_the_oldest_first(store: Store) -> None:
    jobs = [job("ada") for _ in range(3)]
    await accepted(store, *jobs)
    for held in await claims(store, 3):
        assert await store.finish(held, "done", 600)
        await asyncio.sleep(0.01)  # of two that end in one millisecond neither is the older
    holds = int((await stored(store))["held"]["of:ada"])
    newest = job("ada")
    # Room for one more where the two oldest are gone.
    need = bytes_of(newest.fields())
    sizes = {name: int(size) for name, size in (await stored(store))["sizes"].items()}
    await accepted(bounded(store, per_subject=holds - sizes[jobs[0].id] - sizes[jobs[1].id] + need), newest)
    left = await stored(store)
    assert left["ended:ada"] == left["ended"] == [jobs[2].id]
    assert left["all"] == left["of:ada"] == [jobs[2].id, newest.id]
    assert left["sizes"].keys() == {jobs[2].id, newest.id}
    assert await lives(store, jobs[0]) == (-2, -2, await store.redis.ttl(PREFIX + f"gone:{jobs[0].id}"))
