"""How long each key in Redis lives, by its own clock: money that is forgotten is let out, a lease that is cut short lets
somebody in, and what is never forgotten fills Redis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from claude_contract.ledger import (
    DEPLOYMENT,
    Admit,
    Budget,
    Draw,
    Lease,
    Shared,
    Slot,
    Terms,
    Window,
    Windows,
)
from claude_contract.ledger.model import SETTLED_MS
from kong_claude.rate_tiers.redis_ledger import RedisLedger, Settings
from tests.interop.deployments import started
from tests.rate_tiers.servers import RedisProcess
from tests.support.waiting import HANG_S

MINUTE, HOUR = 60_000, 3_600_000
DAY = 24 * HOUR
SLACK = 30_000  # ms that a test may take beside a busy compiler
TEAM = Shared(DEPLOYMENT, ("pool.red",))


@pytest.fixture(scope="module")
def quiet_redis() -> Iterator[RedisProcess]:
    """Nobody else's: what another test has left running would write into the shared one."""
    server = started()
    yield server
    server.close()


@pytest.fixture
def redis_server(quiet_redis: RedisProcess) -> RedisProcess:
    quiet_redis.client().flushall()
    return quiet_redis


@pytest.fixture
def store(redis_server: RedisProcess) -> Iterator[RedisLedger]:
    made = RedisLedger(Settings(redis_server.url, timeout=HANG_S))
    yield made
    made.close()


def lives(server: RedisProcess, head: str = "claude:{ada}:") -> dict[str, int]:
    """Of each key that begins so its milliseconds, without the `head`; -1: for ever."""
    client: Any = server.client()
    return {key.decode().removeprefix(head): client.pttl(key) for key in client.keys("claude*")}


def check(found: dict[str, int], **wanted: int) -> None:
    """Exactly these keys; each lives as long as it should, less what the test has taken."""
    wanted = {name.replace("__", ":"): ms for name, ms in wanted.items()}
    assert found.keys() == wanted.keys()
    assert {name: ms for name, ms in found.items() if not wanted[name] - SLACK < ms <= wanted[name]} == {}


def asked(*windows: Window, lease: Lease | None = None, slot: Slot | None = None) -> Admit:
    return Admit("claude", "ada", Windows(windows), lease, slot or Slot(9, 5, ttl_ms=10 * MINUTE))


@pytest.mark.parametrize("window", [Window("hour", 5), Window("day", 5), Window("month", 5)], ids=lambda w: w.name)
@pytest.mark.parametrize("short", [Window("second", 5), Window("minute", 5), Window("minute", 5, 2)], ids=str)
def test_a_window_lives_until_its_last_request_has_left(
    store: RedisLedger, redis_server: RedisProcess, window: Window, short: Window
) -> None:
    """Whatever else is counted in the same value, before and after, by this configuration or another."""
    length = window.seconds * 1000
    for order in ((window, short), (short, window), (window,), (short,)):
        assert store.admit(asked(*order)).admitted
        if order != (short, window):
            check(lives(redis_server), w=length + 2)


def test_the_buckets_of_a_wide_window_are_kept_whole(store: RedisLedger, redis_server: RedisProcess) -> None:
    """A request counts from the end of its bucket on."""
    wide = Window("day", 1000)
    assert store.admit(asked(wide)).admitted
    (found,) = lives(redis_server).values()
    assert found + SLACK >= DAY and found <= DAY + wide.width_ms + 1


