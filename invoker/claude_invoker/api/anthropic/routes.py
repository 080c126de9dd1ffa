"""`/v1/messages` and what belongs to it: a run for the clients of Anthropic's Messages API."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from claude_invoker.api.anthropic import messages
from claude_invoker.api.anthropic.stream import Stream
from claude_invoker.api.border import json_object
from claude_invoker.api.invocation import begun, decided, validated
from claude_invoker.api.invoke import result_headers
from claude_invoker.api.languages import identified
from claude_invoker.api.telling import told
from claude_invoker.api.waiting import while_connected
from claude_invoker.caller import Caller
from claude_invoker.model import InvokeRequest
from claude_invoker.runs import counting
from claude_invoker.services import services
from claude_invoker.trust import attested, attested_run

router = APIRouter(prefix="/v1", tags=["anthropic"])


@router.post("/messages", response_model=None)
async def create(request: Request, caller: Annotated[Caller, Depends(attested_run)]) -> Response:
    """Runs the Claude CLI once and answers with one message, as JSON or (`stream`) as its events."""
    began = time.monotonic()
    wanted = messages.wanted(json_object(await request.body()))
    run = await begun(request, wanted.invocation, caller, messages.place)
    if wanted.stream:
        return await told(request, run, Stream(wanted, run.id), identified(request.headers))
    result = await while_connected(request, run)
    headers = result_headers(request, run, time.monotonic() - began) | identified(request.headers)
    return JSONResponse(messages.message(wanted, result), headers=headers)


@router.post("/messages/count_tokens", response_model=None)
async def count_tokens(request: Request, caller: Annotated[Caller, Depends(attested)]) -> Response:
    """How many tokens of input a message has. A run has those of the CLI's own words and tools beside them."""
    wanted = messages.wanted(json_object(await request.body()))
    chosen = decided(request, validated(wanted.invocation, caller, InvokeRequest, messages.place), caller)
    metering = services(request).engine.metering
    tokens = await counting.count(metering, chosen.model, chosen.system, chosen.content)
    return JSONResponse({"input_tokens": tokens}, headers=identified(request.headers))
