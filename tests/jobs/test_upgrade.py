"""One release after the other on the same Redis: a queue that 0.1.0 has filled, records that 0.1.0 may have to read
after a rollback, and records of a release that is not known here. docs/upgrade.md says the same to an operator."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from claude_contract import ledger
from claude_contract.versions import UnknownVersion
from claude_invoker.jobs import record
from claude_invoker.jobs import store as store_module
from claude_invoker.jobs.record import Job
from claude_invoker.jobs.store import PREFIX, RUNNING, Store
from tests.jobs.conftest import OVER, Gateway, job, limits_on, serving, until
from tests.rate_tiers.servers import RedisProcess, one_server
from tests.support.recorded import recorded, restore

OLD = recorded(Path(__file__).parent / "data" / "release-0.1.0.json")
TIERS = OLD["tiers"]


def old_job(job_id: str) -> dict[str, str]:
    return dict(OLD["keys"][PREFIX + f"job:{job_id}"]["value"])


async def states(gateway: Gateway, ids: list[str]) -> list[str]:
    found = [await gateway.app.state.services.jobs.store.get(job_id) for job_id in ids]
    return [each.state for each in found if each is not None]


async def test_a_queue_of_release_0_1_0_is_served(redis_server: RedisProcess, state: Path) -> None:
    restore(redis_server.client(), OLD["keys"])
    async with serving(redis_server, state, tier_priority=TIERS) as gateway:

        async def all_over() -> bool:
            return set(await states(gateway, [*OLD["waiting"], OLD["orphaned"]])) <= set(OVER)

        await until(all_over, "the end of every job")
        assert await states(gateway, OLD["waiting"]) == ["done"] * 12
        assert await states(gateway, [OLD["orphaned"], OLD["cancelled"]]) == ["failed", "cancelled"]
        store: Store = gateway.app.state.services.jobs.store
        assert not any((await store.waiting()).values())
        assert await store.running() == []
        # What it took of the limits is given back, under the keys that the old leases name.
        async with limits_on(redis_server.url) as limits:
            for job_id in (*OLD["waiting"], OLD["orphaned"]):
                lease = ledger.Lease.parse(json.loads(old_job(job_id)["caller"])["lease"])
                usage = await limits.peek(ledger.Peek(lease.namespace, lease.subject_key))
                assert (usage.running, usage.reserved_micro_usd) == (0, 0)
        # What was over is still to be seen.
        first = OLD["over"][0]
        seen = (await gateway.ask("GET", f"/claude/jobs/{first}")).json()
        assert (seen["state"], seen["result"]["result"], seen["cost_usd"]) == ("done", "did done1", 0.01)
        listed = (await gateway.ask("GET", "/claude/jobs")).json()["jobs"]
        assert {each["id"] for each in listed} == set(OLD["keys"][PREFIX + "of:alice"]["value"])


async def test_an_idempotency_key_of_before_the_upgrade_names_its_job(redis_server: RedisProcess, state: Path) -> None:
    restore(redis_server.client(), OLD["keys"])
    async with serving(redis_server, state, tier_priority=TIERS, worker="none") as gateway:
        again = {"prompt": "job=waits4"}
        answer = await gateway.ask("POST", "/claude/jobs", json=again, headers={"Idempotency-Key": "review-4"})
        assert (answer.status_code, answer.json()["id"]) == (202, OLD["waiting"][1])


# Release 0.1.0's reader, as it stands in its claude_invoker/jobs/record.py and trust.py.


@dataclass(frozen=True)
class OldClamp:
    models: tuple[str, ...] | None = None
    tools: tuple[str, ...] | None = None
    max_turns: int | None = None
    max_usd: float | None = None


@dataclass(frozen=True)
class OldCaller:
    subject: str
    tier: str | None = None
    roles: tuple[str, ...] = ()
    clamp: OldClamp = field(default_factory=OldClamp)
    lease: str | None = None
    # and `reservation`, which it wrote and did not read
    slot: dict[str, int] | None = None
    queued: bool = False
    additions: dict[str, Any] = field(default_factory=dict)
    route: str | None = None
    request_id: str | None = None


OLD_SLOT = {"concurrent", "usd", "usd_day", "usd_month", "ttl_ms"}


def old_load(stored: dict[str, str]) -> dict[str, Any]:
    """What the old reader makes of a record. Raises where it would."""

    def number(text: str | None) -> float | None:
        return float(text) if text else None

    caller = TypeAdapter(OldCaller).validate_json(stored["caller"])
    assert set(caller.slot or {}) <= OLD_SLOT, "the old Slot takes no others"
    if caller.lease is not None:
        namespace, subject_key, member = caller.lease.split(" ")
        assert namespace and subject_key and member.rpartition(":")[2].isdecimal()
    return {
        "id": stored["id"],
        "subject": stored["subject"],
        "tier": stored["tier"],
        "created_at": float(stored["created_at"]),
        "request": json.loads(stored.get("request", "")),
        "caller": caller,
        "title": stored.get("title", ""),
        "callback": stored.get("callback", ""),
        "state": stored["state"],
        "attempt": int(stored.get("attempt", 0)),
        "ticket": stored.get("ticket", ""),
        "worker": stored.get("worker", ""),
        "beat": float(stored.get("beat", 0)),
        "started_at": number(stored.get("started_at")),
        "finished_at": number(stored.get("finished_at")),
        "expires_at": number(stored.get("expires_at")),
        "cost_usd": float(stored.get("cost_usd", 0)),
        "model": stored.get("model", ""),
        "cancel": stored.get("cancel") == "1",
        "work": stored.get("work", ""),
        "progress": json.loads(stored.get("progress") or "{}"),
        "result": json.loads(stored["result"]) if stored.get("result") else None,
        "error": json.loads(stored["error"]) if stored.get("error") else None,
        "deliveries": json.loads(stored.get("deliveries") or "[]"),
        "traceparent": stored.get("traceparent", ""),
    }


def claims_of(stored: dict[str, str]) -> dict[str, Any]:
    """The attestation's claims with which the job was asked for."""
    caller = json.loads(stored["caller"])
    names = {"tier": "tier", "roles": "roles", "clamp": "clamp", "lease": "lease", "slot": "slot", "add": "additions"}
    return {claim: caller[member] for claim, member in names.items()} | {"queue": True}


