"""Waiting for a run while its client is there: who leaves ends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from fastapi import Request
from starlette.types import Receive

from claude_invoker.api.stream import GONE, cancel_if_alone
from claude_invoker.cli.messages import MODEL_EVENTS
from claude_invoker.model import RunResult
from claude_invoker.problem import Problem
from claude_invoker.replicas.record import PastRun
from claude_invoker.runs.run import Run

NOT_AGAIN = {"X-Should-Retry": "false"}


async def while_connected(request: Request, run: Run | PastRun) -> RunResult:
    """The run's result; the run is cancelled when its last client goes away. Raises Problem."""
    if isinstance(run, PastRun):
        return await _outcome(request, run)
    async with _watched(run, run.done.wait(), left(request.receive)) as (finished, gone):
        await asyncio.wait((finished, gone), return_when=asyncio.FIRST_COMPLETED)
        if not run.done.is_set():
            _leave(run)
        return await _outcome(request, run)


async def until_heard(request: Request, run: Run | PastRun, within_s: float) -> None:
    """Until the model begins to answer, or `within_s` is over: so that what fails before is an error with a status, and
    no stream. The run is cancelled when the client goes away. Raises Problem where the run is over by then, and failed.
    """
    if isinstance(run, PastRun):
        await _outcome(request, run)
        return
    async with _watched(run, _first_of_model(run), left(request.receive)) as (heard, gone):
        await asyncio.wait((heard, gone), timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        if gone.done() and not run.done.is_set():
            _leave(run)
            await run.done.wait()
        if run.done.is_set():
            await _outcome(request, run)


def _leave(run: Run) -> None:
    """Ends the run of a client that is gone, unless others wait for it, or (`grace_s`) it comes back. Raises Problem
    where the run goes on, which nobody reads."""
    if run.watchers == 1 and not run.grace_s:
        run.cancel(GONE)
        return
    asyncio.get_running_loop().call_later(run.grace_s, cancel_if_alone, run)
    raise Problem(499, "cancelled", GONE)


@asynccontextmanager
async def _watched(run: Run, *awaited: Coroutine[Any, Any, Any]) -> AsyncIterator[list[asyncio.Task[Any]]]:
    tasks = [asyncio.create_task(each) for each in awaited]
    run.watchers += 1
    try:
        yield tasks
    finally:
        run.watchers -= 1
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def cost_headers(request: Request, run: Run | PastRun) -> dict[str, str]:
    """What the request has cost: where it was led to the run of an earlier one, nothing, or it would count twice."""
    if request.state.started:
        return {"X-Claude-Cost-USD": f"{run.cost_usd:.6f}"}
    return {"X-Claude-Cost-USD": f"{0:.6f}", **replayed(request)}


def replayed(request: Request) -> dict[str, str]:
    """Says that the run is an earlier request's."""
    return {} if request.state.started else {"Idempotent-Replayed": "true"}


async def _outcome(request: Request, run: Run | PastRun) -> RunResult:
    try:
        return await run.wait()
    except Problem as found:
        problem = replace(found, headers={**found.headers, "X-Claude-Run": run.id, **cost_headers(request, run)})
        # The vendors' SDKs send again what failed with 408, 409, 429 or 5xx: one call would pay for three runs.
        if problem.status != 503 or problem.kind == "worker-lost" or run.cost_usd:
            problem.headers |= NOT_AGAIN
        raise problem from found


async def _first_of_model(run: Run) -> None:
    async for event in run.events.follow():
        if event.name in MODEL_EVENTS:
            return


async def left(receive: Receive) -> None:
    """Returns when the client has."""
    while (await receive())["type"] != "http.disconnect":
        pass
