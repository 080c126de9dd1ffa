"""The verbs, one table for every store: Redis as the gateway asks it, Redis as the invoker does, and the process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from msgspec.structs import replace

from claude_contract.ledger import (
    Admission,
    Admit,
    AsyncLedger,
    Budget,
    BudgetWarning,
    Busy,
    Draw,
    Drawn,
    Figures,
    Lease,
    Ledger,
    Peek,
    Quota,
    Renewal,
    Slot,
    Standing,
    Usage,
    Verdict,
    Window,
    Windows,
)
from claude_invoker import redis_clients
from kong_claude.rate_tiers.local_ledger import LocalLedger
from kong_claude.rate_tiers.redis_ledger import RedisLedger, Settings
from tests.rate_tiers.servers import RedisProcess
from tests.support.waiting import HANG_S


class FromAsyncio(Ledger):
    """The invoker's store, asked from a test that does not wait."""

    def __init__(self, url: str) -> None:
        self.runner = asyncio.Runner()
        self.redis = redis_clients.client(url)
        self.store = AsyncLedger(self.redis)

    def admit(self, request: Admit) -> Admission:
        return self.runner.run(self.store.admit(request))

    def acquire(self, lease: Lease, slot: Slot, tier: str = "") -> Admission:
        return self.runner.run(self.store.acquire(lease, slot, tier))

    def renew(self, lease: Lease, ttl_ms: int) -> Renewal:
        return self.runner.run(self.store.renew(lease, ttl_ms))

    def draw(self, lease: Lease, slot: Slot, draw: Draw) -> Drawn:
        return self.runner.run(self.store.draw(lease, slot, draw))

    def settle(self, lease: Lease, cost_micro_usd: int, *, final: bool = True) -> bool:
        return self.runner.run(self.store.settle(lease, cost_micro_usd, final=final))

    def release(self, lease: Lease) -> bool:
        return self.runner.run(self.store.release(lease))

    def peek(self, request: Peek) -> Usage:
        return self.runner.run(self.store.peek(request))

    def tell(self, warning: BudgetWarning) -> bool:
        return self.runner.run(self.store.tell(warning))

    def close(self) -> None:
        self.runner.run(self.redis.aclose())
        self.runner.close()


@pytest.fixture(params=["redis", "redis from asyncio", "local"])
def store(request: pytest.FixtureRequest, redis_server: RedisProcess) -> Iterator[Ledger]:
    redis_server.client().script_flush()  # so that every store also meets a Redis that does not know its scripts
    if request.param == "local":
        yield LocalLedger()
    elif request.param == "redis":
        made = RedisLedger(Settings(redis_server.url, timeout=HANG_S))
        yield made
        made.close()
    else:
        asked = FromAsyncio(redis_server.url)
        yield asked
        asked.close()


SUBJECT = "team"
DAY = Window("day", 2)
MONTH = Window("month", 3)
PACED = Window("hour", 1, 1)
A, B, C = (Lease("claude", SUBJECT, f"v1.{name}:2000000") for name in "abc")  # each reserves $2
SLOT = Slot(concurrent=2, run_micro_usd=2_000_000, day_micro_usd=5_000_000, month_micro_usd=50_000_000)
ONE = Slot(concurrent=1, run_micro_usd=2_000_000)
WARNING = BudgetWarning("claude", "", SUBJECT, False, Figures(Budget(5, "day"), 4, 0, 0, 86_400_000, 3_600_000), 80)
SHORT = Slot(concurrent=1, run_micro_usd=2_000_000, ttl_ms=1)

MONTHLY = Slot(run_micro_usd=2_000_000, month_micro_usd=5_000_000)
ROLLING = Slot(run_micro_usd=2_000_000, budgets=(Budget(5_000_000, "week", rolling=True),))
WEEK_MS = 7 * 86_400_000
LOWERED = Slot(concurrent=2, run_micro_usd=2_000_000, day_micro_usd=1_000_000, month_micro_usd=50_000_000)

Step = tuple[Callable[[Ledger], Any], Any]


def request(
    *windows: Window,
    lease: Lease | None = None,
    slot: Slot = SLOT,
    busy: Busy = "reject",
    confirm_ms: int | None = None,
) -> Admit:
    return Admit("claude", SUBJECT, Windows(windows), lease, slot, busy, confirm_ms=confirm_ms)


def usage(store: Ledger) -> tuple[int, int, int, int]:
    found = store.peek(Peek("claude", SUBJECT))
    return found.running, found.reserved_micro_usd, found.spent_day_micro_usd, found.spent_month_micro_usd


def taken(found: Admission) -> tuple[bool, int, int, list[tuple[str, int]]]:
    own = found.own
    return found.admitted, own.running, own.reserved_micro_usd, [(s.budget.name, s.micro_usd) for s in own.spent]


