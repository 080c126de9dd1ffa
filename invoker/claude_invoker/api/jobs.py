"""`/jobs`: queue a run, come back for it."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from claude_invoker.api import border
from claude_invoker.api.answers import EVENT, EVENTS, FILE, LOOKING, RUNNING, ZIP, problems
from claude_invoker.api.events import itself
from claude_invoker.api.files import file_answer
from claude_invoker.api.invocation import decided, invocation_of
from claude_invoker.api.links import base, linked, with_links
from claude_invoker.api.once import another_request, taken_for_job
from claude_invoker.api.openapi import request_body
from claude_invoker.api.query import ONLY_KNOWN
from claude_invoker.api.stream import HEADERS, HEARTBEAT, RETRY, encode, without_events
from claude_invoker.api.zip import Form, zipped
from claude_invoker.caller import Caller
from claude_invoker.catalog.choosing import refuse_without_tokens
from claude_invoker.idempotency import Claim, fingerprint_of, fingerprint_of_retry
from claude_invoker.jobs import calls, webhook
from claude_invoker.jobs.queue import enqueue_delivery, enqueue_ticket
from claude_invoker.jobs.record import OVER, Job, JobList, JobRequest, JobView, State, retention
from claude_invoker.jobs.store import Store
from claude_invoker.model import Artifact
from claude_invoker.problem import Problem
from claude_invoker.runs.kept import Files
from claude_invoker.services import Jobs, services
from claude_invoker.trust import attested, attested_run, give_back

router = APIRouter(tags=["jobs"], responses=LOOKING)
_GONE = problems(410)
_BODY = request_body(JobRequest)
PAGES = 20  # looked at for one page of a list


def jobs_of(request: Request) -> Jobs:
    """Raises Problem 503 where no Redis is configured: jobs wait there."""
    jobs = services(request).jobs
    if jobs is None:
        raise Problem(503, "not-configured", "jobs need Redis: set INVOKER_REDIS_URL")
    return jobs


def store_of(request: Request) -> Store:
    """Raises Problem 503 where no Redis is configured."""
    return jobs_of(request).store


def answers_later(request: Request, caller: Caller) -> bool:
    """True where `/invoke` becomes a job: the caller prefers it (RFC 7240), or the gateway let it in to wait."""
    preferences = ",".join(request.headers.getlist("prefer")).lower()
    return caller.queued or "respond-async" in [p.partition(";")[0].strip() for p in preferences.split(",")]


@router.post("/jobs", status_code=202, response_model=JobView, responses=RUNNING, openapi_extra=_BODY)
async def create(
    request: Request,
    caller: Annotated[Caller, Depends(attested_run)],
    _: Annotated[str | None, Header(alias="Idempotency-Key")] = None,  # for the OpenAPI document
) -> Response:
    """Queues a run: 202 with its place. The same `Idempotency-Key` and body give the same job."""
    return await enqueue(request, caller)


async def enqueue(request: Request, caller: Caller, *, is_run: bool = False) -> Response:
    """The answer to whatever becomes a job. `is_run`: see `queued`. Raises Problem 400, 403, 422, 503."""
    return accepted(await queued(request, caller, await invocation_of(request, caller, JobRequest), is_run=is_run))


def accepted(view: JobView) -> Response:
    """202 with the job's place."""
    headers = {"Location": view.links["self"], "Retry-After": "1", "Preference-Applied": "respond-async"}
    return JSONResponse(view.model_dump(mode="json", exclude_none=True), status_code=202, headers=headers)


async def queued(
    request: Request, caller: Caller, wanted: JobRequest, *, is_run: bool = False, retry_of: str = "", key: str = ""
) -> JobView:
    """The job of an invocation. `is_run`: it might as well become a run, so that its key is one of these. `retry_of`:
    the job whose request this was. `key`: the `Idempotency-Key` where the request has none. Raises Problem 400, 403,
    422, 429, 503, 507."""
    store = store_of(request)
    chosen = decided(request, wanted, caller)  # what cannot run is refused now, not later
    refuse_without_tokens(chosen.servers, None, services(request).engine.catalog)
    await services(request).engine.uploads.refuse_missing(caller.owner, chosen.files)
    if wanted.callback_url:
        webhook.check_url(wanted.callback_url, services(request).settings)
    key = border.idempotency_key(request) or key
    job = Job.new(wanted, replace(caller, queued=True), time.time(), border.traceparent(request), retry_of)
    path = request.scope["path"]
    fingerprint = fingerprint_of_retry(retry_of) if retry_of else fingerprint_of(path, wanted, caller)
    mine = Claim(fingerprint, job.id, job.created_at)
    async with taken_for_job(request, key, caller, mine) if key and is_run else nullcontext():
        await give_back(request, caller)  # the job takes its lease when it starts
        happened, job_id = await store.add(job, (key, fingerprint) if key else None)
        if happened == "conflict":
            raise another_request()
    if happened == "accepted":
        await enqueue_ticket(jobs_of(request).queues)
    stored = await store.get(job_id) or job
    return stored.view(base(request), await store.turn(stored) if stored.state == "queued" else None)


