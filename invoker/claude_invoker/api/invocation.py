"""From a request's body to what shall run: shared by everything that starts a run."""

from __future__ import annotations

from typing import TypeVar

from fastapi import Request
from pydantic import ValidationError

from claude_invoker.additions import with_additions
from claude_invoker.api.border import json_object
from claude_invoker.api.problems import invalid
from claude_invoker.caller import Caller
from claude_invoker.model import InvokeRequest
from claude_invoker.plan import Plan, plan
from claude_invoker.runs.engine import Engine
from claude_invoker.services import services

Wanted = TypeVar("Wanted", bound=InvokeRequest)


async def invocation_of(request: Request, caller: Caller, model: type[Wanted]) -> Wanted:
    """The body with what the gateway adds to it. Raises Problem 400 (not JSON) or 422 (not an invocation)."""
    document = json_object(await request.body())
    try:
        return model.model_validate(with_additions(document, caller.additions))
    except ValidationError as error:
        raise invalid(error.errors(include_input=False, include_context=False, include_url=False)) from error


def decided(request: Request, invoke: InvokeRequest, caller: Caller) -> Plan:
    """The plan of an invocation. Raises Problem 403."""
    engine: Engine = services(request).engine
    return plan(invoke, caller.clamp, engine.settings, engine.boundary)
