"""JSON is compressed for clients that ask for it; streams never, and files neither: their ranges and ETags are
those of the bytes that the run wrote. Nor messages: what the API answers is passed on as it comes."""

from __future__ import annotations

from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send


class Compression:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._plain = app
        self._compressed = GZipMiddleware(app, minimum_size=1024)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["type"] == "http" else ""
        as_it_is = "/artifacts/" in path or path.endswith(("/v1/messages", "/v1/messages/count_tokens"))
        await (self._plain if as_it_is else self._compressed)(scope, receive, send)
