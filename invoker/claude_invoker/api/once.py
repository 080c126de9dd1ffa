"""`Idempotency-Key` on what starts a run: whoever repeats the request is led to the run of the first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi import Request

from claude_invoker.api.replicas import attached
from claude_invoker.caller import Caller
from claude_invoker.idempotency import Claim, begins_anew, claim_of
from claude_invoker.model import InvokeRequest
from claude_invoker.problem import Problem
from claude_invoker.replicas.record import PastRun
from claude_invoker.runs.run import Run, new_id
from claude_invoker.services import services


async def once(
    request: Request,
    key: str,
    wanted: InvokeRequest,
    caller: Caller,
    begin: Callable[[str], Awaitable[Run]],
    *,
    files: str = "",
    live: bool = False,
) -> Run | PastRun:
    """The run that `begin` makes with the id it is given, or that of an earlier request with this key and meaning.
    `files`: a digest of those that came with it; `live`: the answer is the run's own event stream, so that another
    replica's goes on as it is.

    Raises what `begin` does, Problem 422 for a key of another request, 503, Elsewhere."""
    claims, subject = services(request).claims, caller.subject
    mine = claim_of(request.scope["path"] + files, wanted, caller, new_id())
    held = await claims.claim(subject, key, mine)
    while held != mine:
        if held.fingerprint != mine.fingerprint:
            raise another_request()
        if held.is_job:  # it became one a moment ago
            raise being_taken_in()
        run = await _run_of(request, held, caller, live=live)
        if run is None and await claims.is_beginning(subject, key, held):
            raise being_taken_in()
        if run is not None and not (run.is_over and begins_anew(run.view())):
            return run
        if await claims.replace(subject, key, held, mine):
            break
        held = await claims.claim(subject, key, mine)
    try:
        return await begin(mine.run)
    except BaseException:
        await asyncio.shield(claims.replace(subject, key, mine, None))
        raise


async def _run_of(request: Request, held: Claim, caller: Caller, *, live: bool) -> Run | PastRun | None:
    """None where it is kept no more, or not there yet. Raises Elsewhere."""
    parts = services(request)
    if held.run in parts.engine.runs:
        return parts.engine.find(held.run, caller)
    return None if parts.replicas is None else await attached(request, held.run, caller, live=live)


@asynccontextmanager
async def taken_for_job(request: Request, key: str, caller: Caller, mine: Claim) -> AsyncIterator[None]:
    """While a request at the path of runs becomes a job: repeated, it is led to that, and to no run. What is raised
    within gives the key back. Raises Problem 422 for a key of another request, 503."""
    claims, subject = services(request).claims, caller.subject
    held = await claims.claim(subject, key, mine)
    if held.fingerprint != mine.fingerprint:
        raise another_request()
    if not held.is_job:
        raise being_taken_in()
    try:
        yield
    except BaseException:
        if held == mine:
            await asyncio.shield(claims.replace(subject, key, mine, None))
        raise


def another_request() -> Problem:
    return Problem(422, "invalid", "this Idempotency-Key was used with another request")


def being_taken_in() -> Problem:
    detail = "the first request with this Idempotency-Key is being taken in"
    return Problem(503, "busy", detail, {"Retry-After": "1"})
