"""In which language an answer is given on the paths of the vendors' APIs, and how an error is said in it: pure.

At the gateway `claude-errors` (Lua) says the same of what never comes this far; `tests/clients/test_errors.py` holds
the two to one table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from claude_invoker.problem import TITLES, Problem

Language = Literal["problem", "anthropic", "openai", "graphql"]
PROBLEM = "application/problem+json"
JSON = "application/json"

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:#@/+=-]{1,128}")
_ANTHROPIC = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    507: "overloaded_error",
    529: "overloaded_error",
}
_OPENAI = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


@dataclass(frozen=True)
class Said:
    """An error as it is answered. `headers` are those of the language; the problem's own come beside them."""

    status: int
    body: dict[str, Any]
    media_type: str
    headers: Mapping[str, str]


def language_of(path: str, headers: Mapping[str, str], prefix: str) -> Language:
    """`path`: of the request, with or without the public `prefix`; `headers`: names in any case that `get` finds.

    Below `/v1` Anthropic's for `messages` and for whoever sends `anthropic-version`, as its clients do; else OpenAI's.
    """
    if path in ("/graphql", f"{prefix}/graphql"):
        return "graphql"
    inside = path.removeprefix(prefix + "/v1/") if prefix else path
    if inside == path:
        inside = path.removeprefix("/v1/")
    if inside == path:
        return "problem"
    named = inside == "messages" or inside.startswith("messages/")
    return "anthropic" if named or headers.get("anthropic-version") else "openai"


def request_id(headers: Mapping[str, str]) -> str:
    """The gateway's id of the request; empty where there is none that can be repeated."""
    given = headers.get("x-request-id") or ""
    return given if _REQUEST_ID.fullmatch(given) else ""


def identified(headers: Mapping[str, str]) -> dict[str, str]:
    """The header by which Anthropic's clients name a request; none where the gateway has not named it."""
    known = request_id(headers)
    return {"request-id": known} if known else {}


def said(problem: Problem, language: Language, request_id: str) -> Said:
    """A problem in a language. The vendors know no 422: what is wrong with a request is 400."""
    if language == "problem":
        return Said(problem.status, problem.document(), PROBLEM, {})
    if language == "graphql":
        return Said(problem.status, {"errors": [in_graphql(problem)]}, JSON, {})
    status = 400 if problem.status == 422 else problem.status
    message, code = problem.detail or TITLES[problem.kind], problem.kind.replace("-", "_")
    if language == "anthropic":
        details = problem.extra | {"error_code": code}
        error = {"type": anthropic_type(status), "message": message, "details": details}
        body: dict[str, Any] = {"type": "error", "error": error}
        if request_id:
            body["request_id"] = request_id
        return Said(status, body, JSON, {"request-id": request_id} if request_id else {})
    places = problem.extra.get("errors") or [{}]
    param = places[0].get("at") or None
    body = {"message": message, "type": openai_type(status), "param": param, "code": code}
    if problem.extra:
        body["details"] = problem.extra
    return Said(status, {"error": body}, JSON, {})


def in_graphql(problem: Problem) -> dict[str, Any]:
    """A problem as one of GraphQL's errors: its members are `extensions`, its kind their `code`."""
    document = problem.document()
    message = problem.detail or TITLES[problem.kind]
    return {"message": message, "extensions": {"code": problem.kind, **document}}


def anthropic_type(status: int) -> str:
    return _ANTHROPIC.get(status) or ("invalid_request_error" if status < 500 else "api_error")


def openai_type(status: int) -> str:
    return _OPENAI.get(status) or ("invalid_request_error" if status < 500 else "server_error")
