"""Requests to models themselves in the ledger: windows and places apart from runs', money together with them."""

from __future__ import annotations

import json

import pytest

from claude_contract.ledger import (
    ALONE,
    Admit,
    Budget,
    Draw,
    Lease,
    Ledger,
    Peek,
    Shared,
    Slot,
    Terms,
    Verdict,
    Window,
    Windows,
)
from claude_contract.ledger.live import limits_key
from claude_contract.ledger.model import VERSION
from kong_claude.rate_tiers.redis_ledger import RedisLedger, Settings
from tests.rate_tiers.servers import RedisProcess, one_server
from tests.rate_tiers.test_store import store  # noqa: F401
from tests.support.waiting import HANG_S

SHARED = {"alone": ALONE, "with a pool": Shared("*", ("pool.team:claim:red",))}
ONCE = Windows((Window("minute", 1), Window("hour", 3, 0)))
DOLLAR = 1_000_000


def slot_of(shared: Shared, run_micro_usd: int = 0) -> Slot:
    """One at a time; a pool has a place for one run, and money."""
    pools = (Terms(1 if run_micro_usd else None, (Budget(50 * DOLLAR, "day"),)),) if shared.pools else ()
    return Slot(concurrent=1, run_micro_usd=run_micro_usd, day_micro_usd=5 * DOLLAR, pools=pools)


def asked(shared: Shared, *, message: bool, run_micro_usd: int = 0, windows: Windows = ONCE) -> Admit:
    lease = Lease.new("claude", "ada", run_micro_usd, shared, message=message)
    assert Lease.parse(str(lease)).is_message == message and lease.again().is_message == message
    slot = slot_of(shared, run_micro_usd)
    return Admit("claude", "ada", windows, lease, slot, shared=shared, message=message)


@pytest.mark.parametrize("shared", SHARED.values(), ids=list(SHARED))
def test_windows_and_places_are_apart(store: Ledger, shared: Shared) -> None:  # noqa: F811
    for message in (False, True):
        first = store.admit(asked(shared, message=message, run_micro_usd=0 if message else DOLLAR))
        assert first.admitted and first.own.running == 1
        again = store.admit(asked(shared, message=message))
        assert (again.admitted, again.exceeded) == (False, "hour")
        wide = store.admit(asked(shared, message=message, windows=Windows()))
        assert (wide.admitted, wide.exceeded) == (False, "concurrent")
    for message in (False, True):
        seen = store.peek(Peek("claude", "ada", ONCE, slot_of(shared), shared, message=message))
        assert (seen.running, [quota.remaining for quota in seen.own.quotas]) == (1, [0, 0])
        assert seen.reserved_micro_usd == DOLLAR


@pytest.mark.parametrize("shared", SHARED.values(), ids=list(SHARED))
def test_a_place_comes_back_where_it_was_taken(store: Ledger, shared: Shared) -> None:  # noqa: F811
    run, message = asked(shared, message=False, run_micro_usd=DOLLAR), asked(shared, message=True)
    assert store.admit(run).admitted and store.admit(message).admitted
    assert run.lease is not None and message.lease is not None
    assert store.settle(message.lease, 7)
    used = store.peek(Peek("claude", "ada", slot=slot_of(shared), shared=shared))
    assert (used.running, used.reserved_micro_usd, used.spent_day_micro_usd) == (1, DOLLAR, 7)
    assert store.admit(asked(shared, message=True, windows=Windows())).admitted
    assert store.release(run.lease)
    assert store.peek(Peek("claude", "ada", slot=slot_of(shared), shared=shared)).running == 0
    assert store.peek(Peek("claude", "ada", slot=slot_of(shared), shared=shared, message=True)).running == 1


@pytest.mark.parametrize("shared", SHARED.values(), ids=list(SHARED))
@pytest.mark.parametrize("message", [True, False], ids=["a message", "a run: the control"])
def test_a_message_never_draws_what_a_run_holds(store: Ledger, shared: Shared, message: bool) -> None:  # noqa: F811
    """A run that was let in was promised what it holds. (Another run may draw it, since that holds as much itself.)"""
    slot, promised = slot_of(shared), slot_of(shared, 2 * DOLLAR)
    run = asked(shared, message=False, run_micro_usd=2 * DOLLAR)
    assert store.admit(run).admitted and run.lease is not None
    other = Lease.new("claude", "ada", 0, shared, message=message)
    drawn = store.draw(other, slot, Draw(0, 0, 1, 5 * DOLLAR))
    assert drawn.micro_usd == (3 if message else 5) * DOLLAR
    theirs = store.draw(run.lease, promised, Draw(0, 0, 2 * DOLLAR, 2 * DOLLAR))
    assert theirs.verdict is (Verdict.DRAWN if message else Verdict.REFUSED)


def test_what_an_admin_changes_of_runs_is_not_changed_of_messages(redis_server: RedisProcess) -> None:
    one_server("limits can be changed with a pool only (`pooled`)")
    ledger = RedisLedger(Settings(redis_server.url, timeout=HANG_S))

    def change(**limits: int | bool) -> None:
        value = {"v": VERSION, "until": 1 << 50, "limits": limits}
        redis_server.client().hset(limits_key("claude"), "s:ada", json.dumps(value))

    wide = Windows((Window("minute", 5),))
    change(minute=0, concurrent=0)
    assert not ledger.admit(asked(ALONE, message=False, windows=wide)).admitted
    passed = ledger.admit(asked(ALONE, message=True, windows=wide))
    assert passed.admitted and passed.changed == ()
    change(blocked=1)
    assert ledger.admit(asked(ALONE, message=True, windows=wide)).exceeded == "blocked"
    ledger.close()
