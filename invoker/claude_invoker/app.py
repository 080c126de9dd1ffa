"""The application: `create_app(settings)`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI

from claude_invoker import __version__, trust
from claude_invoker.api import health, invoke, jobs, openapi, problems, runs
from claude_invoker.api.compress import Compression
from claude_invoker.api.limit import BodyLimit
from claude_invoker.dashboard import routes as dashboard
from claude_invoker.jobs.queue import open_queues
from claude_invoker.jobs.runner import Runner
from claude_invoker.jobs.store import Store, connect
from claude_invoker.ledger import Ledger
from claude_invoker.metrics import Metrics
from claude_invoker.runs.engine import Engine
from claude_invoker.runs.run import Run
from claude_invoker.settings import Settings
from claude_invoker.tracing import Tracing

ROUTERS = (invoke.router, runs.router, jobs.router, dashboard.router)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The invoker. Raises ValueError for settings that are unsafe, FileNotFoundError without a CLI."""
    settings = settings or Settings()
    ledger = Ledger(settings.redis_url) if settings.redis_url else None
    engine = Engine(settings, ledger)
    metrics = Metrics(engine)
    tracing = Tracing(settings.otlp_endpoint)

    def finished(run: Run) -> None:
        metrics.observe(run)
        tracing.record(run)

    engine.on_finish = finished

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if app.state.jobs is not None and settings.worker == "embedded":
                runner = Runner(settings, engine, app.state.jobs, app.state.queues)
                await runner.salvage()
                await stack.enter_async_context(engine)
                await stack.enter_async_context(runner.serving())
            else:
                await stack.enter_async_context(engine)
            yield
        if app.state.jobs is not None:
            await app.state.queues.close()
            await app.state.jobs.redis.aclose()
        await app.state.seen.close()
        await asyncio.to_thread(tracing.close)
        if ledger is not None:
            await ledger.close()

    app = FastAPI(title="Claude invoker", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    # A redirect would name the invoker's own address, and be one more request of an attestation that is good for one.
    app.router.redirect_slashes = False
    app.state.settings = settings
    app.state.engine = engine
    app.state.ledger = ledger
    app.state.metrics = metrics
    app.state.jobs = Store(connect(settings.redis_url), settings.tier_priority) if settings.redis_url else None
    app.state.queues = open_queues(settings.redis_url) if settings.redis_url else None
    app.state.attestation_keys = trust.keys(settings)
    app.state.seen = trust.SeenOnce(settings.redis_url)
    app.include_router(health.router)
    for router in ROUTERS:
        app.include_router(router)
        if settings.prefix:
            app.include_router(router, prefix=settings.prefix, include_in_schema=False)
    problems.install(app)
    openapi.install(app)
    app.add_middleware(Compression)
    app.add_middleware(BodyLimit, max_body=settings.max_body)
    return app
