"""Limits that are changed while everything runs: what goes before what, from when on, until when."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from claude_contract.ledger import (
    DEPLOYMENT,
    NO_WINDOWS,
    Admission,
    Admit,
    Blocked,
    Budget,
    Changed,
    Draw,
    Drawn,
    Lease,
    Peek,
    Shared,
    Slot,
    Terms,
    UnreadableLedger,
    Verdict,
    Window,
    Windows,
    calls,
    pool_key,
)
from claude_contract.ledger.calls import Call
from claude_contract.ledger.live import MOST_CHANGES, MOST_REFUSED, OUTBOX, Change, Target, limits_key
from claude_invoker.metering.drawn import used_up
from tests.rate_tiers.servers import RedisProcess
from tests.rate_tiers.test_model import DOLLAR, ClockedRedis
from tests.rate_tiers.test_pools import at

# Later than any run of this test: changes end by the clock of Redis, too (PEXPIREAT), which deletes what is past.
NOW = at("2126-11-26T12:00")
SOON = NOW // 1000 + 60_000  # ms
RED = pool_key("team", "claim", "red")
POOLED = Shared(DEPLOYMENT, (RED, pool_key("all")))
SUBJECT = Target("subject", key="alice")
TIER = Target("tier", name="pro")
POOL = Target("pool", key=RED, name="team")
ALL_TEAMS = Target("pool", name="team")
WINDOWS = Windows((Window("minute", 3), Window("hour", 200)))
SLOT = Slot(2, DOLLAR, 5 * DOLLAR, None, budgets=(Budget(9 * DOLLAR, "week", rolling=True),))
POOLED_SLOT = Slot(
    2, DOLLAR, 5 * DOLLAR, None, pools=(Terms(3, (Budget(50 * DOLLAR, "month", "Europe/Berlin"),)), Terms(4))
)


@pytest.fixture
def clocked(redis_server: RedisProcess) -> ClockedRedis:
    return ClockedRedis(redis_server)


def change(clocked: ClockedRedis, target: Target, limits: Mapping[str, int] | None, until: int = SOON) -> bool:
    made = None if limits is None else Change({}, limits, until, "root", "a test", NOW // 1000)
    return clocked.ask(calls.change(limits_key("claude"), target, made, b"{}"), NOW)


def admit(
    clocked: ClockedRedis, shared: Shared | None = None, tier: str = "pro", now: int = NOW, lease: bool = True
) -> Admission:
    slot, pools = (POOLED_SLOT, (Windows((Window("day", 100),)), Windows(()))) if shared else (SLOT, ())
    shared = shared or Shared()
    taken = Lease.new("claude", "alice", DOLLAR, shared) if lease else None
    return clocked.admit(Admit("claude", "alice", WINDOWS, taken, slot, "reject", shared, pools, tier), now)


def allowed(admission: Admission) -> dict[str, int]:
    """Of the subject's own limits."""
    windows = {quota.window.name: quota.window.limit for quota in admission.own.quotas}
    return windows | {spent.budget.name: spent.budget.micro_usd for spent in admission.own.spent}


def pool_allowed(admission: Admission) -> dict[str, int]:
    team = admission.pools[0]
    windows = {quota.window.name: quota.window.limit for quota in team.quotas}
    return windows | {spent.budget.name: spent.budget.micro_usd for spent in team.spent}


