"""What requests may cost is taken of every budget as it is when they are sent: named failures, each over both ledgers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from claude_contract.ledger import (
    ALONE,
    DEPLOYMENT,
    Budget,
    Draw,
    Lease,
    LedgerUnavailable,
    Peek,
    Renewal,
    Shared,
    Slot,
    Terms,
    UnreadableLedger,
    Verdict,
    calls,
    pool_key,
)
from claude_contract.ledger.calls import OutOfPeriod
from claude_contract.ledger.model import REST_MS
from kong_claude.rate_tiers.local_ledger import LocalLedger
from kong_claude.rate_tiers.redis_ledger import RedisLedger, Settings
from tests.rate_tiers.servers import RedisProcess
from tests.rate_tiers.test_model import DOLLAR, ClockedRedis
from tests.rate_tiers.test_pools import at
from tests.support.waiting import HANG_S


@pytest.fixture
def clocked(redis_server: RedisProcess) -> ClockedRedis:
    return ClockedRedis(redis_server)


Store = RedisLedger | LocalLedger
TEAM = Shared(DEPLOYMENT, (pool_key("team", "claim", "red"), pool_key("all")))


@pytest.fixture(params=["redis", "local"])
def store(request: pytest.FixtureRequest, redis_server: RedisProcess) -> Iterator[Store]:
    if request.param == "local":
        yield LocalLedger()
    else:
        made = RedisLedger(Settings(redis_server.url, timeout=HANG_S))
        yield made
        made.close()


def pooled(team: int, everybody: int = 1000 * DOLLAR, ttl_ms: int = 60_000) -> Slot:
    """Of runs that hold a dollar each; the team's month and the deployment's day have so many micro-USD."""
    pools = (Terms(None, (Budget(team, "month"),)), Terms(None, (Budget(everybody, "day"),)))
    return Slot(None, DOLLAR, ttl_ms=ttl_ms, pools=pools)


def lease_of(number: int) -> Lease:
    return Lease.new("claude", f"user{number}", DOLLAR, TEAM)


def pool_of(store: Store, slot: Slot, pool: int = 0) -> tuple[int, int, int]:
    """Running, held and booked of a pool."""
    found = store.peek(Peek("claude", "nobody", slot=slot, shared=TEAM)).pools[pool]
    return found.running, found.reserved_micro_usd, found.spent[0].micro_usd


def spend(store: Store, leases: list[Lease], slot: Slot, bound: int, cost: int) -> int:
    """Each sends requests for as long as it may, all in turn; what all have cost."""
    costs, going = dict.fromkeys(leases, 0), list(leases)
    while going:
        sent = []
        for lease in going:
            drawn = store.draw(lease, slot, Draw(costs[lease], 0, bound // 10, bound))
            if drawn.verdict is Verdict.DRAWN:
                sent.append((lease, drawn.micro_usd))
        for lease, most in sent:
            costs[lease] += min(cost, most)
            store.draw(lease, slot, Draw(costs[lease]))
        going = [lease for lease, _ in sent if costs[lease] < DOLLAR]
    assert [store.settle(lease, costs[lease]) for lease in leases] == [True] * len(leases)
    return sum(costs.values())


@pytest.mark.parametrize("wall", [True, False])
def test_64_runs_are_let_in_with_100_dollars_left_and_then_there_is_1(store: Store, wall: bool) -> None:
    """Without the wall each spends what it was let in with."""
    leases = [lease_of(number) for number in range(64)]
    assert all(store.acquire(lease, pooled(100 * DOLLAR)).admitted for lease in leases)
    lowered = pooled(DOLLAR)
    cost = spend(store, leases, lowered if wall else Slot(None, DOLLAR, pools=(Terms(), Terms())), 300_000, 90_000)
    assert pool_of(store, lowered) == (0, 0, cost)
    assert (cost <= DOLLAR) is wall
    assert cost > DOLLAR * 3 // 4, "the wall is where the limit is"


def test_what_runs_hold_and_what_they_draw_count_once(store: Store) -> None:
    """While nobody changes the limits no run that was let in is refused, however many are let in beside it."""
    slot = pooled(5 * DOLLAR)
    leases = [lease_of(number) for number in range(5)]
    assert all(store.acquire(lease, slot).admitted for lease in leases)
    assert not store.acquire(lease_of(9), slot).admitted
    for lease in leases:
        assert store.draw(lease, slot, Draw(0, 0, DOLLAR, DOLLAR)).verdict is Verdict.DRAWN
    assert pool_of(store, slot) == (5, 5 * DOLLAR, 0)
    for lease in leases:
        assert store.draw(lease, slot, Draw(400_000, 0, 600_000, 600_000)).verdict is Verdict.DRAWN
    assert pool_of(store, slot) == (5, 3 * DOLLAR, 2 * DOLLAR)
    assert all(store.settle(lease, 400_000) for lease in leases)
    assert pool_of(store, slot) == (0, 0, 2 * DOLLAR)
    assert all(store.acquire(lease_of(number), slot).admitted for number in range(10, 13))


def test_a_request_that_one_budget_refuses_draws_of_none(store: Store) -> None:
    slot = pooled(10 * DOLLAR, everybody=DOLLAR)
    first, second = lease_of(1), lease_of(2)
    assert store.draw(first, slot, Draw(0, 0, 700_000, 700_000)).verdict is Verdict.DRAWN
    refused = store.draw(second, slot, Draw(0, 0, 500_000, 700_000))
    assert (refused.verdict, refused.micro_usd, refused.budget, refused.at) == (Verdict.REFUSED, 0, "usd_per_day", 2)
    assert store.draw(first, slot, Draw(0, 700_000, DOLLAR, DOLLAR)).micro_usd == DOLLAR, "nothing of it is the other's"


def test_only_what_is_drawn_comes_back_soon(store: Store) -> None:
    """What a run holds for requests that it has not made yet stays held while it goes on: nobody waits for that."""
    slot = pooled(2 * DOLLAR)
    runs = [lease_of(1), lease_of(2)]
    message = Lease.new("claude", "user3", 0, TEAM, message=True)
    assert all(store.acquire(lease, slot).admitted for lease in runs)
    assert not store.draw(message, slot, Draw(0, 0, 100_000, 100_000)).fleeting
    store.draw(runs[0], slot, Draw(0, 0, 1_500_000, 1_500_000))
    for asked, fleeting in ((100_000, True), (1_100_000, False)):
        refused = store.draw(message, slot, Draw(0, 0, asked, asked))
        assert (refused.verdict, refused.fleeting) == (Verdict.REFUSED, fleeting)
    for asked, fleeting in ((600_000, True), (2_000_000, True), (2_000_001, False)):
        refused = store.draw(runs[1], slot, Draw(0, 0, asked, asked))
        assert (refused.verdict, refused.fleeting) == (Verdict.REFUSED, fleeting)
    store.draw(runs[0], slot, Draw(1_500_000))
    assert not store.draw(runs[1], slot, Draw(0, 0, 600_000, 600_000)).fleeting, "that is spent"


def test_a_refused_request_leaves_those_under_way(store: Store) -> None:
    slot = pooled(DOLLAR)
    one, other = lease_of(1), lease_of(2)
    assert store.draw(one, slot, Draw(0, 0, 600_000, 600_000)).verdict is Verdict.DRAWN
    assert store.draw(one, slot, Draw(0, 600_000, 1_200_000, 1_300_000)).verdict is Verdict.REFUSED
    assert store.draw(other, slot, Draw(0, 0, 300_000, DOLLAR)).micro_usd == 400_000


def test_a_dead_run_gives_back_what_it_drew_and_its_journal_books_it_once(store: Store) -> None:
    slot, brief = pooled(DOLLAR), pooled(DOLLAR, ttl_ms=1)
    dead, other = lease_of(1), lease_of(2)
    assert store.draw(dead, brief, Draw(250_000, 0, 700_000, 700_000)).verdict is Verdict.DRAWN
    while pool_of(store, slot)[0]:
        pass
    assert pool_of(store, slot) == (0, 0, 250_000), "what was booked stays booked"
    assert store.draw(other, slot, Draw(0, 0, 750_000, 750_000)).verdict is Verdict.DRAWN
    assert [store.settle(dead, 400_000), store.settle(dead, 400_000)] == [True, False]
    assert pool_of(store, slot)[2] == 400_000


@pytest.mark.parametrize("alone", [False, True])
def test_what_a_run_that_has_ended_may_still_cost_stays_drawn(store: Store, alone: bool) -> None:
    """It was dropped, and drawn by others, when the run ended with a request unanswered; then it was booked, beyond the
    budget. Its place is free at once; a run whose cost is known has nothing left that is drawn."""
    shared, slot = (ALONE, Slot(1, DOLLAR, day_micro_usd=DOLLAR)) if alone else (TEAM, pooled(DOLLAR))
    runs = [Lease.new("claude", "one", DOLLAR, shared) for _ in range(3)]
    asked = Peek("claude", "one", slot=slot, shared=shared)

    def standing() -> tuple[int, int]:
        found = store.peek(asked)
        return found.running, (found.own if alone else found.pools[0]).reserved_micro_usd

    assert store.acquire(runs[0], slot).admitted
    assert store.draw(runs[0], slot, Draw(100_000, 0, 600_000, 600_000)).verdict is Verdict.DRAWN
    assert store.settle(runs[0], 100_000, final=False)
    assert standing() == (0, 600_000)
    assert store.draw(runs[0], slot, Draw(100_000)).verdict is Verdict.SETTLED, "said late it changes nothing"
    assert not store.settle(runs[0], 100_000, final=False)
    refused = store.draw(runs[1], slot, Draw(0, 0, 400_000, 400_000))
    assert refused.verdict is Verdict.REFUSED
    assert store.draw(runs[1], slot, Draw(0, 0, 300_000, 400_000)).micro_usd == 300_000
    assert store.settle(runs[1], 0)
    assert store.settle(runs[0], 150_000), "the API has said what it was"
    assert standing() == (0, 0)
    assert store.draw(runs[2], slot, Draw(0, 0, 850_000, 850_000)).verdict is Verdict.DRAWN
    assert store.settle(runs[2], 0)
    assert standing() == (0, 0)


def test_who_comes_back_as_its_lease_lapses_has_drawn_nothing(clocked: ClockedRedis) -> None:
    """At the very millisecond: what it drew is free for others from then on."""
    slot, now = pooled(DOLLAR), at("2026-11-02T12:00")
    lease, later = Lease.new("claude", "one", 0, TEAM), now + 60_000_000
    moment = [now]
    local = LocalLedger(clock=lambda: moment[0])
    draw = Draw(0, 0, 600_000, 600_000)
    assert local.draw(lease, slot, draw) == clocked.ask(calls.draw(lease, slot, draw, now // 1000), now)
    asked = Peek("claude", "nobody", slot=slot, shared=TEAM)
    assert local.peek(asked).pools[0].reserved_micro_usd == 600_000
    moment[0] = later
    assert local.renew(lease, 60_000) is clocked.ask(calls.renew(lease, 60_000), later) is Renewal.LAPSED
    for found in (local.peek(asked), clocked.peek(asked, later)):
        assert (found.pools[0].running, found.pools[0].reserved_micro_usd) == (1, 0)


def test_a_micro_dollar_stays_drawn_as_well(store: Store) -> None:
    slot, lease = pooled(DOLLAR), lease_of(1)
    assert store.acquire(lease, slot).admitted
    assert store.draw(lease, slot, Draw(0, 0, 1, 1)).micro_usd == 1
    assert store.settle(lease, 0, final=False)
    assert pool_of(store, slot) == (0, 1, 0)


def test_what_is_left_of_a_run_lapses_where_nobody_comes_back(clocked: ClockedRedis) -> None:
    slot, now, lease = pooled(DOLLAR), at("2026-11-02T12:00"), lease_of(1)
    local = LocalLedger(clock=lambda: now)
    local.draw(lease, slot, Draw(0, 0, DOLLAR, DOLLAR))
    local.settle(lease, 0, final=False)
    clocked.ask(calls.draw(lease, slot, Draw(0, 0, DOLLAR, DOLLAR), now // 1000), now)
    clocked.ask(calls.settle(lease, 0, final=False), now)
    asked = Peek("claude", "nobody", slot=slot, shared=TEAM)
    for passed, held in ((REST_MS - 1, DOLLAR), (1, 0)):
        now += passed * 1000
        assert local.peek(asked).pools[0].reserved_micro_usd == held
        assert clocked.peek(asked, now).pools[0].reserved_micro_usd == held


def test_a_part_that_was_booked_is_known_after_days(clocked: ClockedRedis) -> None:
    """A run whose worker died, and whose machine comes back: it was booked twice after 24 hours."""
    lease, slot, now = lease_of(1), pooled(10 * DOLLAR), at("2026-11-02T12:00")
    local = LocalLedger(clock=lambda: now)
    clocked.ask(calls.draw(lease, slot, Draw(100_000, 0, 0, 500_000), now // 1000), now)
    clocked.ask(calls.settle(lease, 300_000, final=False), now)
    local.draw(lease, slot, Draw(100_000, 0, 0, 500_000))
    local.settle(lease, 300_000, final=False)
    now += 20 * 86_400_000_000
    assert clocked.ask(calls.settle(lease, 350_000), now) and local.settle(lease, 350_000)
    asked = Peek("claude", "nobody", slot=slot, shared=TEAM)
    assert clocked.peek(asked, now).pools[0].spent[0].micro_usd == 350_000
    assert local.peek(asked).pools[0].spent[0].micro_usd == 350_000


def test_how_long_it_is_known_what_is_booked(redis_server: RedisProcess) -> None:
    """For as long as any budget counts it, and not beyond a run's end."""
    made, lease = RedisLedger(Settings(redis_server.url, timeout=HANG_S)), lease_of(1)
    client: Any = redis_server.client()
    key = calls.booked_key(lease)
    made.draw(lease, pooled(DOLLAR), Draw(5))
    assert 32 * 86_400_000 < client.pttl(key) <= 33 * 86_400_000
    assert {key.decode() for key in client.keys("claude*")} == {
        *(f"claude:{{*}}:{name}" for name in ("leases", "held", "user1:spent")),
        *(f"claude:{{*}}:{pool}:spent" for pool in TEAM.pools),
        key,
    }
    assert 0 < client.pttl("claude:{*}:held") <= 60_000
    made.settle(lease, 5)
    assert not client.exists(key, "claude:{*}:held", "claude:{*}:leases")


