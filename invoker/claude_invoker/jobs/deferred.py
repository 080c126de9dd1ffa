"""Jobs that are put away: what they ask is decided by whoever is asked, since no worker has them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from claude_invoker.jobs.queue import Queues, enqueue_ticket
from claude_invoker.jobs.record import Job
from claude_invoker.jobs.store import Store
from claude_invoker.model import PermissionAnswer, PermissionDecision
from claude_invoker.plan import rules_of
from claude_invoker.problem import Problem
from claude_invoker.runs import later
from claude_invoker.runs.deferral import call_key
from claude_invoker.runs.permissions import decided_already, decision_about, refuse_more, too_late


async def decide(
    store: Store, queues: Queues, job: Job, permission_id: str, given: PermissionAnswer, by: str
) -> PermissionDecision:
    """Decides in the name of the subject `by`, and lets the job go on. Raises Problem 403, 404, 409, 422."""
    assert job.deferral is not None
    asked = job.deferral.permission
    if permission_id != asked.id:
        raise decided_already(permission_id, job.decisions)
    deferral, key = job.deferral, call_key(asked.tool, asked.input)
    refuse_more(given, key, job.decisions, deferral.remembered)
    # Where the paths of a changed input are nobody can tell now: they are looked at when it is to run.
    decision = decision_about(asked, given, by, job.subject, rules_of(job.request, job.caller.clamp), lambda path: None)
    if given.remember == "session":
        later.refuse(key, deferral.for_session, has_session=job.request.session is not None)
        deferral = deferral.model_copy(update={"for_session": deferral.for_session | {key: decision}})
    if given.remember != "once":
        deferral = deferral.model_copy(update={"remembered": deferral.remembered | {key: decision}})
    if not await resume(store, queues, replace(job, deferral=deferral), decision):
        raise Problem(409, "conflict", "it is decided already")
    return decision


async def resume(store: Store, queues: Queues, job: Job, decision: PermissionDecision) -> bool:
    """Lets a job wait for its turn. False: it was decided before, or is put away no more."""
    if not await store.resume(job, decision):
        return False
    await enqueue_ticket(queues)
    return True


async def expire(store: Store, queues: Queues) -> list[tuple[Job, PermissionDecision, dict[str, Any]]]:
    """Denies what nobody has decided about in time. What was denied by this, and with which input it was asked about.
    Raises RedisError, OSError."""
    denied = []
    async for job_id, job in store.each(await store.overdue()):
        if job is None or job.deferral is None:
            await store.not_deferred(job_id)
            continue
        asked = job.deferral.permission
        decision = too_late(asked, round(asked.expires_at - asked.asked_at))
        if await resume(store, queues, job, decision):
            denied.append((job, decision, asked.input))
    return denied