def shape(value: Any) -> Any:
    """The members and types of a JSON value."""
    if isinstance(value, dict):
        return {name: shape(member) for name, member in value.items()}
    return type(value)


async def test_a_new_record_is_what_release_0_1_0_would_have_stored(redis_server: RedisProcess, state: Path) -> None:
    """The same request, then and now: read by the old reader, the two are the same, while it waits and when it is over.
    So a queue that this release has filled is served after a rollback."""
    one_server("the queues of release 0.1.0 had names without a tag")
    client = redis_server.client(decode_responses=True)
    before = old_job(OLD["waiting"][0])
    body = {"prompt": "job=waits3", "callback_url": before["callback"]}
    hooks = {"webhook_hosts": ["hooks.example.com"], "webhook_secret": "s" * 32}
    async with serving(redis_server, state, tier_priority=TIERS, worker="none", **hooks) as gateway:
        answer = await gateway.ask(
            "POST", "/claude/jobs", json=body, claims=claims_of(before), headers={"Idempotency-Key": "k"}
        )
        new_id = answer.json()["id"]
        raw: Any = client.hgetall(PREFIX + f"job:{new_id}")
        now, then = old_load(raw), old_load(before)
        own = {"id", "created_at"}
        assert {name: value for name, value in now.items() if name not in own} == {
            name: value for name, value in then.items() if name not in own
        } | {"attempt": 0}
        # The queue around it, key by key.
        assert client.lrange(PREFIX + "ring:team", 0, -1) == ["alice"]
        assert client.lrange(PREFIX + "wait:team:alice", 0, -1) == [new_id]
        assert client.hgetall(PREFIX + "waiting") == {"team": "1"}
        assert set(client.zrange(PREFIX + "of:alice", 0, -1)) == set(client.zrange(PREFIX + "all", 0, -1)) == {new_id}  # type: ignore[arg-type]
        assert client.hget(PREFIX + "idem:alice:k", "id") == new_id
        (ticket,) = client.lrange("saq:claude:queued", 0, -1)  # type: ignore[misc]
        old_ticket = next(entry["value"] for key, entry in OLD["keys"].items() if key.startswith("saq:job:claude:"))
        assert shape(json.loads(client.get(ticket))) == shape(json.loads(old_ticket))  # type: ignore[arg-type]
    async with serving(redis_server, state, tier_priority=TIERS) as gateway:

        async def ended() -> bool:
            return client.hget(PREFIX + f"job:{new_id}", "state") == "done"

        await until(ended, "the job's end")
    raw = client.hgetall(PREFIX + f"job:{new_id}")
    done, then = old_load(raw), old_load(old_job(OLD["over"][0]))
    # What 0.1.0 does not know of a result it passes over.
    assert shape(done["result"]) == shape(then["result"]) | {
        "isolation": str,
        "egress": list,
        "left_out": list,
        "budget": str,
        "instead_of": type(None),
        "repository": type(None),
        "changes": list,
        "check": type(None),
        "pushed": type(None),
        "decisions": list,
    }
    assert shape(done["progress"]) == shape(then["progress"])
    # `work` is told by a heartbeat, which a short run may do without.
    assert all(done[name] for name, value in then.items() if value and name != "work")
    assert old_job(OLD["over"][0]).keys() - {"work"} <= raw.keys()


