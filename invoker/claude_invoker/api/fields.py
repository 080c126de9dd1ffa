"""What a request to a vendor's API asks of a run, field by field, and what a run answers: pure.

What a run cannot honour is an error that names the field, unless it has a value that asks for nothing else than a run
does anyway.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import orjson

from claude_invoker.model import RunResult

OURS = ("skills", "agents", "mcp")
"""Members of an invocation that a request in any language may have: no vendor's API has one of that name."""
CANNOT = "cannot be honoured by a run: leave it out"
UNKNOWN = "is not known here"


def refused(
    document: Mapping[str, Any], honoured: Collection[str], neutral: Mapping[str, Collection[Any]], at: str = ""
) -> list[dict[str, str]]:
    """The errors about members that are neither `honoured` nor have one of their `neutral` values. Null is always one.

    `at`: where the document itself is, such as `output_config`.
    """
    return [
        {"at": f"{at}.{name}" if at else name, "error": CANNOT if name in neutral else UNKNOWN}
        for name, value in document.items()
        if name not in honoured and value is not None and not any(_same(value, one) for one in neutral.get(name, ()))
    ]


def _same(value: Any, other: Any) -> bool:
    """Equal, and both or none of them a truth value: to Python 1 is True."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


def ours(document: Mapping[str, Any]) -> dict[str, Any]:
    """What an invocation has of it, not validated yet."""
    return {name: document[name] for name in OURS if document.get(name) is not None}


def artifacts_of(result: RunResult) -> list[dict[str, Any]]:
    """Of an answer, as `POST /invoke` has them: vendors' clients hand on members that they do not know."""
    return [artifact.model_dump(mode="json") for artifact in result.artifacts]


def answer_of(result: RunResult, *, by_schema: bool) -> str:
    """The text of a run's last answer: by a schema its JSON."""
    if by_schema and result.structured is not None:
        return orjson.dumps(result.structured).decode()
    return result.result
