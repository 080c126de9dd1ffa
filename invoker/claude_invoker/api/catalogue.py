"""`/v1/models`: the names of runs, for the clients of either vendor, and those of models, for Anthropic's."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from claude_invoker.api import models
from claude_invoker.api.answers import of_vendor
from claude_invoker.api.anthropic import models as anthropic
from claude_invoker.api.languages import identified, language_of
from claude_invoker.api.openai import models as openai
from claude_invoker.caller import Caller
from claude_invoker.problem import Problem
from claude_invoker.services import services
from claude_invoker.trust import attested

router = APIRouter(prefix="/v1", tags=["models"])
_ANSWERS = of_vendor("the client's vendor")


def _is_anthropic(request: Request) -> bool:
    return language_of(request.scope["path"], request.headers, services(request).settings.prefix) == "anthropic"


@router.get("/models", response_model=None, responses=_ANSWERS)
async def listed(
    request: Request,
    _: Annotated[Caller, Depends(attested)],
    limit: str | None = None,
    after_id: str | None = None,
    before_id: str | None = None,
) -> Response:
    """As Anthropic's where `anthropic-version` is sent, else as OpenAI's."""
    settings = services(request).settings
    if not _is_anthropic(request):
        return JSONResponse(openai.listed(models.runs(settings)))
    names = models.all_names(settings)
    return JSONResponse(anthropic.page(names, limit, after_id, before_id), headers=identified(request.headers))


@router.get("/models/{name}", response_model=None, responses=_ANSWERS)
async def one(name: str, request: Request, _: Annotated[Caller, Depends(attested)]) -> Response:
    """One of them."""
    settings, is_anthropic = services(request).settings, _is_anthropic(request)
    if name not in (models.all_names(settings) if is_anthropic else models.runs(settings)):
        raise Problem(404, "not-found", f"there is no model {name[:100]} here: GET /v1/models lists them")
    if not is_anthropic:
        return JSONResponse(openai.model(name))
    return JSONResponse(anthropic.model(name), headers=identified(request.headers))
