"""Refuses bodies over the limit before anybody holds them in memory."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from claude_invoker.api.border import content_length
from claude_invoker.api.problems import answer
from claude_invoker.problem import Problem


class BodyLimit:
    """ASGI middleware: 413 by Content-Length, or once the bytes of a body without one exceed the limit."""

    def __init__(self, app: ASGIApp, max_body: int) -> None:
        self._app = app
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        too_large = Problem(
            413, "too-large", f"the body is larger than {self._max_body} bytes", {"Connection": "close"}
        )
        try:
            if content_length(dict(scope["headers"]).get(b"content-length")) > self._max_body:
                raise too_large
        except Problem as problem:
            await answer(problem)(scope, receive, send)
            return
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._max_body:
                raise too_large
            return message

        await self._app(scope, counted, send)
