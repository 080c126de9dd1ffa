"""The HTTP edge without phases or plugins: every request goes to one service. For tests of the edge alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from minikong import conf as configuration
from minikong.context import Context, Headers, Response, Upstream
from minikong.entities import Route
from minikong.http.listener import Edge
from minikong.http.seam import Exchange


class PlainGateway:
    """`target` says where a request goes: (host, port)."""

    def __init__(self, port: Callable[[], int], *, route: Route | None = None) -> None:
        self._port = port
        self._route = route
        self.handled = 0

    async def handle(self, ctx: Context, exchange: Exchange) -> None:
        self.handled += 1
        ctx.route = self._route
        request = ctx.request
        path, mark, query = request.target.partition(b"?")
        if path.startswith(b"/gateway/"):
            body = b"own\n"
            length = b"%d" % len(body)
            ctx.response = Response(200, Headers([(b"Content-Length", length)]), "exit", body)
            await exchange.respond(ctx)
            return
        ctx.upstream = Upstream(
            scheme="http",
            host="127.0.0.1",
            port=self._port(),
            method=request.method,
            path=path or b"/",
            query=query if mark else None,
            host_header=b"service.test",
            connect_timeout=2.0,
            read_timeout=5.0,
        )
        await exchange.proxy(ctx)

    async def refused(self, ctx: Context) -> None:
        self.handled += 1

    def header_filter(self, ctx: Context) -> None:
        pass

    def body_filter(self, ctx: Context, chunk: bytes, *, is_last: bool) -> bytes | None:
        return chunk

    async def certificate(self, sni: str | None, client: tuple[str, int], server: tuple[str, int]) -> bool:
        return True


@asynccontextmanager
async def running_edge(
    port: Callable[[], int], *, route: Route | None = None, tls: bool = False, **settings: str
) -> AsyncIterator[tuple[Edge, int]]:
    """An edge in front of the service at `port()`; gives it and its own port."""
    conf = configuration.load(overrides=settings)
    gateway = PlainGateway(port, route=route)
    edge = Edge(conf, gateway)
    try:
        _, own = await edge.listen(configuration.Listen("127.0.0.1", 0, ssl=tls), gateway.handle)
        yield edge, own
    finally:
        await edge.close()
