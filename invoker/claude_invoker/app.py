"""The application: `create_app(settings)`."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI

from claude_invoker import __version__, trust
from claude_invoker.api import (
    catalogue,
    health,
    invoke,
    openapi,
    permissions,
    problems,
    retrying,
    runs,
    skills,
    steering,
)
from claude_invoker.api import jobs as jobs_api
from claude_invoker.api import uploads as uploads_api
from claude_invoker.api.anthropic import routes as anthropic
from claude_invoker.api.compress import Compression
from claude_invoker.api.graphql import routes as graphql
from claude_invoker.api.limit import BodyLimit, Limits
from claude_invoker.api.openai import routes as openai
from claude_invoker.audit import runs as audit_of
from claude_invoker.audit.writer import open_audit
from claude_invoker.dashboard import routes as dashboard
from claude_invoker.dashboard.trouble import trouble
from claude_invoker.head import HeadAsGet
from claude_invoker.idempotency import Claims
from claude_invoker.jobs.queue import open_queues
from claude_invoker.jobs.serving import serving
from claude_invoker.jobs.store import Store
from claude_invoker.ledger import Ledger
from claude_invoker.metrics import Metrics
from claude_invoker.passthrough.desk import Desk
from claude_invoker.passthrough.message import Message
from claude_invoker.replay import SeenOnce
from claude_invoker.replicas.address import address
from claude_invoker.replicas.forwarding import Forwarder
from claude_invoker.replicas.register import Register
from claude_invoker.runs.engine import Engine
from claude_invoker.runs.run import Run
from claude_invoker.services import Jobs, Replicas, Services
from claude_invoker.settings import Settings
from claude_invoker.tracing.export import Tracing
from claude_invoker.tracing.server import ServerSpans

ROUTERS = (
    anthropic.router,  # asked most often, by far
    invoke.router,
    runs.router,
    jobs_api.router,
    retrying.router,
    permissions.router,
    steering.router,
    uploads_api.router,
    openai.router,
    graphql.router,
    catalogue.router,
    skills.router,
    *dashboard.ROUTERS,
)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The invoker. Raises ValueError for settings that are unsafe, FileNotFoundError without a CLI."""
    settings = settings or Settings()
    ledger = Ledger(settings.redis_url) if settings.redis_url else None
    engine = Engine(settings, ledger)
    metrics = Metrics(engine)
    tracing = Tracing(settings)

    audit = open_audit(settings)
    replicas = None
    if settings.runs_redis_url:
        replicas = Replicas(
            Register(settings.runs_redis_url, address(settings), settings.held, engine.keeping.store),
            Forwarder(settings.heartbeat_s),
        )

    def began(run: Run) -> None:
        audit.note(audit_of.began(run))
        if replicas is not None:
            replicas.register.began(run)
            if not run.is_job:
                run.permissions.on_change = functools.partial(replicas.register.asks, run)

    def finished(run: Run) -> None:
        audit.note(audit_of.ended(run))
        metrics.observe(run)
        tracing.record(run)

    def answered(message: Message) -> None:
        audit.note(audit_of.answered(message))
        metrics.answered(message)
        tracing.answered(message)

    desk = Desk(engine)
    desk.on_end = answered
    engine.on_start = began
    engine.on_finish = finished
    engine.on_withdrawn = lambda *told: audit.note(audit_of.withdrawn(*told))
    engine.on_decided = lambda *told: audit.note(audit_of.decided(*told))
    if replicas is not None:
        engine.on_end = replicas.register.finished
    if ledger is not None:
        ledger.on_warning = metrics.warned

    jobs = None
    if settings.redis_url and settings.jobs_redis_url:
        store = Store.open(settings.jobs_redis_url, settings.redis_url, settings.tier_priority, settings.held)
        jobs = Jobs(store, open_queues(settings.jobs_redis_url))
        engine.places.job_goes_on = store.goes_on
    seen = SeenOnce(settings.redis_url)
    claims = Claims(settings.runs_redis_url)
    parts = Services(settings, engine, metrics, trust.keys(settings), seen, ledger, jobs, replicas, claims, desk)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(audit)
            if replicas is not None:
                await stack.enter_async_context(replicas.register)
            if jobs is not None and settings.worker == "embedded":
                await stack.enter_async_context(serving(settings, engine, jobs.store, jobs.queues))
            else:
                await stack.enter_async_context(engine)
            stack.push_async_callback(desk.over)
            yield
        if jobs is not None:
            await jobs.close()
        if replicas is not None:
            await replicas.forwarder.close()
        await seen.close()
        await claims.close()
        await asyncio.to_thread(tracing.close)
        if ledger is not None:
            await ledger.close()

    app = FastAPI(
        title="Claude invoker",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=openapi.operation_id,
    )
    # A redirect would name the invoker's own address, and be one more request of an attestation that is good for one.
    app.router.redirect_slashes = False
    app.state.services = parts
    app.include_router(health.router)
    for router in ROUTERS:
        app.include_router(router)
        if settings.prefix:
            app.include_router(router, prefix=settings.prefix, include_in_schema=False)
    problems.install(app, settings.prefix, trouble)
    openapi.install(app, settings.prefix)
    app.add_middleware(Compression)
    app.add_middleware(HeadAsGet)
    limits = Limits(settings.max_body, settings.max_upload, invoke.LARGE)
    app.add_middleware(BodyLimit, limits=limits, body_s=settings.request_body_s, prefix=settings.prefix)
    if tracing.is_on:
        app.add_middleware(ServerSpans, tracing=tracing)
    return app
