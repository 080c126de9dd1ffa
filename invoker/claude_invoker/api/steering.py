"""`/runs/{id}/messages` and `/jobs/{id}/messages`: what a run's caller tells its model while that is at work."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from claude_invoker.api import border
from claude_invoker.api.answers import LOOKING, problems
from claude_invoker.api.jobs import known_job, store_of
from claude_invoker.api.openapi import request_body
from claude_invoker.api.problems import checked
from claude_invoker.api.replicas import run_of
from claude_invoker.caller import Caller
from claude_invoker.jobs import calls
from claude_invoker.jobs.record import Job
from claude_invoker.model import MessageToRun, SentMessage
from claude_invoker.problem import Problem
from claude_invoker.replicas.record import PastRun
from claude_invoker.runs.run import Run
from claude_invoker.trust import attested

router = APIRouter(tags=["steering"], responses=LOOKING)
_BODY = request_body(MessageToRun)
_SAYING = problems(400, 409, 422, 429)
_TAKING_BACK = problems(409)


async def steered_run(run_id: str, request: Request, caller: Annotated[Caller, Depends(attested)]) -> Run:
    """The caller's own, which goes on. Raises Problem 404, 409; Elsewhere."""
    run = await run_of(request, run_id, caller, Caller.owns)
    if isinstance(run, PastRun):
        raise Problem(409, "conflict", "the run is over")
    return run


async def steered_job(job_id: str, request: Request, caller: Annotated[Caller, Depends(attested)]) -> Job:
    """The same of a job."""
    job = await known_job(request, job_id, caller, Caller.owns)
    if job.state != "running":
        raise Problem(409, "conflict", f"the job is {job.state}")
    return job


async def message_in(request: Request, caller: Annotated[Caller, Depends(attested)]) -> str:
    """What the body says. Raises Problem 400, 422."""
    return checked(MessageToRun, border.json_object(await request.body())).message


SteeredRun = Annotated[Run, Depends(steered_run)]
SteeredJob = Annotated[Job, Depends(steered_job)]
Said = Annotated[str, Depends(message_in)]


@router.post("/runs/{run_id}/messages", status_code=202, responses=_SAYING, openapi_extra=_BODY, name="say")
async def say(run: SteeredRun, message: Said) -> SentMessage:
    """Tells the model something while it is at work: it sees it when the tool that runs has ended, or in a further
    turn."""
    return run.steering.say(message)


@router.delete("/runs/{run_id}/messages/{message_id}", responses=_TAKING_BACK, name="take_back")
async def take_back(run: SteeredRun, message_id: str) -> SentMessage:
    """Takes back what the model has not seen."""
    return await run.steering.take_back(message_id)


@router.post("/jobs/{job_id}/messages", status_code=202, responses=_SAYING, openapi_extra=_BODY, name="say_job")
async def say_to_job(request: Request, job: SteeredJob, message: Said) -> SentMessage:
    """The same of a job."""
    return await calls.say(store_of(request), job, message)


@router.delete("/jobs/{job_id}/messages/{message_id}", responses=_TAKING_BACK, name="take_back_job")
async def take_back_of_job(request: Request, job: SteeredJob, message_id: str) -> SentMessage:
    """The same of a job."""
    return await calls.take_back(store_of(request), job, message_id)
