"""From a request's body to what shall run: shared by everything that starts a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError

from claude_invoker.additions import with_additions
from claude_invoker.api import border
from claude_invoker.api.form import Form
from claude_invoker.api.once import once
from claude_invoker.api.problems import Place, errors_of, invalid
from claude_invoker.caller import Caller
from claude_invoker.catalog.choosing import refuse_without_tokens
from claude_invoker.model import InvokeRequest
from claude_invoker.plan import Plan, plan
from claude_invoker.problem import Problem
from claude_invoker.replicas.record import PastRun
from claude_invoker.runs.engine import Engine
from claude_invoker.runs.run import Run
from claude_invoker.services import services

Wanted = TypeVar("Wanted", bound=InvokeRequest)


async def invocation_of(request: Request, caller: Caller, model: type[Wanted]) -> Wanted:
    """The body with what the gateway adds to it. Raises Problem 400 (not JSON) or 422 (not an invocation)."""
    return validated(border.json_object(await request.body()), caller, model)


def validated(
    document: Mapping[str, Any], caller: Caller, model: type[Wanted], place: Callable[[Place], Place] = lambda at: at
) -> Wanted:
    """An invocation with what the gateway adds to it. `place`: where the caller has what is said of a field. Raises
    Problem 422."""
    try:
        return model.model_validate(with_additions(dict(document), caller.additions))
    except ValidationError as error:
        errors = errors_of(error)
        for item in errors:
            item["loc"] = place(item["loc"])
        raise invalid(errors) from error


def decided(request: Request, invoke: InvokeRequest, caller: Caller) -> Plan:
    """The plan of an invocation. Raises Problem 403, 404, 422."""
    engine: Engine = services(request).engine
    return plan(invoke, caller.clamp, engine.settings, engine.boundary, engine.repository(caller), engine.catalog)


async def submitted(
    request: Request,
    invoke: InvokeRequest,
    caller: Caller,
    form: Form | None = None,
    *,
    live: bool = False,
    check: Callable[[Plan], None] = lambda plan: None,
) -> Run | PastRun:
    """The run of an invocation, begun (for a request whose caller is `attested_run`); or, by an `Idempotency-Key` that
    was used before, the one that has begun then (see `once`). `form`: the files that came with it, which are the run's
    from then on. `check`: raises where the run is not to begin. Raises Problem 400, 403, 404, 409, 422, 429, 503, 507,
    Elsewhere."""
    engine: Engine = services(request).engine
    key = border.idempotency_key(request)
    tokens = border.tokens(request)
    chosen = decided(request, invoke, caller)
    refuse_without_tokens(chosen.servers, tokens, engine.catalog)
    check(chosen)
    if form is not None:
        chosen = replace(chosen, files=form.files, archive=form.archive, spool=form.directory)

    async def begin(run_id: str | None = None) -> Run:
        await engine.uploads.refuse_missing(caller.owner, chosen.files)
        if engine.ledger is not None:
            await engine.ledger.confirm(caller)
        run = engine.submit(chosen, caller, run_id=run_id, tokens=tokens)
        run.traceparent = border.traceparent(request)
        run.permissions.is_heard = live
        run.grace_s = engine.settings.detach_grace_s if key is not None else 0.0
        request.state.started = True
        if (replicas := services(request).replicas) is not None:
            await replicas.register.written(run)  # the answer may name it at once
        return run

    if key is None:
        return await begin()
    return await once(request, key, invoke, caller, begin, files="" if form is None else form.digest, live=live)


async def begun(
    request: Request, document: Mapping[str, Any], caller: Caller, place: Callable[[Place], Place]
) -> Run | PastRun:
    """The run of a request to a vendor's API, in the fields of an invocation. Raises what `validated` and `submitted`
    do, and Problem 503 where the gateway let the request in to wait: a client of such an API cannot come back."""
    invoke = validated(document, caller, InvokeRequest, place)
    if caller.queued:
        raise Problem(503, "busy", "all places of your tier are taken", {"Retry-After": "5"})
    return await submitted(request, invoke, caller)
