"""The ledger: who runs how much, and what it cost. The gateway admits, the invoker settles.

`limits` and `model` have the values, `periods` the calendar, `store` the verbs, `calls` the verbs as Lua in Redis. From
an asyncio service:

    from redis.asyncio import Redis
    from claude_contract.ledger import AsyncLedger, Lease, Slot, micro_usd

    store = AsyncLedger(Redis.from_url(…))
    lease = Lease.parse(claims["lease"])                         # from the verified attestation
    await store.renew(lease, ttl_ms=60_000)                      # heartbeat, at least every third of it
    await store.draw(lease, slot, Draw(cost, under_way, …))      # before each request that costs money, and after it
    await store.settle(lease, micro_usd(cost_usd))               # the run has ended, however; repeat it freely

A queued run (`claims["queue"]` is true) holds nothing yet; its lease is taken when the job starts:

    admission = await store.acquire(lease, Slot.from_claim(claims["slot"]))
    if not admission.admitted: ...                               # try again later; admission.exceeded says why not

A job that came with a lease but must wait (queue position) gives it back with `release` and takes it with `acquire`.

A request counts for its subject and for its pools (`Shared`), all or nothing; a lease knows them. All keys of one
admission share one hash tag, so that every script runs on one node of a Redis Cluster. The key layout is in
docs/rate-tiers.md.
"""

from claude_contract.ledger.figures import Figures, figures_of
from claude_contract.ledger.limits import (
    NO_WINDOWS,
    PERIODS,
    UTC_DAY,
    UTC_MONTH,
    Budget,
    Slot,
    Terms,
    Window,
    Windows,
)
from claude_contract.ledger.model import (
    ALONE,
    DEPLOYMENT,
    MAX_POOLS,
    NAMESPACE,
    VERSION,
    Admission,
    Admit,
    Blocked,
    Busy,
    Changed,
    Draw,
    Drawn,
    Lease,
    LedgerUnavailable,
    Peek,
    Quota,
    Renewal,
    Shared,
    Spent,
    Standing,
    UnreadableLedger,
    Usage,
    Verdict,
    dollars,
    heads,
    micro_usd,
    organisation_tag,
    pool_key,
    subject_key,
    usd,
)
from claude_contract.ledger.store import AsyncLedger, Ledger
from claude_contract.ledger.warnings import PERCENTS, BudgetWarning

__all__ = [
    "ALONE", "DEPLOYMENT", "MAX_POOLS", "NAMESPACE", "NO_WINDOWS", "PERCENTS", "PERIODS", "UTC_DAY", "UTC_MONTH",
    "VERSION", "Admission", "Admit", "AsyncLedger", "Blocked", "Budget", "BudgetWarning", "Busy", "Changed", "Draw",
    "Drawn", "Figures", "Lease", "Ledger", "LedgerUnavailable", "Peek", "Quota", "Renewal", "Shared", "Slot", "Spent",
    "Standing", "Terms", "UnreadableLedger", "Usage", "Verdict", "Window", "Windows", "dollars", "figures_of",
    "heads", "micro_usd", "organisation_tag", "pool_key", "subject_key", "usd",
]  # fmt: skip
