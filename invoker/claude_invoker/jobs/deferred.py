"""Jobs that are put away: what they ask is decided by whoever is asked, since no worker has them."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from claude_contract.versions import UnknownVersion
from claude_invoker.jobs.queue import Queues, enqueue_ticket
from claude_invoker.jobs.record import Job
from claude_invoker.jobs.store import Store
from claude_invoker.model import PermissionAnswer, PermissionDecision
from claude_invoker.plan import rules_of
from claude_invoker.problem import Problem
from claude_invoker.runs.deferral import call_key
from claude_invoker.runs.permissions import decision_about, too_late

_log = logging.getLogger(__name__)


async def decide(
    store: Store, queues: Queues, job: Job, permission_id: str, given: PermissionAnswer, by: str
) -> PermissionDecision:
    """Decides in the name of the subject `by`, and lets the job go on. Raises Problem 403, 404, 409, 422."""
    assert job.deferral is not None
    asked = job.deferral.permission
    if permission_id != asked.id:
        raise decided_already(permission_id, job.decisions)
    # Where the paths of a changed input are nobody can tell now: they are looked at when it is to run.
    decision = decision_about(asked, given, by, job.subject, rules_of(job.request, job.caller.clamp), lambda path: None)
    if given.remember == "session":
        raise Problem(422, "invalid", "remember: the run goes on with no session")
    deferral = job.deferral
    if given.remember == "run":
        key = call_key(asked.tool, asked.input)
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
    for job_id in await store.overdue():
        try:
            job = await store.get(job_id)
        except UnknownVersion:  # its own release sees to it
            continue
        except (ValueError, KeyError) as error:
            _log.error("job %s: its record cannot be read (%s)", job_id, type(error).__name__)
            continue
        if job is None or job.deferral is None:
            await store.not_deferred(job_id)
            continue
        asked = job.deferral.permission
        decision = too_late(asked, round(asked.expires_at - asked.asked_at))
        if await resume(store, queues, job, decision):
            denied.append((job, decision, asked.input))
    return denied


def decided_already(permission_id: str, decisions: list[PermissionDecision]) -> Problem:
    """What is said of a call that does not wait."""
    for decision in decisions:
        if decision.id == permission_id:
            return Problem(409, "conflict", f"it is decided already: {decision.decision}")
    return Problem(404, "not-found", "there is no such permission")
