"""JSON (RFC 8259) read strictly: what two parsers could understand differently is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import jiter

from claude_contract.nesting import MAX_DEPTH, TOO_DEEP, too_deep
from claude_contract.structure import TOO_MANY_PARTS, too_many_parts

_SPACE = re.compile(r"[ \t\n\r]*")
_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_DECODER = json.JSONDecoder()


class JSONError(ValueError):
    """A body that is not JSON as this gateway reads it. The text is meant for the caller and quotes nothing."""


def parse_object(raw: bytes) -> dict[str, Any]:
    """The object in `raw`.

    Raises JSONError for: no JSON, no object, NaN and infinities, invalid UTF-8, lone surrogates, a byte order mark,
    duplicate keys at any depth, more levels or values than `claude_contract.nesting` and `structure` allow.
    """
    if raw.startswith(_MARKS):
        raise JSONError("the body begins with a byte order mark: send it as UTF-8 without one")
    if too_many_parts(raw):
        raise JSONError(f"the body {TOO_MANY_PARTS}")
    try:
        document = jiter.from_json(raw, allow_inf_nan=False, catch_duplicate_keys=True, cache_mode="keys")
    except ValueError as error:
        raise JSONError(_problem(str(error))) from None
    if not isinstance(document, dict):
        raise JSONError("the body must be a JSON object")
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH and too_deep(document):
        raise JSONError(f"the body {TOO_DEEP}")
    return document


_NOT_JSON = "the body is not valid JSON"


def _problem(parser_says: str) -> str:
    if parser_says.startswith("Detected duplicate key"):
        return "the body has duplicate keys"
    if parser_says.startswith("recursion limit"):
        return f"the body {TOO_DEEP}"
    if parser_says.startswith("invalid unicode"):
        return "the body is not UTF-8"
    if "hex escape" in parser_says:
        return "a text in the body has half of a surrogate pair, as of an emoji that was cut"
    if parser_says.startswith("EOF while parsing a value at line 1 column 0"):
        return "the body is empty: it must be a JSON object"
    place = re.search(r"line \d+ column \d+$", parser_says)
    return f"the body is not valid JSON ({place[0].replace(' column', ', column')})" if place else _NOT_JSON


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
        if text[at] == ",":
            at = _skip(text, at + 1)
    return found


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()


def _dump(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:  # 1e999 is read as infinity
        raise JSONError("the body has a number out of range") from None
