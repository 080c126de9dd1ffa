"""A job's caller as it is stored: read by the release before, and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from claude_contract.claims import Additions, Clamp
from claude_contract.ledger import Slot
from claude_invoker.caller import Caller
from claude_invoker.jobs.record import caller_json, caller_of

LEASE = "claude alice vXp3Tl2YxZgZQn0A:250000"
CALLER = Caller(
    "alice",
    "pro",
    ("dev",),
    Clamp(("haiku",), (), 3, 0.5),
    LEASE,
    Slot(1, 250_000, 10**9, None, 10_000),
    True,
    Additions("P", "", {"branch": None, "repository": "org/app"}, ("model",)),
    route="r",
    request_id="q",
)
# Written by release 0.1.0.
STORED = (
    '{"subject":"alice","tier":"pro","roles":["dev"],"clamp":{"models":["haiku"],"tools":[],"max_turns":3,"max_usd":0.5},'
    f'"lease":"{LEASE}","reservation":"{LEASE}",'
    '"slot":{"concurrent":1,"usd":250000,"usd_day":1000000000,"ttl_ms":10000},"queued":true,'
    '"additions":{"prepend":"P","context":{"branch":null,"repository":"org/app"},"drop":["model"]},'
    '"route":"r","request_id":"q"}'
)


@dataclass(frozen=True)
class OldCaller:
    """As release 0.1.0 reads it."""

    subject: str
    tier: str | None = None
    roles: tuple[str, ...] = ()
    clamp: Clamp = field(default_factory=Clamp)
    lease: str | None = None
    reservation: str | None = None
    slot: dict[str, int] | None = None
    queued: bool = False
    additions: dict[str, Any] = field(default_factory=dict)
    route: str | None = None
    request_id: str | None = None


def test_a_caller_stored_by_release_0_1_0() -> None:
    assert caller_of(STORED) == CALLER


def test_release_0_1_0_reads_what_is_stored_now() -> None:
    old = TypeAdapter(OldCaller).validate_json(caller_json(CALLER))
    assert (old.subject, old.tier, old.roles, old.clamp, old.lease) == ("alice", "pro", ("dev",), CALLER.clamp, LEASE)
    assert old.slot == {"concurrent": 1, "usd": 250_000, "usd_day": 10**9, "ttl_ms": 10_000}
    assert old.additions == CALLER.additions.to_claims()
    assert (old.queued, old.route, old.request_id) == (True, "r", "q")


def test_what_is_stored_is_what_is_read() -> None:
    for caller in (CALLER, Caller("bob"), Caller("bob", slot=Slot(), lease=LEASE)):
        assert caller_of(caller_json(caller)) == caller