async def own_job(job_id: str, request: Request, caller: Annotated[Caller, Depends(attested)]) -> Job:
    """The caller's job. Raises Problem 404, also for others' jobs, and 410 for one that has expired."""
    return await known_job(request, job_id, caller, Caller.may_see)


def is_job_id(text: str) -> bool:
    return re.fullmatch(r"job_[0-9a-f]{24}", text) is not None


async def known_job(request: Request, job_id: str, caller: Caller, may: Callable[[Caller, str], bool]) -> Job:
    """A job that the caller `may` see; the same otherwise."""
    store = store_of(request)
    job = await store.get(job_id) if is_job_id(job_id) else None
    if job is not None and may(caller, job.subject):
        return job
    if job is None and await store.gone(job_id, None if "admin" in caller.roles else caller.subject):
        raise Problem(410, "gone", "the job has expired")
    raise Problem(404, "not-found", "there is no such job")


OwnJob = Annotated[Job, Depends(own_job)]


AttestedCaller = Annotated[Caller, Depends(attested)]


async def view_of(request: Request, job: Job, caller: Caller) -> JobView:
    """For whom it is shown to."""
    turn = await store_of(request).turn(job) if job.state == "queued" else None
    view = job.view(base(request), turn, names_caller="admin" in caller.roles)
    if view.result is not None:
        found = await services(request).engine.keeping.now(job.id, view.result.artifacts)
        view.result = with_links(request, view.result.model_copy(update={"artifacts": found}))
    return view


@router.get("/jobs", response_model=JobList, responses=problems(400, 403), dependencies=[ONLY_KNOWN])
async def jobs(
    request: Request,
    caller: AttestedCaller,
    state: State | None = None,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    all: bool = False,
    tag: str | None = None,
) -> JobList:
    """The caller's jobs, newest first, without their results. `all=true`: everybody's, for the role `admin`, which is
    told whose each is. Without it that is 403: a list of one's own must not be taken for everybody's.

    With `state` or `tag` a page may be short, or empty, while there is a `next`: only so many jobs are looked at."""
    before = border.place_of_job(cursor)
    is_admin = "admin" in caller.roles
    if all and not is_admin:
        raise Problem(403, "forbidden", "all=true lists everybody's jobs, which needs the role admin")
    subject = None if all else caller.subject
    found: list[Job] = []
    for _ in range(PAGES):
        page, before = await store_of(request).page(subject, before, limit if state is None and tag is None else 100)
        found += [job for job in page if state in (None, job.state) and (tag is None or tag in job.tags)]
        if before is None or len(found) >= limit:
            break
    shown = found[:limit]
    if len(found) > limit:
        before = shown[-1].place
    listed = [job.view(base(request), names_caller=is_admin) for job in shown]
    return JobList(jobs=listed, next=None if before is None else str(before))


@router.get("/jobs/{job_id}", response_model=JobView, responses=_GONE)
async def look(request: Request, job: OwnJob, caller: AttestedCaller, response: Response) -> JobView:
    """State, position in the queue, progress and cost so far, and the result once there is one."""
    if job.state not in OVER:
        response.headers["Retry-After"] = "1"
    return await view_of(request, job, caller)


@router.delete("/jobs/{job_id}", status_code=202, response_model=JobView, responses=_GONE)
async def cancel(request: Request, job: OwnJob, caller: AttestedCaller) -> JobView:
    """Cancels a job that waits or runs; harmless for one that is over."""
    await end(request, job, caller)
    return await view_of(request, await store_of(request).get(job.id) or job, caller)


