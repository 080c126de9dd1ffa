"""Problems as HTTP answers."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import Scope

from claude_contract.versions import UnknownVersion
from claude_invoker.api.languages import language_of, request_id, said
from claude_invoker.problem import Problem
from claude_invoker.replicas.forwarding import Elsewhere

_log = logging.getLogger(__name__)
_NOT_NOW = ("MISCONF", "NOREPLICAS", "MASTERDOWN", "UNKILLABLE", "BUSY")
"""Beginnings of what Redis says of itself and redis-py has no class for."""
Place = tuple[int | str, ...]
"""Of a value in a body: the names and numbers that lead to it."""


def answer(problem: Problem, scope: Scope, prefix: str) -> JSONResponse:
    """The problem in the language of the path that was asked. `scope`: of the request; `prefix`: the public one."""
    headers = Headers(scope=scope)
    language = language_of(scope["path"], headers, prefix)
    told = said(problem, language, request_id(headers))
    return JSONResponse(
        told.body, status_code=told.status, headers={**problem.headers, **told.headers}, media_type=told.media_type
    )


Checked = TypeVar("Checked", bound=BaseModel)


def invalid(errors: Sequence[Any]) -> Problem:
    """422 with the places and kinds of the errors, never with the input itself."""
    return wrong([in_callers_words(error) for error in errors])


def checked(model: type[Checked], given: object) -> Checked:
    """The value of that model. Raises Problem 422."""
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise invalid(errors_of(error)) from error


def errors_of(error: ValidationError) -> list[Any]:
    """Without the input, which may be a secret, or large. Of more than anybody reads their number alone: each costs as
    much as ten values."""
    if error.error_count() > _MOST:
        return [{"type": "many", "loc": (), "msg": f"the body has {error.error_count()} mistakes"}]
    return error.errors(include_input=False, include_context=False, include_url=False)


def wrong(errors: Sequence[dict[str, str]]) -> Problem:
    """422 with these errors, one at least, each with its place (`at`, empty for the whole) and a sentence (`error`)."""
    listed = list(errors[:20])
    first = " ".join(filter(None, listed[0].values()))
    more = f" (and {len(errors) - 1} more, see errors)" if len(errors) > 1 else ""
    return Problem(422, "invalid", first + more, extra={"errors": listed})


def in_callers_words(error: Any) -> dict[str, str]:
    """Of one of pydantic's errors the path as the caller would write it (`messages[0].role`; empty for the whole), and
    a sentence about it."""
    at = ""
    for part in error["loc"]:
        if isinstance(part, int):
            at += f"[{part}]"
        elif "<" not in part and not (part in ("body", "query", "header") and not at):
            at += f".{part}" if at else part
    said = _FIXED.get(error["type"]) or _SUBJECT.sub("must ", str(error["msg"])).removeprefix("Value error, ")
    return {"at": at[:_LONGEST], "error": said}


_MOST = 1000
_LONGEST = 300  # characters of a path: names in it are the caller's
_FIXED = {"missing": "is missing", "extra_forbidden": "is not known here"}
_SUBJECT = re.compile(r"^(?:[A-Z][a-z]+) should ")


def allowed(app: FastAPI, scope: Scope) -> list[str]:
    """The methods that are taken at the path of a request. Starlette names those of the first route there alone."""
    taken = [
        method
        for method in _METHODS
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in app.router.routes)
    ]
    return [*taken, "HEAD"] if "GET" in taken else taken  # as `HeadAsGet` has it


_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


Page = Callable[[Request, Problem], Response | None]
"""A problem as a page; None for whom it is none."""


def install(app: FastAPI, prefix: str = "", page: Page = lambda request, problem: None) -> None:
    """Every error of the application is a problem, in the language of its path, or a page for who asks for one."""

    def answered(request: Request, problem: Problem) -> Response:
        return page(request, problem) or answer(problem, request.scope, prefix)

    @app.exception_handler(Problem)
    async def _problem(request: Request, problem: Problem) -> Response:
        return answered(request, problem)

    @app.exception_handler(Elsewhere)
    async def _elsewhere(request: Request, found: Elsewhere) -> Response:
        return found.answer

    @app.exception_handler(UnknownVersion)
    async def _unknown_version(request: Request, error: UnknownVersion) -> Response:
        return answered(request, Problem(503, "other-release", str(error)))

    @app.exception_handler(RedisError)
    async def _redis(request: Request, error: RedisError) -> Response:
        # A script of Redis 6.2 says it within a text of its own.
        full = isinstance(error, OutOfMemoryError) or "OOM" in str(error)
        if type(error) is ResponseError and not full and not str(error).startswith(_NOT_NOW):
            raise error  # what we have asked was wrong
        _log.warning("jobs cannot be had: %s", error)
        why = "is full" if full else "cannot be asked"
        problem = Problem(503, "busy", f"jobs cannot be had now, their Redis {why}", {"Retry-After": "5"})
        return answered(request, problem)

    @app.exception_handler(ClientDisconnect)
    async def _left(request: Request, error: ClientDisconnect) -> Response:
        return answered(request, Problem(499, "cancelled", "the client has left before its body was there"))

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        return answered(request, invalid(error.errors()))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        kind = {404: "not-found", 405: "method-not-allowed"}.get(error.status_code, "bad-request")
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers = {"Allow": ", ".join(allowed(app, request.scope))}
        return answered(request, Problem(error.status_code, kind, headers=headers))

    @app.exception_handler(Exception)
    async def _internal(request: Request, error: Exception) -> Response:
        return answered(request, Problem(500, "internal"))
