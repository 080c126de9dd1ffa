"""`/dashboard/jobs` and `/dashboard/runs`: find one. What is asked for stands in the address, so that it can be kept
and passed on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, Field

from claude_invoker.api import listing
from claude_invoker.api.border import place
from claude_invoker.api.jobs import is_job_id, store_of
from claude_invoker.api.query import LONGEST
from claude_invoker.caller import Caller
from claude_invoker.dashboard.guard import HEADERS, Viewer
from claude_invoker.dashboard.pages import home, page
from claude_invoker.jobs.finding import LOOKED_AT, Wanted, find
from claude_invoker.jobs.record import TITLE, State
from claude_invoker.model import ListedState
from claude_invoker.place import Place
from claude_invoker.runs.summary import Filter

router = APIRouter(prefix="/dashboard", include_in_schema=False)
SHOWN = 50

Part = Annotated[str, Field(max_length=TITLE)]


class _Asked(BaseModel):
    """What a list is asked for, as a form sends it: "" for whichever. `caller` counts for admins alone."""

    caller: Annotated[str, Field(max_length=1024)] = ""
    repository: Part = ""
    tag: Part = ""
    cursor: str = ""

    def address(self, cursor: Place | None) -> str:
        """The query of the list that begins there."""
        said = self.model_dump() | {"cursor": "" if cursor is None else str(cursor)}
        return urlencode({name: value for name, value in said.items() if value}, errors="replace")

    @property
    def is_narrow(self) -> bool:
        return bool(self.model_copy(update={"cursor": ""}).address(None))

    def subject(self, viewer: Caller) -> str | None:
        """Whose are shown; None: everybody's."""
        return (self.caller or None) if "admin" in viewer.roles else viewer.subject


class AskedJobs(_Asked):
    text: Part = ""
    state: Literal[State, ""] = ""
    tier: Part = ""


class AskedRuns(_Asked):
    state: Literal[ListedState, ""] = ""
    model: Part = ""
    session: Part = ""


@router.get("/jobs")
async def jobs(request: Request, viewer: Viewer, asked: Annotated[AskedJobs, Query()]) -> Response:
    """The viewer's jobs, or an admin's choice of everybody's. The id of a job leads to its page."""
    if is_job_id(text := asked.text.strip()):
        return RedirectResponse(f"{home(request)}/jobs/{text}", 303, HEADERS)
    wanted = Wanted(asked.state, asked.tier, asked.repository.strip(), text, asked.tag.strip())
    after = place(asked.cursor or None)
    found, following = await find(store_of(request), asked.subject(viewer), wanted, after, SHOWN)
    around = _around(request, viewer, asked, get_args(State), following)
    return page(request, "jobs", **around, jobs=found, most=LOOKED_AT)


@router.get("/runs")
async def runs(request: Request, viewer: Viewer, asked: Annotated[AskedRuns, Query()]) -> Response:
    """The same of runs that are no jobs."""
    wanted = Filter(
        state=asked.state or None,
        session=asked.session.strip() or None,
        repository=asked.repository.strip() or None,
        model=asked.model.strip() or None,
        tag=asked.tag.strip() or None,
    )
    before = place(asked.cursor or None)
    found, following = await listing.summaries(request, asked.subject(viewer), wanted, before, SHOWN)
    most = listing.PAGES * listing.LOOKED_AT
    around = _around(request, viewer, asked, get_args(ListedState), following)
    return page(request, "runs", **around, runs=found, most=most)


def _around(
    request: Request, viewer: Caller, asked: _Asked, states: Sequence[str], following: Place | None
) -> dict[str, Any]:
    """What both lists have."""
    return {
        "viewer": viewer,
        "asked": asked,
        "states": states,
        "older": None if following is None else asked.address(following),
        "newest": asked.address(None),
        "known": list(type(asked).model_fields),
        # Said and not refused as by the API: mail and chat add to an address what nobody has asked for (utm_source).
        "unknown": [name[:LONGEST] for name in request.query_params if name not in type(asked).model_fields][:5],
    }
