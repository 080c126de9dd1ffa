"""`/runs/{id}/permissions` and `/jobs/{id}/permissions`: calls of tools that wait, and what somebody decides."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from claude_invoker.api import border
from claude_invoker.api.answers import LOOKING, problems
from claude_invoker.api.jobs import jobs_of, known_job
from claude_invoker.api.openapi import request_body
from claude_invoker.api.problems import checked
from claude_invoker.api.query import ONLY_KNOWN
from claude_invoker.api.replicas import run_of
from claude_invoker.caller import APPROVE, Caller
from claude_invoker.jobs import calls, deferred
from claude_invoker.jobs.record import Job
from claude_invoker.model import Permission, PermissionAnswer, PermissionDecision
from claude_invoker.problem import Problem
from claude_invoker.replicas.record import PastRun
from claude_invoker.runs.permissions import decided_already
from claude_invoker.runs.run import Run
from claude_invoker.services import services
from claude_invoker.trust import attested

router = APIRouter(tags=["permissions"], responses=LOOKING)
_BODY = request_body(PermissionAnswer)
_DECIDING = problems(400, 403, 409, 422)


class PermissionList(BaseModel):
    """Of one run."""

    waiting: list[Permission]
    decided: list[PermissionDecision] = Field(description="The first 1,000")


async def run_to_decide(run_id: str, request: Request, caller: Annotated[Caller, Depends(attested)]) -> Run | PastRun:
    """Raises Problem 404, also for the runs of others of which this caller may not decide; Elsewhere."""
    return await run_of(request, run_id, caller, Caller.may_look_on)


async def job_to_decide(job_id: str, request: Request, caller: Annotated[Caller, Depends(attested)]) -> Job:
    """The same of a job."""
    return await known_job(request, job_id, caller, Caller.may_look_on)


async def answer_in(request: Request, caller: Annotated[Caller, Depends(attested)]) -> PermissionAnswer:
    """What the body says. Raises Problem 400, 422."""
    return checked(PermissionAnswer, border.json_object(await request.body()))


AttestedCaller = Annotated[Caller, Depends(attested)]
Answer = Annotated[PermissionAnswer, Depends(answer_in)]


@router.get("/runs/{run_id}/permissions", name="look", responses=problems(400), dependencies=[ONLY_KNOWN])
async def of_run(run: Annotated[Run | PastRun, Depends(run_to_decide)]) -> PermissionList:
    """What of a run waits to be allowed, and what was decided."""
    view = run.view()
    return PermissionList(waiting=view.permissions, decided=view.decisions)


@router.post("/runs/{run_id}/permissions/{permission_id}", responses=_DECIDING, openapi_extra=_BODY, name="decide")
async def decide(
    permission_id: str,
    run: Annotated[Run | PastRun, Depends(run_to_decide)],
    caller: AttestedCaller,
    given: Answer,
) -> PermissionDecision:
    """Allows or denies a call of a tool, for good."""
    refuse_onlookers(caller, run.subject)
    if isinstance(run, Run):
        return run.permissions.answer(permission_id, given, caller.subject)
    raise decided_already(permission_id, run.view().decisions)


@router.get("/jobs/{job_id}/permissions", name="look_job", responses=problems(400), dependencies=[ONLY_KNOWN])
async def of_job(job: Annotated[Job, Depends(job_to_decide)]) -> PermissionList:
    """The same of a job, as it was at its worker's last beat."""
    return PermissionList(waiting=job.waiting, decided=job.decisions)


@router.post("/jobs/{job_id}/permissions/{permission_id}", responses=_DECIDING, openapi_extra=_BODY, name="decide_job")
async def decide_job(
    request: Request,
    permission_id: str,
    job: Annotated[Job, Depends(job_to_decide)],
    caller: AttestedCaller,
    given: Answer,
) -> PermissionDecision:
    """Allows or denies a call of a tool, for good: the worker that runs the job says whether it was in time. A job that
    is put away goes on."""
    return await decided(request, job, permission_id, given, caller)


async def decided(
    request: Request, job: Job, permission_id: str, given: PermissionAnswer, caller: Caller
) -> PermissionDecision:
    """What the job's worker, or this process, has decided for the caller. Raises Problem 403, 404, 409, 422, 503."""
    refuse_onlookers(caller, job.subject)
    parts = jobs_of(request)
    if job.state == "waiting_for_approval":
        decision = await deferred.decide(parts.store, parts.queues, job, permission_id, given, caller.subject)
        assert job.deferral is not None
        services(request).engine.on_decided(job, decision, job.deferral.permission.input)
        return decision
    if job.state != "running" or any(decision.id == permission_id for decision in job.decisions):
        raise decided_already(permission_id, job.decisions)
    return await calls.decide(parts.store, job, permission_id, given, caller.subject)


def refuse_onlookers(caller: Caller, owner: str) -> None:
    """Raises Problem 403 for who sees the run of another and may not decide."""
    if not caller.may_decide(owner):
        raise Problem(
            403, "forbidden", f"the run is another's: deciding about it needs the permission or role {APPROVE}"
        )
