"""Both ledgers against a brute-force model, with a clock that the test moves.

Each step goes to Redis (the Lua scripts) and to the process (Python); the replies must be the same, and what they
admit must agree with a model that remembers every event and counts them one by one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from claude_contract.ledger import (
    DEPLOYMENT,
    UTC_DAY,
    UTC_MONTH,
    Admission,
    Admit,
    Budget,
    Busy,
    Draw,
    Lease,
    Peek,
    Renewal,
    Shared,
    Slot,
    Standing,
    Terms,
    Usage,
    Verdict,
    Window,
    Windows,
    calls,
    micro_usd,
)
from claude_contract.ledger.calls import Call
from claude_contract.ledger.model import REST_MS, SETTLED_MS, is_message
from claude_contract.ledger.periods import PERS, ROLLING_MS
from kong_claude.rate_tiers.local_ledger import BOOK_MS, LocalLedger
from tests.rate_tiers.servers import RedisProcess, one_server

SUBJECTS = ["ada", "bob"]
SUBJECT = st.sampled_from(SUBJECTS)
R = TypeVar("R")
START = 1_790_000_000_000_000  # µs
DOLLAR = 1_000_000


CLOCK = """
local real, redis = redis, setmetatable({}, {__index = redis})
function redis.call(command, ...)
  if command == 'TIME' then
    return real.call('LRANGE', 'clock', 0, 1)
  elseif command == 'PSETEX' then
    local key, _, value = ...
    return real.call('SET', key, value)
  elseif command == 'SET' then
    local key, value, only_new = ...
    if only_new == 'NX' then
      return real.call('SET', key, value, 'NX')
    end
    return real.call('SET', key, value)
  elseif command ~= 'PEXPIRE' and command ~= 'PEXPIREAT' then
    return real.call(command, ...)
  end
