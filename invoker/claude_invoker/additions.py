"""The gateway's own words for a prompt that was not rewritten on its way: applied here, in one place."""

from __future__ import annotations

from typing import Any

from claude_contract import compose
from claude_contract.claims import Additions
from claude_invoker.problem import Problem


def with_additions(document: dict[str, Any], additions: Additions) -> dict[str, Any]:
    """The body as the gateway wants it: system prompt around the caller's, context, locks. Raises Problem 422."""
    if not additions:
        return document
    try:
        return compose.apply(document, additions, "invoke")
    except compose.ShapeError as error:
        raise Problem(422, "invalid", str(error)) from error
