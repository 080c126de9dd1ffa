"""How deep a caller's JSON may be nested: one bound for gateway and invoker, far below what parsers can take."""

from __future__ import annotations

from typing import Any

MAX_DEPTH = 64  # objects and lists in each other, the outermost included
TOO_DEEP = f"is nested more than {MAX_DEPTH} levels deep"


def too_deep(document: Any) -> bool:
    """True for a parsed document that is nested deeper than MAX_DEPTH. Goes level by level, without recursion."""
    level = [document]
    for _ in range(MAX_DEPTH + 1):
        level = [part for part in level if isinstance(part, dict | list)]
        if not level:
            return False
        level = [child for part in level for child in (part.values() if isinstance(part, dict) else part)]
    return True