@router.post("/jobs/{job_id}/interrupt", status_code=202, response_model=JobView, responses=_GONE | problems(409))
async def interrupt(request: Request, job: OwnJob, caller: AttestedCaller) -> JobView:
    """Ends what the model does now; the job is done with what it has done."""
    if job.state != "running":
        raise Problem(409, "conflict", f"the job is {job.state}")
    await calls.interrupt(store_of(request), job)
    return await view_of(request, await store_of(request).get(job.id) or job, caller)


@router.delete(
    "/jobs/{job_id}/agents/{call}",
    status_code=202,
    response_model=JobView,
    responses=_GONE | problems(409),
    name="stop_agent_of_job",
)
async def stop_agent(request: Request, job: OwnJob, caller: AttestedCaller, call: str) -> JobView:
    """Ends one subagent, by the id of the tool's call that has begun it. The model is told so, and goes on."""
    if job.state != "running":
        raise Problem(409, "conflict", f"the job is {job.state}")
    await calls.stop_agent(store_of(request), job, call)
    return await view_of(request, await store_of(request).get(job.id) or job, caller)


async def end(request: Request, job: Job, caller: Caller) -> None:
    """Cancels a job, for that caller."""
    if not await store_of(request).cancel(job, retention(job, services(request).settings), caller.subject):
        return  # its worker does it
    services(request).engine.on_withdrawn(job, caller.subject)
    if job.callback:
        await enqueue_delivery(jobs_of(request).queues, job.id)


@router.get("/jobs/{job_id}/events", response_class=Response, responses=EVENTS | _GONE)
async def events(
    request: Request, job: OwnJob, last_seen: Annotated[str | None, Header(alias="Last-Event-ID")] = None
) -> Response:
    """The run's events as they come; `Last-Event-ID` goes on where a client left, on any server."""
    last = border.stream_id(last_seen)
    heartbeat = services(request).settings.heartbeat_s
    store = store_of(request)
    nothing_left = last != border.BEFORE_ALL and job.state in OVER and not await store.has_events(job.id, last)
    return without_events(request, nothing_left=nothing_left, headers={}) or StreamingResponse(
        _encoded(store, job.id, last, f"{base(request)}/jobs/{job.id}/events", heartbeat),
        media_type="text/event-stream",
        headers=HEADERS,
    )


async def _encoded(store: Store, job_id: str, last: str, root: str, heartbeat: float) -> AsyncIterator[bytes]:
    yield RETRY
    async for event in store.follow(job_id, last, heartbeat):
        yield HEARTBEAT if event is None else encode(event[0], event[1], event[2].encode(), root)


@router.get("/jobs/{job_id}/events/{event_id}", response_class=Response, responses=EVENT | _GONE)
async def event(request: Request, job: OwnJob, event_id: str) -> Response:
    """One event's data by its id, whole: of those that are `truncated` in the stream."""
    found = await store_of(request).event(job.id, border.stream_id(event_id))
    if found is None:
        raise Problem(404, "not-found", "the job has no such event, or has it no more")
    return itself(found.encode(), {})


def artifacts_of(job: Job) -> list[Artifact]:
    """What the job has left, also where it failed."""
    if job.result is not None:
        return job.result.artifacts
    return [Artifact.model_validate(item) for item in (job.error or {}).get("artifacts", [])]


@router.get(
    "/jobs/{job_id}/artifacts",
    response_model=list[Artifact],
    responses=ZIP | _GONE | problems(400),
    dependencies=[ONLY_KNOWN],
)
async def artifacts(request: Request, job: OwnJob, format: Form | None = None) -> Response:
    """What the job left, as a list or (`?format=zip`) as one archive."""
    found = artifacts_of(job)
    if format == "zip":
        return await zipped(job.id, files_of(request, job), found)
    found = await services(request).engine.keeping.now(job.id, found)
    listed: list[dict[str, Any]] = [a.model_dump(mode="json") for a in linked(request, job.id, found)]
    return JSONResponse(listed)


@router.get("/jobs/{job_id}/artifacts/{path:path}", response_class=Response, responses=FILE | _GONE)
async def artifact(request: Request, job: OwnJob, path: str) -> Response:
    """One file: its type by content, its SHA-256 as ETag, ranges."""
    found = next((a for a in artifacts_of(job) if a.path == path), None)
    files = files_of(request, job)
    if found is None or (files.store is None and files.here(found) is None):
        raise Problem(404, "not-found", "the job left no such file")
    return await file_answer(request, files, found)


def files_of(request: Request, job: Job) -> Files:
    return services(request).engine.keeping.files(job.id)
