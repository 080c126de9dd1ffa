"""What routes may answer, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from claude_invoker.api.fields import OURS
from claude_invoker.api.languages import JSON, PROBLEM
from claude_invoker.api.openapi import reference

Answers = dict[int | str, dict[str, Any]]


class ProblemDocument(BaseModel):
    """RFC 9457. Further members say more of some: which limit it was, each field that is wrong."""

    type: str
    title: str
    status: int
    detail: str | None = None
    api_status: int | None = None


_PROBLEM = {PROBLEM: {"schema": reference(ProblemDocument)}}
_TEXTS = {
    400: "Not JSON, or a parameter that is not known there",
    401: "No valid attestation of the gateway",
    403: "Not allowed: by the gateway's clamps, or for who asks",
    404: "Not there, or another's",
    406: "The run left nothing of the asked type, or no run would",
    408: "The body did not come in time",
    409: "Not as it is now: the session has a run in progress, a run or job is over, a decision was made",
    410: "It is not there any more",
    413: "Too large",
    415: "Not a form",
    416: "No such range",
    422: "Not valid, or rejected by the model API",
    429: "The caller's runs and jobs hold too much",
    499: "Cancelled",
    502: "The model API or the CLI failed",
    503: "Busy, the model API is overloaded, or another release stored what is asked for",
    504: "A deadline passed",
    507: "The runs and jobs of all callers hold too much, or the disk has no room",
}


def problems(*statuses: int) -> Answers:
    return {status: {"description": _TEXTS[status], "content": _PROBLEM} for status in statuses}


RUNNING = problems(400, 401, 403, 404, 406, 408, 409, 413, 422, 429, 499, 502, 503, 504, 507)
LOOKING = problems(401, 404, 422, 503)
EVENTS: Answers = {
    200: {"description": "The events", "content": {"text/event-stream": {}}},
    204: {"description": "It is over and `Last-Event-ID` was its last event: do not come back"},
}
EVENT: Answers = {
    200: {
        "description": "The event's data, whole",
        "content": {JSON: {"schema": {"type": "object", "additionalProperties": True}}},
    }
}
ZIP: Answers = {
    200: {
        "description": "The list; with `?format=zip` all files",
        "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
    }
}
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
FILE: Answers = {
    200: {"description": "The file, of whatever type it is", "content": _BYTES},
    206: {"description": "A range of it", "content": _BYTES},
    304: {"description": "Not modified"},
    **problems(416),
}


_ANYTHING = {JSON: {"schema": {"type": "object", "additionalProperties": True}}}
_STREAM: dict[str, Any] = {"text/event-stream": {}}
_NAMES = {"type": "array", "items": {"type": "string"}}
_MESSAGES = {
    "type": "object",
    "required": ["model", "messages"],
    "properties": dict.fromkeys(OURS, _NAMES),
    "additionalProperties": True,
}
VENDORS_BODY = {"requestBody": {"required": True, "content": {JSON: {"schema": _MESSAGES}}}}
"""`openapi_extra` of a route in a vendor's language, whose own documents say what else is in it."""


def of_vendor(whose: str, *, streams: bool = False) -> Answers:
    """Of a route in that language."""
    error = {"description": f"An error in {whose}'s shape", "content": _ANYTHING}
    told = {"description": f"As {whose}'s; with `stream` its events", "content": _ANYTHING | _STREAM}
    said = {"description": f"As {whose}'s", "content": _ANYTHING}
    return {200: told if streams else said, "4XX": error, "5XX": error}
