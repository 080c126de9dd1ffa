"""`/runs`: find a run, look at it, follow it, cancel it, fetch what it left."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import JSONResponse

from claude_invoker.api.answers import EVENT, EVENTS, FILE, LOOKING, ZIP, problems
from claude_invoker.api.border import last_event_id, place
from claude_invoker.api.events import itself
from claude_invoker.api.files import file_answer
from claude_invoker.api.links import base, linked, view_with_links
from claude_invoker.api.listing import listed
from claude_invoker.api.query import ONLY_KNOWN
from claude_invoker.api.replicas import files_of, run_of
from claude_invoker.api.stream import RETRY, event_stream, without_events
from claude_invoker.api.zip import Form, zipped
from claude_invoker.caller import Caller
from claude_invoker.model import Artifact, ListedState, RunList, RunView
from claude_invoker.problem import Problem
from claude_invoker.replicas.record import PastRun
from claude_invoker.runs.run import Run
from claude_invoker.runs.summary import Filter
from claude_invoker.services import services
from claude_invoker.trust import attested

router = APIRouter(tags=["runs"], responses=LOOKING)


async def own_run(run_id: str, request: Request, caller: Annotated[Caller, Depends(attested)]) -> Run | PastRun:
    """The run, whichever replica runs it. Raises Problem 404, also for the runs of others; Elsewhere."""
    return await run_of(request, run_id, caller)


OwnRun = Annotated[Run | PastRun, Depends(own_run)]
Second = Annotated[float | None, Query(allow_inf_nan=False)]


@router.get("/runs", response_model=RunList, responses=problems(400), dependencies=[ONLY_KNOWN])
async def runs(
    request: Request,
    caller: Annotated[Caller, Depends(attested)],
    state: ListedState | None = None,
    since: Second = None,
    until: Second = None,
    session: str | None = None,
    repository: str | None = None,
    model: str | None = None,
    tag: str | None = None,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> RunList:
    """The caller's runs that are no jobs, newest first, without their results, as long as they are kept. `since` and
    `until`: those that began then, in seconds since the epoch. `model`: a name, or an alias such as `haiku`.

    A page may be short, or empty, while there is a `next`: only so many runs are looked at."""
    wanted = Filter(state, since, until, session, repository, model, tag)
    return await listed(request, caller, wanted, place(cursor), limit)


@router.get("/runs/{run_id}", response_model=RunView)
async def look(request: Request, run: OwnRun) -> RunView:
    """State, cost so far and, once it is over, the result or the error."""
    view = run.view()
    view.artifacts = await services(request).engine.keeping.now(run.id, view.artifacts)
    if view.result is not None:
        view.result = view.result.model_copy(update={"artifacts": view.artifacts})
    return view_with_links(request, view)


@router.delete("/runs/{run_id}", status_code=202, response_model=RunView)
async def cancel(request: Request, run: OwnRun, caller: Annotated[Caller, Depends(attested)]) -> RunView:
    """Cancels a run; harmless for one that is over."""
    run.cancel_for(caller.subject)
    return view_with_links(request, run.view())


@router.post("/runs/{run_id}/interrupt", status_code=202, response_model=RunView, responses=problems(409))
async def interrupt(request: Request, run: OwnRun) -> RunView:
    """Ends what the model does now. The run ends with what it has done, and its session goes on with the next turn."""
    if isinstance(run, PastRun):
        raise Problem(409, "conflict", "the run is over")
    run.interrupt()
    return view_with_links(request, run.view())


@router.delete("/runs/{run_id}/agents/{call}", status_code=202, response_model=RunView, responses=problems(409))
async def stop_agent(request: Request, run: OwnRun, call: str) -> RunView:
    """Ends one subagent, by the id of the tool's call that has begun it. The model is told so, and goes on."""
    if isinstance(run, PastRun):
        raise Problem(409, "conflict", "the run is over")
    run.agents.stop(call)
    return view_with_links(request, run.view())


@router.get("/runs/{run_id}/events", response_class=Response, responses=EVENTS)
async def events(
    request: Request, run: OwnRun, last_seen: Annotated[str | None, Header(alias="Last-Event-ID")] = None
) -> Response:
    """The event stream, from the beginning or after `Last-Event-ID`."""
    settings = services(request).settings
    last, headers = last_event_id(last_seen), {"X-Claude-Run": run.id}
    nothing_left = run.events.closed and 0 < run.events.last_id <= last
    return without_events(request, nothing_left=nothing_left, headers=headers) or event_stream(
        run,
        last,
        root=f"{base(request)}/runs/{run.id}",
        heartbeat_s=settings.heartbeat_s,
        grace_s=settings.detach_grace_s,
        headers=headers,
        begin=RETRY,
    )


@router.get("/runs/{run_id}/events/{number}", response_class=Response, responses=EVENT)
async def event(run: OwnRun, number: Annotated[int, Path(ge=1, lt=10**15)]) -> Response:
    """One event's data by its number, whole: of those that are `truncated` in the stream."""
    found = run.events.find(number)
    if found is None:
        raise Problem(404, "not-found", "the run has no such event, or has it no more")
    return itself(found.data, {"X-Claude-Run": run.id})


@router.get(
    "/runs/{run_id}/artifacts",
    response_model=list[Artifact],
    responses=ZIP | problems(400),
    dependencies=[ONLY_KNOWN],
)
async def artifacts(
    request: Request, run: OwnRun, caller: Annotated[Caller, Depends(attested)], format: Form | None = None
) -> Response:
    """What the run left, as a list or (`?format=zip`) as one archive."""
    if format == "zip":
        return await zipped(run.id, await files_of(request, run, caller), run.artifacts)
    found = await services(request).engine.keeping.now(run.id, run.artifacts)
    return JSONResponse([artifact.model_dump(mode="json") for artifact in linked(request, run.id, found)])


@router.get("/runs/{run_id}/artifacts/{path:path}", response_class=Response, responses=FILE)
async def artifact(request: Request, run: OwnRun, caller: Annotated[Caller, Depends(attested)], path: str) -> Response:
    """One file: its type by content, its SHA-256 as ETag, ranges."""
    found = next((artifact for artifact in run.artifacts if artifact.path == path), None)
    if found is None:
        raise Problem(404, "not-found", "the run left no such file")
    return await file_answer(request, await files_of(request, run, caller), found)
