"""HEAD, answered as GET without the body (RFC 9110, section 9.3.2)."""

from __future__ import annotations

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ASKED = "claude_invoker.method"


class _Enough(Exception):
    """The head has been sent: nothing is to be read, compressed or followed any more."""


class HeadAsGet:
    """Routes see GET, and `asked_method` what the client has sent."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def head(message: Message) -> None:
            if message["type"] == "http.response.body":
                await send({"type": "http.response.body", "body": b""})
                raise _Enough
            await send(message)

        try:
            await self._app({**scope, "method": "GET", _ASKED: "HEAD"}, receive, head)
        except _Enough:
            pass


def asked_method(request: Request) -> str:
    """As the client sent it, and the gateway has attested it."""
    return str(request.scope.get(_ASKED, request.method))
