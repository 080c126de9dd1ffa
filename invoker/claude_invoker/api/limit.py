"""Refuses bodies over the limit before anybody holds them in memory, and those that do not come."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from claude_invoker.api.border import content_length
from claude_invoker.api.problems import answer
from claude_invoker.problem import Problem


@dataclass(frozen=True)
class Limits:
    """Bytes of a body, and of one that is not held in memory: those of the paths that `large` matches."""

    body: int
    upload: int
    large: re.Pattern[str]

    def of(self, path: str) -> tuple[int, str]:
        """How many, and the setting that says so."""
        return (self.upload, "INVOKER_MAX_UPLOAD") if self.large.fullmatch(path) else (self.body, "INVOKER_MAX_BODY")


class BodyLimit:
    """ASGI middleware: 413 by Content-Length, or once the bytes of a body without one exceed the limit; 408 where it is
    not there within `body_s`, or for a larger one than `limits.body` as many times that."""

    def __init__(self, app: ASGIApp, limits: Limits, body_s: float, prefix: str = "") -> None:
        self._app = app
        self._limits = limits
        self._body_s = body_s
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most, setting = self._limits.of(scope["path"].removeprefix(self._prefix))
        too_large = Problem(
            413, "too-large", f"the body is larger than {most} bytes ({setting})", {"Connection": "close"}
        )
        try:
            length = content_length(dict(scope["headers"]).get(b"content-length"))
            if length > most:
                raise too_large
        except Problem as problem:
            await answer(problem, scope, self._prefix)(scope, receive, send)
            return
        taken = 0
        missing = True
        body_s = self._body_s * max(1.0, length / self._limits.body)
        until = asyncio.get_running_loop().time() + body_s

        async def counted() -> Message:
            nonlocal taken, missing
            try:
                async with asyncio.timeout_at(until if missing else None):
                    message = await receive()
            except TimeoutError as error:
                raise Problem(
                    408,
                    "too-slow",
                    f"the body was not there within {body_s:g} s (INVOKER_REQUEST_BODY_S)",
                    {"Connection": "close"},
                ) from error
            missing = missing and message.get("more_body", False)
            taken += len(message.get("body", b""))
            if taken > most:
                raise too_large
            return message

        await self._app(scope, counted, send)
