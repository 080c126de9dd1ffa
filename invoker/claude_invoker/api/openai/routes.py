"""`/v1/chat/completions`: a run for the clients of OpenAI's API."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from claude_invoker.api.answers import VENDORS_BODY, of_vendor
from claude_invoker.api.border import json_object
from claude_invoker.api.fields import answer_of
from claude_invoker.api.invocation import begun
from claude_invoker.api.invoke import result_headers
from claude_invoker.api.links import with_links
from claude_invoker.api.openai import chat
from claude_invoker.api.openai.stream import Stream
from claude_invoker.api.telling import told
from claude_invoker.api.waiting import while_connected
from claude_invoker.caller import Caller
from claude_invoker.trust import attested_run

router = APIRouter(prefix="/v1", tags=["openai"])
_STREAMED = of_vendor("OpenAI", streams=True)


@router.post("/chat/completions", response_model=None, responses=_STREAMED, openapi_extra=VENDORS_BODY)
async def create(request: Request, caller: Annotated[Caller, Depends(attested_run)]) -> Response:
    """Runs the Claude CLI once and answers with one completion, as JSON or (`stream`) as its chunks."""
    began = time.monotonic()
    wanted = chat.wanted(json_object(await request.body()))
    run = await begun(request, wanted.invocation, caller, wanted.place)
    if wanted.stream:
        return await told(request, run, Stream(wanted, run.id, run.created_at), {})
    result = await while_connected(request, run)
    answer = answer_of(result, by_schema="output_schema" in wanted.invocation)
    document = chat.completion(wanted, run.id, run.created_at, answer, with_links(request, result))
    return JSONResponse(document, headers=result_headers(request, run, time.monotonic() - began))
