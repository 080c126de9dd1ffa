"""The message of a refusal: it is all that many clients show of one. And which limit is the tightest."""

from __future__ import annotations

from dataclasses import replace

import pytest

from claude_contract.ledger import (
    UTC_DAY,
    UTC_MONTH,
    Admission,
    Budget,
    Quota,
    Slot,
    Spent,
    Standing,
    Terms,
    Usage,
    Window,
    Windows,
)
from claude_contract.ledger.model import Changed
from kong_claude.rate_tiers.pools import Pool
from kong_claude.rate_tiers.report import in_words, limits
from kong_claude.rate_tiers.tiers import Tier

DOLLAR = 1_000_000
MINUTE, ONE_AN_HOUR = Window("minute", 60), Window("hour", 1)
DAY, ROLLING = Budget(2 * DOLLAR, "day"), Budget(1_500 * DOLLAR, "month", rolling=True)
OWN = Slot(concurrent=4, run_micro_usd=DOLLAR // 2, day_micro_usd=2 * DOLLAR, pools=(Terms(1, (ROLLING,)),))
TEAM = Pool("team", "claim", Windows((ONE_AN_HOUR,)), Terms(1, (ROLLING,)))
TIER = Tier("pro", Windows((MINUTE,)), OWN, pools=(TEAM,))
MESSAGES = Tier("pro", Windows((MINUTE,)), Slot(concurrent=4, day_micro_usd=2 * DOLLAR), kind="message")


def _standing(reserved: int = 0) -> Standing:
    spent = (Spent(DAY, 1_730_275, 0), Spent(ROLLING, 1_499 * DOLLAR, 0))
    return Standing(4, reserved, spent, (Quota(MINUTE, 0, 0), Quota(ONE_AN_HOUR, 0, 0)))


@pytest.mark.parametrize(
    ("tier", "limit", "at", "wait_ms", "reserved", "words"),
    [
        (TIER, "minute", 0, 41_001, 0, "tier pro allows 60 requests a minute; try again in 42 s"),
        (TIER, "hour", 1, 3_599_000, 0, "the pool team allows 1 request an hour; try again in 60 min"),
        (TIER, "concurrent", 0, 0, 0, "tier pro allows 4 requests at a time; try again in 5 s"),
        (TIER, "concurrent", 1, 0, 0, "the pool team allows 1 request at a time; try again in 5 s"),
        (
            TIER, "usd_per_day", 0, 25_920_000, 0,
            "tier pro allows $2.00 a day, of which $1.730275 is spent, and a run needs $0.50; try again in 7 h 12 min",
        ),
        (
            TIER, "usd_per_rolling_month", 1, 270_000_000, DOLLAR // 2,
            "the pool team allows $1,500.00 in any month, of which $1,499.00 is spent and $0.50 held by what runs, "
            "and a run needs $0.50; try again in 3 d 3 h",
        ),
        (MESSAGES, "minute", 0, 121_000, 0, "tier pro allows 60 messages a minute; try again in 3 min"),
        (
            MESSAGES, "usd_per_day", 0, 7_200_000, 0,
            "tier pro allows $2.00 a day, of which $1.730275 is spent; try again in 2 h",
        ),
    ],
)  # fmt: skip
def test_it_says_which_limit_it_is_and_how_long_to_wait(
    tier: Tier, limit: str, at: int, wait_ms: int, reserved: int, words: str
) -> None:
    standing = _standing(reserved)
    assert in_words(Admission(False, False, limit, at, wait_ms, standing, (standing,)), tier) == words


def test_what_an_administrator_has_changed_is_said_to_be_his() -> None:
    def said(at: int, limit: str, value: int) -> str:
        budget = replace(ROLLING if at else DAY, micro_usd=value)
        standing = Standing(0, 0, (Spent(budget, 0, 0),), (Quota(MINUTE, 0, 0),))
        changed = (Changed(at, limit, value),)
        return in_words(Admission(False, False, limit, at, 60_000, standing, (standing,), changed), TIER)

    caller, team = "an administrator allows this caller, for now,", "an administrator allows the pool team, for now,"
    assert said(0, "minute", 60) == f"{caller} 60 requests a minute; try again in 60 s"
    assert said(1, "usd_per_rolling_month", DOLLAR).startswith(f"{team} $1.00 in any month")
    needs = "of which $0.00 is spent, and a run needs $0.50"
    assert said(0, "usd_per_day", 200_000) == f"{caller} $0.20 a day, {needs}: none can start"


@pytest.mark.parametrize(
    ("wait_ms", "words"),
    [
        (1, "1 s"),
        (120_000, "120 s"),
        (120_001, "3 min"),
        (7_140_000, "119 min"),
        (172_740_000, "47 h 59 min"),
        (172_800_000, "2 d"),
        (172_860_000, "2 d 1 h"),
        (31 * 86_400_000, "31 d"),
    ],
)
def test_a_wait_is_never_said_to_be_shorter_than_it_is(wait_ms: int, words: str) -> None:
    said = in_words(Admission(False, False, "minute", 0, wait_ms, _standing()), TIER)
    assert said.endswith(f"; try again in {words}")


@pytest.mark.parametrize(
    ("spent", "reserved", "running", "left", "tightest"),
    [
        (0, 0, 0, 30, "minute"),  # half of it
        (0, 0, 3, 60, "concurrent"),
        (1_200_000, 0, 0, 60, "usd_per_day"),
        (1_900_000, 0, 0, 0, "usd_per_day"),  # both refuse the next run: until midnight, and for a minute
        (1_900_000, 0, 4, 0, "usd_per_day"),
        (0, 1_900_000, 0, 0, "minute"),  # money that is held may come back at once
    ],
)
def test_the_tightest_limit_is_what_a_refusal_would_name(
    spent: int, reserved: int, running: int, left: int, tightest: str
) -> None:
    money = (Spent(UTC_DAY, spent, 0), Spent(UTC_MONTH, spent, 0), Spent(DAY, spent, 3_600_000))
    own = Standing(running, reserved, money, (Quota(MINUTE, left, 60_000),))
    usage = Usage(own, (Standing(quotas=(Quota(ONE_AN_HOUR, 1, 0),)),))
    assert limits(usage, TIER)["tightest"]["limit"] == tightest