def lapse(_: Ledger) -> None:
    time.sleep(0.02)


@dataclass(frozen=True)
class Case:
    """`steps`: what is asked, one after the other, and what is answered."""

    name: str
    steps: tuple[Step, ...]


CASES = [
    Case(
        "a window counts what it admits, and refuses the rest",
        (
            (
                lambda s: s.admit(request(DAY)),
                Admission(True, False, "", 0, 0, Standing(quotas=(Quota(DAY, 1, 86_400_001),))),
            ),
            (lambda s: s.admit(request(DAY)).admitted, True),
            (lambda s: s.admit(request(DAY)).exceeded, "day"),
            (lambda s: 86_300_000 < s.admit(request(DAY)).wait_ms <= 86_400_001, True),
        ),
    ),
    Case(
        "of two exceeded limits the one that stays in the way for longest is named",
        (
            (lambda s: [s.admit(request(DAY, MONTH)).admitted for _ in range(2)], [True, True]),
            (lambda s: s.admit(request(DAY, Window("month", 2))).exceeded, "month"),
        ),
    ),
    Case(
        "all or nothing: what is refused for one limit is counted for none",
        (
            (lambda s: s.admit(request(DAY, lease=A, slot=ONE)).admitted, True),
            (lambda s: s.admit(request(DAY, lease=B, slot=ONE)).exceeded, "concurrent"),
            (lambda s: s.peek(Peek("claude", SUBJECT, Windows((DAY,)))).own.quotas[0].remaining, 1),
            (usage, (1, 2_000_000, 0, 0)),
        ),
    ),
    Case(
        "a paced window lets a burst pass",
        (
            (lambda s: [s.admit(request(PACED)).admitted for _ in range(3)], [True, True, False]),
            (lambda s: s.admit(request(PACED)).exceeded, "hour"),
        ),
    ),
    Case(
        "one subject's counts are nobody else's",
        (
            (lambda s: [s.admit(request(DAY)).admitted for _ in range(3)], [True, True, False]),
            (lambda s: s.admit(Admit("claude", "other", Windows((DAY,)))).admitted, True),
            (lambda s: s.admit(Admit("elsewhere", SUBJECT, Windows((DAY,)))).admitted, True),
        ),
    ),
    Case(
        "a lease takes a place and its money",
        (
            (lambda s: taken(s.acquire(A, SLOT)), (True, 1, 2_000_000, [("usd_per_day", 0), ("usd_per_month", 0)])),
            (lambda s: s.acquire(B, SLOT).own.running, 2),
            (lambda s: s.acquire(B, SLOT).own.running, 2),  # taking it again changes nothing
            (lambda s: (s.acquire(C, SLOT).exceeded, s.acquire(C, SLOT).wait_ms), ("usd_per_day", 0)),
            (usage, (2, 4_000_000, 0, 0)),
        ),
    ),
    Case(
        "where all places are taken a request may go on as a job",
        (
            (lambda s: s.admit(request(lease=A, slot=ONE, busy="queue")).queued, False),
            (lambda s: s.admit(request(lease=B, slot=ONE, busy="queue")).queued, True),
            (lambda s: s.admit(request(lease=C, busy="later")).queued, True),
            (lambda s: s.acquire(B, ONE).exceeded, "concurrent"),
            (lambda s: s.settle(A, 0), True),
            (lambda s: s.acquire(B, ONE).admitted, True),
        ),
    ),
    Case(
        "a settlement books the cost once, and a lapsed lease's too",
        (
            (lambda s: s.acquire(A, SHORT).admitted, True),
            (lapse, None),
            (usage, (0, 0, 0, 0)),
            (lambda s: [s.settle(A, 1_500_000), s.settle(A, 1_500_000)], [True, False]),
            (usage, (0, 0, 1_500_000, 1_500_000)),
            (lambda s: s.settle(B, 2_500_000), True),
            (lambda s: s.acquire(C, SLOT).exceeded, "usd_per_day"),
            (lambda s: s.acquire(C, SLOT).wait_ms > 0, True),  # until midnight
        ),
    ),
    Case(
        "a month's budget is one of its own",
        (
            (lambda s: s.settle(A, 4_000_000), True),
            (
                lambda s: s.acquire(B, Slot(run_micro_usd=2_000_000, month_micro_usd=5_000_000)).exceeded,
                "usd_per_month",
            ),
        ),
    ),
    Case(
        "what is reserved counts in a month's budget as in a day's, until it is given back",
        (
            (lambda s: [s.acquire(each, MONTHLY).admitted for each in (A, B)], [True, True]),
            (lambda s: (s.acquire(C, MONTHLY).exceeded, s.acquire(C, MONTHLY).wait_ms), ("usd_per_month", 0)),
            (lambda s: s.release(A), True),
            (lambda s: s.acquire(C, MONTHLY).admitted, True),
            (lambda s: s.settle(B, 3_000_000), True),
            (lambda s: [s.release(C), s.acquire(A, MONTHLY).admitted], [True, True]),  # to the last micro-dollar
            (lambda s: s.acquire(B.again(), MONTHLY).exceeded, "usd_per_month"),
        ),
    ),
    Case(
        "so it does in a rolling one, in which room comes back when what was spent leaves",
        (
            (lambda s: [s.acquire(each, ROLLING).admitted for each in (A, B)], [True, True]),
            (lambda s: (s.acquire(C, ROLLING).exceeded, s.acquire(C, ROLLING).wait_ms), ("usd_per_rolling_week", 0)),
            (lambda s: [s.settle(A, 4_000_000), s.release(B)], [True, True]),
            (lambda s: s.acquire(C, ROLLING).exceeded, "usd_per_rolling_week"),
            (lambda s: WEEK_MS - 60_000 < s.acquire(C, ROLLING).wait_ms <= WEEK_MS + 900_000, True),
        ),
    ),
    Case(
        "a lapsed lease leaves its place, its money and what it had drawn to others",
        (
            (lambda s: s.acquire(A, SHORT).admitted, True),
            (lambda s: s.draw(A, SHORT, Draw(0, 0, 0, 1)).verdict, Verdict.DRAWN),
            (lapse, None),
            (lambda s: [s.acquire(each, ONE).admitted for each in (B, C)], [True, False]),
            (lambda s: s.acquire(C, ONE).exceeded, "concurrent"),
            (usage, (1, 2_000_000, 0, 0)),
        ),
    ),
    Case(
        "a renewal keeps a lease, brings back a lapsed one, and no settled one",
        (
            (lambda s: s.renew(A, 60_000), Renewal.LAPSED),
            (lambda s: s.renew(A, 60_000), Renewal.EXTENDED),
            (usage, (1, 2_000_000, 0, 0)),
            (lambda s: s.renew(A, 1), Renewal.EXTENDED),
            (lapse, None),
            (lambda s: s.renew(A, 60_000), Renewal.LAPSED),
            (lambda s: s.settle(A, 0), True),
            (lambda s: s.renew(A, 60_000), Renewal.SETTLED),
            (usage, (0, 0, 0, 0)),
        ),
    ),
    Case(
        "a release gives back place and money, and may be followed by a settlement",
        (
            (lambda s: s.acquire(A, ONE).admitted, True),
            (lambda s: [s.release(A), s.release(A)], [True, False]),
            (usage, (0, 0, 0, 0)),
            (lambda s: s.settle(A, 250_000), True),
            (usage, (0, 0, 250_000, 250_000)),
        ),
    ),
    Case(
        "a lease that nobody confirms gives everything back, and is taken again under the limits as they are then",
        (
            (lambda s: s.admit(request(lease=A, slot=ONE, confirm_ms=1)).admitted, True),
            (lapse, None),
            (usage, (0, 0, 0, 0)),
            (lambda s: s.admit(request(lease=B, slot=ONE, confirm_ms=60_000)).admitted, True),
            (lambda s: s.acquire(A, ONE).exceeded, "concurrent"),  # too late
            (lambda s: s.acquire(B, SHORT).admitted, True),  # in time: now it lives as long as the slot says
            (lapse, None),
            (lambda s: s.acquire(A, ONE).admitted, True),
            (usage, (1, 2_000_000, 0, 0)),
        ),
    ),
    Case(
        "what a run has spent and what its requests may cost is of what it holds, and counts once",
        (
            (lambda s: s.acquire(A, SLOT).admitted, True),  # holds $2
            (lambda s: s.draw(A, SLOT, Draw(0, 0, 0, 1_500_000))[:2], (Verdict.DRAWN, 1_500_000)),
            (usage, (1, 2_000_000, 0, 0)),
            (lambda s: s.draw(A, SLOT, Draw(500_000))[:2], (Verdict.DRAWN, 0)),
            (usage, (1, 1_500_000, 500_000, 500_000)),
            (lambda s: s.draw(A, SLOT, Draw(500_000))[:2], (Verdict.DRAWN, 0)),  # said twice
            (lambda s: s.draw(A, SLOT, Draw(500_000, 0, 0, 1_800_000))[:2], (Verdict.DRAWN, 1_800_000)),
            (usage, (1, 1_800_000, 500_000, 500_000)),  # more than its admission thought of
            (lambda s: s.settle(A, 900_000), True),
            (usage, (0, 0, 900_000, 900_000)),
        ),
    ),
    Case(
        "a request draws what is left in the narrowest budget, or nothing",
        (
            (lambda s: [s.acquire(each, SLOT).admitted for each in (A, B)], [True, True]),
            (lambda s: s.draw(A, LOWERED, Draw(0, 0, 1, 800_000))[:2], (Verdict.DRAWN, 800_000)),
            (
                lambda s: s.draw(B, LOWERED, Draw(0, 0, 100_000, 800_000))[:4],
                (Verdict.DRAWN, 200_000, "usd_per_day", 0),
            ),
            (lambda s: s.draw(B, LOWERED, Draw(0, 200_000, 300_000, 900_000))[:2], (Verdict.REFUSED, 200_000)),
            (lambda s: 0 < s.draw(B, LOWERED, Draw(0, 200_000, 300_000, 900_000)).reset_ms <= 86_400_000, True),
            (lambda s: s.draw(A, LOWERED, Draw(100_000))[:2], (Verdict.DRAWN, 0)),
            (lambda s: s.draw(B, LOWERED, Draw(0, 200_000, 300_000, 900_000))[:2], (Verdict.DRAWN, 900_000)),
        ),
    ),
    Case(
        "what a run draws lapses with its lease, and comes back with it",
        (
            (lambda s: s.draw(A, SHORT, Draw(0, 0, 0, 700_000))[:2], (Verdict.DRAWN, 700_000)),
            (lapse, None),
            (usage, (0, 0, 0, 0)),
            (lambda s: s.renew(A, 60_000), Renewal.LAPSED),
            (usage, (1, 2_000_000, 0, 0)),
            (lambda s: s.draw(A, SLOT, Draw(300_000, 2_500_000))[:2], (Verdict.DRAWN, 2_500_000)),
            (usage, (1, 2_500_000, 300_000, 300_000)),
        ),
    ),
    Case(
        "a run that others have ended draws nothing, and what it still costs is booked once",
        (
            (lambda s: s.acquire(A, SLOT).admitted, True),
            (lambda s: s.settle(A, 300_000, final=False), True),
            (lambda s: s.draw(A, SLOT, Draw(500_000, 0, 0, 800_000))[:2], (Verdict.SETTLED, 0)),
            (usage, (0, 0, 500_000, 500_000)),
            (lambda s: s.settle(A, 300_000, final=False), False),
            (lambda s: [s.settle(A, 600_000), s.settle(A, 600_000)], [True, False]),
            (lambda s: s.draw(A, SLOT, Draw(900_000))[:2], (Verdict.SETTLED, 0)),
            (usage, (0, 0, 600_000, 600_000)),
        ),
    ),
    Case(
        "a warning is told once, and another one for itself",
        (
            (lambda s: [s.tell(WARNING), s.tell(WARNING)], [True, False]),
            (lambda s: s.tell(replace(WARNING, percent=95)), True),
            (lambda s: s.tell(replace(WARNING, namespace="elsewhere")), True),
            (lambda s: s.tell(WARNING), False),
            (usage, (0, 0, 0, 0)),
        ),
    ),
    Case(
        "a lease of release 0.1.0 counts as one of now",
        (
            (lambda s: s.acquire(Lease("claude", SUBJECT, "old:3000000"), ONE).admitted, True),
            (lambda s: s.acquire(A, ONE).exceeded, "concurrent"),
            (usage, (1, 3_000_000, 0, 0)),
            (lambda s: s.renew(Lease("claude", SUBJECT, "old:3000000"), 60_000), Renewal.EXTENDED),
            (lambda s: s.settle(Lease("claude", SUBJECT, "old:3000000"), 1), True),
            (usage, (0, 0, 1, 1)),
        ),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_verbs(store: Ledger, case: Case) -> None:
    for number, (asked, answer) in enumerate(case.steps, start=1):
        assert asked(store) == answer, f"step {number}"


def test_the_table_is_no_formality(redis_server: RedisProcess) -> None:
    """The control: most cases catch a store that forgets."""

    class Forgetful(LocalLedger):
        def admit(self, request: Admit) -> Admission:
            self._values.clear()
            return super().admit(request)

    caught = 0
    for case in CASES:
        store = Forgetful()
        caught += any(asked(store) != answer for asked, answer in case.steps)
    assert caught >= 8


def test_a_travelled_lease_is_the_same() -> None:
    lease = Lease.new("claude", SUBJECT, 2_000_000)
    assert Lease.parse(str(lease)) == lease
    assert lease.micro_usd == 2_000_000
    assert Slot.from_claim(SLOT.claim()) == SLOT
    assert Slot.from_claim({}) == Slot()


@pytest.mark.parametrize("claim", [{"concurrent": "many"}, {"usd": None}, {"places": 3}, {"usd_day": []}])
def test_what_is_no_slot_is_refused(claim: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        Slot.from_claim(claim)
