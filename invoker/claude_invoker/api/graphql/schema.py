"""The schema, and what answers each of its fields: the functions of the HTTP API, as it calls them."""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast, get_args

import orjson
from fastapi import Request
from graphql import (
    GraphQLArgument,
    GraphQLEnumType,
    GraphQLField,
    GraphQLFloat,
    GraphQLID,
    GraphQLInt,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLResolveInfo,
    GraphQLSchema,
    GraphQLString,
)
from starlette.types import Message

from claude_contract.graphql import LIMITS_HEADER
from claude_invoker.api import border, jobs, runs
from claude_invoker.api.graphql.types import JSON, argument, output
from claude_invoker.api.invocation import submitted, validated
from claude_invoker.api.invoke import result_headers
from claude_invoker.api.links import base, with_links
from claude_invoker.api.listing import listed
from claude_invoker.api.replicas import run_of
from claude_invoker.api.retrying import retried
from claude_invoker.api.waiting import while_connected
from claude_invoker.caller import Caller
from claude_invoker.jobs.record import JobList, JobRequest, JobView, State
from claude_invoker.model import InvokeRequest, ListedState, RunList, RunResult, RunView
from claude_invoker.problem import Problem
from claude_invoker.replicas.forwarding import Elsewhere
from claude_invoker.replicas.record import PastRun
from claude_invoker.runs.run import Run
from claude_invoker.runs.summary import Filter

MAX_PAGE = 100


@dataclass(frozen=True)
class Asking:
    """What a resolver has of the request (`info.context`)."""

    request: Request
    caller: Caller
    headers: dict[str, str] = field(default_factory=dict)
    """Of the answer: what a run has taken, for the gateway's log as well."""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by one list at a time: all of them at once keep everybody waiting."""

    def to(self, method: str, path: str) -> Request:
        """The request to the HTTP API that would ask for the same: where another invoker has it, that is asked so."""
        path = base(self.request) + path
        scope = {**self.request.scope, "method": method, "path": path, "raw_path": path.encode(), "query_string": b""}
        return Request(scope, _no_body)


async def _no_body() -> Message:
    """The document's own body has been read, and is none of what it asks for."""
    return {"type": "http.request", "body": b"", "more_body": False}


Resolver = Callable[..., Awaitable[Any]]


def _asking(resolve: Resolver) -> Callable[..., Awaitable[Any]]:
    """A resolver of the first level, of (asking, its arguments)."""

    @functools.wraps(resolve)
    async def resolved(_: None, info: GraphQLResolveInfo[Any], **arguments: Any) -> Any:
        return await resolve(cast(Asking, info.context), **arguments)

    return resolved


async def _of_run(
    asking: Asking, method: str, id: str, told: Callable[[Request, Run | PastRun], Awaitable[RunView]]
) -> Any:
    """What is `told` of a run, by whichever invoker has it."""
    request = asking.to(method, f"/runs/{_plain(id)}")
    try:
        run = await run_of(request, id, asking.caller)
    except Elsewhere as found:
        return await _answered(found)
    return (await told(request, run)).model_dump(mode="json")


async def _run(asking: Asking, id: str) -> Any:
    return await _of_run(asking, "GET", id, runs.look)


async def _runs(asking: Asking, cursor: str | None = None, limit: int = 20, **wanted: Any) -> Any:
    _refuse_page(limit)
    asked_for = Filter(**wanted)
    if not all(math.isfinite(each or 0) for each in (asked_for.since, asked_for.until)):
        raise Problem(422, "invalid", "since and until must be finite")
    found = await listed(asking.request, asking.caller, asked_for, border.place(cursor), limit)
    return found.model_dump(mode="json")


async def _job(asking: Asking, id: str) -> Any:
    job = await jobs.own_job(id, asking.request, asking.caller)
    return (await jobs.view_of(asking.request, job, asking.caller)).model_dump(mode="json")


async def _jobs(
    asking: Asking, state: State | None = None, tag: str | None = None, cursor: str | None = None, limit: int = 20
) -> Any:
    _refuse_page(limit)
    return (await jobs.jobs(asking.request, asking.caller, state, cursor, limit, tag=tag)).model_dump(mode="json")


def _refuse_page(limit: int | None) -> None:
    """Raises Problem 422. (None: it was said to be null.)"""
    if limit is None or not 1 <= limit <= MAX_PAGE:
        raise Problem(422, "invalid", f"limit must be from 1 to {MAX_PAGE}")


async def _limits(asking: Asking) -> Any:
    told = asking.request.headers.get(LIMITS_HEADER)
    if told is None:
        raise Problem(503, "not-configured", "the gateway does not say what is left of limits: ask at GET …/limits")
    with border.understood(LIMITS_HEADER):
        return orjson.loads(told)


