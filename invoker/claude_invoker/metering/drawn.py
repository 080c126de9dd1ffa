"""What the ledger says to a run that draws on its budgets, as the metering proxy is told it: pure."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from claude_contract.ledger import Drawn, Lease, LedgerUnavailable, UnreadableLedger, Verdict
from claude_contract.ledger.live import BLOCKED
from claude_contract.ledger.model import pool_name
from claude_invoker.metering import wire


def answered(message: wire.Draw, drawn: Drawn | LedgerUnavailable, lease: str) -> wire.Drawn:
    """Where the ledger is away the run's own budget is the only one; for how long, `hold` says."""
    if isinstance(drawn, UnreadableLedger):
        return wire.Drawn(message.id, message.under_way_micro_usd, held="the budgets cannot be checked now")
    if isinstance(drawn, LedgerUnavailable):
        return wire.Drawn(message.id, message.most_micro_usd)
    refused = None if drawn.verdict is Verdict.DRAWN else used_up(drawn, lease, time.time())
    blocked = drawn.budget == BLOCKED
    return wire.Drawn(message.id, drawn.micro_usd, refused, fleeting=drawn.fleeting, blocked=blocked)


def used_up(drawn: Drawn, lease: str, now: float) -> str:
    """Which budget is, and until when."""
    if drawn.verdict is Verdict.SETTLED:
        return "this run was ended by others"
    pool, until = pool_of(Lease.parse(lease), drawn.at), now + drawn.reset_ms / 1000
    if drawn.budget == BLOCKED:
        return blocked(pool, until, of_tier=drawn.of_tier)
    whose = f" of the pool {pool}" if pool else ""
    return f"the budget {drawn.budget}{whose} is used up until {_clock(until)}"


def blocked(pool: str, until: float, *, of_tier: bool) -> str:
    """By an admin: the pool, where it is one, else the caller or his tier."""
    whom = f"the pool {pool}" if pool else "this caller's tier" if of_tier else "this caller"
    return f"an administrator has blocked {whom} until {_clock(until)}"


def pool_of(lease: Lease, at: int) -> str:
    """The name of the pool that an answer of the ledger is about; "" where it is about the caller himself."""
    return pool_name(lease.shared.pools[at - 1])[0] if at else ""


def _clock(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"
