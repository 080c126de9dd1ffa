"""`POST /graphql`: one operation, one answer. Neither GET nor batches, files or subscriptions."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from graphql import DocumentNode, ExecutionResult, GraphQLError, OperationType, execute, validate

from claude_contract import graphql as contract
from claude_invoker.api import border
from claude_invoker.api.graphql.bounds import operation_of, refuse_many
from claude_invoker.api.graphql.schema import SCHEMA, Asking
from claude_invoker.api.languages import in_graphql
from claude_invoker.problem import Problem
from claude_invoker.trust import looking, starting

_log = logging.getLogger(__name__)
router = APIRouter(tags=["graphql"])
_MEMBERS = frozenset(("query", "variables", "operationName", "extensions"))


@router.post("/graphql", response_model=None, include_in_schema=False)  # its schema says of itself what it takes
async def graphql(request: Request) -> Response:
    """Queries `run`, `job`, `jobs` and `limits`, mutations `invoke`, `createJob`, `retryJob`, `cancel`: one at
    a time."""
    body = await request.body()
    # The gateway has admitted it as what starts something by the same look at the same bytes.
    trusted = starting if contract.may_start(body) else looking
    async with trusted(request) as caller:
        text, variables = _asked(request, body)
        document, operation = operation_of(text)
        if operation.operation is not OperationType.QUERY and trusted is looking:
            raise Problem(403, "forbidden", "a mutation is not what the gateway has let in here")
        asking = Asking(request, caller)
        found = await _executed(asking, document, variables)
    return JSONResponse(found, headers={"Cache-Control": "no-store", **asking.headers})


def _asked(request: Request, body: bytes) -> tuple[str, dict[str, Any]]:
    """Raises Problem 400, 415, 422."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Problem(415, "bad-request", "send application/json")
    given = border.json_object(body)
    query, variables = given.get("query"), given.get("variables")
    if not isinstance(query, str) or query != contract.query_of(body):
        raise Problem(422, "invalid", "the body needs a query, a text")
    if not isinstance(variables, dict | None):
        raise Problem(422, "invalid", "variables must be an object")
    if unknown := sorted(given.keys() - _MEMBERS):
        raise Problem(422, "invalid", f"{unknown[0][:100]} is not known here")
    refuse_many(variables or {})
    return query, variables or {}


async def _executed(asking: Asking, document: DocumentNode, variables: dict[str, Any]) -> dict[str, Any]:
    """Raises Problem 400."""
    # Elsewhere than in the loop: what is left of its cost within the bounds is not nothing.
    errors = await asyncio.to_thread(validate, SCHEMA, document, max_errors=10)
    if errors:
        raise Problem(400, "bad-request", errors[0].message[:500], extra={"errors": [_plain(each) for each in errors]})
    result = execute(SCHEMA, document, context_value=asking, variable_values=variables, max_coercion_errors=10)
    done = result if isinstance(result, ExecutionResult) else await result
    assert isinstance(done, ExecutionResult)
    answer: dict[str, Any] = {"data": done.data}
    if done.errors:
        answer["errors"] = [_said(each) for each in done.errors]
        for each in done.errors:
            if isinstance(each.original_error, Problem):
                asking.headers.update(each.original_error.headers)
    return answer


def _plain(error: GraphQLError) -> dict[str, Any]:
    return {"at": "query", "error": error.message[:500]}


def _said(error: GraphQLError) -> dict[str, Any]:
    """What a field has instead of a value."""
    original = error.original_error
    placed = {"path": error.path} if error.path else {}
    if isinstance(original, Problem):
        return {**in_graphql(original), **placed}
    if original is None or isinstance(original, GraphQLError):  # of the caller's own: a variable of another type
        return {**in_graphql(Problem(422, "invalid", error.message[:500])), **placed}
    _log.error("a field of GraphQL failed", exc_info=original)
    return {**in_graphql(Problem(500, "internal")), **placed}