def test_a_period_that_turns_gives_room(clocked: ClockedRedis) -> None:
    lease, slot, now = lease_of(1), pooled(DOLLAR), at("2026-11-30T23:59")
    refused = clocked.ask(calls.draw(lease, slot, Draw(900_000, 0, 500_000, 500_000), now // 1000), now)
    assert (refused.verdict, refused.budget, refused.reset_ms) == (Verdict.REFUSED, "usd_per_month", 60_000)
    with pytest.raises(OutOfPeriod):
        clocked.ask(calls.draw(lease, slot, Draw(900_000), now // 1000), now + 60_000_000)
    now += 60_000_000
    assert clocked.ask(calls.draw(lease, slot, Draw(900_000, 0, DOLLAR, DOLLAR), now // 1000), now).micro_usd == DOLLAR


@pytest.mark.parametrize(
    ("what", "value"),
    [
        *(("booked", value) for value in ("5:3", "5", "five:1", "")),
        *(("held", value) for value in ("1:7:7:3", "1:7:7", "x")),
        *(("a lease's", value) for value in ("7:7:3", "7:7", "x")),
        ("spent", "of another release"),
        ("spent", "half a record"),
    ],
)
def test_what_cannot_be_read_refuses_and_changes_nothing(redis_server: RedisProcess, what: str, value: str) -> None:
    made, lease = RedisLedger(Settings(redis_server.url, timeout=HANG_S)), lease_of(1)
    client: Any = redis_server.client()
    made.draw(lease, pooled(DOLLAR), Draw(5, 0, 7, 7))
    held, book = "claude:{*}:held", f"claude:{{*}}:{TEAM.pools[0]}:spent"
    if what == "booked":
        client.set(calls.booked_key(lease), value)
    elif what == "held":
        client.hset(held, TEAM.pools[0], value)
    elif what == "a lease's":
        client.hset(held, next(name for name in client.hkeys(held) if lease.member.encode() in name), value)
    elif value == "of another release":
        client.append(book, b"x" * 12 + b"\3")
    else:
        client.set(book, b"x" * 6 + client.get(book))
    before = {key: client.dump(key) for key in client.scan_iter()}
    for _ in range(2):
        with pytest.raises(UnreadableLedger, match=r"version [23]"):
            made.draw(lease, pooled(DOLLAR), Draw(9, 0, 9, 9))
    assert {key: client.dump(key) for key in client.scan_iter()} == before
    assert issubclass(UnreadableLedger, LedgerUnavailable)


def test_thousands_of_leases_that_lapse_at_once_are_taken_off(redis_server: RedisProcess) -> None:
    """More than Lua can hand over as arguments."""
    made, client = RedisLedger(Settings(redis_server.url, timeout=HANG_S)), redis_server.client()
    client.zadd("claude:{*}:leases", {f"v1.x{n}:5 user{n} {TEAM.pools[0]}": 1 for n in range(9000)})
    client.hset("claude:{*}:held", mapping={TEAM.pools[0]: "9000:45000:0:1"})
    assert made.acquire(lease_of(1), pooled(DOLLAR)).admitted
    assert client.zcard("claude:{*}:leases") == 1
    assert pool_of(made, pooled(DOLLAR)) == (1, DOLLAR, 0)
