"""Lua's own pattern matcher, for the `match` family of Kong's schema language."""

from __future__ import annotations

from functools import cache
from typing import Any

import lupa


@cache
def _match() -> Any:
    return lupa.LuaRuntime(encoding=None).eval(b"string.match")


def matches(text: str, pattern: str) -> bool:
    """Whether `string.match(text, pattern)` finds something. Raises lupa.LuaError for a malformed pattern."""
    return _match()(text.encode(errors="surrogateescape"), pattern.encode(errors="surrogateescape")) is not None
