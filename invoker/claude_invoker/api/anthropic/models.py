"""The list of models as Anthropic's clients read it: pure.

https://platform.claude.com/docs/en/api/models
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from claude_invoker.api.problems import wrong

LARGEST_PAGE = 1000


def model(name: str) -> dict[str, Any]:
    """When it was released is not known: the API says the epoch then."""
    words = [word.capitalize() for word in name.split("-")]
    return {
        "type": "model",
        "id": name,
        "display_name": " ".join(words),
        "created_at": "1970-01-01T00:00:00Z",
        "lifecycle": "active",
    }


def page(names: Sequence[str], limit: str | None, after: str | None, before: str | None) -> dict[str, Any]:
    """Raises Problem 422."""
    if limit is not None and not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:5]) <= LARGEST_PAGE):
        raise wrong([{"at": "limit", "error": f"must be a number between 1 and {LARGEST_PAGE}"}])
    for at, cursor in (("after_id", after), ("before_id", before)):
        if cursor is not None and cursor not in names:
            raise wrong([{"at": at, "error": "must be the id of a model of this list"}])
    begin = 0 if after is None else names.index(after) + 1
    end = len(names) if before is None else names.index(before)
    size = 20 if limit is None else int(limit)
    found = list(names[begin:end])
    shown = found[-size:] if before is not None and after is None else found[:size]
    return {
        "data": [model(name) for name in shown],
        "has_more": len(found) > len(shown),
        "first_id": shown[0] if shown else None,
        "last_id": shown[-1] if shown else None,
    }
