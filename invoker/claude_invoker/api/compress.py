"""JSON is compressed for clients that ask for it; streams never, and files neither: their ranges and ETags are
those of the bytes that the run wrote."""

from __future__ import annotations

from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send


class Compression:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._plain = app
        self._compressed = GZipMiddleware(app, minimum_size=1024)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_file = scope["type"] == "http" and "/artifacts/" in scope["path"]
        await (self._plain if is_file else self._compressed)(scope, receive, send)