CONFIGURED = {"minute": 3, "hour": 200, "usd_per_day": 5 * DOLLAR, "usd_per_rolling_week": 9 * DOLLAR}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([], {}),
        ([(SUBJECT, {"minute": 1})], {"minute": 1}),
        ([(SUBJECT, {"minute": 500, "hour": 1000})], {"minute": 500, "hour": 1000}),
        ([(TIER, {"usd_per_day": 7 * DOLLAR})], {"usd_per_day": 7 * DOLLAR}),
        ([(TIER, {"usd_per_rolling_week": 1})], {"usd_per_rolling_week": 1}),
        ([(TIER, {"minute": 9, "hour": 10}), (SUBJECT, {"minute": 2})], {"minute": 2, "hour": 10}),
        ([(Target("tier", name="free"), {"minute": 1})], {}),
        ([(Target("subject", key="bob"), {"minute": 1})], {}),
        ([(SUBJECT, {"day": 1, "usd_per_week": 1})], {}),  # not among the limits
    ],
    ids=str,
)
def test_the_most_specific_change_of_each_limit_holds(
    clocked: ClockedRedis, changes: list[tuple[Target, dict[str, int]]], expected: dict[str, int]
) -> None:
    for target, limits in changes:
        assert change(clocked, target, limits)
    assert allowed(admit(clocked)) == CONFIGURED | expected
    peeked = clocked.peek(Peek("claude", "alice", WINDOWS, SLOT, tier="pro"), NOW)
    found = {q.window.name: q.window.limit for q in peeked.own.quotas}
    found |= {spent.budget.name: spent.budget.micro_usd for spent in peeked.own.spent[2:]}
    assert found == CONFIGURED | expected
    assert [spent.budget.micro_usd for spent in peeked.own.spent[:2]] == [2**53 - 1] * 2, "these limit nothing"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([(ALL_TEAMS, {"day": 2})], {"day": 2}),
        ([(ALL_TEAMS, {"day": 2, "usd_per_month": 1}), (POOL, {"day": 8})], {"day": 8, "usd_per_month": 1}),
        ([(Target("pool", key=pool_key("team", "claim", "blue"), name="team"), {"day": 1})], {}),
        ([(Target("subject", key="pool.team"), {"day": 1})], {}),
        ([(SUBJECT, {"minute": 1}), (TIER, {"day": 1})], {}),  # of another account
    ],
    ids=str,
)
def test_a_pool_is_changed_for_one_value_or_for_all(
    clocked: ClockedRedis, changes: list[tuple[Target, dict[str, int]]], expected: dict[str, int]
) -> None:
    for target, limits in changes:
        assert change(clocked, target, limits)
    assert pool_allowed(admit(clocked, POOLED)) == {"day": 100, "usd_per_month": 50 * DOLLAR} | expected


@pytest.mark.parametrize(
    ("target", "account"),
    [
        (SUBJECT, 0),
        (TIER, 0),
        (POOL, 1),
        (ALL_TEAMS, 1),
        (Target("pool", key=pool_key("all"), name="all"), 2),
        (Target("pool", name="all"), 2),
    ],
)
def test_a_change_binds_no_account_but_its_own(clocked: ClockedRedis, target: Target, account: int) -> None:
    change(clocked, target, {"day": 7})
    day = Windows((Window("day", 100),))
    asked = Admit("claude", "alice", day, shared=POOLED, pool_windows=(day, day), tier="pro")
    found = clocked.admit(asked, NOW)
    limits = [standing.quotas[0].window.limit for standing in (found.own, *found.pools)]
    assert limits == [7 if n == account else 100 for n in range(3)]


@pytest.mark.parametrize("window", ["second", "minute", "hour", "day", "month", "year"])
@pytest.mark.parametrize("limit", [64, 65, 1000])
def test_a_changed_limit_is_counted_as_a_configured_one(clocked: ClockedRedis, window: str, limit: int) -> None:
    """With buckets as wide: so a place comes back at the same millisecond."""
    change(clocked, SUBJECT, {window: limit})
    changed, configured = (
        clocked.admit(Admit("claude", subject, Windows((Window(window, had),))), NOW).own.quotas
        for subject, had in (("alice", 3), ("bob", limit))
    )
    assert changed == configured


