"""The gateway: one request through Kong's phases, in Kong's order (kong/init.lua, kong/runloop/handler.lua).

The seam with the HTTP edge (`minikong.http`):

    edge  -> gateway   `await gateway.handle(request, exchange)` for every request that nginx would have
                       given to Kong's phases, `await gateway.handle_error(request, exchange, status)` for
                       those that nginx itself refuses (400, 413, 414, ...),
                       `await gateway.certificate(...)` in a TLS handshake.
    gateway -> edge    `await exchange.proxy(ctx)`, `await exchange.read_body(ctx)`, `await exchange.send(ctx)`
                       (the protocol `Exchange` below).

The gateway never writes to a socket; the edge never decides what a response says (nginx's own pages apart).
"""

from __future__ import annotations

from typing import Protocol

from minikong.context import Context


class Exchange(Protocol):
    """What the HTTP edge offers for one request."""

    async def proxy(self, ctx: Context) -> None:
        """Sends the request to `ctx.upstream` (with retries over `ctx.upstream`'s addresses) and reads the head.

        Sets `ctx.response` to status and headers as nginx passes them on (hop-by-hop headers removed,
        `source="service"`, `body=None`) and `ctx.timings["balancer"]`, `["waiting"]` (epoch seconds when the
        upstream was connected to / when its head was there). If no answer can be had: `ctx.response = None`
        and `ctx.proxy_error` is 502, 503 or 504 (the gateway then makes Kong's error page).
        `ctx.added_response_headers` are merged by the gateway, not here.
        """

    async def read_body(self, ctx: Context) -> bytes | None:
        """The whole body of the upstream's answer (buffered proxying); None if it was cut off."""

    async def send(self, ctx: Context) -> None:
        """Writes `ctx.response` to the client; `body=None` streams what `proxy` left open.

        Adds what nginx adds (Date, Connection, framing, its HTML page where `ctx.response.nginx_page` is true).
        Returns when all is written or the client is gone; never raises for a client that is gone.
        """
