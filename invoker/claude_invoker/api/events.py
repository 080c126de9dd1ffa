"""What streams have of an event, and where all of it is."""

from __future__ import annotations

import orjson
from fastapi import Response

from claude_invoker.runs.events import on_one_line

MAX_TOOL_TEXT = 20_000
"""Characters of what a tool has said that are in a stream."""


def shortened(name: str, data: bytes, href: str) -> bytes:
    """An event's data (JSON) for a stream. `href`: the path of the event itself."""
    if name != "tool" or len(data) <= MAX_TOOL_TEXT:
        return data
    document = orjson.loads(data)
    text = document.get("content")
    if not isinstance(text, str) or len(text) <= MAX_TOOL_TEXT:
        return data
    cut = {"content": text[:MAX_TOOL_TEXT], "truncated": True, "characters": len(text), "href": href}
    return on_one_line(orjson.dumps(document | cut))


def itself(data: bytes, headers: dict[str, str]) -> Response:
    """The whole of an event, which never changes any more."""
    return Response(data, media_type="application/json", headers=headers)
