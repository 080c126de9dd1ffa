"""Refuses bodies over the limit before anybody holds them in memory, and those that do not come."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from claude_invoker.api.border import content_length
from claude_invoker.api.problems import answer
from claude_invoker.problem import Problem


class BodyLimit:
    """ASGI middleware: 413 by Content-Length, or once the bytes of a body without one exceed the limit; 408 where it is
    not there within `body_s`."""

    def __init__(self, app: ASGIApp, max_body: int, body_s: float, prefix: str = "") -> None:
        self._app = app
        self._max_body = max_body
        self._body_s = body_s
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        too_large = Problem(
            413,
            "too-large",
            f"the body is larger than {self._max_body} bytes (INVOKER_MAX_BODY)",
            {"Connection": "close"},
        )
        try:
            if content_length(dict(scope["headers"]).get(b"content-length")) > self._max_body:
                raise too_large
        except Problem as problem:
            await answer(problem, scope, self._prefix)(scope, receive, send)
            return
        taken = 0
        missing = True
        until = asyncio.get_running_loop().time() + self._body_s

        async def counted() -> Message:
            nonlocal taken, missing
            try:
                async with asyncio.timeout_at(until if missing else None):
                    message = await receive()
            except TimeoutError as error:
                raise Problem(
                    408,
                    "too-slow",
                    f"the body was not there within {self._body_s:g} s (INVOKER_REQUEST_BODY_S)",
                    {"Connection": "close"},
                ) from error
            missing = missing and message.get("more_body", False)
            taken += len(message.get("body", b""))
            if taken > self._max_body:
                raise too_large
            return message

        await self._app(scope, counted, send)
