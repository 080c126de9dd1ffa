"""What the first page shows: read from the jobs' store, the engine of this process and the gateway's ledger."""

from __future__ import annotations

from dataclasses import dataclass, field

from claude_contract.ledger import LedgerUnavailable, Slot, Usage, usd
from claude_invoker.caller import Caller
from claude_invoker.jobs.record import Job
from claude_invoker.jobs.store import Store
from claude_invoker.ledger import Ledger
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


@dataclass
class Overview:
    jobs: list[Job]
    running: list[Job]
    direct: list[Run]
    tiers: list[Tier]
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
    if ledger is not None:
        await _limits(store, ledger, jobs, tiers)
    direct = [
        run
        for run in engine.runs.values()
        if not run.done.is_set() and not run.id.startswith("job_") and (admin or run.subject == caller.subject)
    ]
    return Overview(
        jobs=jobs[:SHOWN],
        running=[job for job in jobs if job.state == "running"],
        direct=direct,
        tiers=sorted(tiers.values(), key=lambda tier: tier.name),
        states=states,
        waiting=sum((await store.waiting()).values()) if admin else states.get("queued", 0),
        warm=engine.pool.warm,
        boundary=engine.boundary.label,
    )


async def _limits(store: Store, ledger: Ledger, jobs: list[Job], tiers: dict[str, Tier]) -> None:
    """Adds the use of limits by the callers of recent jobs."""
    newest = list({(job.tier, job.subject): job for job in reversed(jobs)}.values())[-SUBJECTS:]
    for job, caller in zip(newest, await store.callers([job.id for job in newest]), strict=True):
        if caller is None or caller.lease is None:
            continue
        try:
            tiers[job.tier].add(await ledger.usage(caller.lease), caller.slot or Slot())
        except LedgerUnavailable:
            return
