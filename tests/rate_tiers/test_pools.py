"""Pools and budgets: what many share, in any zone's periods; all or nothing, and nothing forgotten."""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, cast

import msgpack
import pytest

from claude_contract.errors import ConfigError
from claude_contract.identity import Identity
from claude_contract.ledger import (
    DEPLOYMENT,
    Admission,
    Admit,
    Budget,
    Changed,
    Lease,
    LedgerUnavailable,
    Peek,
    Shared,
    Slot,
    Terms,
    UnreadableLedger,
    Window,
    Windows,
    calls,
    organisation_tag,
    pool_key,
)
from claude_contract.ledger.calls import OutOfPeriod
from claude_contract.ledger.limits import NO_WINDOWS
from kong_claude.decision import Answer, Decision, Pass, Refuse
from kong_claude.rate_tiers.local_ledger import LocalLedger
from kong_claude.rate_tiers.plugin import RateTiers
from kong_claude.rate_tiers.pools import Pool
from kong_claude.rate_tiers.redis_ledger import RedisLedger, Settings
from kong_claude.request import Request
from tests.rate_tiers.servers import RedisProcess
from tests.rate_tiers.test_faults import Kong
from tests.rate_tiers.test_model import DOLLAR, ClockedRedis
from tests.support.stages import stage_of
from tests.support.waiting import HANG_S

TEAM = Shared(DEPLOYMENT, (pool_key("team", "claim", "red"), pool_key("all")))
HOUR = 3600 * 1_000_000  # µs


def at(text: str) -> int:
    """Microseconds of a time in UTC."""
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1_000_000)


@pytest.fixture
def clocked(redis_server: RedisProcess) -> ClockedRedis:
    return ClockedRedis(redis_server)


def everything(clocked: ClockedRedis) -> dict[bytes, bytes]:
    return {key: clocked.client.dump(key) for key in clocked.client.scan_iter() if key != b"clock"}  # type: ignore[misc]


# Which keys


def test_without_pools_the_keys_are_as_they_were(clocked: ClockedRedis) -> None:
    """So that nobody's counts and money are forgotten by an upgrade: what is new is `spent`."""
    slot = Slot(1, DOLLAR, 5 * DOLLAR, 5 * DOLLAR)
    lease = Lease.new("claude", "alice", DOLLAR)
    now = at("2026-11-26T12:00")
    assert clocked.admit(Admit("claude", "alice", Windows((Window("minute", 3),)), lease, slot), now).admitted
    assert clocked.ask(calls.settle(lease, 5), now)
    names = {b"claude:{alice}:" + name for name in (b"w", b"usd:day", b"usd:month", b"settled", b"spent")}
    assert set(clocked.client.keys("claude*")) == names  # type: ignore[arg-type]
    assert str(lease).count(" ") == 2 and "pools" not in slot.claim() and "budgets" not in slot.claim()


def test_with_pools_all_keys_have_one_tag(clocked: ClockedRedis) -> None:
    slot = Slot(1, DOLLAR, pools=(Terms(5), Terms(9)))
    lease = Lease.new("claude", "alice", DOLLAR, TEAM)
    one = Windows((Window("minute", 3),))
    request = Admit("claude", "alice", one, lease, slot, "reject", TEAM, (one, one))
    now = at("2026-11-26T12:00")
    assert clocked.admit(request, now).admitted
    assert clocked.ask(calls.settle(lease, 5), now)
    heads = [b"claude:{*}:" + who for who in (b"alice:", b"pool.team:claim:red:", b"pool.all:*:")]
    heads[2] = b"claude:{*}:pool.all:*:"
    assert set(clocked.client.keys("claude*")) == {  # type: ignore[arg-type]
        *(head + name for head in heads for name in (b"w", b"spent")),
        heads[0] + b"settled",
    }
    assert Lease.parse(str(lease)) == lease and Slot.from_claim(slot.claim()) == slot


@pytest.mark.parametrize("subject", ["pool.team:claim:red", "*", "pool.all:*", "claim:acme"])
def test_nobody_can_take_a_pools_name(subject: str) -> None:
    from claude_contract.ledger import subject_key

    assert subject_key("subject", subject) not in (*TEAM.pools, DEPLOYMENT, organisation_tag("claim", "acme"))


# All or nothing


def test_what_a_pool_refuses_is_counted_nowhere(clocked: ClockedRedis) -> None:
    slot = Slot(5, DOLLAR, pools=(Terms(1), Terms(None, (Budget(3 * DOLLAR, "day"),))))
    windows, now = Windows((Window("minute", 3),)), at("2026-11-26T12:00")

    def ask(subject: str) -> Admission:
        lease = Lease.new("claude", subject, DOLLAR, TEAM)
        return clocked.admit(Admit("claude", subject, windows, lease, slot, "reject", TEAM, (windows, windows)), now)

    assert ask("ada").admitted
    before = everything(clocked)
    refused = ask("bob")
    assert (refused.admitted, refused.exceeded, refused.at) == (False, "concurrent", 1)
    assert everything(clocked) == before


