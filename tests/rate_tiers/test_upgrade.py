"""The ledger's values from release to release: what 0.1.0 left is counted, what we leave 0.1.0 counts after a rollback
(by its own scripts, which the recording holds), and what neither knows is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from claude_contract.ledger import (
    UTC_DAY,
    UTC_MONTH,
    Admit,
    Lease,
    LedgerUnavailable,
    Peek,
    Quota,
    Renewal,
    Slot,
    Spent,
    Standing,
    UnreadableLedger,
    Usage,
    Window,
    Windows,
    calls,
)
from claude_contract.ledger.model import SETTLED_MS
from claude_contract.versions import UnknownVersion
from kong_claude.decision import Pass, Refuse
from kong_claude.rate_tiers.redis_circuit import FAILURES
from kong_claude.rate_tiers.redis_ledger import RedisLedger, Settings
from tests.rate_tiers.servers import RedisProcess
from tests.rate_tiers.test_faults import ask, stage
from tests.rate_tiers.test_model import ClockedRedis
from tests.support.recorded import recorded, restore
from tests.support.waiting import HANG_S

OLD = recorded(Path(__file__).parent / "data" / "release-0.1.0.json")
AT_US = OLD["at_us"]
WINDOWS = Windows(tuple(Window(*each) for each in OLD["windows"]))
HELD = [Lease.parse(text) for text in OLD["held"]]
SETTLED = Lease.parse(OLD["settled"])
SLOT = Slot(concurrent=4, run_micro_usd=2_000_000, day_micro_usd=50_000_000, month_micro_usd=100_000_000)
TEAM = Peek("claude", "team", WINDOWS)


def usage_in(reply: list[int]) -> Usage:
    running, reserved, day, month, day_left, month_left, *rest = reply
    quotas = tuple(Quota(*each) for each in zip(WINDOWS.each, rest[::2], rest[1::2], strict=True))
    spent = tuple(
        Spent(budget, amount, left, *budget.span(AT_US // 1000))
        for budget, amount, left in ((UTC_DAY, day, day_left), (UTC_MONTH, month, month_left))
    )
    return Usage(Standing(running, reserved, spent, quotas))


@pytest.fixture
def clocked(redis_server: RedisProcess) -> ClockedRedis:
    return ClockedRedis(redis_server)


class OldGateway:
    """Release 0.1.0's scripts, called as it did, on the same Redis."""

    def __init__(self, clocked: ClockedRedis) -> None:
        self.clocked = clocked

    def run(self, verb: str, keys: str, *args: Any, now: int) -> Any:
        script = calls.Script(OLD["scripts"][verb], "")
        named = tuple(f"claude:{{team}}:{key}" for key in keys.split())
        return self.clocked.ask(calls.Call(script, named, args, lambda reply: reply), now)

    def peek(self, now: int) -> Usage:
        return usage_in(self.run("peek", "leases w usd:day usd:month", WINDOWS.packed, now=now))

    def admit(self, now: int) -> Any:
        args = ("", 60_000, -1, -1, -1, "reject", WINDOWS.packed)
        return self.run("admit", "leases w usd:day usd:month", *args, now=now)

    def renew(self, lease: Lease, now: int) -> Any:
        return self.run("renew", "leases settled", lease.member, 60_000, now=now)

    def settle(self, lease: Lease, cost: int, now: int) -> Any:
        return self.run("settle", "leases usd:day usd:month settled", lease.member, cost, SETTLED_MS, now=now)


def test_what_0_1_0_has_counted_counts(clocked: ClockedRedis) -> None:
    restore(clocked.client, OLD["keys"])
    assert clocked.peek(TEAM, AT_US) == usage_in(OLD["peek"])
    full = clocked.admit(Admit("claude", "team", WINDOWS), AT_US + 1_000_000)
    assert full.admitted, "the minute's last"
    assert clocked.admit(Admit("claude", "team", WINDOWS), AT_US + 1_500_000).exceeded == "minute"
    assert clocked.ask(calls.renew(HELD[0], 60_000), AT_US) is Renewal.EXTENDED
    assert clocked.ask(calls.renew(SETTLED, 60_000), AT_US) is Renewal.SETTLED
    assert clocked.ask(calls.settle(SETTLED, 1_250_000), AT_US) is False
    assert [clocked.ask(calls.settle(lease, 500_000), AT_US) for lease in HELD] == [True, True]
    after = clocked.peek(TEAM, AT_US)
    assert (after.running, after.reserved_micro_usd, after.spent_day_micro_usd) == (0, 0, 2_250_000)
    assert after.spent_month_micro_usd == 2_250_000