async def _invoke(asking: Asking, input: dict[str, Any]) -> Any:
    request, caller, began = asking.request, asking.caller, time.monotonic()
    wanted = validated(input, caller, InvokeRequest)
    if caller.queued:
        raise Problem(503, "busy", "all places of your tier are taken: createJob waits for one", {"Retry-After": "5"})
    run = await submitted(request, wanted, caller)
    result = await while_connected(request, run)
    asking.headers.update(result_headers(request, run, time.monotonic() - began))
    return with_links(request, result).model_dump(mode="json")


async def _create_job(asking: Asking, input: dict[str, Any]) -> Any:
    wanted = validated(input, asking.caller, JobRequest)
    return (await jobs.queued(asking.request, asking.caller, wanted)).model_dump(mode="json")


async def _retry_job(asking: Asking, id: str) -> Any:
    return (await retried(asking.request, asking.caller, id)).model_dump(mode="json")


async def _cancel(asking: Asking, id: str) -> Any:
    if id.startswith("job_"):
        job = await jobs.own_job(id, asking.request, asking.caller)
        return (await jobs.cancel(asking.request, job, asking.caller)).model_dump(mode="json")
    return await _of_run(asking, "DELETE", id, functools.partial(runs.cancel, caller=asking.caller))


def _plain(run_id: str) -> str:
    """A run's id, which becomes a part of a path. Raises Problem 404."""
    if not run_id.isascii() or not run_id.replace("_", "").isalnum():
        raise Problem(404, "not-found", "there is no such run")
    return run_id


async def _answered(found: Elsewhere) -> Any:
    """Another invoker's answer. Raises the Problem that it is."""
    answer = found.answer.answer  # type: ignore[attr-defined]
    try:
        document = orjson.loads(await answer.aread())
    finally:
        await answer.aclose()
    if answer.status_code >= 400:
        raise Problem.of(document)
    return document


_ID = {"id": GraphQLArgument(GraphQLNonNull(GraphQLID))}
_STATE = GraphQLEnumType("JobState", {name: name for name in get_args(State)})
_STATE_OF_RUN = GraphQLEnumType("RunState", {name: name for name in get_args(ListedState)})
_PAGE = {
    "cursor": GraphQLArgument(GraphQLString, description="`next` of the page before"),
    "limit": GraphQLArgument(GraphQLInt, default_value=20),
}
_CANCELLED = GraphQLObjectType(
    "Cancelled",
    {
        "id": GraphQLField(GraphQLID),
        "state": GraphQLField(GraphQLString),
    },
    description="What was to end, as it is now: it may take a moment.",
)

_QUERY = GraphQLObjectType(
    "Query",
    {
        "run": GraphQLField(output(RunView), _ID, _asking(_run), description="A run of the caller's."),
        "job": GraphQLField(output(JobView), _ID, _asking(_job), description="A job of the caller's."),
        "runs": GraphQLField(
            output(RunList),
            {
                "state": GraphQLArgument(_STATE_OF_RUN),
                "since": GraphQLArgument(GraphQLFloat, description="Of its beginning, seconds since the epoch"),
                "until": GraphQLArgument(GraphQLFloat, description="The same, the first that is too late"),
                "session": GraphQLArgument(GraphQLString),
                "repository": GraphQLArgument(GraphQLString),
                "model": GraphQLArgument(GraphQLString, description="A name, or an alias such as haiku"),
                "tag": GraphQLArgument(GraphQLString),
                **_PAGE,
            },
            _asking(_runs),
            description="The caller's runs that are no jobs, newest first, without their results.",
        ),
        "jobs": GraphQLField(
            output(JobList),
            {"state": GraphQLArgument(_STATE), "tag": GraphQLArgument(GraphQLString), **_PAGE},
            _asking(_jobs),
            description="The caller's jobs, newest first, without their results.",
        ),
        "limits": GraphQLField(JSON, {}, _asking(_limits), description="What is left of the caller's limits."),
    },
)


def _input(model: type[InvokeRequest]) -> dict[str, GraphQLArgument]:
    return {"input": GraphQLArgument(GraphQLNonNull(argument(model)))}


_MUTATION = GraphQLObjectType(
    "Mutation",
    {
        "invoke": GraphQLField(
            output(RunResult), _input(InvokeRequest), _asking(_invoke), description="Runs a prompt, and waits for it."
        ),
        "createJob": GraphQLField(
            output(JobView), _input(JobRequest), _asking(_create_job), description="Queues a prompt."
        ),
        "retryJob": GraphQLField(
            output(JobView),
            _ID,
            _asking(_retry_job),
            description="Queues the request of a job once more that has failed or was cancelled.",
        ),
        "cancel": GraphQLField(_CANCELLED, _ID, _asking(_cancel), description="Ends a run or a job of the caller's."),
    },
)

SCHEMA = GraphQLSchema(_QUERY, _MUTATION)
