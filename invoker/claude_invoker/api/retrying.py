"""`/jobs/{id}/retry`: a new job with the request of one that has not succeeded. To the gateway it is a request as any
other that begins a job: counted, and with the limits and the clamp of today.

The request is kept as the gateway has composed it, so that nothing is added to it here.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request, Response
from pydantic import ValidationError

from claude_invoker.api import border, jobs
from claude_invoker.api.answers import RUNNING, problems
from claude_invoker.api.once import another_request
from claude_invoker.caller import Caller
from claude_invoker.idempotency import fingerprint_of_retry
from claude_invoker.jobs.again import in_place, misplaced, refusal
from claude_invoker.jobs.record import JobView
from claude_invoker.problem import Problem
from claude_invoker.trust import attested_run

router = APIRouter(tags=["jobs"], responses=RUNNING | problems(410))


@router.post("/jobs/{job_id}/retry", status_code=202, response_model=JobView)
async def retry(
    request: Request,
    job_id: str,
    caller: Annotated[Caller, Depends(attested_run)],
    _: Annotated[str | None, Header(alias="Idempotency-Key")] = None,  # for the OpenAPI document
) -> Response:
    """Tries a job again that has failed or was cancelled: a new job with the same request, and 202 with its place. The
    same `Idempotency-Key` gives the same job."""
    await refuse_body(request)
    return jobs.accepted(await retried(request, caller, job_id))


async def refuse_body(request: Request) -> None:
    """Raises Problem 422."""
    if await request.body():
        raise Problem(422, "invalid", "the body must be empty: what is tried again is the job's own request")


async def retried(request: Request, caller: Caller, job_id: str, key: str = "") -> JobView:
    """The new job. `key`: the `Idempotency-Key` where the request has none. Raises Problem 400, 403, 404, 409, 410,
    422, 429, 503, 507."""
    # Before the job, which may have expired since it was tried again.
    key = border.idempotency_key(request) or key
    if key and (known := await jobs.store_of(request).known(caller.subject, key)) is not None:
        found, fingerprint = known
        if fingerprint != fingerprint_of_retry(job_id):
            raise another_request()
        return await jobs.view_of(request, found, caller)
    job = await jobs.known_job(request, job_id, caller, Caller.may_see)
    if (refused := refusal(job, caller) or misplaced(job, caller)) is not None:
        raise refused
    try:
        wanted = job.request
    except ValidationError as error:
        raise Problem(410, "gone", "the job's request is of another release: send it again") from error
    return await jobs.queued(request, in_place(job, caller), wanted, retry_of=job.id, key=key)
