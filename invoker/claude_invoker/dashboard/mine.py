"""`/dashboard/limits` and `/dashboard/catalog`: what whoever looks may do, as the gateway tells it; an admin sees the
limits of whom he names."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from claude_contract.graphql import LIMITS_HEADER
from claude_contract.ledger import Lease
from claude_contract.ledger.model import organisation_name, pool_name
from claude_invoker.api import listing, skills
from claude_invoker.api.jobs import store_of
from claude_invoker.caller import Caller
from claude_invoker.dashboard.guard import HEADERS, Viewer
from claude_invoker.dashboard.limits import Told, Untold, parts_of, told_in
from claude_invoker.dashboard.pages import home, page
from claude_invoker.runs.summary import Filter
from claude_invoker.services import services

router = APIRouter(prefix="/dashboard", include_in_schema=False)
_LOOKED_AT = 200
"""Jobs, and runs that are none, for the repositories of a caller."""


@router.get("/limits")
async def limits(
    request: Request,
    viewer: Viewer,
    sub: Annotated[str, Query(max_length=1024)] = "",
    tier: Annotated[str, Query(max_length=160)] = "",
) -> Response:
    """The viewer's limits, or of whom an admin names: in the tier of his newest job, unless another is named."""
    told = _told(request)
    if sub and "admin" in viewer.roles and (more := await _known_of(request, sub, told)):
        return RedirectResponse(f"{home(request)}/limits?{urlencode(more)}", 303, HEADERS)
    return page(
        request,
        "limits",
        viewer=viewer,
        told=told if isinstance(told, Told) else None,
        problem=told.problem if isinstance(told, Untold) else "",
        parts=parts_of(told) if isinstance(told, Told) else [],
        sub=sub,
        tier=tier,
        gateway=services(request).settings.trust != "open",
        now=time.time(),
    )


def _told(request: Request) -> Told | Untold | None:
    text = request.headers.get(LIMITS_HEADER)
    return None if text is None else told_in(text)


async def _known_of(request: Request, sub: str, told: Told | Untold | None) -> dict[str, str]:
    """The whole query, where the newest job of somebody says what this one lacks: the tier and the organisation, or by
    which values of claims he shares pools. Empty where there is nothing to add."""
    asked = {name: value for name, value in request.query_params.items() if value}
    wants_tier = "tier" not in asked
    wants_claims = isinstance(told, Told) and bool(told.unknown_pools)
    if told is None or not (wants_tier or wants_claims):
        return {}
    store = store_of(request)
    jobs, _ = await store.page(sub, None, 1)
    (caller,) = await store.callers([job.id for job in jobs]) or [None]
    if caller is None or caller.lease is None:
        return {}
    shared = Lease.parse(caller.lease).shared
    more: dict[str, str] = {}
    if wants_tier:
        found = {"tier": caller.tier or "", "organisation": organisation_name(shared.tag)}
        more = {name: value for name, value in found.items() if value and name not in asked}
    elif isinstance(told, Told):
        values = dict(map(pool_name, shared.pools))
        claims = {f"claim.{claim}": values.get(name, "") for name, claim in told.unknown_pools}
        more = {name: value for name, value in claims.items() if value and name not in asked}
    return asked | more if more else {}


@router.get("/catalog")
async def catalog(request: Request, viewer: Viewer) -> Response:
    """What the viewer's runs may have, and on which repositories they have worked."""
    parts = services(request)
    is_told = parts.settings.trust == "open" or _told(request) is not None
    spaces = parts.engine.workspaces
    return page(
        request,
        "catalog",
        viewer=viewer,
        is_told=is_told,
        tier=viewer.tier or "default",
        clamp=viewer.clamp,
        catalog=await skills.listed(request, viewer) if is_told else None,
        worked_on=await _worked_on(request, viewer),
        sources=() if spaces is None or "admin" not in viewer.roles else spaces.known.patterns,
        has_repositories=spaces is not None,
    )


async def _worked_on(request: Request, viewer: Caller) -> Sequence[str]:
    """Repositories of the viewer's newest jobs and runs."""
    jobs, _ = await store_of(request).page(viewer.subject, None, _LOOKED_AT)
    runs, _ = await listing.summaries(request, viewer.subject, Filter(), None, _LOOKED_AT)
    return sorted(
        {job.repository for job in jobs if job.repository} | {run.repository for run in runs if run.repository}
    )
