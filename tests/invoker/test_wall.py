"""A budget is a wall for each request: real runs whose pool is used up while they run, and the parts that see to it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import Any

import pytest

from claude_contract import ledger
from claude_contract.ledger import Draw, Drawn, LedgerUnavailable, Slot, UnreadableLedger, Verdict, calls
from claude_contract.ledger.live import Change, Target, limits_key
from claude_invoker.draws import Draws
from claude_invoker.ledger import Ledger
from claude_invoker.metering import purse, request, wire
from claude_invoker.metering.account import Account, Exhausted
from claude_invoker.metering.bill import Bill
from claude_invoker.metering.drawn import answered, used_up
from claude_invoker.metering.prices import Prices
from claude_invoker.metering.purse import CannotDraw, Purse
from tests.invoker.conftest import Invoker, defended_and_without, tool, without_boundary
from tests.invoker.money import OPUS, Till, charging, eventually
from tests.rate_tiers.servers import RedisProcess
from tests.support.waiting import HANG_S

pytestmark = pytest.mark.xdist_group("wall")  # its invoker is started once

DOLLAR = 1_000_000
TEAM = ledger.Shared(ledger.DEPLOYMENT, (ledger.pool_key("team", "claim", "red"),))
POOLED = Slot(
    concurrent=8,
    run_micro_usd=DOLLAR,
    ttl_ms=60_000,
    pools=(ledger.Terms(None, (ledger.Budget(100 * DOLLAR, "month"),)),),
)


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisProcess]:
    found = RedisProcess()
    yield found
    found.close()


@pytest.fixture(scope="module")
def till(redis: RedisProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Till]:
    with charging(tmp_path_factory.mktemp("charges")) as charges:
        yield Till(redis, charges)


def of_the_pool(till: Till) -> ledger.Standing:
    return till.store.peek(ledger.Peek(ledger.NAMESPACE, "nobody", slot=POOLED, shared=TEAM)).pools[0]


@pytest.mark.parametrize("without", defended_and_without("other_budgets_are_not_asked"))
def test_runs_that_were_let_in_stop_where_their_pool_is_used_up(
    till: Till, start_invoker: Callable[..., Invoker], without: tuple[str, ...]
) -> None:
    """Six are let in with $100 left, then all but one of these is spent by others. Each would spend 90 cents."""
    till.redis.client().flushall()
    invoker = without_boundary(start_invoker)(without=without, **till.settings, pool_size=0, max_runs=6)
    marks = [f"wall{len(without)}-{number}-" for number in range(6)]
    leases = {mark: till.let_in(mark, POOLED, TEAM) for mark in marks}
    others = ledger.Lease.new(ledger.NAMESPACE, "others", DOLLAR, TEAM)
    assert till.store.settle(others, 99 * DOLLAR)
    usage = json.dumps({"input_tokens": 5_000, "output_tokens": 6_500})  # 15 cents by the list
    prompt = "".join(tool("Read", file_path=str(turn)) for turn in range(5)) + f"[[usage {usage}]]"
    runs = [
        till.begin(invoker, mark, prompt, slot=POOLED, lease=lease, tools=["Read"], model=OPUS)
        for mark, lease in leases.items()
    ]
    for run in runs:
        run.thread.join(120)
    eventually(lambda: of_the_pool(till).running == 0, lambda: of_the_pool(till))
    booked = of_the_pool(till).spent[0].micro_usd - 99 * DOLLAR
    answers = [run.answer[0].json() for run in runs]
    # One for which nothing was left before it asked anything has cost nothing, and has failed.
    assert all(("cost_usd" in answer) is (answer.get("status") != 429) for answer in answers)
    assert booked == sum(round(answer.get("cost_usd", 0) * DOLLAR) for answer in answers)
    assert not any(till.wrong(run) for run in runs)
    assert (booked <= DOLLAR) is (not without)
    if not without:
        assert booked > DOLLAR // 2
        stopped = [each.get("detail") or each["budget"] for each in answers if each.get("stop_reason") != "end_turn"]
        assert len(stopped) >= 4
        assert all("budget usd_per_month of the pool team is used up until" in each for each in stopped)
        stopped_before_it_asked(till, invoker)


def stopped_before_it_asked(till: Till, invoker: Invoker) -> None:
    """A run that others have cut off before it asked the API anything has done nothing: it has failed."""
    till.redis.client().flushall()
    told = []
    for mark in ("none-left", "blocked"):
        lease = till.let_in(mark, POOLED, TEAM)
        if mark == "blocked":
            until = round(time.time() + 3600) * 1000
            target = Target("subject", key=ledger.subject_key("subject", mark))
            change = Change({}, {"blocked": 1}, until, "root", "a test", 0)
            till.store.change(limits_key(ledger.NAMESPACE), target, change, b"{}")
        else:
            others = ledger.Lease.new(ledger.NAMESPACE, "others", DOLLAR, TEAM)
            assert till.store.settle(others, 100 * DOLLAR)
        run = till.begin(invoker, mark, "hi", slot=POOLED, lease=lease)
        run.thread.join(HANG_S)
        problem = run.answer[0].json()
        told.append((run.answer[0].status_code, problem["type"][-8:], problem["detail"][:-24]))
        assert not till.charges.of(mark)
        till.redis.client().flushall()
    assert told == [
        (429, ":limited", "the budget usd_per_month of the pool team is used up until"),
        (403, ":limited", "an administrator has blocked this caller until"),
    ]


# The parts


PRICES = Prices({}, "refuse")
ASKED = request.read(json.dumps({"model": OPUS, "max_tokens": 32_000, "messages": []}).encode())
PRICE = PRICES.price(OPUS)


class Shelf:
    """A ledger in which so much is left, that takes its time and says what it was told."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.said: list[tuple[int, ...]] = []
        self.answers = asyncio.Event()
        self.answers.set()

    async def ask(self, run: str, cost: int, under_way: int, least: int, most: int) -> wire.Drawn:
        self.said.append((cost, under_way, least, most))
        await self.answers.wait()
        if least > self.left - cost:
            return wire.Drawn(1, under_way, refused="used up")
        return wire.Drawn(1, min(most, self.left - cost))

    def say(self, run: str, cost: int, under_way: int) -> None:
        self.said.append((cost, under_way))