def test_a_paced_window_lives_until_it_is_empty(store: RedisLedger, redis_server: RedisProcess) -> None:
    for requests in (1, 2, 3):
        assert store.admit(asked(Window("hour", 2, 5))).admitted
        check(lives(redis_server), w=requests * HOUR // 2 + 2)


def test_a_window_that_is_empty_at_once_lives_all_the_same(store: RedisLedger) -> None:
    """Redis takes no lifetime of nothing, and nobody would be let in."""
    for _ in range(50):
        assert store.admit(asked(Window("second", 1_000_000, 5))).admitted


@pytest.mark.parametrize("shared", [Shared(), TEAM], ids=["alone", "with a pool"])
def test_a_short_lease_does_not_cut_a_longer_ones_life(
    store: RedisLedger, redis_server: RedisProcess, shared: Shared
) -> None:
    long, short = (Lease.new("claude", "ada", 5, shared) for _ in range(2))
    tag = "{*}" if shared.tag else "{ada}"
    own = {f"claude:{tag}:leases", *([f"claude:{tag}:held"] if shared.tag else [])}
    slots = [Slot(9, 5, ttl_ms=ttl, pools=(Terms(),) if shared.tag else ()) for ttl in (HOUR, MINUTE)]
    for lease, slot in zip((long, short), slots, strict=True):
        assert store.acquire(lease, slot).admitted
        assert {key for key, ms in lives(redis_server, "").items() if HOUR - SLACK < ms <= HOUR} == own
    store.renew(long, 2 * HOUR)
    store.renew(short, MINUTE)
    assert {key for key, ms in lives(redis_server, "").items() if 2 * HOUR - SLACK < ms <= 2 * HOUR} == own
    client: Any = redis_server.client()
    ends = {
        member.decode().split(" ")[0]: ms
        for member, ms in client.zrange(f"claude:{tag}:leases", 0, -1, withscores=True)
    }
    assert ends[long.member] - ends[short.member] == pytest.approx(2 * HOUR - MINUTE, abs=SLACK)


def test_what_a_run_has_drawn_lives_as_long_as_its_lease(store: RedisLedger, redis_server: RedisProcess) -> None:
    lease, other = (Lease.new("claude", "ada", 5) for _ in range(2))
    slot = Slot(9, 5, ttl_ms=10 * MINUTE, budgets=(Budget(100, "day"),))
    assert store.acquire(lease, slot).admitted
    check(lives(redis_server), leases=10 * MINUTE)
    store.draw(lease, slot, Draw(0, 0, 5, 5))
    found = lives(redis_server)
    (booked,) = (name for name in found if "booked" in name)
    assert {name: ms > 32 * DAY for name, ms in found.items() if name == booked} == {booked: True}
    check({n: ms for n, ms in found.items() if n != booked}, leases=10 * MINUTE, amounts=10 * MINUTE)
    store.draw(other, Slot(9, 5, ttl_ms=MINUTE, budgets=slot.budgets), Draw(0, 0, 5, 5))
    check(
        {n: ms for n, ms in lives(redis_server).items() if "booked" not in n}, leases=10 * MINUTE, amounts=10 * MINUTE
    )
    store.renew(lease, HOUR)
    check({n: ms for n, ms in lives(redis_server).items() if "booked" not in n}, leases=HOUR, amounts=HOUR)


def test_money_lives_longer_than_any_budget_counts_it(store: RedisLedger, redis_server: RedisProcess) -> None:
    """A day's was forgotten after an hour, a month's after two days, and no test noticed."""
    lease = Lease.new("claude", "ada", 5)
    assert store.acquire(lease, Slot(9, 5)).admitted
    assert store.settle(lease, 7, final=False)
    found = lives(redis_server)
    (booked,) = (name for name in found if "booked" in name)
    kept = {"usd__day": 2 * DAY, "usd__month": 32 * DAY, "spent": 33 * DAY, "settled": SETTLED_MS}
    assert 33 * DAY - SLACK < found.pop(booked) <= 33 * DAY
    check(found, **kept)
    assert store.settle(lease, 9)
    check(lives(redis_server), **kept)


def test_the_money_of_a_pool_lives_as_long(store: RedisLedger, redis_server: RedisProcess) -> None:
    lease = Lease.new("claude", "ada", 5, TEAM)
    assert store.acquire(lease, Slot(9, 5, pools=(Terms(9),))).admitted
    assert store.settle(lease, 7)
    kept = {"ada__spent": 33 * DAY, "pool.red__spent": 33 * DAY, "ada__settled": SETTLED_MS}
    check(lives(redis_server, "claude:{*}:"), **kept)


def test_a_settlement_is_recognised_for_a_day_after_each(store: RedisLedger, redis_server: RedisProcess) -> None:
    """The set lives on with the last one; each of its members has an end of its own."""
    leases = [Lease.new("claude", "ada", 5) for _ in range(2)]
    client: Any = redis_server.client()
    for lease in leases:
        assert store.settle(lease, 0)
        client.pexpire("claude:{ada}:settled", HOUR)  # as if 23 hours had gone by
    assert store.settle(Lease.new("claude", "ada", 5), 0)
    check(lives(redis_server), settled=SETTLED_MS)
    seconds, _ = client.time()
    ends = [ms for _, ms in client.zrange("claude:{ada}:settled", 0, -1, withscores=True)]
    assert all(SETTLED_MS - SLACK < ms - 1000 * seconds <= SETTLED_MS + 1000 for ms in ends)