end
"""


class ClockedRedis:
    """The scripts as they are, except that their clock is a list in Redis; nothing ends by Redis's own."""

    def __init__(self, server: RedisProcess) -> None:
        one_server("its clock is a key of its own, which scripts read")
        self.client = server.client()

    def ask(self, call: Call[R], now: int) -> R:
        source = CLOCK + call.script.source
        with self.client.pipeline(transaction=False) as pipe:
            pipe.delete("clock")
            pipe.rpush("clock", now // 1_000_000, now % 1_000_000)
            pipe.eval(source, len(call.keys), *call.keys, *call.args)
            return call.parse(pipe.execute()[-1])

    def admit(self, request: Admit, now: int) -> Admission:
        return self.ask(calls.admit(request, now // 1000), now)

    def peek(self, request: Peek, now: int) -> Usage:
        return self.ask(calls.peek(request, now // 1000), now)


@dataclass
class Account:
    """Every event of a subject or a pool, kept for ever."""

    windows: Windows
    terms: Terms
    amounts: dict[str, tuple[int, int]]  # member → what it holds and has drawn, of all accounts
    admitted: list[int] = field(default_factory=list)  # µs
    leases: dict[str, int] = field(default_factory=dict)  # member → ms at which it lapses
    booked: list[tuple[int, int]] = field(default_factory=list)  # µs, micro-USD

    def within(self, now: int, length: int) -> int:
        return sum(1 for t in self.admitted if now - length < t <= now)

    def live(self, now: int) -> dict[str, int]:
        return {m: until for m, until in self.leases.items() if until > now // 1000}

    def running(self, now: int) -> int:
        """Without what is left of runs that have ended."""
        return sum(not is_message(member) for member in self.live(now))

    def reserved(self, now: int) -> int:
        return sum(self.amounts.get(m, (int(m.rpartition(":")[2]), 0))[0] for m in self.live(now))

    def drawn(self, now: int, but: str) -> int:
        return sum(self.amounts[m][1] for m in self.live(now) if m != but and m in self.amounts)

    def take(self, member: str, now: int, ttl_ms: int) -> None:
        """One that has lapsed begins anew."""
        if member not in self.live(now):
            self.amounts.pop(member, None)
        self.leases[member] = now // 1000 + ttl_ms

    def spent(self, now: int, budget: Budget, more_us: int = 0) -> int:
        """By the calendar of the standard library, or since then and `more_us` before."""
        if budget.rolling:
            start = now - ROLLING_MS[budget.per] * 1000 - more_us
            return sum(usd for at, usd in self.booked if at > start)

        def name(us: int) -> str:
            shown = datetime.fromtimestamp(us // 1_000_000, ZoneInfo(budget.zone))
            return shown.strftime({"hour": "%F %H %z", "day": "%F", "week": "%G-%V", "month": "%Y-%m"}[budget.per])

        return sum(usd for at, usd in self.booked if name(at) == name(now))

    def over(self, now: int, amount: int, more_us: int = 0) -> list[str]:
        """The budgets in which there is no room for so much."""
        need = self.reserved(now) + amount
        return [b.name for b in self.terms.budgets if self.spent(now, b, more_us) + need > b.micro_usd]

    def must_block(self, w: Window, now: int) -> bool:
        """One more would break the promise."""
        length = w.seconds * 1_000_000
        if w.burst < 0:
            return self.within(now, length) >= w.limit
        return self.backlog(w, now) > w.burst + 1e-3

    def may_block(self, w: Window, now: int) -> bool:
        """Refusing is not more cautious than one bucket of time allows."""
        length = w.seconds * 1_000_000
        if w.burst < 0:
            return self.within(now, length + w.width_ms * 1000) >= w.limit
        return self.backlog(w, now) > w.burst - 1e-3

    def backlog(self, w: Window, now: int) -> float:
        """nginx's `excess`: what a leaky bucket still holds, in requests."""
        level, last = 0.0, 0
        for t in self.admitted:
            level = max(level - (t - last) * w.limit / (w.seconds * 1_000_000), 0) + 1
            last = t
        return max(level - (now - last) * w.limit / (w.seconds * 1_000_000), 0)


def maybe(least: int, most: int) -> st.SearchStrategy[int | None]:
    return st.none() | st.integers(least, most)


CALENDAR = st.builds(
    lambda per, zone, usd: Budget(usd * DOLLAR, per, zone),
    st.sampled_from(PERS),
    st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kathmandu", "America/Havana"]),
    st.integers(3, 12),
)
ROLLING = st.builds(lambda per, usd: Budget(usd * DOLLAR, per, rolling=True), st.sampled_from(PERS), st.integers(3, 12))
POOLS = st.tuples(maybe(1, 8), maybe(1, 90), maybe(1, 5), st.lists(CALENDAR | ROLLING, max_size=2))
QUARTER_US = 15 * 60 * 1_000_000


class LedgerMachine(RuleBasedStateMachine):
    """Two subjects, which share the first pool; the second pool is only the first subject's. Or each by itself."""

    redis: ClockedRedis

    @initialize(
        second=maybe(1, 8),
        minute=st.integers(1, 90),
        hour=maybe(60, 200),
        burst=maybe(0, 5),
        concurrent=maybe(1, 4),
        usd=st.integers(1, 3),
        day=maybe(3, 12),
        month=maybe(3, 30),
        budgets=st.lists(CALENDAR | ROLLING, max_size=2),
        pools=st.just([]) | st.lists(POOLS, min_size=2, max_size=2),
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
        budgets: list[Budget],
        pools: list[tuple[int | None, int | None, int | None, list[Budget]]],
    ) -> None:
        self.redis.client.flushall()
        self.now = START
        self.local = LocalLedger(clock=lambda: self.now)
        limits = [(n, v) for n, v in (("second", second), ("minute", minute), ("hour", hour)) if v is not None]
        self.windows = Windows(
            tuple(Window(n, v, burst if burst is not None and i == 0 else -1) for i, (n, v) in enumerate(limits))
        )
        self.money = usd * DOLLAR
        self.base = Slot(concurrent, self.money, day and day * DOLLAR, month and month * DOLLAR, 60_000, tuple(budgets))
        self.pools = [
            (Windows(tuple(Window(n, v) for n, v in (("second", s), ("minute", m)) if v)), Terms(c, tuple(b)))
            for s, m, c, b in pools
        ]
        self.keys = [f"pool.p{n}:claim:x" for n in range(len(pools))]
        self.amounts: dict[str, tuple[int, int]] = {}
        self.accounts = {key: Account(*limits, self.amounts) for key, limits in zip(self.keys, self.pools, strict=True)}
        self.accounts |= {subject: Account(self.windows, self.base.own, self.amounts) for subject in SUBJECTS}
        self.configured = (self.base, self.pools)
        self.costs: dict[str, int] = {}  # member → what it has cost so far, as was said last
        self.booked: dict[str, int] = {}  # member → how much of that is booked, until it is settled for good
        self.settled: dict[str, int] = {}  # member → ms until which it is remembered
        self.known: list[Lease] = []
        self.first_booked: dict[str, int] = {}  # member → µs

    def is_long_ago(self, lease: Lease) -> bool:
        """Whether what it has cost may be forgotten: nobody asks about a run of last month any more. (Redis forgets it by
        itself, which it does not do here.)"""
        return self.now - self.first_booked.get(lease.member, self.now) >= BOOK_MS * 1000

    def shared(self, subject: str) -> Shared:
        return Shared(DEPLOYMENT, tuple(self.keys[: 2 - SUBJECTS.index(subject)])) if self.keys else Shared()

    def accounts_of(self, of: Lease | Admit) -> list[Account]:
        return [self.accounts[key] for key in (of.subject_key, *of.shared.pools)]

    def slot(self, subject: str) -> Slot:
        own = len(self.shared(subject).pools)
        return replace(self.base, pools=tuple(terms for _, terms in self.pools[:own]))

    def request(self, subject: str, lease: Lease | None = None, busy: Busy = "reject") -> Admit:
        shared = self.shared(subject)
        windows = tuple(windows for windows, _ in self.pools[: len(shared.pools)])
        return Admit("claude", subject, self.windows, lease, self.slot(subject), busy, shared, windows)

    def agreed(self, redis: R, local: R) -> R:
        """What both stores have answered, which must be the same."""
        assert redis == local
        return redis

    @rule(
        seconds=st.one_of(
            st.floats(0, 0.2), st.floats(0, 3), st.floats(0, 100), st.floats(0, 4000), st.floats(0, 40 * 86400)
        )
    )
    def time_passes(self, seconds: float) -> None:
        self.now += int(seconds * 1_000_000)

    @rule(
        subject=SUBJECT,
        which=st.integers(0, 200),
        window=st.integers(0, 2),
        us=st.sampled_from([-300_000, -1000, -1, 0, 1, 1000]),
    )
    def almost_out_of_the_window(self, subject: str, which: int, window: int, us: int) -> None:
        """To the moment, or nearly, at which an earlier request leaves a window; then as many as pass."""
        admitted = self.accounts[subject].admitted
        if admitted:
            length = self.windows.each[window % len(self.windows.each)].seconds * 1_000_000
            self.now = max(self.now, admitted[-1 - which % len(admitted)] + length + us)
            for _ in range(3):
                self.admit(self.request(subject))

    @rule()
    def what_has_lapsed_is_forgotten(self) -> None:
        """In the process; Redis forgets nothing here, so that both say the same as long as nothing else is."""
        with self.local._moment():
            self.local._sweep()

    @rule(subject=SUBJECT, times=st.integers(1, 40))
    def burst_of_plain_requests(self, subject: str, times: int) -> None:
        for _ in range(times):
            self.admit(self.request(subject))

    @rule(percent=st.sampled_from([0, 10, 50, 100, 300]))
    def limits_are_changed(self, percent: int) -> None:
        """Those of money, to a share of what is configured."""

        def changed(budget: Budget) -> Budget:
            return replace(budget, micro_usd=budget.micro_usd * percent // 100)

        base, pools = self.configured
        day, month = (each and each * percent // 100 for each in (base.day_micro_usd, base.month_micro_usd))
        budgets = tuple(map(changed, base.budgets))
        self.base = replace(base, day_micro_usd=day, month_micro_usd=month, budgets=budgets)
        self.pools = [(w, Terms(terms.concurrent, tuple(map(changed, terms.budgets)))) for w, terms in pools]
        for key, (_, terms) in zip(self.keys, self.pools, strict=True):
            self.accounts[key].terms = terms
        for subject in SUBJECTS:
            self.accounts[subject].terms = self.base.own

    @rule(
        subject=SUBJECT,
        busy=st.sampled_from(["reject", "queue", "later"]),
        again=st.booleans(),
        ttl_ms=st.sampled_from([3_000, 60_000]),
    )
    def one_run(self, subject: str, busy: Busy, again: bool, ttl_ms: int) -> None:
        self.base = replace(self.base, ttl_ms=ttl_ms)
        lease = Lease.new("claude", subject, self.money, self.shared(subject))
        if again and self.known:
            lease = self.known[-1]
        self.known.append(lease)
        self.admit(self.request(lease.subject_key, lease, busy))

    @rule(which=st.integers(0, 5))
    def a_queued_one_starts(self, which: int) -> None:
        if self.known:
            lease = self.known[which % len(self.known)]
            self.admit(calls.to_acquire(lease, self.slot(lease.subject_key)))

    def admit(self, request: Admit) -> None:
        lease, now, accounts = request.lease, self.now, self.accounts_of(request)
        a = self.agreed(self.redis.admit(request, now), self.local.admit(request))
        counted = bool(request.windows.each)
        taken = [] if lease is None else [lease.member in account.live(now) for account in accounts]
        held = any(taken)
        assert not held or all(taken), "a lease is held in all accounts, or in none"
        blocking, may_block, over, over_at_most, full = [], [], [], [], []
        for n, account in enumerate(accounts):
            if counted:
                blocking += [w for w in account.windows.each if account.must_block(w, now)]
                may_block += [(n, w.name) for w in account.windows.each if account.may_block(w, now)]
            if lease is not None and not held:
                over += account.over(now, lease.micro_usd)
                over_at_most += [(n, name) for name in account.over(now, lease.micro_usd, QUARTER_US)]
                most = account.terms.concurrent
                full += [n] if most is not None and account.running(now) >= most else []
        if a.admitted:
            assert not blocking and not over
            assert a.queued == (
                lease is not None and not held and (request.busy == "later" or bool(full and request.busy == "queue"))
            )
            assert a.queued or not full
            for account in accounts:
                if counted:
                    account.admitted.append(now)
                if lease is not None and not a.queued:
                    account.take(lease.member, now, request.slot.ttl_ms)
                for w in account.windows.each:
                    if w.burst < 0:
                        assert account.within(now, w.seconds * 1_000_000) <= w.limit
        else:
            # A refusal has its reason, and the reason given is a true one.
            if a.exceeded.startswith("usd"):
                assert (a.at, a.exceeded) in over_at_most
            elif a.exceeded == "concurrent":
                assert a.at in full and request.busy == "reject"
            else:
                assert (a.at, a.exceeded) in may_block and a.wait_ms > 0

    @rule(
        which=st.integers(0, 5),
        cost=st.integers(0, DOLLAR),
        under_way=st.integers(0, DOLLAR),
        least=st.integers(0, DOLLAR // 5),
        more=st.just(0) | st.integers(0, 2 * DOLLAR),
    )
    def a_request_is_sent_or_answered(self, which: int, cost: int, under_way: int, least: int, more: int) -> None:
        if self.known:
            self.draw(which, cost, under_way, least, more)

    @rule(more=st.sampled_from([DOLLAR // 2, DOLLAR, 3 * DOLLAR]))
    def many_send_one(self, more: int) -> None:
        """Runs that begin now, where they are let in, and the last ones."""
        for subject in (*SUBJECTS, *SUBJECTS):
            self.known.append(Lease.new("claude", subject, self.money, self.shared(subject)))
            self.admit(self.request(subject, self.known[-1]))
        for which in range(max(0, len(self.known) - 6), len(self.known)):
            self.draw(which, 0, 0, 0, more)

    def draw(self, which: int, cost: int, under_way: int, least: int, more: int) -> None:
        lease, now = self.known[which % len(self.known)], self.now
        if self.is_long_ago(lease):
            return
        slot, member, before = self.slot(lease.subject_key), lease.member, self.booked.get(lease.member)
        self.costs[member] = total = self.costs.get(member, 0) + cost
        asked = Draw(total, under_way, under_way + min(least, more), under_way + more)
        drawn = self.agreed(
            self.redis.ask(calls.draw(lease, slot, asked, now // 1000), now), self.local.draw(lease, slot, asked)
        )
        is_settled = self.settled.get(member, 0) > now // 1000
        assert (drawn.verdict is Verdict.SETTLED) is is_settled
        if is_settled and before is None:
            return
        self.book(lease, total)
        self.booked[member] = max(total, before or 0)
        if is_settled:
            return

        def over(amount: int, more_us: int = 0) -> list[str]:
            """Budgets in which so much is not there, beside what others have drawn."""
            return [
                b.name
                for account in self.accounts_of(lease)
                for b in account.terms.budgets
                if account.spent(now, b, more_us) + account.drawn(now, member) + amount > b.micro_usd
            ]

        assert not drawn.fleeting or drawn.verdict is Verdict.REFUSED
        if drawn.verdict is Verdict.REFUSED:
            assert drawn.micro_usd == under_way and drawn.budget in over(asked.least_micro_usd, QUARTER_US)
            alone = [
                account.spent(now, b, more_us) + asked.least_micro_usd <= b.micro_usd
                for account in self.accounts_of(lease)
                for b in account.terms.budgets
                for more_us in (0, QUARTER_US)
            ]
            assert all(alone[1::2]) <= drawn.fleeting <= all(alone[::2]), "it may be there when others are answered"
        elif more:
            assert asked.least_micro_usd <= drawn.micro_usd <= asked.most_micro_usd
            assert not over(drawn.micro_usd), "what is booked and drawn is within every limit as it is now"
            assert drawn.micro_usd == asked.most_micro_usd or over(drawn.micro_usd + 1, QUARTER_US)
        else:
            assert drawn.micro_usd == under_way
        for account in self.accounts_of(lease):
            account.take(member, now, slot.ttl_ms)
        self.amounts[member] = (max(lease.micro_usd - self.booked[member], drawn.micro_usd), drawn.micro_usd)

    def book(self, lease: Lease, total: int) -> int:
        self.first_booked.setdefault(lease.member, self.now)
        more = max(total - self.booked.get(lease.member, 0), 0)
        for account in self.accounts_of(lease):
            account.booked.append((self.now, more))
        return more

    @rule(usd=st.floats(0, 5, allow_nan=False), which=st.integers(0, 5), final=st.booleans())
    def a_run_ends(self, usd: float, which: int, final: bool) -> None:
        if not self.known:
            return
        lease = self.known[which % len(self.known)]
        if self.is_long_ago(lease):
            return
        first, before = self.settled.get(lease.member, 0) <= self.now // 1000, self.booked.get(lease.member)
        cost = micro_usd(usd)
        settle = calls.settle(lease, cost, final=final)
        news = self.agreed(self.redis.ask(settle, self.now), self.local.settle(lease, cost, final=final))
        accounts, rest = self.accounts_of(lease), lease.rest.member
        left = self.amounts.get(lease.member, (0, 0))[1] if lease.member in accounts[0].live(self.now) else 0
        for account in accounts:
            account.leases.pop(lease.member, None)
            if final:
                account.leases.pop(rest, None)
            elif left:
                account.take(rest, self.now, REST_MS)
        if left and not final:
            self.amounts[rest] = (left, left)
        if not first and before is None:
            assert not news
            return
        assert news is (self.book(lease, cost) > 0 or first)
        if first:
            self.settled[lease.member] = self.now // 1000 + SETTLED_MS
        self.booked[lease.member] = max(cost, before or 0)
        if final:
            del self.booked[lease.member]

    @rule(which=st.integers(0, 5))
    def heartbeat(self, which: int) -> None:
        if not self.known:
            return
        lease = self.known[which % len(self.known)]
        if self.settled.get(lease.member, 0):
            return  # whether a settlement of a day ago is still known is of no consequence
        accounts = self.accounts_of(lease)
        lives = lease.member in accounts[0].live(self.now)
        renewal = self.agreed(self.redis.ask(calls.renew(lease, 60_000), self.now), self.local.renew(lease, 60_000))
        assert renewal is (Renewal.EXTENDED if lives else Renewal.LAPSED)
        for account in accounts:
            account.take(lease.member, self.now, 60_000)

    @rule(which=st.integers(0, 5))
    def given_back(self, which: int) -> None:
        if self.known:
            lease = self.known[which % len(self.known)]
            # A lapsed lease may or may not have been swept away, so the number says nothing.
            self.redis.ask(calls.release(lease), self.now)
            self.local.release(lease)
            for account in self.accounts_of(lease):
                account.leases.pop(lease.member, None)

    @rule(subject=SUBJECT)
    def waiting_helps(self, subject: str) -> None:
        """Whoever waits as long as told is admitted, if nobody else came: with several accounts, not longer in turn."""
        request = self.request(subject)
        for _ in range(2 + len(request.shared.pools)):
            first = self.agreed(self.redis.admit(request, self.now), self.local.admit(request))
            if first.admitted:
                break
            self.now += first.wait_ms * 1000
        assert first.admitted
        for account in self.accounts_of(request):
            account.admitted.append(self.now)

    @invariant()
    def reports_agree(self) -> None:
        if not hasattr(self, "accounts"):
            return
        for subject in SUBJECTS:
            of = self.request(subject)
            request = Peek("claude", subject, self.windows, of.slot, of.shared, of.pool_windows)
            usage = self.agreed(self.redis.peek(request, self.now), self.local.peek(request))
            assert [s.budget for s in usage.own.spent[:2]] == [UTC_DAY, UTC_MONTH]
            for account, standing in zip(self.accounts_of(of), (usage.own, *usage.pools), strict=True):
                self.reported(account, standing)

    def reported(self, account: Account, standing: Standing) -> None:
        now = self.now
        assert standing.running == account.running(now)
        assert standing.reserved_micro_usd == account.reserved(now)
        for spent in standing.spent:
            more = QUARTER_US if spent.budget.rolling else 0
            least, most = account.spent(now, spent.budget), account.spent(now, spent.budget, more)
            assert least <= spent.micro_usd <= most
            assert spent.reset_ms > 0 or (spent.budget.rolling and not spent.micro_usd)
        for quota in standing.quotas:
            w = quota.window
            if w.burst < 0:
                length = w.seconds * 1_000_000
                least, most = (account.within(now, length + extra) for extra in (0, w.width_ms * 1000))
                assert w.limit - most <= quota.remaining <= w.limit - least or quota.remaining == 0


def run_machine(server: RedisProcess, examples: int, steps: int, *, fixed: bool) -> None:
    LedgerMachine.redis = ClockedRedis(server)
    run_state_machine_as_test(
        LedgerMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=fixed,
        ),
    )


def test_ledgers_agree_with_the_model(redis_server: RedisProcess) -> None:
    run_machine(redis_server, examples=120, steps=30, fixed=True)


@pytest.mark.slow
def test_ledgers_agree_with_the_model_for_long(redis_server: RedisProcess) -> None:
    run_machine(redis_server, examples=1500, steps=50, fixed=False)


def test_months_are_those_of_the_calendar(redis_server: RedisProcess) -> None:
    common = calls.script("admit").source.split("-- Admits one request")[0]
    script = common + "local r = {} for d = ARGV[1], ARGV[2] do r[#r + 1] = month_of(d) end return r"
    start = datetime(1970, 1, 1, tzinfo=UTC)
    for first in range(0, 80_000, 4000):
        months: Any = redis_server.client().eval(script, 1, "k", first, first + 3999)
        days = (start + timedelta(days=first + n) for n in range(4000))
        assert months == [day.year * 100 + day.month for day in days]
