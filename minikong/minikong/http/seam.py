"""What the edge (listener, proxy) and the gateway (phases, plugins) ask of each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from minikong.context import Context


class Exchange(Protocol):
    """One request on a client connection; made by the edge, driven by the gateway.

    Exactly one of `respond`, `proxy` ends the exchange. Each calls `Gateway.header_filter` once, right
    before the response head leaves; the edge itself removes hop-by-hop headers before that call and adds
    Kong's own (Via, X-Kong-*-Latency, Server, X-Kong-Request-Id) after it. None of them raises for what client
    or service do wrong: they answer (400/413/502/503/504 with Kong's bodies), or note `ctx.client_gone`.
    """

    async def respond(self, ctx: Context) -> None:
        """Sends `ctx.response`. With `nginx_page` (ngx.exit without a body) it is nginx's or Kong's error page
        for that status; 408, 444, 499 close without an answer. An unread request body is discarded.

        `ctx.response.headers` are all there is: `added_response_headers` are merged already.
        """

    async def proxy(self, ctx: Context) -> None:
        """Sends the request to `ctx.upstream`, streams the answer to the client. Sets `ctx.proxied`,
        `ctx.response` (source "service", or "error" for 502/504), with `added_response_headers` in front."""

    async def fetch(self, ctx: Context) -> bool:
        """Buffered proxying: reads the service's whole answer into `ctx.response` (body set) without
        sending it; `respond` sends it after the response phase. False: it failed and the error page is sent."""


class Gateway(Protocol):
    """What the phases and plugins do; made by `minikong.gateway`."""

    async def handle(self, ctx: Context, exchange: Exchange) -> None:
        """Rewrite, access, then the exchange, then log. `ctx.phase` is kept up to date.

        An exception that escapes is a bug of minikong: the edge closes the connection and logs it.
        """

    async def refused(self, ctx: Context) -> None:
        """The log phase of a request that nginx refused itself (400, 414, ...) and has answered."""

    def header_filter(self, ctx: Context) -> None:
        """Runs the plugins' header_filter handlers on `ctx.response.headers`; must not raise."""

    def body_filter(self, ctx: Context, chunk: bytes, *, is_last: bool) -> bytes | None:
        """Runs the plugins' body_filter handlers on a piece of the body, after `header_filter`; what is to be sent in
        its place, or None where the answer must be broken off."""

    async def certificate(self, sni: str | None, client: tuple[str, int], server: tuple[str, int]) -> bool:
        """The certificate phase; False aborts the TLS handshake (internal_error alert)."""


class HttpError(Exception):
    """Raised by `Body.read`: nginx ends the request with `status` (400 bad chunks, 408 too slow, 413 too large)."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class ClientGone(Exception):
    """The client closed or reset the connection before it had its answer.

    `status` is what the log phase sees: 499, or 400 while the body was being read.
    """

    def __init__(self, status: int = 499) -> None:
        super().__init__(status)
        self.status = status
