"""JSON (RFC 8259) read strictly: what two parsers could understand differently is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import orjson

# Objects and arrays cost a parser about a microsecond each, whatever the size of the body in bytes.
MAX_CONTAINERS = 500_000
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


class JSONError(ValueError):
    """A body that is not JSON as this gateway reads it. The text is meant for the caller and quotes nothing."""


def parse_object(raw: bytes) -> dict[str, Any]:
    """The object in `raw`. Integers over 64 bits come as floats: `rewrite` keeps their digits.

    Raises JSONError for: no JSON, no object, NaN and infinities, invalid UTF-8, lone surrogates, a byte order mark,
    duplicate keys at any depth, more than 254 levels or 500,000 objects and arrays.
    """
    if raw.count(b"{") + raw.count(b"[") > MAX_CONTAINERS:
        raise JSONError("the body has too many objects and arrays")
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        problem = "nested too deeply" if "depth" in error.msg else "not valid JSON"
        raise JSONError(f"the body is {problem}") from None
    if not isinstance(document, dict):
        raise JSONError("the body must be a JSON object")
    try:
        once = orjson.dumps(document)  # refuses more than 254 levels
    except orjson.JSONEncodeError:
        raise JSONError("the body is nested too deeply") from None
    # Parsing keeps the last of duplicate keys, so each duplicate is a string less when written again.
    if count_strings(raw) != count_strings(once):
        raise JSONError("the body has duplicate keys")
    return document


def count_strings(valid: bytes) -> int:
    """Twice the number of strings in valid JSON: its quotes that no backslash escapes."""
    if b"\\" in valid:
        valid = valid.replace(b"\\\\", b"").replace(b'\\"', b"")
    return valid.count(b'"')


def rewrite(raw: bytes, change: Callable[[dict[str, Any]], dict[str, Any]]) -> bytes:
    """The object in `raw` after `change`, which returns a new one: members it hands back untouched keep their bytes.

    `raw` has passed `parse_object`. Members that are written anew keep integers of any size.
    """
    members = _members(raw.decode())
    old = {name: value for name, (value, _) in members.items()}
    parts = []
    for name, value in change(old).items():
        kept = name in old and old[name] is value
        parts.append(members[name][1] if kept else f"{_dump(name)}:{_dump(value)}")
    return f"{{{','.join(parts)}}}".encode()


def _members(text: str) -> dict[str, tuple[Any, str]]:
    """Name → (value, `"name": value` as written), of an object that is known to be valid."""
    found = {}
    at = _skip(text, _skip(text, 0) + 1)
    while text[at] == '"':
        start = at
        name, at = _DECODER.raw_decode(text, at)
        at = _skip(text, _skip(text, at) + 1)
        value, at = _DECODER.raw_decode(text, at)
        found[name] = value, text[start:at]
        at = _skip(text, at)
        if text[at] == "}":
            break
        at = _skip(text, at + 1)
    return found


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
