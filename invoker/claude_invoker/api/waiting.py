"""Waiting for a run while its client is there: who leaves ends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Request

from claude_invoker.cli.messages import MODEL_EVENTS
from claude_invoker.model import RunResult
from claude_invoker.problem import Problem
from claude_invoker.runs.run import Run

NOT_AGAIN = {"X-Should-Retry": "false"}


async def while_connected(request: Request, run: Run) -> RunResult:
    """The run's result; the run is cancelled when the client goes away. Raises Problem."""
    async with _watched(run, run.done.wait(), _left(request)) as (finished, gone):
        await asyncio.wait((finished, gone), return_when=asyncio.FIRST_COMPLETED)
        if not run.done.is_set():
            run.cancel("the client went away")
        return await _outcome(run)


async def until_heard(request: Request, run: Run, within_s: float) -> None:
    """Until the model begins to answer, or `within_s` is over: so that what fails before is an error with a status, and
    no stream. The run is cancelled when the client goes away. Raises Problem where the run is over by then, and failed.
    """
    async with _watched(run, _first_of_model(run), _left(request)) as (heard, gone):
        await asyncio.wait((heard, gone), timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        if gone.done() and not run.done.is_set():
            run.cancel("the client went away")
            await run.done.wait()
        if run.done.is_set():
            await _outcome(run)


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


async def _outcome(run: Run) -> RunResult:
    try:
        return await run.wait()
    except Problem as problem:
        problem.headers |= {"X-Claude-Run": run.id, "X-Claude-Cost-USD": f"{run.cost_usd:.6f}"}
        # The vendors' SDKs send again what failed with 408, 409, 429 or 5xx: one call would pay for three runs.
        if problem.status != 503 or run.cost_usd:
            problem.headers |= NOT_AGAIN
        raise


async def _first_of_model(run: Run) -> None:
    async for event in run.events.follow():
        if event.name in MODEL_EVENTS:
            return


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
