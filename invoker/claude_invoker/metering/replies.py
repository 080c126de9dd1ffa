"""What the metering proxy itself says to a run."""

from __future__ import annotations

from typing import Any

import orjson

from claude_invoker.metering.exchange import Grant, Send
from claude_invoker.metering.usage import Used


async def refuse(send: Send, grant: Grant, reason: str) -> None:
    grant.refused = reason
    grant.changed("", Used())
    await respond(send, 403, error("permission_error", reason))


async def hold_back(send: Send, grant: Grant, reason: str) -> None:
    grant.held_back = reason
    grant.changed("", Used())
    await respond(send, 503, error("api_error", reason), ((b"x-should-retry", b"false"),))


def error(kind: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}}


async def respond(
    send: Send, status: int, document: dict[str, Any], more: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
    data = orjson.dumps(document) if document else b""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