def purse_of(left: int) -> tuple[Account, Purse, Shelf]:
    account, shelf = Account(PRICES, Decimal(5)), Shelf(left)
    return account, Purse("run", account, shelf), shelf


async def test_an_answer_is_as_long_as_the_narrowest_budget_allows() -> None:
    account, purse, shelf = purse_of(300_000)
    reservation = await purse.reserve(ASKED, PRICE, 1000)
    assert 14_000 < reservation.max_tokens < 15_000 and reservation.usd <= Decimal("0.3")
    assert shelf.said == [(0, 0, shelf.said[0][2], 644_000)] and 150_000 < shelf.said[0][2] < 300_000
    account.settle(reservation, Bill(Decimal("0.1"), Decimal("0.25")))
    await purse.settled()
    assert shelf.said[-1] == (100_000, 150_000), "what it may have cost beyond that stays taken"
    shelf.left = 254_000
    with pytest.raises(Exhausted):
        await purse.reserve(ASKED, PRICE, 1000)
    assert (account.exhausted, account.budget, account.under_way) == (True, "used up", 0)
    *_, enough, less = shelf.said
    assert less[2] < enough[2] - 100_000, "it was asked for less when there was not enough"


@pytest.mark.parametrize("patience_s", [30.0, 0.0])
async def test_a_request_waits_for_what_others_have_drawn_and_do_not_use(
    purses: Ledger, monkeypatch: pytest.MonkeyPatch, patience_s: float
) -> None:
    """Runs of a small pool ended, or had answers of some words, while requests of other runs held what was left of it for
    a moment. The control: one that has no patience."""
    monkeypatch.setattr(purse, "_PATIENCE_S", patience_s)
    slot = Slot(run_micro_usd=DOLLAR, pools=(ledger.Terms(None, (ledger.Budget(700_000, "month"),)),))
    leases = {str(lease_of(number)): Account(PRICES, Decimal(5)) for number in range(3)}

    class Wire:
        async def ask(self, run: str, cost: int, under_way: int, least: int, most: int) -> wire.Drawn:
            message = wire.Draw(1, run, cost, under_way, least, most)
            drawn = await ask(purses.draws, ledger.Lease.parse(run), Draw(cost, under_way, least, most), slot)
            return answered(message, drawn, run)

        def say(self, run: str, cost: int, under_way: int) -> None:
            ask(purses.draws, ledger.Lease.parse(run), Draw(cost, under_way, under_way, under_way), slot)

    first, second, third = [Purse(lease, account, Wire()) for lease, account in leases.items()]
    accounts = list(leases.values())
    held = await first.reserve(ASKED, PRICE, 1000)
    assert held.usd == Decimal("0.644")
    waiting = asyncio.create_task(second.reserve(ASKED, PRICE, 1000))
    await asyncio.sleep(0.3)
    if not patience_s:
        assert waiting.done() and waiting.result().max_tokens < 3000, "what was left at that moment"
        return
    assert not waiting.done() and not accounts[1].exhausted
    accounts[0].settle(held, Bill(Decimal("0.1"), Decimal("0.1")))
    await first.settled()
    assert (await waiting).usd == Decimal("0.6")
    accounts[1].settle(waiting.result(), Bill(Decimal("0.599"), Decimal("0.599")))
    await second.settled()
    with pytest.raises(Exhausted):  # at once: nobody has drawn anything
        async with asyncio.timeout(patience_s / 2):
            await third.reserve(ASKED, PRICE, 1000)
    assert "usd_per_month of the pool team is used up" in accounts[2].budget