def test_places_are_bounded_by_a_change_only_where_they_are_bounded(clocked: ClockedRedis) -> None:
    change(clocked, SUBJECT, {"concurrent": 1})
    for configured, admitted in ((2, [True, False]), (None, [True, True, True])):
        slot = Slot(configured, DOLLAR, 50 * DOLLAR)
        leases = [Lease.new("claude", "alice", DOLLAR) for _ in admitted]
        asked = [clocked.admit(Admit("claude", "alice", lease=lease, slot=slot), NOW) for lease in leases]
        assert [admission.admitted for admission in asked] == admitted
        for lease in leases:
            clocked.ask(calls.release(lease), NOW)


def test_a_lowered_limit_refuses_the_very_next_and_a_raised_one_lets_it_through(clocked: ClockedRedis) -> None:
    assert admit(clocked).admitted
    change(clocked, SUBJECT, {"minute": 1})
    refused = admit(clocked)
    assert (refused.exceeded, refused.own.quotas[0].window.limit) == ("minute", 1)
    assert refused.changed == (Changed(0, "minute", 1),)
    change(clocked, SUBJECT, {"minute": 100})
    assert all(admit(clocked, lease=False).admitted for _ in range(20))
    change(clocked, SUBJECT, {"usd_per_day": DOLLAR})  # one runs already, and holds as much
    assert admit(clocked, lease=True).exceeded in ("minute", "usd_per_day")
    change(clocked, SUBJECT, {"minute": 100, "concurrent": 1})
    refused = admit(clocked)
    assert refused.exceeded == "concurrent"
    assert Changed(0, "concurrent", 1) in refused.changed


