"""Both ledgers against a brute-force model, with a clock that the test moves.

Each step goes to Redis (the Lua scripts) and to the process (Python); the replies must be the same, and what they
admit must agree with a model that remembers every event and counts them one by one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from claude_contract.ledger import Admit, Busy, Lease, Peek, Renewal, Slot, Window, Windows, calls, micro_usd
from claude_contract.ledger.calls import Call
from claude_contract.ledger.model import SETTLED_MS
from kong_claude.rate_tiers.local_ledger import LocalLedger
from tests.rate_tiers.servers import RedisProcess

R = TypeVar("R")
START = 1_790_000_000_000_000  # µs
DOLLAR = 1_000_000


class ClockedRedis:
    """The scripts as they are, except that their clock is a list in Redis."""

    def __init__(self, server: RedisProcess) -> None:
        self.client = server.client()

    def ask(self, call: Call[R], now: int) -> R:
        source = call.script.source.replace("redis.call('TIME')", "redis.call('LRANGE', 'clock', 0, 1)")
        with self.client.pipeline(transaction=False) as pipe:
            pipe.delete("clock")
            pipe.rpush("clock", now // 1_000_000, now % 1_000_000)
            pipe.eval(source, len(call.keys), *call.keys, *call.args)
            return call.parse(pipe.execute()[-1])


@dataclass
class Model:
    """Every event, kept for ever."""

    admitted: list[int] = field(default_factory=list)  # µs
    leases: dict[str, int] = field(default_factory=dict)  # member → ms at which it lapses
    settled: dict[str, int] = field(default_factory=dict)  # member → ms until which it is remembered
    booked: list[tuple[int, int]] = field(default_factory=list)  # µs, micro-USD

    def within(self, now: int, length: int) -> int:
        return sum(1 for t in self.admitted if now - length < t <= now)

    def live(self, now: int) -> dict[str, int]:
        return {m: until for m, until in self.leases.items() if until > now // 1000}

    def reserved(self, now: int) -> int:
        return sum(int(m.rpartition(":")[2]) for m in self.live(now))

    def spent(self, now: int, form: str) -> int:
        def period(us: int) -> str:
            return datetime.fromtimestamp(us // 1_000_000, UTC).strftime(form)

        return sum(usd for at, usd in self.booked if period(at) == period(now))


class LedgerMachine(RuleBasedStateMachine):
    redis: ClockedRedis

    @initialize(
        second=st.none() | st.integers(1, 8),
        minute=st.integers(1, 90),
        hour=st.none() | st.integers(60, 200),
        burst=st.none() | st.integers(0, 5),
        concurrent=st.none() | st.integers(1, 4),
        usd=st.integers(1, 3),
        day=st.none() | st.integers(3, 12),
        month=st.none() | st.integers(3, 30),
    )
    def start(
        self,
        second: int | None,
        minute: int,
        hour: int | None,
        burst: int | None,
        concurrent: int | None,
        usd: int,
        day: int | None,
        month: int | None,
    ) -> None:
        self.redis.client.flushall()
        self.now = START
        self.local = LocalLedger(clock=lambda: self.now)
        limits = [(n, v) for n, v in (("second", second), ("minute", minute), ("hour", hour)) if v is not None]
        self.windows = Windows(
            tuple(Window(n, v, burst if burst is not None and i == 0 else -1) for i, (n, v) in enumerate(limits))
        )
        self.slot = Slot(concurrent, usd * DOLLAR, day and day * DOLLAR, month and month * DOLLAR, ttl_ms=60_000)
        self.model = Model()
        self.known: list[Lease] = []

    def agreed(self, call: Call[R], local: R) -> R:
        """What Redis answers, which must be what the process has answered."""
        answer = self.redis.ask(call, self.now)
        assert answer == local
        return answer

    @rule(
        seconds=st.one_of(
            st.floats(0, 0.2), st.floats(0, 3), st.floats(0, 100), st.floats(0, 4000), st.floats(0, 40 * 86400)
        )
    )
    def time_passes(self, seconds: float) -> None:
        self.now += int(seconds * 1_000_000)

    @rule(which=st.integers(0, 200), window=st.integers(0, 2), us=st.sampled_from([-300_000, -1000, -1, 0, 1, 1000]))
    def almost_out_of_the_window(self, which: int, window: int, us: int) -> None:
        """To the moment, or nearly, at which an earlier request leaves a window; then as many as pass."""
        if self.model.admitted:
            length = self.windows.each[window % len(self.windows.each)].seconds * 1_000_000
            left = self.model.admitted[-1 - which % len(self.model.admitted)] + length + us
            self.now = max(self.now, left)
            for _ in range(3):
                self.admit(None, "reject")

    @rule(times=st.integers(1, 40))
    def burst_of_plain_requests(self, times: int) -> None:
        for _ in range(times):
            self.admit(None, "reject")

    @rule(busy=st.sampled_from(["reject", "queue", "later"]), again=st.booleans())
    def one_run(self, busy: Busy, again: bool) -> None:
        lease = Lease.new("claude", "t", self.slot.run_micro_usd)
        if again and self.known:
            lease = self.known[-1]
        self.known.append(lease)
        self.admit(lease, busy)

    def admit(self, lease: Lease | None, busy: Busy) -> None:
        before = self.model
        request = Admit("claude", "t", self.windows, lease, self.slot, busy)
        a = self.agreed(calls.admit(request), self.local.admit(request))
        live = before.live(self.now)
        held = lease is not None and lease.member in live
        others = [m for m in live if lease is None or m != lease.member]
        over_budget = False
        if lease is not None and not held:
            need = before.reserved(self.now) + lease.micro_usd
            for budget, form in ((self.slot.day_micro_usd, "%F"), (self.slot.month_micro_usd, "%Y-%m")):
                over_budget |= budget is not None and before.spent(self.now, form) + need > budget
        full = (
            lease is not None and not held and self.slot.concurrent is not None and len(others) >= self.slot.concurrent
        )
        blocking = [w for w in self.windows.each if self.must_block(w)]
        if a.admitted:
            assert not blocking and not over_budget
            assert a.queued == (lease is not None and not held and (busy == "later" or (full and busy == "queue")))
            before.admitted.append(self.now)
            if lease is not None and not a.queued:
                before.leases[lease.member] = self.now // 1000 + self.slot.ttl_ms
            assert a.queued or not full
            for w in self.windows.each:
                if w.burst < 0:
                    assert before.within(self.now, w.seconds * 1_000_000) <= w.limit
        else:
            # A refusal has its reason, and the reason given is a true one.
            may_block = [w.name for w in self.windows.each if self.may_block(w)]
            assert may_block or over_budget or (full and busy == "reject")
            if a.exceeded in ("usd_per_day", "usd_per_month"):
                assert over_budget
            elif a.exceeded == "concurrent":
                assert full and busy == "reject"
            else:
                assert a.exceeded in may_block and a.wait_ms > 0

    def must_block(self, w: Window) -> bool:
        """One more would break the promise."""
        length = w.seconds * 1_000_000
        if w.burst < 0:
            return self.model.within(self.now, length) >= w.limit
        return self.backlog(w) > w.burst + 1e-3

    def may_block(self, w: Window) -> bool:
        """Refusing is not more cautious than one bucket of time allows."""
        length = w.seconds * 1_000_000
        if w.burst < 0:
            return self.model.within(self.now, length + w.width_ms * 1000) >= w.limit
        return self.backlog(w) > w.burst - 1e-3

    def backlog(self, w: Window) -> float:
        """nginx's `excess`: what a leaky bucket still holds, in requests."""
        level, last = 0.0, 0
        for t in self.model.admitted:
            level = max(level - (t - last) * w.limit / (w.seconds * 1_000_000), 0) + 1
            last = t
        return max(level - (self.now - last) * w.limit / (w.seconds * 1_000_000), 0)

    @rule(usd=st.floats(0, 5, allow_nan=False), which=st.integers(0, 5))
    def a_run_ends(self, usd: float, which: int) -> None:
        if not self.known:
            return
        lease = self.known[which % len(self.known)]
        remembered = self.model.settled.get(lease.member, 0) > self.now // 1000
        cost = micro_usd(usd)
        assert self.agreed(calls.settle(lease, cost), self.local.settle(lease, cost)) is not remembered
        self.model.leases.pop(lease.member, None)
        if not remembered:
            self.model.settled[lease.member] = self.now // 1000 + SETTLED_MS
            self.model.booked.append((self.now, cost))

    @rule(which=st.integers(0, 5))
    def heartbeat(self, which: int) -> None:
        if not self.known:
            return
        lease = self.known[which % len(self.known)]
        if self.model.settled.get(lease.member, 0):
            return  # whether a settlement of a day ago is still known is of no consequence
        lives = lease.member in self.model.live(self.now)
        renewal = self.agreed(calls.renew(lease, 60_000), self.local.renew(lease, 60_000))
        assert renewal is (Renewal.EXTENDED if lives else Renewal.LAPSED)
        self.model.leases[lease.member] = self.now // 1000 + 60_000

    @rule(which=st.integers(0, 5))
    def given_back(self, which: int) -> None:
        if self.known:
            lease = self.known[which % len(self.known)]
            # A lapsed lease may or may not have been swept away, so the number says nothing.
            self.redis.ask(calls.release(lease), self.now)
            self.local.release(lease)
            self.model.leases.pop(lease.member, None)

    @rule()
    def waiting_helps(self) -> None:
        """Whoever waits as long as told is admitted, if nobody else came."""
        request = Admit("claude", "t", self.windows)
        first = self.agreed(calls.admit(request), self.local.admit(request))
        if not first.admitted:
            self.now += first.wait_ms * 1000
            first = self.agreed(calls.admit(request), self.local.admit(request))
            assert first.admitted
        self.model.admitted.append(self.now)

    @invariant()
    def reports_agree(self) -> None:
        if not hasattr(self, "model"):
            return
        request = Peek("claude", "t", self.windows)
        usage = self.agreed(calls.peek(request), self.local.peek(request))
        assert usage.running == len(self.model.live(self.now))
        assert usage.reserved_micro_usd == self.model.reserved(self.now)
        assert usage.spent_day_micro_usd == self.model.spent(self.now, "%F")
        assert usage.spent_month_micro_usd == self.model.spent(self.now, "%Y-%m")
        for quota in usage.quotas:
            w = quota.window
            if w.burst < 0:
                length = w.seconds * 1_000_000
                least, most = (self.model.within(self.now, length + extra) for extra in (0, w.width_ms * 1000))
                assert w.limit - most <= quota.remaining <= w.limit - least or quota.remaining == 0


def run_machine(server: RedisProcess, examples: int, steps: int) -> None:
    LedgerMachine.redis = ClockedRedis(server)
    run_state_machine_as_test(
        LedgerMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=False,
        ),
    )


def test_ledgers_agree_with_the_model(redis_server: RedisProcess) -> None:
    run_machine(redis_server, examples=120, steps=30)


@pytest.mark.slow
def test_ledgers_agree_with_the_model_for_long(redis_server: RedisProcess) -> None:
    run_machine(redis_server, examples=1500, steps=50)


def test_months_are_those_of_the_calendar(redis_server: RedisProcess) -> None:
    common = calls.script("admit").source.split("-- Admits one request")[0]
    script = common + "local r = {} for d = ARGV[1], ARGV[2] do r[#r + 1] = month_of(d) end return r"
    start = datetime(1970, 1, 1, tzinfo=UTC)
    for first in range(0, 80_000, 4000):
        months: Any = redis_server.client().eval(script, 0, first, first + 3999)
        days = (start + timedelta(days=first + n) for n in range(4000))
        assert months == [day.year * 100 + day.month for day in days]