def test_what_we_have_counted_0_1_0_counts(clocked: ClockedRedis) -> None:
    """After a rollback: the same leases, windows and money, whoever began them."""
    restore(clocked.client, OLD["keys"])
    old, now = OldGateway(clocked), AT_US
    ours = Lease.new("claude", "team", SLOT.run_micro_usd)
    assert clocked.admit(Admit("claude", "team", WINDOWS, ours, SLOT), now + 1_000_000).admitted
    assert clocked.ask(calls.settle(HELD[0], 750_000), now + 1_000_000)
    now += 2_000_000
    found = old.peek(now)
    assert found == clocked.peek(TEAM, now)
    assert (found.running, found.reserved_micro_usd, found.spent_day_micro_usd) == (2, 4_000_000, 2_000_000)
    assert old.admit(now)[:2] == [0, 2]  # the minute is full
    # Its gateway and its invoker end what ours began, and it is theirs to count on.
    assert old.renew(ours, now) == 1
    assert old.settle(ours, 250_000, now) == 1
    now += 70_000_000
    assert old.admit(now)[0] == 1
    found = clocked.peek(TEAM, now)
    assert found == old.peek(now)
    assert (found.running, found.spent_day_micro_usd) == (0, 2_250_000)


Poison = Callable[[Any], None]
NEWER: dict[str, Poison] = {
    "windows": lambda redis: redis.set("claude:{alice}:w", msgpack.packb({0: 2**52, 60: "another form", "v": 3})),
    "leases": lambda redis: redis.zadd("claude:{alice}:leases", {"v3.abc:1": 2**52}),
    "money of the day": lambda redis: redis.set("claude:{alice}:usd:day", "20717:1:3"),
    "money of the month": lambda redis: redis.set("claude:{alice}:usd:month", "202609:1:3"),
    "no money": lambda redis: redis.set("claude:{alice}:usd:day", "lots"),
}


def everything(client: Any) -> dict[bytes, bytes]:
    return {key: client.dump(key) for key in client.scan_iter()}


@pytest.mark.parametrize("kind", NEWER)
def test_what_a_newer_release_has_counted_is_refused(redis_server: RedisProcess, kind: str) -> None:
    """Nothing is admitted, nothing is changed, and others are served."""
    client = redis_server.client()
    NEWER[kind](client)
    before = everything(client)
    store = RedisLedger(Settings(redis_server.url, timeout=HANG_S))
    windows, lease = Windows((Window("minute", 5),)), Lease.new("claude", "alice", 1)
    version = "version 2" if kind == "no money" else "version 3"
    for _ in range(FAILURES + 1):
        with pytest.raises(UnreadableLedger, match=f"{version}, read are 0 and 1: a newer release wrote it"):
            store.admit(Admit("claude", "alice", windows, lease, SLOT))
        with pytest.raises(UnreadableLedger, match=r"under claude:\{alice\}:"):
            store.peek(Peek("claude", "alice", windows))
    if "money" in kind:
        with pytest.raises(UnreadableLedger):
            store.settle(lease, 5)
    assert everything(client) == before
    assert not store.circuits.open
    assert store.admit(Admit("claude", "bob", windows)).admitted


def test_money_of_the_version_to_come_is_read(clocked: ClockedRedis) -> None:
    """The next release may write it, once nobody reads by 0.1.0's rules any more."""
    restore(clocked.client, OLD["keys"])
    for period in ("day", "month"):
        value = clocked.client.get(f"claude:{{team}}:usd:{period}")
        clocked.client.set(f"claude:{{team}}:usd:{period}", f"{value.decode()}:1")  # type: ignore[union-attr]
    assert clocked.peek(TEAM, AT_US) == usage_in(OLD["peek"])


def test_control_0_1_0_takes_it_for_nothing_spent(clocked: ClockedRedis) -> None:
    """Why it is not written yet."""
    restore(clocked.client, OLD["keys"])
    clocked.client.set("claude:{team}:usd:day", "20717:1250000:1")
    found = OldGateway(clocked).peek(AT_US)
    assert found.spent_day_micro_usd == 0


@pytest.mark.parametrize(("on_error", "passes"), [("deny", False), ("allow", True), ("local", True)])
def test_the_plugin_does_what_on_error_says(redis_server: RedisProcess, on_error: str, passes: bool) -> None:
    NEWER["windows"](redis_server.client())
    made = stage(redis_server.url, on_error=on_error)
    decision = ask(made, "alice")
    assert isinstance(decision, Pass) is passes
    if isinstance(decision, Refuse):
        assert decision.status == 503
    assert isinstance(ask(made, "bob"), Pass)


def test_a_lease_of_a_newer_release_is_refused() -> None:
    with pytest.raises(UnknownVersion, match="the lease is of version 2, read are 0 and 1: a newer release"):
        Lease.parse("claude alice v2.abc:5")
    assert Lease.parse("claude alice v1.abc:5").micro_usd == 5
    assert issubclass(UnreadableLedger, LedgerUnavailable)