def test_a_queued_run_starts_under_the_limits_as_they_are_then(clocked: ClockedRedis) -> None:
    lease = Lease.new("claude", "alice", DOLLAR)
    change(clocked, TIER, {"usd_per_day": DOLLAR // 2})
    request = calls.to_acquire(lease, SLOT, "pro")
    assert clocked.admit(request, NOW).exceeded == "usd_per_day"
    assert clocked.admit(request, NOW + 61_000_000).admitted, "the change has lapsed"


@pytest.mark.parametrize("target", [SUBJECT, POOL], ids=str)
@pytest.mark.parametrize("more", [{"hour": 1}, {"usd_per_day": DOLLAR // 2}, {"concurrent": 1}], ids=str)
def test_who_is_blocked_is_told_that_whatever_else_is_in_his_way_for_longer(
    clocked: ClockedRedis, target: Target, more: dict[str, int]
) -> None:
    """An API rate limit exceeded, 429, is tried again."""
    assert admit(clocked, POOLED).admitted
    change(clocked, TIER, more, SOON + 60 * 60_000)
    without = admit(clocked, POOLED)
    assert without.exceeded == next(iter(more)), "the control"
    change(clocked, target, {"blocked": 1})
    refused = admit(clocked, POOLED)
    assert (refused.exceeded, refused.wait_ms) == ("blocked", 60_000)
    change(clocked, ALL_TEAMS, {"blocked": 1}, SOON + 1000)
    if target is SUBJECT:
        assert admit(clocked, POOLED).wait_ms == 61_000, "of two blocks the longer one is told"


@pytest.mark.parametrize("target", [SUBJECT, TIER, POOL, ALL_TEAMS], ids=str)
def test_who_is_blocked_is_refused_at_once_whatever_he_asks_for(clocked: ClockedRedis, target: Target) -> None:
    change(clocked, target, {"blocked": 1})
    for lease in (True, False):
        refused = admit(clocked, POOLED, lease=lease)
        assert (refused.admitted, refused.exceeded, refused.wait_ms) == (False, "blocked", 60_000)
        assert refused.of_tier is (target is TIER)
    acquired = clocked.admit(calls.to_acquire(Lease.new("claude", "alice", 1, POOLED), POOLED_SLOT, "pro"), NOW)
    assert (acquired.exceeded, acquired.of_tier) == ("blocked", target is TIER)
    looked = Peek("claude", "alice", WINDOWS, POOLED_SLOT, POOLED, (WINDOWS, NO_WINDOWS), "pro")
    asked = calls.peek(looked, NOW // 1000)
    told = clocked.ask(asked, NOW)
    assert told.blocked == (Blocked(1 if target in (POOL, ALL_TEAMS) else 0, 60_000, target is TIER),)
    assert told.changed == ()
    change(clocked, target, None)
    assert clocked.ask(asked, NOW) == msgspec.structs.replace(told, blocked=())
    assert admit(clocked, POOLED).admitted


def draw(clocked: ClockedRedis, lease: Lease, most: int, tier: str = "pro", now: int = NOW, cost: int = 0) -> Drawn:
    slot = POOLED_SLOT if lease.shared.tag else SLOT
    return clocked.ask(calls.draw(lease, slot, Draw(cost, 0, most // 10, most, tier), now // 1000), now)


@pytest.mark.parametrize(
    ("target", "limit", "name"),
    [(SUBJECT, "usd_per_day", ""), (TIER, "usd_per_day", ""), (POOL, "usd_per_month", "team"), (ALL_TEAMS, "usd_per_month", "team")],
    ids=str,
)  # fmt: skip
def test_a_lowered_budget_holds_for_the_next_request_of_a_run_that_goes_on(
    clocked: ClockedRedis, target: Target, limit: str, name: str
) -> None:
    lease = Lease.new("claude", "alice", DOLLAR, POOLED)
    assert clocked.admit(calls.to_acquire(lease, POOLED_SLOT, "pro"), NOW).admitted
    assert draw(clocked, lease, DOLLAR // 2).verdict is Verdict.DRAWN
    change(clocked, target, {limit: DOLLAR // 100})
    refused = draw(clocked, lease, DOLLAR // 2)
    assert (refused.verdict, refused.budget, refused.at) == (Verdict.REFUSED, limit, 1 if name else 0)
    assert draw(clocked, lease, DOLLAR // 50).micro_usd == DOLLAR // 100, "what is left of it may be drawn"
    assert draw(clocked, lease, DOLLAR // 2, now=SOON * 1000).verdict is Verdict.DRAWN, "it has lapsed"


def test_of_64_runs_that_were_let_in_with_100_dollars_the_pool_pays_no_more_than_it_has_been_lowered_to(
    clocked: ClockedRedis,
) -> None:
    slot = Slot(None, DOLLAR, pools=(Terms(None, (Budget(100 * DOLLAR, "month"),)),))
    shared = Shared(DEPLOYMENT, (RED,))
    leases = [Lease.new("claude", f"user{n}", DOLLAR, shared) for n in range(64)]
    assert all(clocked.admit(calls.to_acquire(lease, slot, "pro"), NOW).admitted for lease in leases)

    def drawn() -> int:
        asked = [calls.draw(lease, slot, Draw(0, 0, 1000, 300_000, "pro"), NOW // 1000) for lease in leases]
        return sum(clocked.ask(call, NOW).micro_usd for call in asked)

    assert drawn() == 64 * 300_000, "the control: before it was lowered"
    for lease in leases:
        clocked.ask(calls.draw(lease, slot, Draw(0, tier="pro"), NOW // 1000), NOW)
    change(clocked, POOL, {"usd_per_month": DOLLAR})
    assert drawn() == DOLLAR


@pytest.mark.parametrize(
    ("target", "whom"),
    [(SUBJECT, "this caller"), (TIER, "this caller's tier"), (POOL, "the pool team"), (ALL_TEAMS, "the pool team")],
    ids=str,
)
def test_who_is_blocked_sends_no_further_request(clocked: ClockedRedis, target: Target, whom: str) -> None:
    lease = Lease.new("claude", "alice", DOLLAR, POOLED)
    assert clocked.admit(calls.to_acquire(lease, POOLED_SLOT, "pro"), NOW).admitted
    assert draw(clocked, lease, DOLLAR // 2).verdict is Verdict.DRAWN
    change(clocked, target, {"blocked": 1})
    refused = draw(clocked, lease, DOLLAR // 2)
    assert (refused.verdict, refused.budget, refused.reset_ms) == (Verdict.REFUSED, "blocked", 60_000)
    told = used_up(refused, str(lease), 0)
    assert told == f"an administrator has blocked {whom} until 1970-01-01 00:01:00 UTC"
    change(clocked, target, None)
    assert draw(clocked, lease, DOLLAR // 2).verdict is Verdict.DRAWN


def test_one_subject_may_be_let_through_a_blocked_tier(clocked: ClockedRedis) -> None:
    change(clocked, TIER, {"blocked": 1})
    assert not admit(clocked).admitted
    change(clocked, SUBJECT, {"blocked": 0})
    assert admit(clocked).admitted
    change(clocked, SUBJECT, {"blocked": 1})
    assert admit(clocked).of_tier is False, "of both he is told that it is he"


def test_a_blocked_subjects_held_lease_is_taken_again_without_harm(clocked: ClockedRedis) -> None:
    request = calls.to_acquire(Lease.new("claude", "alice", DOLLAR), SLOT, "pro")
    assert clocked.admit(request, NOW).admitted
    change(clocked, SUBJECT, {"blocked": 1})
    assert clocked.admit(request, NOW).admitted


def test_a_change_ends_at_its_time_by_redis_clock_whatever_this_machine_thinks(clocked: ClockedRedis) -> None:
    change(clocked, SUBJECT, {"minute": 1})
    last = SOON * 1000 - 1
    assert allowed(admit(clocked, now=last))["minute"] == 1
    assert allowed(admit(clocked, now=SOON * 1000)) == CONFIGURED
    for target in (POOL, TIER):
        change(clocked, target, {"minute": 1}, SOON + (60_000 if target is TIER else 0))
    held = [clocked.ask(calls.changes(limits_key("claude")), moment) for moment in (last, SOON * 1000)]
    assert [set(found) for found in held] == [{SUBJECT.field, POOL.field, TIER.field}, {TIER.field}]


def test_the_key_goes_with_the_last_change(redis_server: RedisProcess) -> None:
    client: Any = redis_server.client()

    def ask(call: Call[Any]) -> Any:
        return call.parse(client.eval(call.script.source, len(call.keys), *call.keys, *call.args))

    now_ms = time.time_ns() // 1_000_000
    for seconds in (3600, 60):
        made = Change({}, {"minute": 1}, now_ms + seconds * 1000, "root", "", now_ms)
        ask(calls.change(limits_key("claude"), Target("subject", key=str(seconds)), made, b"{}"))
    assert 3500 < client.ttl(limits_key("claude")) <= 3600
    ask(calls.change(limits_key("claude"), Target("subject", key="3600"), None, b"{}"))
    assert 0 < client.ttl(limits_key("claude")) <= 60
    ask(calls.change(limits_key("claude"), Target("subject", key="60"), None, b"{}"))
    assert not client.exists(limits_key("claude"))


def test_every_change_leaves_its_line_with_what_was_there_before(clocked: ClockedRedis) -> None:
    assert change(clocked, SUBJECT, {"minute": 1})
    assert change(clocked, SUBJECT, {"minute": 2})
    assert change(clocked, SUBJECT, None)
    assert not change(clocked, SUBJECT, None), "there was nothing left to take back"
    lines = [fields for _, fields in clocked.client.xrange(OUTBOX)]  # type: ignore[union-attr]
    minutes = [
        tuple(b'"minute":%d' % n in line[side] for n in (1, 2)) for line in lines for side in (b"before", b"after")
    ]
    assert minutes == [(False, False), (True, False), (True, False), (False, True), (False, True), (False, False)]


def test_there_are_not_too_many_changes_and_lines(clocked: ClockedRedis) -> None:
    made = Change({}, {"minute": 1}, SOON, "root", "", 0).encode()
    clocked.client.hset(limits_key("claude"), mapping={f"s:{n}": made for n in range(MOST_CHANGES)})
    with pytest.raises(OverflowError, match="reset some"):
        change(clocked, SUBJECT, {"minute": 1})
    assert change(clocked, Target("subject", key="7"), {"minute": 2}), "one that is there may be changed again"
    with clocked.client.pipeline() as pipe:
        for _ in range(MOST_REFUSED - 2):  # with that of the change one less than there may be
            pipe.xadd(OUTBOX, {"line": "{}"})
        pipe.execute()
    assert [clocked.ask(calls.report(b"{}"), NOW) for _ in range(2)] == [True, False]
    assert change(clocked, SUBJECT, None) is False
    assert change(clocked, Target("subject", key="7"), None), "a change is never without its line"


def test_what_has_lapsed_goes_with_the_next_change_and_takes_nobodys_place(clocked: ClockedRedis) -> None:
    key, client = limits_key("claude"), clocked.client
    lapses = Change({}, {"minute": 1}, SOON, "root", "", 0).encode()
    client.hset(key, mapping={f"s:{n}": lapses for n in range(MOST_CHANGES)} | {"s:alice": lapses})
    client.hdel(key, "s:0")
    later = Change({}, {"minute": 2}, SOON + 60_000, "root", "", 0)

    def ask(now: int, target: Target = SUBJECT) -> bool:
        return clocked.ask(calls.change(key, target, later, b"{}"), now)

    with pytest.raises(OverflowError):
        ask(SOON * 1000 - 1, TIER)
    assert client.hlen(key) == MOST_CHANGES
    assert ask(SOON * 1000)
    assert client.hkeys(key) == [b"s:alice"]
    (line,) = [fields for _, fields in client.xrange(OUTBOX)]  # type: ignore[union-attr]
    assert line[b"before"] == b"", "what has lapsed was not there any more"
    assert not clocked.ask(calls.change(key, TIER, None, b"{}"), SOON * 1000)


def test_a_change_that_cannot_be_read_is_kept_until_it_is_reset(redis_server: RedisProcess) -> None:
    """It would go with the others' end, and bind nobody any more."""
    client: Any = redis_server.client()
    key, now_ms = limits_key("claude"), time.time_ns() // 1_000_000
    made = Change({}, {"minute": 1}, now_ms + 3_600_000, "root", "", now_ms)

    def ask(subject: str, limits: Change | None) -> None:
        call = calls.change(key, Target("subject", key=subject), limits, b"{}")
        client.eval(call.script.source, len(call.keys), *call.keys, *call.args)

    ask("alice", made)
    assert 3500 < client.ttl(key) <= 3600
    client.hset(key, "s:bob", '{"limits":{}}')
    ask("carol", made)
    assert client.ttl(key) == -1
    ask("bob", None)
    assert 3500 < client.ttl(key) <= 3600


@pytest.mark.parametrize("value", ["{", '"text"', '{"v":9,"until":99999999999999,"limits":{"minute":1}}'])
def test_a_change_that_cannot_be_read_refuses_whom_it_binds_and_nobody_else(clocked: ClockedRedis, value: str) -> None:
    clocked.client.hset(limits_key("claude"), "s:alice", value)
    call = calls.admit(Admit("claude", "alice", WINDOWS), NOW // 1000)
    with pytest.raises(Exception, match=r"VERSION|user_script") as raised:
        clocked.ask(call, NOW)
    assert isinstance(calls.unreadable(raised.value, call), UnreadableLedger)
    assert clocked.admit(Admit("claude", "bob", WINDOWS), NOW).admitted
    assert change(clocked, SUBJECT, None), "it can be reset"
    assert admit(clocked).admitted
