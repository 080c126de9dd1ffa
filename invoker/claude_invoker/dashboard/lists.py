"""`/dashboard/jobs`: find a job. What is asked for stands in the address, so that it can be kept and passed on."""

from __future__ import annotations

from typing import Annotated, Literal, get_args
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, Field

from claude_invoker.api.border import place
from claude_invoker.api.jobs import is_job_id, store_of
from claude_invoker.caller import Caller
from claude_invoker.dashboard.guard import HEADERS
from claude_invoker.dashboard.pages import home, page
from claude_invoker.jobs.finding import LOOKED_AT, Wanted, find
from claude_invoker.jobs.record import TITLE, State
from claude_invoker.trust import attested

router = APIRouter()
SHOWN = 50

Part = Annotated[str, Field(max_length=TITLE)]


class Asked(BaseModel):
    """What a list is asked for, as a form sends it: "" for whichever. `caller` counts for admins alone."""

    text: Part = ""
    caller: Annotated[str, Field(max_length=1024)] = ""
    state: State | Literal[""] = ""
    tier: Part = ""
    repository: Part = ""
    cursor: str = ""

    def address(self, **other: str) -> str:
        """The query of this list, or of another `cursor`."""
        return urlencode(
            {name: value for name, value in (self.model_dump() | other).items() if value}, errors="replace"
        )

    @property
    def is_narrow(self) -> bool:
        return bool(self.text or self.caller or self.state or self.tier or self.repository)


@router.get("/jobs")
async def jobs(
    request: Request, viewer: Annotated[Caller, Depends(attested)], asked: Annotated[Asked, Query()]
) -> Response:
    """The viewer's jobs, or an admin's choice of everybody's. The id of a job leads to its page."""
    if is_job_id(text := asked.text.strip()):
        return RedirectResponse(f"{home(request)}/jobs/{text}", 303, HEADERS)
    subject = (asked.caller or None) if "admin" in viewer.roles else viewer.subject
    wanted = Wanted(asked.state, asked.tier, asked.repository.strip(), text)
    found, following = await find(store_of(request), subject, wanted, place(asked.cursor or None), SHOWN)
    return page(
        request,
        "jobs",
        viewer=viewer,
        asked=asked,
        states=get_args(State),
        jobs=found,
        older=None if following is None else asked.address(cursor=str(following)),
        newest=asked.address(cursor=""),
        most=LOOKED_AT,
    )
