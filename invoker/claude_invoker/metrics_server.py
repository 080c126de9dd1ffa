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
from uvicorn.server import ServerState

from claude_invoker.bounded_http import heads_within
from claude_invoker.listen import Listen
from claude_invoker.metrics import Metrics

_HEAD_S = 10.0
_CONNECTIONS = 20


@asynccontextmanager
async def serving_metrics(listen: Listen | None, metrics: Metrics) -> AsyncIterator[Listen | None]:
    """Answers there while the block runs; gives where that is. Raises OSError where it cannot."""
    if listen is None:
        yield None
        return

    async def answer(request: Request) -> Response:
        body, content_type = metrics.exposition(request.headers.get("accept", ""))
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
    state, protocol = ServerState(), heads_within(_HEAD_S)
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
