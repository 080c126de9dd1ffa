"""Where a caller's bytes become values, the one place of the API that parses: whatever a parser makes of them, the
answer is a problem with a status of 4xx."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson
from fastapi import Request

from claude_contract.nesting import TOO_DEEP, too_deep
from claude_contract.structure import TOO_MANY_PARTS, too_many_parts
from claude_invoker.catalog.server import CREDENTIAL_HEADER, LEAST_SECRET
from claude_invoker.place import Place
from claude_invoker.problem import Problem

_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
MAX_FIELDS = 10  # of a form
BEFORE_ALL = "0-0"
"""The id of a job's event that comes before all of them."""
_TIME = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_LONGEST_TOKEN = 16384
_TOKEN = re.compile(rf"[\x21-\x7e]{{{LEAST_SECRET},{_LONGEST_TOKEN}}}")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_STREAM_ID = re.compile(r"[0-9]{1,16}-[0-9]{1,16}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[\x21-\x7e]{0,64})?")


@contextmanager
def understood(what: str) -> Iterator[None]:
    """Around a parser: Problem 400 for whatever it raises, since parsers fail over bytes in more ways than they say."""
    try:
        yield
    except Problem:
        raise
    except Exception as error:
        raise Problem(400, "bad-request", f"{what} is not understood") from error


def json_object(body: bytes) -> dict[str, Any]:
    """Raises Problem 400 for what is not JSON or has a member twice, 422 for what is no object, is nested too deeply or
    has too many values."""
    if too_many_parts(body):
        raise Problem(422, "invalid", f"the body {TOO_MANY_PARTS}")
    deep = Problem(422, "invalid", f"the body {TOO_DEEP}")
    try:
        # Not request.json(): it takes UTF-16 and half surrogate pairs, which the CLI cannot be sent.
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise deep if "depth" in error.msg else Problem(400, "bad-request", _not_json(body, error)) from error
    if not isinstance(document, dict):
        raise Problem(422, "invalid", "the body is not a JSON object")
    if too_deep(document):
        raise deep
    try:
        # orjson keeps the last of two members silently. Numbers are nobody's here: Python makes none of 4,301 digits.
        json.loads(body, object_pairs_hook=_each_once, parse_int=str, parse_float=str)
    except RecursionError as error:  # in a member that orjson has dropped
        raise deep from error
    return document


def _each_once(pairs: list[tuple[str, Any]]) -> None:
    """Of two members of one name one reader takes the first and another the last. Keeps nothing."""
    if len(pairs) > 1 and len(dict(pairs)) != len(pairs):
        raise Problem(400, "bad-request", "the body has duplicate keys")


def _not_json(body: bytes, error: orjson.JSONDecodeError) -> str:
    """Quotes nothing of the body."""
    if body.startswith(_MARKS):
        return "the body begins with a byte order mark: send it as UTF-8 without one"
    if not body.strip():
        return "the body is empty: it must be a JSON object"
    try:
        body.decode()
    except UnicodeDecodeError as problem:
        return f"the body is not UTF-8 (byte {problem.start})"
    if "surrogate" in error.msg:
        return "a text in the body has half of a surrogate pair, as of an emoji that was cut"
    return f"the body is not JSON (line {error.lineno}, column {error.colno})"


def form(body: bytes) -> dict[str, str]:
    """The first value of each field of an HTML form. Raises Problem 400."""
    with understood("the form"):
        fields = parse_qs(body.decode("utf-8", "replace"), max_num_fields=MAX_FIELDS)
    return {name: values[0] for name, values in fields.items()}


def content_length(header: bytes | None) -> int:
    """0 where there is none. Raises Problem 400."""
    if header is None:
        return 0
    if not _LENGTH.fullmatch(header):
        raise Problem(400, "bad-request", "Content-Length is not a number", {"Connection": "close"})
    return int(header)


def host_of(header: str, url: str) -> str | None:
    """The host in a URL, or in `//` and what a Host header says. Raises Problem 400 that names the header."""
    with understood(header):
        return urlsplit(url).hostname


def idempotency_key(request: Request) -> str | None:
    """Raises Problem 400."""
    key = request.headers.get("idempotency-key")
    if key is not None and not _KEY.fullmatch(key):
        raise Problem(400, "bad-request", "Idempotency-Key must have 1 to 255 visible ASCII characters")
    return key


def tokens(request: Request) -> dict[str, str]:
    """Those that a caller sends for MCP servers, by their names. Raises Problem 400, which quotes none."""
    found: dict[str, str] = {}
    for name, value in request.headers.items():
        server = name.removeprefix(CREDENTIAL_HEADER.lower())
        if server == name:
            continue
        if server in found or not _TOKEN.fullmatch(value):
            what = f"with {LEAST_SECRET} to {_LONGEST_TOKEN} visible ASCII characters"
            raise Problem(400, "bad-request", f"{CREDENTIAL_HEADER}{server[:64]} must be sent once, {what}")
        found[server] = value
    return found


def traceparent(request: Request) -> str:
    """The header of W3C Trace Context where it has its form, else "": it goes on in a webhook's headers."""
    given = request.headers.get("traceparent", "")
    return given if _TRACEPARENT.fullmatch(given) else ""


def place(cursor: str | None) -> Place | None:
    """What a cursor of a list stands for. Raises Problem 422."""
    try:
        return None if cursor is None else Place.parse(cursor)
    except ValueError as error:
        raise Problem(422, "invalid", "cursor must be the `next` of the page before") from error


def place_of_job(cursor: str | None) -> Place | None:
    """The same of a list of jobs, which at release 0.1.0 says a time alone: all jobs of that come before it."""
    if cursor is not None and _TIME.fullmatch(cursor):
        return Place(float(cursor), "")
    return place(cursor)


def stream_id(*given: str | None) -> str:
    """The first that is an id of a job's event; else the one before all."""
    return next((known for known in given if known and _STREAM_ID.fullmatch(known)), BEFORE_ALL)


def last_event_id(value: str | None) -> int:
    """What a client of a run's stream has seen; 0 where it says nothing that we can read."""
    return int(value) if value and value.isascii() and value.isdigit() and len(value) < 16 else 0
