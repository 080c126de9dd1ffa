"""`/dashboard/runs/{id}`: a run that is no job, whichever invoker runs it."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse

from claude_invoker.api.files import file_answer
from claude_invoker.api.replicas import files_of
from claude_invoker.api.runs import OwnRun
from claude_invoker.caller import Caller
from claude_invoker.dashboard import patch
from claude_invoker.dashboard.difference import difference, patch_among
from claude_invoker.dashboard.guard import HEADERS, Viewer, from_our_page
from claude_invoker.dashboard.live import live_part
from claude_invoker.dashboard.pages import home, page
from claude_invoker.dashboard.pricing import price_of
from claude_invoker.dashboard.render import html
from claude_invoker.dashboard.timeline import Timeline, told
from claude_invoker.problem import Problem
from claude_invoker.replicas.record import PastRun
from claude_invoker.runs.run import Run
from claude_invoker.services import services
from claude_invoker.trust import attested

router = APIRouter(prefix="/dashboard/runs", include_in_schema=False)


@router.get("/{run_id}")
async def run_page(request: Request, run: OwnRun, viewer: Viewer) -> Response:
    return page(request, "run", **await _Look(request, run, viewer).values())


@router.get("/{run_id}/live")
async def run_live(request: Request, run: OwnRun, viewer: Viewer) -> Response:
    """The page's changing part, whenever it has changed, until the run is over."""
    look = _Look(request, run, viewer)
    await look.values()  # where another invoker is to be asked, it is before the answer begins

    async def now() -> str:
        return html("_run", home=home(request), **await look.values())

    return live_part(now, lambda: run.is_over)


@router.get("/{run_id}/artifacts/{path:path}")
async def artifact(request: Request, run: OwnRun, viewer: Viewer, path: str) -> Response:
    found = next((artifact for artifact in run.artifacts if artifact.path == path), None)
    if found is None:
        raise Problem(404, "not-found", "the run left no such file")
    return await file_answer(request, await files_of(request, run, viewer), found)


@router.post("/{run_id}/cancel", dependencies=[Depends(attested), Depends(from_our_page)])
async def cancel(request: Request, run: OwnRun, viewer: Viewer) -> Response:
    run.cancel_for(viewer.subject)
    return RedirectResponse(f"{home(request)}/runs/{run.id}", 303, HEADERS)


class _Look:
    """At a run, again and again: each of its events is read once."""

    def __init__(self, request: Request, run: Run | PastRun, viewer: Caller) -> None:
        self._request, self._run, self._viewer = request, run, viewer
        self._timeline = Timeline(price_of(services(request).settings))
        self._seen = 0

    async def values(self) -> dict[str, Any]:
        run = self._run
        if events := run.events.since(self._seen):
            self._seen = events[-1].id
            await asyncio.to_thread(told, self._timeline, [(event.name, event.data) for event in events])
        view = run.view()
        return {
            "viewer": self._viewer,
            "run": view,
            "subject": run.subject,
            "model": run.model,
            "over": run.is_over,
            "timeline": self._timeline,
            "difference": await self._difference(),
        }

    async def _difference(self) -> patch.Shown | None:
        if not self._run.is_over or not self._run.view().changes:
            return None
        found = patch_among(self._run.artifacts)
        if found is None:
            return None
        return await difference(await files_of(self._request, self._run, self._viewer), found)
