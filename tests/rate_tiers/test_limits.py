"""What limits travel as, in an attestation and in a job's record; and what of it is refused. Names under which
something is kept are written out here: another one would forget what everybody has spent."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_contract.ledger import (
    MAX_POOLS,
    Budget,
    Lease,
    Shared,
    Slot,
    Terms,
    UnreadableLedger,
    micro_usd,
    organisation_tag,
    pool_key,
    subject_key,
)
from claude_contract.ledger.limits import MAX_PERCENT, MOST_RUNS
from claude_contract.ledger.live import Kind, Target, read_change
from claude_contract.ledger.periods import PERS

amounts = st.integers(0, 10**12)
budgets = st.builds(Budget, amounts, st.sampled_from(PERS), rolling=st.booleans()) | st.builds(
    Budget, amounts, st.sampled_from(PERS), st.sampled_from(["UTC", "Asia/Tokyo"])
)
terms = st.builds(Terms, st.none() | st.integers(0, MOST_RUNS), st.lists(budgets, max_size=3).map(tuple))
slots = st.builds(
    Slot,
    *(st.none() | st.integers(0, MOST_RUNS), amounts, st.none() | amounts, st.none() | amounts),
    st.integers(1000, 10**6),
    st.lists(budgets, max_size=3).map(tuple),
    st.lists(terms, max_size=3).map(tuple),
    st.integers(100, MAX_PERCENT),
)


@given(slots)
def test_a_slot_is_what_its_claim_says(slot: Slot) -> None:
    assert Slot.from_claim(json.loads(json.dumps(slot.claim()))) == slot


WRONG: tuple[dict[str, Any], ...] = (
    {"more": 1},
    {"concurrent": "many"},
    {"budgets": "5 day UTC"},
    *({"budgets": [text]} for text in ("", "5", "5 day", "x day UTC", "٣ day UTC", "-5 day UTC", "+5 day UTC")),
    *({"budgets": [text]} for text in ("5 year UTC", "5 day Nowhere/City", "5 day UTC more", 5, None)),
    {"pools": [5]},
    *({"pools": [[count]]} for count in ("1", True, 1.0, -1, MOST_RUNS + 1)),
    {"pools": [[]]},
    {"up_to": 99},
    {"up_to": MAX_PERCENT + 1},
)


@pytest.mark.parametrize("claim", WRONG, ids=str)
def test_what_is_no_slot(claim: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        Slot.from_claim(claim)


def test_a_cheaper_model_may_go_beyond_the_subjects_own_budgets_alone() -> None:
    pool = Terms(3, (Budget(1000, "month"),))
    slot = Slot(2, day_micro_usd=999, budgets=(Budget(50, "week"),), pools=(pool,), up_to_percent=150)
    assert [budget.micro_usd for budget in slot.own.budgets] == [999, 50]
    assert [budget.micro_usd for budget in slot.bound.budgets] == [1498, 75], "never a part of a micro-dollar more"
    assert (slot.bound.concurrent, slot.pools) == (2, (pool,))
    assert [budget.micro_usd for budget in Slot(day_micro_usd=200, up_to_percent=101).bound.budgets] == [202]
    whole = Slot(2, day_micro_usd=999)
    assert whole.bound == whole.own


def test_names_stay() -> None:
    assert subject_key("subject", "alice") == "alice"
    assert subject_key("ip", "ä b") == "ip:%C3%A4%20b"
    assert subject_key("subject", "a" * 500) == "*fca5b3561becbbe00a9e1cd35c64250d"
    assert (pool_key("team", "claim", "red hot"), pool_key("all")) == ("pool.team:claim:red%20hot", "pool.all:*")
    assert organisation_tag("claim", "acme corp") == "claim:acme%20corp"


@pytest.mark.parametrize(
    ("usd", "whole"), [(0, 0), (1e-6, 1), (1.0004e-6, 1), (1.0006e-6, 2), (0.1 + 0.2, 300_000), (2.5, 2_500_000)]
)
def test_amounts_are_whole_micro_dollars_rounded_up(usd: float, whole: int) -> None:
    """What lies below a thousandth of one is of the float, not of the price."""
    assert micro_usd(usd) == whole


def test_a_change_of_another_release_is_none_that_can_be_read() -> None:
    kept: dict[str, Any] = {"of": {}, "limits": {"minute": 1}, "until": 1, "by": "root", "why": "x", "at": 1, "v": 1}
    assert read_change("s:alice", json.dumps(kept).encode()).limits == {"minute": 1}
    others: tuple[Any, ...] = (kept | {"v": 2}, kept | {"limits": {"minute": "1"}}, {}, [], None)
    for wrong in others:
        with pytest.raises(UnreadableLedger, match="the change of limits 's:alice' cannot be read, reset it"):
            read_change("s:alice", json.dumps(wrong).encode())


@pytest.mark.parametrize("kind", ["subject", "tier", "pool"])
def test_what_a_change_binds_is_kept_as_json(kind: Kind) -> None:
    target = Target(kind, "k", "n", {"sub": "alice"})
    assert msgspec.json.decode(msgspec.json.encode(target), type=Target) == target


MEMBER = "v1.QoMB-uL5ag4RD90b:5"
NO_LEASE: tuple[Any, ...] = (
    *("", "claude", "claude alice", f" alice {MEMBER}", f"claude  {MEMBER}", f"claude alice {MEMBER} ", None, 5),
    *(f"claude alice {MEMBER} *  pool.b:*", "claude alice v1.QoMB-uL5ag4RD90b", "claude alice v1.QoMB:-5"),
    " ".join(["claude", "alice", MEMBER, "*", *[f"pool.{n}:*" for n in range(MAX_POOLS + 1)]]),
)


@pytest.mark.parametrize("text", NO_LEASE, ids=repr)
def test_what_is_no_lease(text: Any) -> None:
    with pytest.raises(ValueError, match="not a lease"):
        Lease.parse(text)


def test_a_lease_says_what_is_reserved_and_for_whom() -> None:
    pools = tuple(f"pool.{n}:*" for n in range(MAX_POOLS))
    lease = Lease.parse(" ".join(["claude", "alice", MEMBER, "*", *pools]))
    assert (lease.micro_usd, lease.shared, lease.is_message) == (5, Shared("*", pools), False)
    assert Lease.new("claude", "alice").micro_usd == 0
    message = Lease.new("claude", "alice", message=True)
    assert message.is_message and message.member.startswith("v1.m."), "as the scripts look for it"
