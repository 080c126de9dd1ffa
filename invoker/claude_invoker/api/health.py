"""`/healthz`, `/readyz`, `/metrics`: for orchestrators and Prometheus, without attestation."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from redis.exceptions import RedisError

from claude_contract.ledger import LedgerUnavailable
from claude_invoker.api.border import understood
from claude_invoker.runs.engine import Engine
from claude_invoker.services import services

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process is alive."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"description": "Not ready; the body says what is missing"}})
async def readyz(request: Request) -> Response:
    """Whether a run could start: the CLI starts and ends, old runs are swept away, Redis answers."""
    engine: Engine = services(request).engine
    redis = await services(request).seen.obstacle()
    obstacle = redis or engine.obstacle
    checks: dict[str, Any] = {
        "cli": engine.version or None,
        "redis": redis is None,
        "warm": engine.pool.warm,
        "metering": engine.metering.obstacle is None,
        "attestation_kids": sorted(services(request).attestation_keys),
        "isolation": engine.boundary.label,
        "isolation_lacks": [f"{lack.name}: {lack.obstacle}" for lack in engine.boundary.missing],
        "tools_left_out": engine.boundary.left_out,
        "egress_lacks": engine.boundary.egress_obstacle,
        "lost_users": len(engine.users.quarantined),
        "troubles": engine.sweeping_troubles,
    }
    document = {"ready": obstacle is None, "checks": checks} | ({"obstacle": obstacle} if obstacle else {})
    return JSONResponse(document, status_code=200 if obstacle is None else 503)


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Prometheus text format."""
    parts = services(request)
    if parts.jobs is not None:
        # Redis may be away: then the last known depth stands.
        with suppress(RedisError, OSError):
            store, shown = parts.jobs.store, parts.metrics
            asked = await store.approvals()
            shown.queue(await store.waiting(), await store.oldest_waiting(), await store.held(), asked)
    if parts.ledger is not None:
        with suppress(LedgerUnavailable):
            parts.metrics.pools(await parts.ledger.pools())
    with understood("Accept"):
        body, content_type = services(request).metrics.exposition(request.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": content_type})