async def test_it_is_asked_for_again_at_longer_and_longer_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question is a round trip to the ledger, of every request that waits."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    class Held(Shelf):
        async def ask(self, run: str, cost: int, under_way: int, least: int, most: int) -> wire.Drawn:
            self.said.append((cost, under_way, least, most))
            return wire.Drawn(1, under_way, refused="used up", fleeting=len(self.said) <= 5)

    monkeypatch.setattr("claude_invoker.metering.purse.asyncio.sleep", sleep)
    account, shelf = Account(PRICES, Decimal(5)), Held(0)
    with pytest.raises(Exhausted):
        await Purse("run", account, shelf).reserve(ASKED, PRICE, 1000)
    assert pauses == [0.25, 0.5, 1.0, 2.0, 2.0]
    assert (len(shelf.said), account.budget, account.reserved_usd) == (7, "used up", Decimal(0))


@pytest.mark.parametrize("weakened", [False, True])
async def test_a_request_waits_for_what_its_own_run_has_drawn_and_does_not_need(
    weakened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CLI asks again as soon as it has read an answer, of which the proxy has not taken note yet: runs ended for
    want of a budget of which their own last request held what was left."""
    if weakened:
        monkeypatch.setattr(Account, "has_drawn", False)
    account, purse, shelf = purse_of(500_000)
    first = await purse.reserve(ASKED, PRICE, 1000)
    waiting = asyncio.create_task(purse.reserve(ASKED, PRICE, 1000))
    other = asyncio.create_task(purse.reserve(ASKED, PRICE, 1000))
    await asyncio.sleep(0.05)
    if weakened:
        for each in (waiting, other):
            with pytest.raises(Exhausted):
                await each
        return
    assert not waiting.done() and not account.exhausted
    assert len(shelf.said) == 3, "each has asked once, and neither wakes the other"
    account.settle(first, Bill(Decimal("0.1"), Decimal("0.1")))
    await purse.settled()
    second = await waiting
    assert second.usd <= Decimal("0.4") and not other.done()
    account.settle(second, Bill(Decimal("0.4"), Decimal("0.4")))
    await purse.settled()
    with pytest.raises(Exhausted):
        await other
    assert account.under_way == 0 and account.exhausted


async def test_requests_at_the_same_time_are_said_in_turn() -> None:
    """Each says what all of the run's have under way: two that did not know of each other would draw half."""
    account, purse, shelf = purse_of(900_000)
    shelf.answers.clear()
    both = [asyncio.create_task(purse.reserve(ASKED, PRICE, 1000)) for _ in range(2)]
    settling = asyncio.create_task(purse.settled())
    await asyncio.sleep(0.05)
    assert len(shelf.said) == 1
    shelf.answers.set()
    first, second = await asyncio.gather(*both)
    await settling
    assert first.usd == Decimal("0.644") and second.usd <= Decimal("0.256")
    assert [each[1] for each in shelf.said[:2]] == [0, 644_000]
    assert shelf.said[2][1] <= 900_000 and account.under_way == 2


async def test_who_leaves_while_it_is_asked_for_gives_it_back() -> None:
    account, purse, shelf = purse_of(900_000)
    shelf.answers.clear()
    asking = asyncio.create_task(purse.reserve(ASKED, PRICE, 1000))
    await asyncio.sleep(0.05)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await purse.settled()
    assert shelf.said[-1] == (0, 0) and account.reserved_usd == 0


async def test_a_ledger_that_cannot_say_holds_the_request_back() -> None:
    class Unreadable(Shelf):
        async def ask(self, run: str, cost: int, under_way: int, least: int, most: int) -> wire.Drawn:
            return wire.Drawn(1, under_way, held="cannot be checked")

    account = Account(PRICES, Decimal(5))
    with pytest.raises(CannotDraw, match="cannot be checked"):
        await Purse("run", account, Unreadable(0)).reserve(ASKED, PRICE, 1000)
    assert account.reserved_usd == 0 and not account.exhausted


def test_what_a_run_is_told() -> None:
    lease = str(ledger.Lease.new("claude", "alice", DOLLAR, TEAM))
    drawn, at = Drawn(Verdict.REFUSED, 7, "usd_per_day", 1, 3_600_000), 1_790_000_000.0
    assert (
        used_up(drawn, lease, at) == "the budget usd_per_day of the pool team is used up until 2026-09-21 15:13:20 UTC"
    )
    assert used_up(drawn._replace(at=0), lease, at).startswith("the budget usd_per_day is used up")
    asked = wire.Draw(3, "run", 1, 2, 5, 9)
    assert answered(asked, LedgerUnavailable("away"), lease) == wire.Drawn(3, 9), "its own budget holds, for a while"
    assert answered(asked, UnreadableLedger("damaged"), lease).held is not None
    assert answered(asked, Drawn(Verdict.DRAWN, 6), lease) == wire.Drawn(3, 6)
    assert answered(asked, Drawn(Verdict.SETTLED, 0), lease).refused == "this run was ended by others"


@pytest.fixture(name="purses")
def _purses(ledger: Ledger) -> Ledger:
    return ledger


def ask(draws: Draws, lease: ledger.Lease, draw: Draw, slot: Slot = POOLED) -> asyncio.Future[Any]:
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    draws.put(str(lease), slot, draw, answer.set_result)
    return answer


def lease_of(number: int) -> ledger.Lease:
    return ledger.Lease.new("claude", f"user{number}", DOLLAR, TEAM)


async def test_what_waits_is_asked_in_one_round_trip(purses: Ledger, redis_server: RedisProcess) -> None:
    draws, counts, one = purses.draws, redis_server.client(), lease_of(50)
    await ask(draws, lease_of(0), Draw(0))  # connected, and the script is known
    asked = [ask(draws, lease_of(number), Draw(0, 0, 1000 * number, 1000 * number)) for number in range(1, 41)]
    asked += [ask(draws, one, Draw(cost, cost, cost, cost)) for cost in range(5)]
    before = counts.info("commandstats")["cmdstat_evalsha"]["calls"]  # type: ignore[index]
    found = await asyncio.gather(*asked[:40], asked[-1])
    assert [each.micro_usd for each in found] == [1000 * number for number in range(1, 41)] + [4]
    after = counts.info("commandstats")["cmdstat_evalsha"]["calls"]  # type: ignore[index]
    assert after - before == 41, "what nobody waits for and was said anew is not asked"
    assert not any(each.done() for each in asked[40:44])


async def test_a_redis_that_knows_no_scripts_and_another_period(
    purses: Ledger, redis_server: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis_server.client().script_flush()
    assert (await ask(purses.draws, lease_of(1), Draw(0, 0, 5, 5))).micro_usd == 5
    real = calls._now_ms
    monkeypatch.setattr(calls, "_now_ms", lambda: real() - 40 * 86_400_000)
    slot = Slot(run_micro_usd=DOLLAR, pools=(ledger.Terms(None, (ledger.Budget(DOLLAR, "month"),)),))
    assert (await ask(purses.draws, lease_of(2), Draw(0, 0, 5, 5), slot)).micro_usd == 5


class Late:
    """A ledger that does what is said, and of which so many answers are not heard."""

    def __init__(self, store: ledger.AsyncLedger, unheard: int) -> None:
        self.store = store
        self.unheard = unheard

    async def draw_all(self, draws: Sequence[tuple[ledger.Lease, Slot, Draw]]) -> list[Drawn | LedgerUnavailable]:
        found = await self.store.draw_all(draws)
        self.unheard -= 1
        return [LedgerUnavailable("late")] * len(found) if self.unheard >= 0 else found


@pytest.mark.parametrize("unheard", [0, 1, 2])
async def test_one_answer_that_is_not_heard_opens_no_wall(purses: Ledger, unheard: int) -> None:
    """Where one answer of Redis was late, as on a machine with too much to do, each request that had waited for it was
    sent as if no pool were used up. The control: a ledger that is asked twice and does not answer is away."""
    draws = Draws(Late(purses._store, unheard), purses._short)  # type: ignore[arg-type]
    slot = Slot(run_micro_usd=DOLLAR, pools=(ledger.Terms(None, (ledger.Budget(DOLLAR, "month"),)),))
    asked = [ask(draws, lease_of(number), Draw(0, 0, 10_000, 600_000), slot) for number in range(3)]
    found = await asyncio.gather(*asked)
    if unheard == 2:
        assert all(isinstance(each, LedgerUnavailable) for each in found)
    else:
        assert [each.micro_usd for each in found] == [600_000, 400_000, 0], "asked twice it draws once"
        assert found[2].verdict is Verdict.REFUSED


async def test_nobody_waits_for_a_redis_that_is_away(tmp_path: Any) -> None:
    draws = Ledger(f"unix://{tmp_path}/none.sock").draws
    first = await ask(draws, lease_of(1), Draw(0, 0, 5, 5))
    assert isinstance(first, LedgerUnavailable)
    for found in await asyncio.gather(*[ask(draws, lease_of(1), Draw(0, 0, 5, 5)) for _ in range(100)]):
        assert isinstance(found, LedgerUnavailable) and "does not answer" in str(found)


async def test_a_lease_that_lapsed_takes_again_what_its_run_has_under_way(
    purses: Ledger, redis_server: RedisProcess
) -> None:
    lease, store, client = lease_of(1), purses._store, redis_server.client()
    assert (await ask(purses.draws, lease, Draw(100, 0, 5, 2 * DOLLAR))).micro_usd == 2 * DOLLAR
    peek, leases = ledger.Peek("claude", "nobody", slot=POOLED, shared=TEAM), "claude:{*}:leases"
    client.zadd(leases, dict.fromkeys(client.zrange(leases, 0, -1), 1))  # type: ignore[arg-type]
    assert await store.renew(lease, 60_000) is ledger.Renewal.LAPSED
    assert (await store.peek(peek)).pools[0].reserved_micro_usd == DOLLAR
    purses.draws.again(str(lease))
    until = time.monotonic() + HANG_S
    while (await store.peek(peek)).pools[0].reserved_micro_usd != 2 * DOLLAR:
        assert time.monotonic() < until
        await asyncio.sleep(0.01)
    newer, other = ask(purses.draws, lease, Draw(100, 0, 5, 3 * DOLLAR)), lease_of(2)
    purses.draws.again(str(lease))  # what was said before would take back what is just being drawn
    assert (await newer).micro_usd == 3 * DOLLAR
    await ask(purses.draws, other, Draw(0))
    assert (await store.peek(peek)).pools[0].reserved_micro_usd == 4 * DOLLAR
    assert await purses.book(str(lease), 100)
    assert str(lease) not in purses.draws._last
    purses.draws.again(str(lease))
    await ask(purses.draws, other, Draw(0))
    assert (await store.peek(peek)).pools[0].reserved_micro_usd == DOLLAR, "the ended one takes nothing"