POOLED = Slot(None, DOLLAR, pools=(Terms(2, (Budget(3 * DOLLAR, "month"),)), Terms()))


@pytest.mark.parametrize("kind", ["redis", "local"])
def test_subjects_spend_what_they_share(redis_server: RedisProcess, kind: str) -> None:
    store = RedisLedger(Settings(redis_server.url, timeout=HANG_S)) if kind == "redis" else LocalLedger()
    leases = [Lease.new("claude", subject, DOLLAR, TEAM) for subject in ("ada", "bob", "cyd", "ada", "bob")]
    assert [store.acquire(lease, POOLED).admitted for lease in leases[:3]] == [True, True, False]
    assert store.release(leases[0]) and not store.release(leases[0])
    assert store.acquire(leases[2], POOLED).admitted
    assert [store.settle(lease, 1_500_000) for lease in (leases[1], leases[2], leases[1])] == [True, True, False]
    refused = store.acquire(leases[3], POOLED)
    assert (refused.exceeded, refused.at) == ("usd_per_month", 1) and refused.wait_ms > 0
    usage = store.peek(Peek("claude", "dan", slot=POOLED, shared=TEAM))
    assert (usage.running, usage.pools[0].running, usage.spent_month_micro_usd) == (0, 0, 0)
    assert [spent.micro_usd for spent in usage.pools[0].spent] == [3 * DOLLAR]
    elsewhere = Shared(DEPLOYMENT, (pool_key("team", "claim", "blue"), pool_key("all")))
    assert store.acquire(Lease.new("claude", "eve", DOLLAR, elsewhere), POOLED).admitted


@pytest.mark.parametrize("kind", ["redis", "local"])
def test_what_never_fits_is_told_no_time(redis_server: RedisProcess, kind: str) -> None:
    store = RedisLedger(Settings(redis_server.url, timeout=HANG_S)) if kind == "redis" else LocalLedger()
    slot = Slot(None, 2 * DOLLAR, pools=(Terms(None, (Budget(DOLLAR, "day", rolling=True),)), Terms()))
    for spent_before in (0, 1):
        assert store.settle(Lease.new("claude", "ada", 0, TEAM), spent_before)
        refused = store.acquire(Lease.new("claude", "ada", 2 * DOLLAR, TEAM), slot)
        assert (refused.admitted, refused.at, refused.wait_ms) == (False, 1, 0)


# Periods

BERLIN_DAY, UTC_DAY = Budget(10 * DOLLAR, "day", "Europe/Berlin"), Budget(10 * DOLLAR, "day")


def spent(clocked: ClockedRedis, budget: Budget, now: int, shared: Shared = TEAM) -> int:
    slot = Slot(pools=(Terms(None, (budget,)), Terms())) if shared.tag else Slot(budgets=(budget,))
    usage = clocked.peek(Peek("claude", "ada", slot=slot, shared=shared), now)
    return (usage.pools[0] if shared.tag else usage.own).spent[-1].micro_usd


def book(clocked: ClockedRedis, dollars: int, now: int, shared: Shared = TEAM) -> None:
    assert clocked.ask(calls.settle(Lease.new("claude", "ada", 0, shared), dollars * DOLLAR), now)


def test_a_settlement_is_booked_when_it_comes(clocked: ClockedRedis) -> None:
    """A run that ends in the next period is booked in that."""
    book(clocked, 1, at("2026-11-26T22:59"))
    assert spent(clocked, BERLIN_DAY, at("2026-11-26T22:59:59")) == DOLLAR
    assert spent(clocked, BERLIN_DAY, at("2026-11-26T23:00")) == 0
    book(clocked, 2, at("2026-11-26T23:00"))
    assert spent(clocked, BERLIN_DAY, at("2026-11-27T22:59")) == 2 * DOLLAR
    assert spent(clocked, Budget(1, "month", "Europe/Berlin"), at("2026-11-27T22:59")) == 3 * DOLLAR


