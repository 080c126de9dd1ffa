"""How many values a caller's JSON may have: one bound for gateway and invoker. Each costs a parser up to a microsecond
and some hundred bytes, however few bytes it takes in the body, and who parses serves nobody else meanwhile."""

from __future__ import annotations

import re

MAX_PARTS = 200_000
TOO_MANY_PARTS = "has too many values"
# One that has no end goes to the end of all: else each quote in it would be tried anew.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)


def too_many_parts(body: bytes, most: int = MAX_PARTS) -> bool:
    """True where JSON has more strings (names of members included), commas and opening brackets, those in strings not
    counted. Works with what is no JSON, too; the parser says so. Stops at the bound."""
    if len(body) <= most:
        return False
    # Of a text of megabytes nothing has to be looked for among its words.
    if _marks(body) + body.count(b'"') // 2 <= most:
        return False
    parts = at = 0
    for string in _STRING.finditer(body):
        start, end = string.span()
        parts, at = parts + 1 + _marks(body[at:start]), end
        if parts > most:
            return True
    return parts + _marks(body[at:]) > most


def _marks(piece: bytes) -> int:
    return len(piece) - len(piece.translate(None, b",[{"))
