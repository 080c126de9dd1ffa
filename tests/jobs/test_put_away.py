"""A job that is put away at the moment at which somebody decides: one of all who decide is heard, and none in vain."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from claude_invoker.jobs import deferred
from claude_invoker.jobs.ends import Ends
from claude_invoker.jobs.queue import Queues, open_queues
from claude_invoker.jobs.record import Asks, Job
from claude_invoker.jobs.store import WAITING, Store
from claude_invoker.metering.control import Metering
from claude_invoker.model import Permission, PermissionAnswer
from claude_invoker.problem import Problem
from claude_invoker.runs.deferral import Deferral, call_key
from claude_invoker.runs.kept import Keeping
from claude_invoker.settings import Settings
from tests.jobs.conftest import job
from tests.permissions.test_attacks import Asked
from tests.rate_tiers.servers import RedisProcess
from tests.support.waiting import until

ALLOW, DENY = PermissionAnswer(decision="allow"), PermissionAnswer(decision="deny")
CALL = {"command": "echo one"}


@pytest.fixture
async def queues(redis_server: RedisProcess) -> AsyncIterator[Queues]:
    found = open_queues(redis_server.url)
    yield found
    await found.close()


async def claimed(store: Store) -> Job:
    await store.add(job(ask=["Bash"], tools=["Bash"]))
    found = await store.claim("ticket", "worker")
    assert found is not None
    return found[0]


async def put_away() -> tuple[Asked, Permission, Deferral]:
    """A run whose CLI has been told to defer a call."""
    asked = Asked(ask=["Bash"])
    asked.permissions.defers_after_s, asked.permissions.can_defer = 0.0, lambda call: True
    asked.permissions.has_session = True
    await asked.call(**CALL)
    await until(_is_told(asked), "the CLI to be told")
    shown = asked.permissions.waiting[0]
    return asked, shown, Deferral(session="s", permission=shown)


def _is_told(asked: Asked) -> Any:
    async def told() -> bool:
        return asked.permissions.deferred is not None

    return told


def ends(store: Store, queues: Queues) -> Ends:
    return Ends(Settings(trust="open"), None, cast(Metering, None), store, queues, cast(Keeping, None))


@pytest.mark.parametrize("remember", ["once", "run", "session"])
async def test_what_was_decided_while_its_process_ended_is_stored_in_the_same_step(
    store: Store, queues: Queues, monkeypatch: pytest.MonkeyPatch, remember: Any
) -> None:
    """Else it would be lost with its worker, and whoever came a moment later would decide otherwise; both were told that
    they had decided."""
    found, (asked, shown, deferral) = await claimed(store), await put_away()
    given = PermissionAnswer(decision="allow", remember=remember)
    decision = asked.permissions.answer(shown.id, given, "alice")
    others: list[str] = []
    once = store.run

    async def another_decides(script: str, keys: Any, args: Any) -> Any:
        reply = await once(script, keys, args)
        if script == "defer" and (seen := await store.get(found.id)) is not None:
            others.append(seen.state)
            if seen.state == "waiting_for_approval":
                await deferred.decide(store, queues, seen, shown.id, DENY, "bob")
        return reply

    monkeypatch.setattr(store, "run", another_decides)
    asked.permissions.close()
    await ends(store, queues).defer(found, deferral, asked.permissions)
    assert others == ["queued"]
    assert await store.redis.hgetall(WAITING) == {"": "1"} and await queues.tickets.due() == 1
    again = await store.claim("another", "worker")
    assert again is not None and again[0].id == found.id
    assert again[0].asks == Asks(decided=[decision])
    kept, key = again[0].deferral, call_key("Bash", CALL)
    assert kept is not None and set(kept.remembered) == ({key} if remember != "once" else set())
    assert set(kept.for_session) == ({key} if remember == "session" else set())
    assert [name for name, _ in asked.events] == ["permission.requested", "permission.decided"]
    assert [event["event"] for _, event in await store.redis.xrange(f"claude:{{jobs}}:events:{found.id}")] == []


async def test_nobody_decides_in_a_worker_what_others_decide_from_now_on(store: Store, queues: Queues) -> None:
    found, (asked, shown, deferral) = await claimed(store), await put_away()
    asked.permissions.close()
    with pytest.raises(Problem) as refused:
        asked.permissions.answer(shown.id, ALLOW, "alice")
    assert refused.value.status == 503 and refused.value.headers["Retry-After"] == "1"
    await ends(store, queues).defer(found, deferral, asked.permissions)
    seen = await store.get(found.id)
    assert seen is not None and seen.state == "waiting_for_approval" and seen.waiting == [shown]


async def test_whoever_has_decided_is_told_so_although_a_worker_had_the_job_before(
    store: Store, queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer of Redis was lost, and the same was sent again when a worker had begun."""
    found, (asked, shown, deferral) = await claimed(store), await put_away()
    asked.permissions.close()
    await ends(store, queues).defer(found, deferral, asked.permissions)
    once = store.run

    async def twice(script: str, keys: Any, args: Any) -> Any:
        if script == "resume":
            await once(script, keys, args)
            assert await store.claim("another", "worker") is not None
        return await once(script, keys, args)

    monkeypatch.setattr(store, "run", twice)
    seen = await store.get(found.id)
    assert seen is not None
    decision = await deferred.decide(store, queues, seen, shown.id, ALLOW, "alice")
    going = await store.get(found.id)
    assert going is not None and going.state == "running" and going.decisions == [decision]
    with pytest.raises(Problem) as second:
        await deferred.decide(store, queues, seen, shown.id, ALLOW, "bob")
    assert second.value.status == 409
