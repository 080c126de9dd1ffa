"""`/v1/messages` and what belongs to it: a run for the clients of Anthropic's Messages API; or, for who names a model
itself, what the API answers."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from claude_contract.kinds import kind_named, model_of
from claude_invoker.api.answers import VENDORS_BODY, of_vendor
from claude_invoker.api.anthropic import messages
from claude_invoker.api.anthropic.stream import Stream
from claude_invoker.api.border import json_object
from claude_invoker.api.invocation import begun, decided, validated
from claude_invoker.api.invoke import result_headers
from claude_invoker.api.languages import identified
from claude_invoker.api.links import with_links
from claude_invoker.api.passing import Passed
from claude_invoker.api.telling import told
from claude_invoker.api.waiting import while_connected
from claude_invoker.caller import Caller
from claude_invoker.model import InvokeRequest
from claude_invoker.passthrough.desk import COUNTING
from claude_invoker.problem import Problem
from claude_invoker.runs import counting
from claude_invoker.services import services
from claude_invoker.trust import attested, attested_run

router = APIRouter(prefix="/v1", tags=["anthropic"])

_COUNT = "/v1/messages/count_tokens"
_STREAMED, _COUNTED = of_vendor("Anthropic", streams=True), of_vendor("Anthropic")
_NAMED = {"run": "a run", "message": "a request to a model itself"}


@router.post("/messages", response_model=None, responses=_STREAMED, openapi_extra=VENDORS_BODY)
async def create(request: Request, caller: Annotated[Caller, Depends(attested_run)]) -> Response:
    """Runs the Claude CLI once and answers with one message, as JSON or (`stream`) as its events. A request for a
    message of a model itself is passed on."""
    began = time.monotonic()
    body = await request.body()
    model = model_of(body)
    kind = kind_named(model)
    if caller.kind not in (kind, None):
        # The gateway has counted it by other limits than it would be worth.
        raise Problem(403, "forbidden", f"{_NAMED[kind]} is not what the gateway has let in here")
    if model is not None and kind == "message":
        desk = services(request).desk
        terms = desk.terms(caller, model)
        request.state.started = True  # from here on the desk ends its lease
        return Passed(desk, request, caller, model, terms, "/v1/messages")
    wanted = messages.wanted(json_object(body))
    run = await begun(request, wanted.invocation, caller, messages.place)
    if wanted.stream:
        return await told(request, run, Stream(wanted, run.id), identified(request.headers))
    result = await while_connected(request, run)
    headers = result_headers(request, run, time.monotonic() - began) | identified(request.headers)
    return JSONResponse(messages.message(wanted, with_links(request, result)), headers=headers)


@router.post("/messages/count_tokens", response_model=None, responses=_COUNTED, openapi_extra=VENDORS_BODY)
async def count_tokens(request: Request, caller: Annotated[Caller, Depends(attested)]) -> Response:
    """How many tokens of input a message has. A run has those of the CLI's own words and tools beside them."""
    body = await request.body()
    model = model_of(body)
    if model is not None and kind_named(model) == "message":
        return Passed(services(request).desk, request, caller, model, COUNTING, _COUNT)
    wanted = messages.wanted(json_object(body))
    chosen = decided(request, validated(wanted.invocation, caller, InvokeRequest, messages.place), caller)
    metering = services(request).engine.metering
    tokens = await counting.count(metering, chosen.model, chosen.system, chosen.content)
    return JSONResponse({"input_tokens": tokens}, headers=identified(request.headers))
