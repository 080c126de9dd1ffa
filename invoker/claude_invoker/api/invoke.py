"""`POST /invoke`: run the CLI and answer with its result, its event stream, or the file it made."""

from __future__ import annotations

import functools
import re
import time
from contextlib import nullcontext
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from claude_invoker.api import border, jobs
from claude_invoker.api.answers import RUNNING, Answers, problems
from claude_invoker.api.files import disposition, file_itself
from claude_invoker.api.form import Form, form_of
from claude_invoker.api.invocation import invocation_of, submitted, validated
from claude_invoker.api.links import base, with_links
from claude_invoker.api.negotiation import (
    EVENT_STREAM,
    JSON,
    before_json,
    preferred,
    refuse_what_no_run_gives,
    takes_json,
)
from claude_invoker.api.openapi import form_body, reference, request_body
from claude_invoker.api.replicas import files_of
from claude_invoker.api.stream import event_stream
from claude_invoker.api.waiting import NOT_AGAIN, cost_headers, replayed, while_connected
from claude_invoker.caller import Caller
from claude_invoker.jobs.record import JobView
from claude_invoker.model import Artifact, InvokeRequest, RunResult, Usage
from claude_invoker.problem import Problem
from claude_invoker.replicas.record import PastRun
from claude_invoker.runs.engine import Engine
from claude_invoker.runs.media import essence
from claude_invoker.runs.run import Run
from claude_invoker.services import services
from claude_invoker.trust import attested_form, attested_run

router = APIRouter(tags=["invoke"])

_BODY = request_body(InvokeRequest)
_WORD = {"type": "string", "pattern": "^[A-Za-z0-9._-]+$"}
_REPOSITORY = {"parameters": [{"name": n, "in": "path", "required": True, "schema": _WORD} for n in ("owner", "name")]}
_ANSWERS: Answers = {
    200: {
        "description": "The result; with `Accept: text/event-stream` the events, with another type the artifact of it",
        "content": {"text/event-stream": {}},
    },
    202: {
        "description": "A job: with `Prefer: respond-async`, or where it waits for a place",
        "content": {JSON: {"schema": reference(JobView)}},
    },
    **RUNNING,
}
_OF_FORM: Answers = {status: answer for status, answer in _ANSWERS.items() if status != 202} | problems(415)
_FORM = form_body(InvokeRequest)
LARGE = re.compile(r"/invoke/form|/files/[^/]*")
"""Paths of bodies that are not held in memory."""


async def invocation(request: Request, caller: Annotated[Caller, Depends(attested_run)]) -> InvokeRequest:
    return await invocation_of(request, caller, InvokeRequest)


@router.post("/invoke", response_model=RunResult, responses=_ANSWERS, openapi_extra=_BODY)
@router.post(
    "/repos/{owner}/{name}/invoke",
    name="in_repository",
    response_model=RunResult,
    responses=_ANSWERS,
    openapi_extra=_BODY | _REPOSITORY,
)
async def invoke(
    request: Request,
    caller: Annotated[Caller, Depends(attested_run)],
    wanted: Annotated[InvokeRequest, Depends(invocation)],
) -> Response:
    """Runs the Claude CLI once. `Accept: text/event-stream` streams; another type asks for the one
    artifact of that type."""
    if services(request).jobs is not None:
        key, later = border.idempotency_key(request), jobs.answers_later(request, caller)
        # What was sent before has become a job or a run, whatever it would become now.
        if key is not None and (held := await services(request).claims.held(caller.subject, key)) is not None:
            later = held.is_job
        if later:
            return await jobs.enqueue(request, caller, is_run=True)
    return await _answer(request, wanted, caller)


@router.post("/invoke/form", response_model=RunResult, responses=_OF_FORM, openapi_extra=_FORM)
async def invoke_form(request: Request, caller: Annotated[Caller, Depends(attested_form)]) -> Response:
    """The same for a request that comes with files, which are there when the run begins."""
    if caller.queued:
        raise Problem(503, "busy", "all places of your tier are taken", {"Retry-After": "5"})
    engine: Engine = services(request).engine
    engine.disk.refuse(caller.subject)  # before all that is sent
    settings = engine.settings
    held = nullcontext() if engine.ledger is None else engine.ledger.held(caller)
    coming = form_of(request, engine.intake, caller.subject, settings.max_body, settings.max_upload, held)
    async with coming as form:
        wanted = validated(border.json_object(form.request), caller, InvokeRequest)
        if wanted.files or wanted.archive is not None:
            raise Problem(422, "invalid", "request: in a form, files and archive are parts of their own")
        return await _answer(request, wanted, caller, form)


async def _answer(request: Request, wanted: InvokeRequest, caller: Caller, form: Form | None = None) -> Response:
    began = time.monotonic()
    engine: Engine = services(request).engine
    accept = request.headers.get("accept")
    streams = preferred(accept) == EVENT_STREAM
    check = functools.partial(refuse_what_no_run_gives, accept)
    run = await submitted(request, wanted, caller, form, live=streams, check=check)
    if streams:
        place = f"{base(request)}/runs/{run.id}"
        return event_stream(
            run,
            0,
            root=place,
            heartbeat_s=engine.settings.heartbeat_s,
            grace_s=engine.settings.detach_grace_s,
            headers={"X-Claude-Run": run.id, "Location": place, **replayed(request)},
        )
    result = await while_connected(request, run)
    headers = result_headers(request, run, time.monotonic() - began)
    kinds = before_json(accept)
    fitting = [artifacts_of_type(run, kind) for kind in kinds]
    if (found := next((each[0] for each in fitting if len(each) == 1), None)) is not None:
        own = {
            "ETag": f'"{found.sha256}"',
            "X-Content-Type-Options": "nosniff",
            "Content-Disposition": disposition(found.path),
        }
        return await file_itself(request, await files_of(request, run, caller), found, headers | own)
    linked = with_links(request, result).model_dump(mode="json")
    if not kinds or takes_json(accept):
        return JSONResponse(linked, headers=headers)
    count = f"{len(fitting[0])} artifacts" if fitting[0] else "no artifact"
    detail = f"the run left {count} of type {kinds[0]}"
    extra = {"artifacts": linked["artifacts"]}
    raise Problem(406, "not-acceptable", detail, headers | NOT_AGAIN, extra=extra)


def result_headers(request: Request, run: Run | PastRun, seconds: float) -> dict[str, str]:
    """What a request has taken: one that was led to the run of an earlier one nothing, or the gateway would count it
    twice."""
    used = run.result.usage if run.result and not replayed(request) else Usage()
    cached = used.cache_creation_input_tokens + used.cache_read_input_tokens
    return {
        "X-Claude-Run": run.id,
        "X-Claude-Model": run.model,
        **cost_headers(request, run),
        "X-Claude-Input-Tokens": str(used.input_tokens + cached),
        "X-Claude-Output-Tokens": str(used.output_tokens),
        "X-Response-Time": f"{seconds:.3f}",
    }


def artifacts_of_type(run: Run | PastRun, wanted: str) -> list[Artifact]:
    """Those of a media type or of a range such as `image/*`."""
    stem = wanted.removesuffix("*")
    return [a for a in run.artifacts if essence(a.type) == wanted or (stem != wanted and a.type.startswith(stem))]