def test_a_zone_changed_in_mid_period_forgets_nothing_and_counts_nothing_twice(clocked: ClockedRedis) -> None:
    for hour, dollars in ((21, 1), (22, 2), (23, 4)):
        book(clocked, dollars, at(f"2026-11-26T{hour}:30"))
    now = at("2026-11-26T23:45")
    zones = {"UTC": 7, "Europe/Berlin": 4, "Europe/Helsinki": 6, "Asia/Kathmandu": 7, "Pacific/Apia": 7}
    for zone, dollars in zones.items():  # one after the other, as configurations come and go
        assert spent(clocked, Budget(1, "day", zone), now) == dollars * DOLLAR, zone
    book(clocked, 8, now)
    for zone, dollars in zones.items():
        assert spent(clocked, Budget(1, "day", zone), now) == (dollars + 8) * DOLLAR, zone


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25)])
def test_a_day_of_changed_clocks_is_one_budget(clocked: ClockedRedis, day: str, hours: int) -> None:
    now = at(f"{day}T00:00") - (HOUR if hours == 23 else 2 * HOUR)
    for _ in range(hours):
        book(clocked, 1, now + 60_000_000)
        now += HOUR
    assert spent(clocked, BERLIN_DAY, now - 1) == hours * DOLLAR
    assert spent(clocked, BERLIN_DAY, now) == 0


