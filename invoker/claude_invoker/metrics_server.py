"""`/metrics` of a worker, which has no API: nothing else is answered there, and nobody is asked who it is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from claude_invoker.api.border import understood
from claude_invoker.bounded_http import heads_within
from claude_invoker.listen import Listen
from claude_invoker.metrics import Metrics
from claude_invoker.problem import Problem

_HEAD_S = 10.0
_CONNECTIONS = 20
_LIFE_S = 30.0
"""Seconds of a connection, whatever is sent or read on it: one answer, for which Prometheus waits 10 s by default."""


class _Brief(HttpToolsProtocol):
    """A connection that ends with its first answer, and in any case soon: a body may come, or an answer be read, byte
    by byte for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._end = self.loop.call_later(_LIFE_S, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end.cancel()
        super().connection_lost(exc)


@asynccontextmanager
async def serving_metrics(listen: Listen | None, metrics: Metrics) -> AsyncIterator[Listen | None]:
    """Answers there while the block runs; gives where that is. Raises OSError where it cannot."""
    if listen is None:
        yield None
        return

    async def answer(request: Request) -> Response:
        try:
            with understood("Accept"):
                body, content_type = metrics.exposition(request.headers.get("accept", ""))
        except Problem as problem:
            return Response(f"{problem.detail}\n", problem.status, media_type="text/plain")
        return Response(body, headers={"content-type": content_type})

    config = uvicorn.Config(
        Starlette(routes=[Route("/metrics", answer)]),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        limit_concurrency=_CONNECTIONS,
    )
    config.load()
    state, protocol = ServerState(), heads_within(_HEAD_S, _Brief)
    state.default_headers = [(b"connection", b"close")]
    try:
        server = await asyncio.get_running_loop().create_server(
            lambda: protocol(config=config, server_state=state, app_state={}), listen.host, listen.port
        )
    except OSError as error:
        place = f"INVOKER_METRICS_LISTEN={listen.host}:{listen.port}"
        raise OSError(f"{place}: {error.strerror or error}; end what listens there, or choose another") from error
    try:
        yield Listen(*server.sockets[0].getsockname()[:2])
    finally:
        server.close()
        for connection in list(state.connections):
            with contextlib.suppress(AttributeError):
                connection.transport.close()
