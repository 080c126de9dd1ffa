"""Admit, reserve, answer, settle and kill in any order, with answers of the ledger that are late or lost: what is sent fits
into the pool as it is then, and what is booked in the end is what was spent. The parts are the real ones, from the purse
of the metering proxy to the ledger; the API, the wire and the clock are the test's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from claude_contract import ledger
from claude_contract.ledger import Draw, Drawn, Lease, LedgerUnavailable, Slot
from claude_invoker import draws
from claude_invoker.draws import Draws
from claude_invoker.metering import purse, wire
from claude_invoker.metering.account import Account, Exhausted
from claude_invoker.metering.bill import Bill, Reservation
from claude_invoker.metering.drawn import answered
from claude_invoker.metering.figures import in_micro_usd
from claude_invoker.metering.purse import Purse
from kong_claude.rate_tiers import local_ledger
from kong_claude.rate_tiers.local_ledger import LocalLedger
from tests.invoker.test_wall import ASKED, DOLLAR, PRICE, PRICES, TEAM

RUNS = 3
TTL_MS = 60_000
WHAT = (
    *("send", "send", "send", "answer", "answer", "begin", "end", "leave", "late answer"),
    *("proxy killed", "invoker killed", "lower"),
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(WHAT),
        st.integers(0, RUNS - 1),
        st.integers(0, 100),
    ),
    min_size=5,
    max_size=40,
)
UNHEARD = st.lists(st.sampled_from(("heard", "unheard", "lost")), max_size=30)


@dataclass
class Store:
    """A ledger whose answers are not always heard (but never twice in turn, which would be one that is away), and which
    does not always hear."""

    ledger: LocalLedger
    unheard: list[str]
    failed: bool = False

    async def draw_all(self, draws: Sequence[tuple[Lease, Slot, Draw]]) -> list[Drawn | LedgerUnavailable]:
        await asyncio.sleep(0)
        how = self.unheard.pop(0) if self.unheard and not self.failed else "heard"
        self.failed = how != "heard"
        found: list[Drawn | LedgerUnavailable] = []
        if how != "lost":
            found = [self.ledger.draw(*each) for each in draws]
        await asyncio.sleep(0)
        return found if how == "heard" else [LedgerUnavailable(how)] * len(draws)


@dataclass
class Run:
    """One of the pool; `journal` is what its requests have cost as the proxy has written it down, each by its bound until
    it is answered."""

    lease: Lease
    world: World
    account: Account = field(init=False)
    purse: Purse = field(init=False)
    journal: dict[Reservation, Decimal] = field(default_factory=dict)
    sending: set[asyncio.Task[Any]] = field(default_factory=set)
    flying: list[Reservation] = field(default_factory=list)
    lives: bool = True

    def __post_init__(self) -> None:
        self.open()

    def open(self) -> None:
        """In a proxy that has read the journal."""
        self.account = Account(PRICES, Decimal(1), sum(self.journal.values(), Decimal(0)))
        self.purse = Purse(str(self.lease), self.account, self.world)

    async def send(self) -> None:
        try:
            reservation = await self.purse.reserve(ASKED, PRICE, 1000)
        except Exhausted:
            return
        self.journal[reservation] = reservation.input_usd
        self.flying.append(reservation)
        assert self.world.at_stake <= self.world.asked_under, "what is sent fits into the pool as it is now"

    async def answered(self, percent: int) -> None:
        if not self.flying:
            return
        reservation = self.flying.pop(0)
        self.journal[reservation] = cost = reservation.usd * percent / 100
        self.account.settle(reservation, Bill(cost, cost))
        await self.purse.settled()

    async def proxy_killed(self) -> None:
        """What was on its way is billed by its bound; the next proxy says what it knows."""
        await self.left()
        self.open()
        await self.purse.settled()

    async def left(self) -> None:
        await self.asks_no_more()
        self.flying.clear()

    async def asks_no_more(self) -> None:
        for task in self.sending:
            task.cancel()
        await asyncio.gather(*self.sending, return_exceptions=True)
        self.sending.clear()

    @property
    def cost(self) -> int:
        return in_micro_usd(sum(self.journal.values(), Decimal(0)))


@dataclass
class World:
    limit: int
    unheard: list[str]
    now: int = 1_790_000_000_000_000
    runs: list[Run] = field(default_factory=list)
    dead: list[Run] = field(default_factory=list)
    gone: list[Run] = field(default_factory=list)
    """Those that have ended and have requests at the API."""
    asked_under: int = field(init=False)
    """The limit under which the ledger may have said what is heard now: the one before, where it was lowered meanwhile."""
    heard: dict[Lease, int] = field(default_factory=dict)
    """What the ledger may have been told that a run has cost."""

    def __post_init__(self) -> None:
        self.asked_under = self.limit
        self.ledger = LocalLedger(clock=lambda: self.now)
        self.draws = Draws(Store(self.ledger, self.unheard), self._short)  # type: ignore[arg-type]

    async def _short(self, *_: object) -> None:
        pass

    @property
    def slot(self) -> Slot:
        terms = ledger.Terms(None, (ledger.Budget(self.limit, "month"),))
        return Slot(run_micro_usd=DOLLAR, ttl_ms=TTL_MS, pools=(terms,))

    @property
    def booked(self) -> int:
        asked = ledger.Peek(ledger.NAMESPACE, "nobody", slot=self.slot, shared=TEAM)
        return self.ledger.peek(asked).pools[0].spent[0].micro_usd

    @property
    def at_stake(self) -> int:
        """What has been booked, what is not yet, and what all that is under way may cost."""
        living = sum(
            in_micro_usd(run.account.spent_usd + sum((each.usd for each in run.flying), Decimal(0)))
            for run in self.runs
            if run.lives or run in self.gone
        )
        ended = sum(run.cost for run in self.runs if not run.lives and run not in self.dead + self.gone)
        known = {run.lease: self.ledger_has(run) for run in self.dead}
        return living + ended + sum(known.values())

    def ledger_has(self, run: Run) -> int:
        """Of a run whose invoker is dead, before its journal was read."""
        return min(run.cost, self.heard.get(run.lease, 0))

    async def ask(self, run: str, cost: int, under_way: int, least: int, most: int) -> wire.Drawn:
        message = wire.Draw(1, run, cost, under_way, least, most)
        answer: asyncio.Future[wire.Drawn] = asyncio.get_running_loop().create_future()

        def hear(drawn: Drawn | LedgerUnavailable) -> None:
            if not answer.done():
                answer.set_result(answered(message, drawn, run))

        self.put(run, Draw(cost, under_way, least, most), hear)
        return await answer

    def say(self, run: str, cost: int, under_way: int) -> None:
        self.put(run, Draw(cost, under_way, under_way, under_way), lambda drawn: None)

    def put(self, run: str, draw: Draw, hear: Any) -> None:
        lease = Lease.parse(run)
        self.heard[lease] = max(self.heard.get(lease, 0), draw.cost_micro_usd)
        self.draws.put(run, self.slot, draw, hear)

    async def begin(self) -> None:
        lease = Lease.new(ledger.NAMESPACE, f"user{len(self.runs)}", DOLLAR, TEAM)
        if self.ledger.acquire(lease, self.slot).admitted:
            self.runs.append(Run(lease, self))

    async def still(self) -> None:
        """Until nobody waits for the ledger."""
        for _ in range(20):
            await asyncio.sleep(0)
        while self.draws._sending is not None:
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        self.asked_under = self.limit

    async def step(self, what: str, which: int, value: int) -> None:
        living = [run for run in self.runs if run.lives]
        if what == "begin" or not living:
            await self.begin()
            return
        run = living[which % len(living)]
        if what == "late answer":
            if self.gone:
                await self.late_answer(self.gone[which % len(self.gone)], value)
        elif what == "leave":
            await run.asks_no_more()
            await self.still()
            run.lives = False
            self.draws.forget(str(run.lease))
            self.ledger.settle(run.lease, in_micro_usd(run.account.spent_usd), final=False)
            self.gone.append(run)
        elif what == "send":
            run.sending.add(asyncio.create_task(run.send()))
        elif what == "answer":
            await run.answered(value)
        elif what == "end":
            await run.left()
            await self.still()
            run.lives = False
            self.draws.forget(str(run.lease))
            assert self.ledger.settle(run.lease, run.cost)
        elif what == "proxy killed":
            await run.proxy_killed()
        elif what == "invoker killed":
            await run.left()
            run.lives = False
            self.dead.append(run)
        else:
            self.limit = self.limit * value // 100
        if value % 2:  # else the next step comes before the ledger has answered
            await self.still()

    async def late_answer(self, run: Run, percent: int) -> None:
        """What it has cost is booked for good with the last one."""
        await run.answered(percent)
        if not run.flying:
            await self.still()
            self.ledger.settle(run.lease, run.cost)
            self.gone.remove(run)

    def ledger_cost(self, run: Run) -> int:
        """As its journal says it."""
        return run.cost

    async def all_ends(self) -> None:
        for run in self.runs:
            if run.lives:
                await run.left()
        await self.still()
        for run in list(self.gone):
            while run in self.gone:
                await self.late_answer(run, 50)
        self.now += 2 * TTL_MS * 1000
        for run in self.runs:
            if run.lives or run in self.dead:  # also twice, by whoever finds the journal
                assert self.ledger.settle(run.lease, self.ledger_cost(run))
                assert not self.ledger.settle(run.lease, self.ledger_cost(run))


def plays(examples: int, *phases: Phase) -> None:
    @settings(max_examples=examples, deadline=None, database=None, phases=phases or tuple(Phase))
    @given(STEPS, st.integers(DOLLAR // 20, RUNS * DOLLAR), UNHEARD)
    def play(steps: list[tuple[str, int, int]], limit: int, unheard: list[str]) -> None:
        asyncio.run(played(World(RUNS * DOLLAR, list(unheard)), limit, steps))

    play()


@pytest.fixture(autouse=True)
def nobody_waits_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for others is tried elsewhere (`test_wall.py`): here time stands still."""
    monkeypatch.setattr(purse, "_PATIENCE_S", 0.0)


async def played(world: World, limit: int, steps: list[tuple[str, int, int]]) -> None:
    for _ in range(RUNS):
        await world.begin()
    world.limit = world.asked_under = limit
    try:
        for step in steps:
            await world.step(*step)
            for run in world.runs:
                for task in [each for each in run.sending if each.done() and not each.cancelled()]:
                    run.sending.discard(task)
                    task.result()
    finally:
        for run in world.runs:
            if run.lives:
                await run.left()
    await world.all_ends()
    assert world.booked == sum(run.cost for run in world.runs), "booked is what was spent, once"


def test_in_whatever_order_it_comes() -> None:
    plays(60)


def asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "_is_away", lambda drawn: False)


def forgotten_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "ledger_cost", lambda self, run: in_micro_usd(run.account.spent_usd))


def held_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Account, "drawn_usd", Decimal(0))


def dropped_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_ledger, "REST_MS", 0)


@pytest.mark.parametrize("weaken", [asked_once, held_is_not_drawn, forgotten_journal, dropped_at_its_end])
def test_each_defence_is_needed(weaken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    weaken(monkeypatch)
    with pytest.raises(AssertionError):
        plays(300, Phase.generate)  # the first one suffices, it need not be the simplest