def test_a_rolling_day_has_no_midnight(clocked: ClockedRedis) -> None:
    rolling = Budget(5 * DOLLAR, "day", rolling=True)
    start = at("2026-11-26T20:05")
    book(clocked, 3, start)
    book(clocked, 2, start + HOUR)
    assert spent(clocked, rolling, start + 23 * HOUR) == 5 * DOLLAR
    assert (
        spent(clocked, rolling, start + 24 * HOUR) == 5 * DOLLAR
    )  # by quarters of an hour: a little late, never early
    assert spent(clocked, rolling, start + 24 * HOUR + HOUR // 4) == 2 * DOLLAR
    slot = Slot(None, 3 * DOLLAR, pools=(Terms(None, (rolling,)), Terms()))
    lease, now = Lease.new("claude", "ada", 3 * DOLLAR, TEAM), start + 2 * HOUR
    request = Admit("claude", "ada", lease=lease, slot=slot, shared=TEAM)
    refused = clocked.admit(request, now)
    assert (refused.exceeded, refused.at) == ("usd_per_rolling_day", 1)
    assert not clocked.admit(request, now + refused.wait_ms * 1000 - 1000).admitted
    assert clocked.admit(request, now + refused.wait_ms * 1000).admitted


# Clocks


def test_another_period_than_that_of_redis_is_refused(clocked: ClockedRedis) -> None:
    slot = Slot(None, DOLLAR, pools=(Terms(None, (BERLIN_DAY,)), Terms()))
    lease = Lease.new("claude", "ada", DOLLAR, TEAM)
    request = Admit("claude", "ada", Windows((Window("minute", 5),)), lease, slot, "reject", TEAM)
    now = at("2026-11-26T23:00")
    for ours in (now // 1000 - 1, now // 1000 + 24 * 3_600_000):
        with pytest.raises(OutOfPeriod) as outside:
            clocked.ask(calls.admit(request, ours), now)
        assert outside.value.now_ms == now // 1000 and not everything(clocked)
        with pytest.raises(OutOfPeriod):
            clocked.ask(calls.peek(Peek("claude", "ada", slot=slot, shared=TEAM), ours), now)
    assert clocked.ask(calls.admit(request, outside.value.now_ms), now).admitted


@pytest.mark.parametrize("days", [-400, 400])
def test_a_gateway_whose_clock_is_wrong_asks_again_once(
    redis_server: RedisProcess, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    """Redis's clock counts, for its own periods too."""
    store = RedisLedger(Settings(redis_server.url, timeout=HANG_S))
    asked: list[Any] = []
    exchange = store._ask

    def ask_and_note(call: Any) -> Any:
        asked.append(call)
        return exchange(call)

    monkeypatch.setattr(store, "_ask", ask_and_note)
    monkeypatch.setattr(calls, "_now_ms", lambda: datetime.now(UTC).timestamp() * 1000 // 1 + days * 86_400_000)
    assert store.acquire(Lease.new("claude", "ada", DOLLAR, TEAM), POOLED).admitted
    assert len(asked) == 2
    assert store.peek(Peek("claude", "ada", slot=POOLED, shared=TEAM)).pools[0].running == 1

    monkeypatch.setattr(calls, "admit", lambda request, now_ms=None, real=calls.admit, **rest: real(request, 0, **rest))
    with pytest.raises(LedgerUnavailable, match="clocks"):  # not a third time
        store.acquire(Lease.new("claude", "ada", DOLLAR, TEAM), POOLED)


def test_a_clock_that_goes_back_loses_no_money(clocked: ClockedRedis) -> None:
    now = at("2026-11-26T12:00")
    for later in (0, 3 * HOUR, -2 * HOUR, 20 * 24 * HOUR, 0):
        book(clocked, 1, now + later)
    assert spent(clocked, UTC_DAY, now) == 5 * DOLLAR


# The book


def test_a_book_of_years_stays_short_and_right(clocked: ClockedRedis) -> None:
    """Something is booked in each quarter of an hour, for a hundred days; trimmed, it still knows a whole month."""
    now, quarter = at("2026-08-01T00:00"), HOUR // 4
    key = "claude:{*}:pool.team:claim:red:spent"
    lease = "v1.{n}:0"
    for n in range(40):  # 40 days written down by hand, as the script would have
        for part in range(96):
            record = struct.pack("<IdB", (now + (96 * n + part) * quarter) // quarter, 1000 * (96 * n + part + 1), 1)
            clocked.client.append(key, record)
    now += 40 * 24 * HOUR
    for n in range(5 * 96):
        leased = Lease("claude", "ada", lease.format(n=n), TEAM)
        assert clocked.ask(calls.settle(leased, 1000), now)
        now += quarter
    kept: Any = clocked.client.get(key)
    assert len(kept) <= 13 * 4096
    # Trimmed when the 4097th quarter was booked: since then it begins with the last that was over 33 days before.
    full = at("2026-08-01T00:00") // quarter + 4096
    assert [struct.unpack_from("<I", kept, place)[0] for place in range(0, len(kept), 13)] == [
        *range(full - 33 * 96 - 1, now // quarter)
    ]
    month, day = Budget(1, "month", rolling=True), Budget(1, "day", "Asia/Kathmandu")
    assert spent(clocked, month, now) == 30 * 96 * 1000
    assert spent(clocked, day, now) == 23 * 1000  # since 18:15


def test_what_is_booked_in_one_quarter_is_one_record(clocked: ClockedRedis) -> None:
    now, key = at("2026-11-26T12:00"), "claude:{*}:pool.team:claim:red:spent"
    for later in (0, 60_000_000, HOUR // 4 - 1):
        book(clocked, 1, now + later)
    assert clocked.client.get(key) == struct.pack("<IdB", now // (HOUR // 4), 3 * DOLLAR, 1)


@pytest.mark.parametrize(("before", "today"), [(2 * DOLLAR, DOLLAR), (1, 0), (0, 1)])
def test_a_book_begins_with_what_there_was_before_books(clocked: ClockedRedis, before: int, today: int) -> None:
    """As a release without books has left it: today's, and the month's before today, which is none of any zone's today."""
    now, key, alone = at("2026-11-26T12:00"), "claude:{ada}:spent", Shared()
    for spent_then, earlier in ((before, 24 * HOUR), (today, HOUR)):
        assert clocked.ask(calls.settle(Lease.new("claude", "ada", 0), spent_then), now - earlier)
    clocked.client.delete(key)
    book(clocked, 4, now, alone)
    records = [(now // (HOUR // 4), before + today + 4 * DOLLAR)]
    if before:
        records.insert(0, (at("2026-11-26T00:00") // (HOUR // 4) - 1, before))
    assert clocked.client.get(key) == b"".join(struct.pack("<IdB", *record, 1) for record in records)
    assert [spent(clocked, Budget(1, "day", zone), now, alone) for zone in ("UTC", "Asia/Kathmandu")] == [
        today + 4 * DOLLAR,
        before + today + 4 * DOLLAR,  # since 18:15: of what was before today no more is known
    ]


def test_what_has_ended_is_known_for_a_day_and_no_longer(clocked: ClockedRedis) -> None:
    """Else a subject that is never idle for a day would keep the name of every run that it ever had."""
    now, day = at("2026-11-26T12:00"), 24 * HOUR
    first, second, third = (Lease.new("claude", "ada", 0, TEAM) for _ in range(3))
    for lease, later in ((first, 0), (second, day - 1000), (third, day)):
        assert clocked.ask(calls.settle(lease, DOLLAR), now + later)
        assert not clocked.ask(calls.settle(lease, DOLLAR), now + later)
    known: Any = clocked.client.zrange("claude:{*}:ada:settled", 0, -1)
    assert [held.partition(b" ")[0] for held in known] == [second.member.encode(), third.member.encode()]


def counted(clocked: ClockedRedis, now: int) -> int:
    """What the team has spent in Berlin's month, as an admission finds it."""
    hour = (Windows((Window("hour", 100),)), NO_WINDOWS)
    slot = Slot(pools=(Terms(None, (Budget(100 * DOLLAR, "month", "Europe/Berlin"),)), Terms()))
    lease = Lease.new("claude", "ada", 0, TEAM)
    admission = clocked.admit(Admit("claude", "ada", NO_WINDOWS, lease, slot, "reject", TEAM, hour), now)
    assert admission.admitted
    return admission.pools[0].spent[0].micro_usd


@pytest.mark.parametrize("weakened", [False, True])
def test_what_was_booked_before_a_month_is_remembered_no_longer_than_its_book(
    clocked: ClockedRedis, weakened: bool
) -> None:
    """A book ends 33 days after the last booking, and the next one begins at nothing: what is remembered of the first
    must not be taken off the second. The control remembers it for ever."""
    book(clocked, 5, at("2026-10-25T12:00"))
    assert [counted(clocked, at(f"2026-11-02T12:0{minute}")) for minute in (0, 1)] == [0, 0]
    windows = "claude:{*}:pool.team:claim:red:w"
    kept = msgpack.unpackb(cast(bytes, clocked.client.get(windows)), strict_map_key=False)
    assert kept["b"] == [at("2026-11-26T12:00") // 1000, at("2026-10-31T23:00") // 1000, 5 * DOLLAR]
    if weakened:
        kept["b"][0] *= 2
        clocked.client.set(windows, msgpack.packb(kept))
    clocked.client.delete("claude:{*}:pool.team:claim:red:spent")
    book(clocked, 6, at("2026-11-28T12:00"))
    assert counted(clocked, at("2026-11-28T12:30")) == (1 if weakened else 6) * DOLLAR


def test_a_book_that_is_gone_is_nothing_spent(clocked: ClockedRedis) -> None:
    """Also where somebody has deleted it before its time, and begun it anew with less."""
    book(clocked, 5, at("2026-10-31T12:00"))
    book(clocked, 7, at("2026-11-01T12:00"))
    now = at("2026-11-02T12:00")
    assert [counted(clocked, now) for _ in range(2)] == [7 * DOLLAR] * 2
    clocked.client.delete("claude:{*}:pool.team:claim:red:spent")
    assert counted(clocked, now) == 0
    book(clocked, 1, now)
    assert counted(clocked, now) == DOLLAR


def test_a_book_is_searched_once_in_a_month(clocked: ClockedRedis) -> None:
    now, stats = at("2026-11-02T12:00"), []
    book(clocked, 5, at("2026-10-25T12:00"))
    for later in range(4):
        book(clocked, 1, now + later * HOUR)
        clocked.client.config_resetstat()
        assert counted(clocked, now + later * HOUR) == (1 + later) * DOLLAR
        found: Any = clocked.client.info("commandstats")
        stats.append((found["cmdstat_getrange"]["calls"], "cmdstat_strlen" in found))
    assert stats == [(3, True), (1, False), (1, False), (1, False)]


NEWER: dict[str, Callable[[Any], Any]] = {
    "a book": lambda redis: redis.set("claude:{*}:pool.team:claim:red:spent", struct.pack("<IdBB", 1, 1.0, 0, 3)),
    "what a pool holds": lambda redis: redis.hset("claude:{*}:held", "pool.team:claim:red", "1:5:9:3"),
    "a lapsed lease": lambda redis: redis.zadd("claude:{*}:leases", {"v3.x:5 eve pool.team:claim:red": 1}),
}


@pytest.mark.parametrize("kind", NEWER)
def test_what_a_newer_release_keeps_is_refused(clocked: ClockedRedis, redis_server: RedisProcess, kind: str) -> None:
    NEWER[kind](clocked.client)
    store = RedisLedger(Settings(redis_server.url, timeout=HANG_S))
    before = everything(clocked)
    lease = Lease.new("claude", "ada", DOLLAR, TEAM)
    verbs: list[Callable[[], Any]] = [
        lambda: store.acquire(lease, POOLED),
        lambda: store.peek(Peek("claude", "ada", slot=POOLED, shared=TEAM)),
        lambda: store.settle(lease, 5) if kind == "a book" else store.renew(lease, 5000),
    ]
    for verb in verbs:
        with pytest.raises(UnreadableLedger, match="version"):
            verb()
    assert everything(clocked) == before


def test_what_was_spent_before_there_were_books_counts(clocked: ClockedRedis) -> None:
    """Of a release before: when on that day is not known, and what of the month was before that day."""
    now = at("2026-11-26T12:00")
    clocked.client.set("claude:{ada}:usd:day", f"{now // (24 * HOUR)}:2000000")
    clocked.client.set("claude:{ada}:usd:month", "202611:9000000")
    expected = {
        Budget(1, "hour"): 2, Budget(1, "day"): 2, BERLIN_DAY: 9, Budget(1, "day", "Asia/Kathmandu"): 9,
        Budget(1, "month", "Europe/Berlin"): 9, Budget(1, "day", rolling=True): 9,
    }  # fmt: skip
    alone = Shared()
    assert {b: spent(clocked, b, now, alone) // DOLLAR for b in expected} == expected
    book(clocked, 1, now, alone)
    assert {b: spent(clocked, b, now, alone) // DOLLAR for b in expected} == {b: n + 1 for b, n in expected.items()}
    later = at("2026-11-27T12:00")
    assert spent(clocked, BERLIN_DAY, later, alone) == 0 and spent(clocked, Budget(1, "day"), later, alone) == 0
    assert spent(clocked, Budget(1, "month", "Europe/Berlin"), later, alone) == 10 * DOLLAR


# The plugin

POOL = {"name": "engineering", "claim": "team", "concurrent": 2}
TIER = {"name": "pro", "minute": 60, "concurrent": 5, "usd_per_day": 9, "max_usd_per_run": 1}


def stage(**config: Any) -> RateTiers:
    made = stage_of(RateTiers, {"tiers": [TIER], "pools": [POOL], **config})
    made.local = LocalLedger()
    return made


def ask(made: RateTiers, subject: str | None = "ada", ip: str = "192.0.2.1", **claims: Any) -> Decision:
    request = Request(Kong())
    request.__dict__["client_ip"] = ip
    if subject is None:
        request.__dict__["_shared_identity"] = None
    else:
        request.learn(Identity(subject, claims=claims))
    return made.access(request)


def refused(decision: Decision) -> tuple[int, str, Any]:
    assert isinstance(decision, Refuse)
    return decision.status, decision.reason, decision.detail.get("pool")


def test_the_place_in_pools_is_attested() -> None:
    made = stage()
    decision = ask(made, team="red")
    assert isinstance(decision, Pass)
    lease = Lease.parse(decision.shared["lease"])
    assert lease.shared == Shared("*", ("pool.engineering:claim:red",))


def test_two_of_one_team_meet_its_limit() -> None:
    made = stage()
    assert all(isinstance(ask(made, who, team="red"), Pass) for who in ("ada", "bob"))
    third = ask(made, "cyd", team="red")
    assert refused(third) == (429, "rate_limited", "engineering")
    assert isinstance(third, Refuse) and third.detail["limit"] == "concurrent" and third.detail["allowed"] == 2
    assert isinstance(ask(made, "cyd", team="blue"), Pass)


MISSING: dict[str, tuple[Any, tuple[int, str]]] = {
    "no claim": ({}, (403, "no_pool")),
    "an empty one": ({"team": ""}, (403, "no_pool")),
    "several": ({"team": ["red", "blue"]}, (403, "no_pool")),
    "a number": ({"team": 7}, (403, "no_pool")),
    "another claim": ({"Team": "red"}, (403, "no_pool")),
}


@pytest.mark.parametrize("case", MISSING)
def test_without_the_claim_it_is_refused(case: str) -> None:
    claims, expected = MISSING[case]
    assert refused(ask(stage(), **claims))[:2] == expected
    assert (
        refused(ask(stage(organisation_claim="org"), team="red", **claims) if not claims else ask(stage(), **claims))[
            :2
        ]
        == expected
    )


def test_without_an_identity_it_is_401() -> None:
    assert refused(ask(stage(limit_by="ip"), None))[:2] == (401, "no_identity")


def test_without_the_claim_addresses_may_have_pools_of_their_own() -> None:
    made = stage(on_missing_identity="ip")
    assert all(isinstance(ask(made, who), Pass) for who in ("ada", "bob"))
    assert refused(ask(made, "cyd")) == (429, "rate_limited", "engineering")
    assert isinstance(ask(made, "cyd", ip="192.0.2.2"), Pass)
    assert isinstance(ask(made, "cyd", team="ip:192.0.2.1"), Pass), "nobody can claim to be an address"


def test_behind_a_pool_of_everybody_the_others_count_too() -> None:
    everybody = {"name": "everybody", "by": "deployment", "concurrent": 9}
    decision = ask(stage(pools=[everybody, POOL]), team="red")
    assert isinstance(decision, Pass)
    assert Lease.parse(decision.shared["lease"]).shared == Shared(
        "*", ("pool.everybody:*", "pool.engineering:claim:red")
    )


@pytest.mark.parametrize(
    ("claims", "shared"),
    [
        ({"team": "red", "org": "acme"}, Shared("claim:acme", ("pool.engineering:claim:red",))),
        ({"team": "red"}, Shared("ip:192.0.2.1", ("pool.engineering:claim:red",))),
        ({"org": "acme"}, Shared("claim:acme", ("pool.engineering:ip:192.0.2.1",))),
    ],
)
def test_what_stands_in_the_place_of_a_claim_says_what_it_is(claims: dict[str, str], shared: Shared) -> None:
    decision = ask(stage(organisation_claim="org", on_missing_identity="ip"), **claims)
    assert isinstance(decision, Pass)
    assert Lease.parse(decision.shared["lease"]).shared == shared


@pytest.mark.parametrize("value", ["red", "x" * 48, "x" * 49, "é" * 99])
def test_no_key_is_longer_than_the_one_that_room_is_kept_for(value: str) -> None:
    pool = Pool("team", "team", NO_WINDOWS, Terms())
    assert len(pool_key("team", "claim", value)) <= len(pool.widest_key) == len("pool.team:claim:") + 48
    assert Pool("all", "", NO_WINDOWS, Terms()).widest_key == pool_key("all")


def test_a_tier_names_its_pools() -> None:
    tiers = [{**TIER, "name": "in", "pools": ["engineering"]}, {**TIER, "name": "out", "pools": []}]
    made = stage_of(RateTiers, {"tiers": tiers, "default_tier": "out", "pools": [POOL]})
    decision = ask(made)
    assert isinstance(decision, Pass) and Lease.parse(decision.shared["lease"]).shared == Shared("*")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ([], {}),
        ([(0, "minute", 7)], {"minute": 7}),
        ([(0, "concurrent", 7)], {"concurrent": 7}),
        ([(0, "usd_per_day", 7 * DOLLAR)], {"usd_per_day": 7}),
        ([(0, "usd_per_week", DOLLAR // 2)], {"usd_per_week": 0.5, "max_usd": 0.5}),
        ([(1, "concurrent", 7)], {"pool concurrent": 7}),
        ([(1, "usd_per_day", DOLLAR // 4), (0, "minute", 7)], {"pool usd_per_day": 0.25, "max_usd": 0.25, "minute": 7}),
        ([(2, "minute", 7), (0, "hour", 7), (0, "usd_per_month", 7)], {"max_usd": 7 / DOLLAR}),
    ],
    ids=str,
)
def test_a_tier_with_what_an_admin_has_changed(changed: list[tuple[int, str, int]], expected: dict[str, float]) -> None:
    """A run may cost no more than any budget that was lowered."""
    tier = {**TIER, "budgets": [{"usd": 8, "per": "week"}]}
    made = stage(tiers=[tier], pools=[{**POOL, "usd_per_day": 5}]).choice.default
    now = made.now([Changed(*one) for one in changed])
    limits: dict[str, Any] = {window.name: window.limit for window in now.windows.each}
    limits |= {budget.name: budget.micro_usd / DOLLAR for budget in now.slot.own.budgets}
    limits |= {"concurrent": now.slot.concurrent, "max_usd": now.clamp.max_usd}
    (terms,), (pool,) = now.slot.pools, now.pools
    assert pool.terms == terms
    limits |= {"pool concurrent": terms.concurrent, "pool usd_per_day": terms.budgets[0].micro_usd / DOLLAR}
    before = {"minute": 60, "concurrent": 5, "usd_per_day": 9, "usd_per_week": 8, "max_usd": 1}
    assert limits == {**before, "pool concurrent": 2, "pool usd_per_day": 5} | expected


def test_organisations_have_pools_of_their_own() -> None:
    made = stage(organisation_claim="org")
    for org in ("acme", "bit"):
        assert all(isinstance(ask(made, who, team="red", org=org), Pass) for who in ("ada", "bob"))
        assert refused(ask(made, "cyd", team="red", org=org)) == (429, "rate_limited", "engineering")
    decision = ask(made, "cyd", team="blue", org="acme")
    assert isinstance(decision, Pass) and Lease.parse(decision.shared["lease"]).shared.tag == "claim:acme"


def test_headers_show_the_tightest_and_the_policy_each_by_name() -> None:
    decision = ask(stage(pools=[{"name": "eng", "claim": "team", "minute": 3, "hour": 9}]), team="red")
    assert isinstance(decision, Pass)
    shown = decision.response_headers
    assert (shown["X-RateLimit-Limit-Minute"], shown["X-RateLimit-Remaining-Minute"]) == ("3", "2")
    assert shown["X-RateLimit-Limit-Hour"] == "9" and shown["RateLimit-Remaining"] == "2"
    assert shown["RateLimit-Policy"] == '"minute";q=60;w=60, "eng.minute";q=3;w=60, "eng.hour";q=9;w=3600'
    assert shown["RateLimit"].startswith('"eng.minute";r=2;t=')


def test_the_report_has_each_pool_by_name() -> None:
    made = stage(pools=[{**POOL, "budgets": [{"usd": 2, "per": "week", "zone": "Asia/Tokyo"}]}])
    assert isinstance(ask(made, team="red"), Pass)
    made.report = True
    body = ask(made, "bob", team="red")
    assert isinstance(body, Answer)
    (pool,) = body.body["pools"]
    week = pool["usd"]["budgets"][0]
    assert 0 < week.pop("reset_s") <= 7 * 86_400
    assert week.pop("end") - week.pop("start") == 7 * 86_400
    money = {"limit": 2.0, "spent": 0.0, "reserved": 1.0, "left": 1.0}
    assert week == {"name": "usd_per_week", "per": "week", "zone": "Asia/Tokyo", **money}
    assert (pool["name"], pool["concurrent"], pool["usd"]["reserved"]) == (
        "engineering",
        {"limit": 2, "running": 1},
        1.0,
    )
    assert body.body["tightest"] == {"pool": "engineering", "limit": "concurrent", "left": 0.5}
    assert body.body["concurrent"]["running"] == 0
    made = stage(pools=[{**POOL, "concurrent": 9, "budgets": [{"usd": 1.5, "per": "week"}]}])
    assert isinstance(ask(made, team="red"), Pass)
    made.report = True
    body = ask(made, "bob", team="red")
    assert isinstance(body, Answer)
    assert body.body["tightest"] == {"pool": "engineering", "limit": "usd_per_week", "left": 0.0}, "a run needs 1.0"


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "two of a name": ({"pools": [POOL, POOL]}, r"pools\[2\]\.name: there are two pools"),
    "no claim": ({"pools": [{"name": "a", "minute": 1}]}, r"pools\[1\]\.claim: is needed"),
    "a claim of everybody": ({"pools": [{**POOL, "by": "deployment"}]}, r"pools\[1\]\.claim: is for pools by claim"),
    "all of an organisation": (
        {"pools": [{"name": "a", "by": "deployment", "minute": 1}], "organisation_claim": "org"},
        r"pools\[1\]\.by: with organisation_claim",
    ),
    "nothing limited": ({"pools": [{"name": "a", "claim": "team"}]}, r"pools\[1\]\.name: .* has no limits"),
    "no such pool": ({"tiers": [{**TIER, "pools": ["b"]}]}, r"tiers\[1\]\.pools: there is no pool 'b'"),
    "twice": ({"tiers": [{**TIER, "pools": ["engineering"] * 2}]}, r"tiers\[1\]\.pools: .* for each pool once"),
    "five": (
        {"pools": [{**POOL, "name": f"p{n}"} for n in range(5)]}, r"tiers\[1\]\.pools: .* for at most 4"),
    "no reservation": (
        {"tiers": [{"name": "t"}], "pools": [{**POOL, "usd_per_day": 5}]}, r"tiers\[1\]\.max_usd_per_run: is needed"),
    "no room for one run": ({"pools": [{**POOL, "usd_per_day": 0.5}]}, r"max_usd_per_run: is more than a budget"),
    "no such zone": (
        {"pools": [{**POOL, "budgets": [{"usd": 5, "per": "day", "zone": "Europe/Atlantis"}]}]},
        r"pools\[1\]\.budgets\[1\]\.zone: is no time zone",
    ),
    "a rolling zone": (
        {"pools": [{**POOL, "budgets": [{"usd": 5, "per": "day", "zone": "UTC", "rolling": True}]}]},
        r"pools\[1\]\.budgets\[1\]\.zone: is for periods of the calendar",
    ),
    "one period twice": (
        {"tiers": [{**TIER, "budgets": [{"usd": 5, "per": "day", "zone": "Asia/Tokyo"}]}]},
        r"tiers\[1\]\.budgets: there are two budgets of the same period",
    ),
    "no such period": ({"pools": [{**POOL, "budgets": [{"usd": 5, "per": "year"}]}]}, r"budgets\[1\]\.per: must be one"),
    "five budgets": (
        {"pools": [{**POOL, "usd_per_month": 9, "budgets": [
            {"usd": 5, "per": "day"}, *({"usd": 5, "per": p, "rolling": True} for p in ("hour", "day", "week"))]}]},
        r"pools\[1\]\.budgets: there are more than 4",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_makes_no_sense_does_not_start(case: str) -> None:
    config, text = WRONG[case]
    with pytest.raises(ConfigError, match=text):
        stage(**config)


CONTROLS: dict[str, Callable[[], RateTiers]] = {
    "the whole schema": lambda: stage(
        pools=[
            {**POOL, "hour": 1000, "budgets": [{"usd": 500, "per": "month", "zone": "Europe/Berlin"},
                                               {"usd": 50, "per": "day", "rolling": True}]},
            {"name": "everybody", "by": "deployment", "usd_per_month": 5000},
        ],
    ),
    "a tier's own budgets": lambda: stage(tiers=[{**TIER, "budgets": [{"usd": 5, "per": "day", "rolling": True}]}]),
}  # fmt: skip


@pytest.mark.parametrize("case", CONTROLS)
def test_what_makes_sense_starts(case: str) -> None:
    assert isinstance(ask(CONTROLS[case](), team="red"), Pass)
