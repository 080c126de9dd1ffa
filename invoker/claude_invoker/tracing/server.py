"""A span for each request to the invoker, between its sender's and those of what is done for it.

OpenTelemetry's own middleware for ASGI would tell paths, queries and addresses, in which callers name files and people;
this tells the method, the route and the status.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from claude_invoker.tracing.export import Request, Tracing

_UNSEEN = frozenset(("/healthz", "/readyz", "/metrics"))
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"))


class ServerSpans:
    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _UNSEEN:
            await self._app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        others = [header for header in scope["headers"] if header[0] not in (b"traceparent", b"tracestate")]
        given = [value for name, value in scope["headers"] if name == b"traceparent"]
        with self._tracing.request(method, given[0].decode("latin-1") if len(given) == 1 else "") as request:
            # Whoever reads it next is within this span: a run, a job's record, a webhook.
            scope = {**scope, "headers": [*others, (b"traceparent", request.traceparent.encode())]}
            try:
                await self._app(scope, receive, _noting(request, send))
            finally:
                if route := getattr(scope.get("route"), "path", ""):
                    request.routed(method, route)


def _noting(request: Request, send: Send) -> Send:
    async def noting(message: Message) -> None:
        if message["type"] == "http.response.start":
            request.answered(message["status"])
        await send(message)

    return noting
