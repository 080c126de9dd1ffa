"""What the first page shows: read from the jobs' store, the engine of this process and the gateway's ledger."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import unquote

from claude_contract.ledger import Figures, Lease, LedgerUnavailable, Slot, Standing, Usage, figures_of, usd
from claude_contract.ledger.model import organisation_name, pool_name
from claude_invoker.caller import Caller
from claude_invoker.jobs.record import Job
from claude_invoker.jobs.store import Store
from claude_invoker.ledger import Ledger, slot_of
from claude_invoker.runs.engine import Engine
from claude_invoker.runs.run import Run

RECENT = 200  # jobs that are counted
SHOWN = 25
SUBJECTS = 50  # whose limits are asked for


@dataclass
class Tier:
    """Recent jobs of a tier, and what its callers use of their limits. Money in US dollars; None: no limit."""

    name: str
    states: dict[str, int] = field(default_factory=dict)
    cost_usd: float = 0.0
    callers: int = 0
    running: int = 0
    concurrent: int | None = None
    reserved_usd: float = 0.0
    spent_usd: float = 0.0
    budget_usd: float | None = None

    @property
    def over(self) -> int:
        return self.states.get("done", 0) + self.states.get("failed", 0)

    @property
    def error_rate(self) -> float:
        """Of the jobs that came to an end of their own."""
        return self.states.get("failed", 0) / self.over if self.over else 0.0

    def add(self, usage: Usage, slot: Slot) -> None:
        """One caller's use of the limits in `slot`."""
        self.callers += 1
        self.running += usage.running
        self.reserved_usd += usd(usage.reserved_micro_usd)
        self.spent_usd += usd(usage.spent_day_micro_usd)
        if slot.concurrent is not None:
            self.concurrent = (self.concurrent or 0) + slot.concurrent
        if slot.day_micro_usd is not None:
            self.budget_usd = (self.budget_usd or 0.0) + usd(slot.day_micro_usd)


@dataclass(frozen=True)
class Budget:
    """A row of the table of budgets."""

    whose: str
    figures: Figures


@dataclass
class Overview:
    jobs: list[Job]
    running: list[Job]
    direct: list[Run]
    tiers: list[Tier]
    budgets: list[Budget]
    """Those of the callers of what is shown, and of their pools."""
    states: dict[str, int]
    waiting: int
    warm: int
    boundary: str
    """Around a run of this invoker."""

    @property
    def error_rate(self) -> float:
        over = self.states.get("done", 0) + self.states.get("failed", 0)
        return self.states.get("failed", 0) / over if over else 0.0


async def overview(store: Store, engine: Engine, ledger: Ledger | None, caller: Caller) -> Overview:
    """An admin's is of everybody."""
    admin = "admin" in caller.roles
    jobs, _ = await store.page(None if admin else caller.subject, None, RECENT)
    states: dict[str, int] = {}
    tiers: dict[str, Tier] = {}
    for job in jobs:
        tier = tiers.setdefault(job.tier, Tier(job.tier or "default"))
        for count in (states, tier.states):
            count[job.state] = count.get(job.state, 0) + 1
        tier.cost_usd += job.cost_usd
    direct = [
        run
        for run in engine.runs.values()
        if not run.done.is_set() and not run.id.startswith("job_") and (admin or run.subject == caller.subject)
    ]
    budgets = [] if ledger is None else await _limits(store, ledger, jobs, direct, tiers)
    return Overview(
        jobs=jobs[:SHOWN],
        running=[job for job in jobs if job.state == "running"],
        direct=direct,
        tiers=sorted(tiers.values(), key=lambda tier: tier.name),
        budgets=budgets,
        states=states,
        waiting=sum((await store.waiting()).values()) if admin else states.get("queued", 0),
        warm=engine.pool.warm,
        boundary=engine.boundary.label,
    )


async def _limits(
    store: Store, ledger: Ledger, jobs: list[Job], direct: list[Run], tiers: dict[str, Tier]
) -> list[Budget]:
    """Adds the use of limits by the callers of recent jobs; the budgets of these and of who has a direct run."""
    newest = list({(job.tier, job.subject): job for job in reversed(jobs)}.values())[-SUBJECTS:]
    holders: list[tuple[Tier | None, Lease, Slot, str]] = [
        (tiers[job.tier], Lease.parse(caller.lease), slot_of(caller), caller.tier or "")
        for job, caller in zip(newest, await store.callers([job.id for job in newest]), strict=True)
        if caller is not None and caller.lease is not None
    ]
    holders += [
        (None, Lease.parse(run.lease), run.slot or Slot(), run.tier)
        for run in direct[-SUBJECTS:]
        if run.lease is not None
    ]
    accounts: dict[tuple[str, str, str], Standing] = {}
    usages = await ledger.usages(holder[1:] for holder in holders)
    for (tier, lease, slot, _), usage in zip(holders, usages, strict=True):
        if isinstance(usage, LedgerUnavailable):
            continue
        if tier is not None:
            tier.add(usage, slot)
        for key, standing in zip(lease.shared.pools, usage.pools, strict=True):
            accounts["1", lease.shared.tag, key] = standing
        accounts["2", lease.shared.tag, lease.subject_key] = usage.own
    return [
        Budget(_whose(tag, key, is_pool=place == "1"), found)
        for (place, tag, key), standing in sorted(accounts.items(), key=lambda one: one[0])
        for found in figures_of(standing)
    ]


def _whose(tag: str, key: str, *, is_pool: bool) -> str:
    if not is_pool:
        return unquote(key, errors="replace")
    name, sharers = pool_name(key)
    of = [part for part in (organisation_name(tag), sharers) if part]
    return f"pool {name}" + (f" ({', '.join(of)})" if of else "")
