"""The invoker's side of the ledger: what a run has cost is booked once, however late all of it is known."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace
from redis.asyncio.connection import AbstractConnection

from claude_contract.ledger import (
    AsyncLedger,
    Budget,
    BudgetWarning,
    Draw,
    Drawn,
    Lease,
    LedgerUnavailable,
    Shared,
    Slot,
    Terms,
    Usage,
    micro_usd,
)
from claude_contract.ledger.calls import to_acquire
from claude_contract.ledger.live import Change, Target, limits_key
from claude_contract.ledger.warnings import OWED, decode
from claude_invoker.caller import Caller
from claude_invoker.ending import ended
from claude_invoker.ledger import Ledger
from claude_invoker.problem import Problem
from tests.rate_tiers.servers import RedisProcess, one_server
from tests.support.waiting import HANG_S

LEASES = {
    "alone": Lease.new("claude", "alice", 5_000_000),
    "with pools": Lease.new("claude", "alice", 5_000_000, Shared("claim:acme", ("pool.eng:claim:red",))),
}


async def spent(ledger: Ledger, lease: Lease) -> int:
    (usage,) = await ledger.usages([(lease, Slot(), "")])
    assert isinstance(usage, Usage)
    return usage.spent_day_micro_usd


@pytest.mark.parametrize("lease", LEASES.values(), ids=list(LEASES))
async def test_what_is_known_later_adds_the_difference_once(ledger: Ledger, lease: Lease) -> None:
    """A worker died: what was known is booked, and its journal turns up, more than once."""
    assert await ledger.book(str(lease), 100, final=False)
    assert await spent(ledger, lease) == 100
    assert await ledger.book(str(lease), 100, final=False)
    assert await spent(ledger, lease) == 100
    for _ in range(3):
        assert await ledger.book(str(lease), 250)
        assert await spent(ledger, lease) == 250


@pytest.mark.parametrize("lease", LEASES.values(), ids=list(LEASES))
async def test_what_was_final_is_not_booked_again(ledger: Ledger, lease: Lease) -> None:
    assert await ledger.book(str(lease), 250)
    assert await ledger.book(str(lease), 400)
    assert await ledger.book(str(lease), 400, final=False)
    assert await spent(ledger, lease) == 250


ONE = Slot(concurrent=1, run_micro_usd=5_000_000, pools=(Terms(1),))


def caller_of(subject: str, *, queued: bool = False) -> Caller:
    shared = Shared("claim:acme", ("pool.eng:claim:red",))
    return Caller(subject, lease=str(Lease.new("claude", subject, 5_000_000, shared)), slot=ONE, queued=queued)


async def let_in(ledger: Ledger, caller: Caller, confirm_ms: int) -> bool:
    """As the gateway does it."""
    wanted = to_acquire(Lease.parse(caller.lease or ""), ONE)
    return (await ledger._store.admit(replace(wanted, confirm_ms=confirm_ms))).admitted


async def test_what_is_confirmed_is_held(ledger: Ledger) -> None:
    caller = caller_of("alice")
    assert await let_in(ledger, caller, 1500)
    await ledger.confirm(caller)
    await asyncio.sleep(2)
    assert not await let_in(ledger, caller_of("bob"), 1500)


@pytest.mark.parametrize("held", [True, False])
async def test_what_is_held_needs_no_confirmation(ledger: Ledger, held: bool) -> None:
    """A message draws before it is sent, but it may be counted for longer than the gateway waits."""
    caller = caller_of("alice")
    assert await let_in(ledger, caller, 2500)
    holding = [asyncio.create_task(ledger.hold(caller))] if held else []
    await asyncio.sleep(3)
    assert await let_in(ledger, caller_of("bob"), 1500) != held
    await ended(*holding)


async def test_who_confirms_too_late_has_a_place_if_there_is_one(ledger: Ledger) -> None:
    late, other = caller_of("alice"), caller_of("bob")
    assert await let_in(ledger, late, 1)
    await asyncio.sleep(0.02)
    assert await let_in(ledger, other, 60_000)
    with pytest.raises(Problem, match="limit concurrent of the pool eng is reached") as refused:
        await ledger.confirm(late)
    assert (refused.value.status, refused.value.kind, refused.value.headers) == (429, "limited", {"Retry-After": "5"})
    subject = Target("subject", key="alice")
    block = Change({}, {"blocked": 1}, 32_503_680_000_000, "root", "a test", 0)
    key = limits_key("claude", "claim:acme")
    await ledger._redis.hset(key, subject.field, block.encode())
    with pytest.raises(Problem, match="403 limited: an administrator has blocked this caller until 3000-01-01 00:00:0"):
        await ledger.confirm(late)
    await ledger._redis.delete(key)
    await ledger.release(other)
    await ledger.confirm(late)
    assert not await let_in(ledger, other, 60_000)


async def test_a_lease_of_a_queued_caller_is_taken_now(ledger: Ledger) -> None:
    await ledger.confirm(caller_of("alice", queued=True))
    with pytest.raises(Problem, match="429 limited"):
        await ledger.confirm(caller_of("bob", queued=True))


async def test_a_ledger_that_is_away_ends_no_run_that_was_let_in(tmp_path: Path, redis_server: RedisProcess) -> None:
    away, caller = Ledger(f"unix://{tmp_path}/none.sock"), caller_of("alice")
    await away.confirm(caller)
    with pytest.raises(Problem, match="503 busy"):
        await away.confirm(caller_of("alice", queued=True))
    ledger, client = Ledger(redis_server.url), redis_server.client()
    client.set("claude:{claim:acme}:leases", "not ours")
    with pytest.raises(Problem, match="503 busy"):
        await ledger.confirm(caller)
    await ledger.close()


async def test_less_than_was_known_takes_nothing_back(ledger: Ledger) -> None:
    lease = LEASES["alone"]
    assert await ledger.book(str(lease), 250, final=False)
    assert await ledger.book(str(lease), 100)
    assert await spent(ledger, lease) == 250


DAY = Budget(micro_usd(10), "day")
SLOT = Slot(run_micro_usd=micro_usd(5), pools=(Terms(None, (DAY,)),))


def seen_by(ledger: Ledger) -> list[tuple[str, int]]:
    """What it is the first to tell of, from now on."""
    seen: list[tuple[str, int]] = []

    def note(warning: BudgetWarning) -> None:
        seen.append((warning.name, warning.percent))

    ledger.on_warning = note
    return seen


async def test_a_booking_tells_what_it_reaches(redis_server: RedisProcess, ledger: Ledger) -> None:
    """A run that cost more than it had reserved. A second invoker is not the first to tell."""
    lease, seen = LEASES["with pools"], seen_by(ledger)
    assert await ledger.book(str(lease), micro_usd(9), slot=SLOT)
    assert seen == [("eng.usd_per_day", 80)]
    other = Ledger(redis_server.url)
    nothing = seen_by(other)
    assert await other.book(str(lease.again()), 0, slot=SLOT)
    assert await other.book(str(lease.again()), micro_usd(1), slot=SLOT)
    assert (nothing, seen) == ([("eng.usd_per_day", 95)], [("eng.usd_per_day", 80)])
    await other.close()
    notices = [decode(each) for each in redis_server.client().zrange(OWED, 0, -1)]  # type: ignore[union-attr]
    assert [(notice.data["percent"], notice.data["pool"], notice.data["of"]) for notice in notices] == [
        (80, "eng", "red"),
        (95, "eng", "red"),
    ]
    assert notices[0].data["organisation"] == "acme" and notices[0].data["budget"]["spent"] == 9.0
    assert await ledger.book(str(lease.again()), micro_usd(9)), "of a debt's lease nothing more is known"


async def test_a_jobs_start_tells_of_them_too(ledger: Ledger) -> None:
    lease, seen = LEASES["with pools"], seen_by(ledger)
    caller = Caller("alice", lease=str(lease), slot=SLOT, queued=True)
    admission = await ledger.acquire(caller)
    assert admission is not None and admission.admitted and seen == []
    refused = await ledger.acquire(
        Caller("bob", lease=str(lease.again()), slot=Slot(run_micro_usd=1, pools=(Terms(),)))
    )
    assert refused is None, "it is not queued: the gateway has taken its lease"
    assert (await ledger.acquire(Caller("bob", lease=str(lease.again()), slot=SLOT, queued=True))).admitted  # type: ignore[union-attr]
    assert seen == [("eng.usd_per_day", 80), ("eng.usd_per_day", 95)], "$10 of 10 are reserved"


async def test_a_request_that_a_budget_cuts_short_tells_of_it(ledger: Ledger) -> None:
    lease, seen = LEASES["with pools"], seen_by(ledger)

    async def drawn(of: Lease, dollars: int) -> int:
        answer: asyncio.Future[Drawn | LedgerUnavailable] = asyncio.get_running_loop().create_future()
        ledger.draws.put(str(of), SLOT, Draw(0, 0, 1, micro_usd(dollars)), answer.set_result)
        found = await answer
        assert isinstance(found, Drawn)
        return found.micro_usd

    assert await drawn(lease, 4) == micro_usd(4)
    other = lease.again()
    assert await drawn(other, 4) == micro_usd(4)
    assert seen == [], "both got what they asked for"
    assert await drawn(other, 7) == micro_usd(6)
    async with asyncio.timeout(HANG_S):
        while len(seen) < 2:
            await asyncio.sleep(0.01)
    assert seen == [("eng.usd_per_day", 80), ("eng.usd_per_day", 95)]


async def test_where_it_cannot_be_told_the_next_one_tells_it(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    lease, seen = LEASES["with pools"], seen_by(ledger)

    async def away(self: AsyncLedger, warning: BudgetWarning) -> bool:
        raise LedgerUnavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(AsyncLedger, "tell", away)
        assert await ledger.book(str(lease), micro_usd(9), slot=SLOT)
    assert seen == []
    assert await ledger.book(str(lease.again()), 1, slot=SLOT)
    assert seen == [("eng.usd_per_day", 80)]


async def test_pools_of_runs_that_were_here_can_be_asked_for(ledger: Ledger) -> None:
    lease = LEASES["with pools"]
    assert await ledger.pools() == []
    ledger.note(Caller("alice", lease=str(lease), slot=SLOT))
    assert await ledger.book(str(lease), 1_234_567, slot=SLOT)
    ((tag, key, standing),) = await ledger.pools()
    assert (tag, key, standing.spent[0].micro_usd) == ("claim:acme", "pool.eng:claim:red", 1_234_567)


async def test_many_are_asked_for_at_once_and_one_that_cannot_be_read_hides_no_other(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_server("of a Cluster each is asked for by itself")
    slot = Slot(concurrent=3)
    holders = [(Lease.new("claude", f"many{n}", 5_000_000), slot, "pro") for n in range(50)]
    taken = holders[7][0]
    await AsyncLedger(ledger._redis).acquire(taken, slot)
    sent: list[object] = []
    send = AbstractConnection.send_packed_command

    async def counted(self: AbstractConnection, *given: object, **more: object) -> None:
        sent.append(given)
        await send(self, *given, **more)  # type: ignore[arg-type]

    await ledger.usages(holders[:2])  # what each server has to be told once
    monkeypatch.setattr(AbstractConnection, "send_packed_command", counted)
    found = await ledger.usages(holders)
    assert len(sent) == 1
    assert [isinstance(each, Usage) and each.running for each in found] == [n == 7 for n in range(50)]
    monkeypatch.undo()
    await ledger._redis.delete("claude:{many7}:leases")
    await ledger._redis.set("claude:{many7}:leases", "x")
    found = await ledger.usages(holders)
    assert [n for n, each in enumerate(found) if isinstance(each, LedgerUnavailable)] == [7]
    away = Ledger("redis://127.0.0.1:1/0")
    assert all(isinstance(each, LedgerUnavailable) for each in await away.usages(holders))
