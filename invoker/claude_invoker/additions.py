"""The gateway's own words for a prompt too large to be rewritten on its way: applied here, in one place."""

from __future__ import annotations

from typing import Any


def with_additions(document: dict[str, Any], additions: dict[str, Any]) -> dict[str, Any]:
    """The body as the gateway wants it: system prompt around the caller's, context, locked fields."""
    if not additions:
        return document
    from kong_claude.prompt_context import compose

    return compose.apply(document, additions, "invoke")