def test_the_old_reader_is_no_formality() -> None:
    """The control: it refuses what 0.1.0 could not have read."""
    stored = old_job(OLD["waiting"][0])
    caller = json.loads(stored["caller"])
    for wrong in ({"slot": {"run_micro_usd": 1}}, {"lease": "claude alice"}, {"subject": None}):
        with pytest.raises((AssertionError, ValueError)):
            old_load(stored | {"caller": json.dumps(caller | wrong)})
    with pytest.raises(KeyError):
        old_load({name: value for name, value in stored.items() if name != "state"})


async def stored_by_another(store: Store, *jobs: Job, version: int = 3) -> None:
    for each in jobs:
        assert await store.add(each) == ("accepted", each.id)
        await store.redis.hset(PREFIX + f"job:{each.id}", mapping={"v": version, "caller": "of another form"})


async def test_workers_leave_another_releases_jobs_to_its_own(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, after, ours = job("alice"), job("alice"), job("bob")
    await stored_by_another(store, theirs)
    for each in (after, ours):
        await store.add(each)
    claimed = await store.claim("t1", "w")
    assert claimed is not None and claimed[0].id == ours.id
    with pytest.raises(UnknownVersion, match=f"job {theirs.id} is of version 3, read are 0 and 1: a newer release"):
        await store.claim("t2", "w")
    assert await store.redis.hget(PREFIX + f"job:{theirs.id}", "state") == "queued"
    assert sum((await store.waiting()).values()) == 2
    # A worker of that release finds it where it was, first of its subject.
    for module in (store_module, record):
        monkeypatch.setattr(module, "VERSION", 3)
    found = await store.claim("t3", "w")
    assert found is not None and found[0].id == theirs.id


async def test_another_releases_job_is_refused_in_one_sentence(
    redis_server: RedisProcess, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody can look at it here, and it is in nobody's way."""
    async with serving(redis_server, state) as gateway:
        store: Store = gateway.app.state.services.jobs.store
        waiting, running = job("alice"), job("alice")
        await stored_by_another(store, waiting, running)
        key = PREFIX + f"job:{running.id}"
        await store.redis.lrem(PREFIX + "wait::alice", 1, running.id)
        await store.redis.hset(key, mapping={"state": "running", "attempt": 1, "beat": 1})  # silent for long
        await store.redis.zadd(RUNNING, {running.id: 1})
        with caplog.at_level(logging.ERROR):
            mine = await gateway.create("job=mine", "bob")
            assert (await gateway.see(mine, "bob"))["state"] == "done"

            async def said() -> bool:
                return f"job {waiting.id} is of version 3" in caplog.text

            await until(said, "a word in the log")
        assert caplog.text.count(waiting.id) == 1
        for path in (f"/claude/jobs/{waiting.id}", f"/claude/jobs/{running.id}"):
            answer = await gateway.ask("GET", path)
            assert answer.status_code == 503
            assert answer.json()["type"].endswith(":other-release")
            assert "version 3, read are 0 and 1: a newer release wrote it, upgrade this one" in answer.json()["detail"]
        assert (await gateway.ask("GET", "/claude/jobs")).json()["jobs"] == []
        assert await store.callers([waiting.id]) == [None]
        assert await store.redis.hget(key, "state") == "running"


@pytest.mark.parametrize(("version", "readable"), [(None, True), ("0", True), ("1", True), ("2", False), ("x", False)])
def test_versions_that_are_read(version: str | None, readable: bool) -> None:
    stored = old_job(OLD["waiting"][0]) | ({} if version is None else {"v": version})
    if readable:
        assert Job.load(stored).subject == "alice"
    else:
        with pytest.raises(UnknownVersion):
            Job.load(stored)
    assert job().fields()["v"] == "1"
