"""`/dashboard`: pages, their live parts, and what their buttons do."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.responses import FileResponse, RedirectResponse, StreamingResponse

from claude_contract.rules import QUESTION
from claude_invoker.api import border, jobs
from claude_invoker.api.asking import asking
from claude_invoker.api.permissions import decided, job_to_decide, refuse_onlookers, run_to_decide
from claude_invoker.api.problems import checked
from claude_invoker.api.retrying import refuse_body, retried
from claude_invoker.api.stream import HEADERS as STREAM
from claude_invoker.caller import Caller
from claude_invoker.dashboard import figures, lists, mine, patch, runs
from claude_invoker.dashboard.difference import difference, patch_among
from claude_invoker.dashboard.guard import HEADERS, Viewer, from_our_page
from claude_invoker.dashboard.live import LIVE_S, TICK_S, event, live_part
from claude_invoker.dashboard.overview import overview
from claude_invoker.dashboard.pages import home, page
from claude_invoker.dashboard.pricing import price_of
from claude_invoker.dashboard.render import FOLDER, html
from claude_invoker.dashboard.timeline import Timeline, told
from claude_invoker.jobs.again import refusal
from claude_invoker.jobs.record import OVER, Job
from claude_invoker.jobs.recording import text_of
from claude_invoker.jobs.store import Store
from claude_invoker.model import Permission, PermissionAnswer
from claude_invoker.problem import Problem
from claude_invoker.replicas.record import PastRun
from claude_invoker.runs.permissions import decided_already
from claude_invoker.runs.questions import questions_of
from claude_invoker.runs.run import Run
from claude_invoker.services import services
from claude_invoker.trust import attested, attested_run, attested_visitor

router = APIRouter(prefix="/dashboard", include_in_schema=False)
slashed = APIRouter(prefix="/dashboard", include_in_schema=False)
"""Of addresses that end in a slash, as people type them."""
ROUTERS = (router, lists.router, runs.router, figures.router, mine.router, slashed)
"""All of the dashboard; what fits any address comes last."""
COOKIE = "claude_token"
MAX_TOKEN = 3800  # browsers keep about 4,096 bytes of a cookie, its name and attributes included
STATIC = {"style.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
_TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")


@router.get("")
async def front(request: Request, viewer: Viewer) -> Response:
    return page(request, "overview", viewer=viewer, view=await _overview(request, viewer))


@router.get("/live")
async def live(request: Request, viewer: Viewer) -> Response:
    """The first page's changing part, whenever it has changed."""

    async def now() -> str:
        return html("_overview", home=home(request), viewer=viewer, view=await _overview(request, viewer))

    return live_part(now)


@router.get("/approvals")
async def approvals(request: Request, viewer: Viewer) -> Response:
    """What waits for the viewer."""
    return page(request, "approvals", viewer=viewer, asking=await asking(request, viewer))


@router.get("/approvals/live")
async def approvals_live(request: Request, viewer: Viewer) -> Response:
    """The same, whenever it has changed."""

    async def now() -> str:
        return html("_approvals", home=home(request), viewer=viewer, asking=await asking(request, viewer))

    return live_part(now)


@router.get("/jobs/{job_id}")
async def job_page(request: Request, job: jobs.OwnJob, viewer: Viewer) -> Response:
    timeline, last = await _timeline(request, job)
    values = await _job_values(request, job, viewer)
    return page(request, "job", **values, timeline=timeline, last=last)


@router.get("/jobs/{job_id}/live")
async def job_live(
    request: Request,
    job: jobs.OwnJob,
    viewer: Viewer,
    after: str = "0-0",
    last_seen: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
) -> Response:
    """A job's text as it comes, and its state and timeline whenever they have changed."""
    last = border.stream_id(last_seen, after)
    return StreamingResponse(
        _job_events(request, job, viewer, last), media_type="text/event-stream", headers=HEADERS | STREAM
    )


async def _job_events(request: Request, job: Job, viewer: Caller, last: str) -> AsyncIterator[str]:
    store, looked = jobs.store_of(request), 0.0
    shown: dict[str, str] = {}
    timeline, known = await _timeline(request, job)
    until = time.monotonic() + LIVE_S

    async def changed() -> list[str]:
        """Those parts of the page that are not as they were."""
        values = await _job_values(request, await store.get(job.id) or job, viewer)
        now = {"fragment": html("_job", home=home(request), **values), "timeline": html("_timeline", timeline=timeline)}
        parts = [name for name in now if now[name] != shown.get(name)]
        shown.update(now)
        return [event(name, now[name]) for name in parts]

    async for came in store.follow(job.id, last, TICK_S):
        if came is not None:
            last, name, data = came
            if _order(last) > _order(known):
                timeline.take(name, data)
            if name == "content_block_delta" and (text := text_of(json.loads(data))):
                yield event("text", json.dumps(text), last)
        if came is None or came[1] == "run.started" or time.monotonic() - looked > TICK_S:
            looked = time.monotonic()
            parts = await changed()
            for part in parts:
                yield part
            if not parts and came is None:
                yield ": still\n\n"
            if looked > until:
                return
    for part in await changed():
        yield part
    yield event("end", "{}")


async def _timeline(request: Request, job: Job) -> tuple[Timeline, str]:
    """As far as it has come, and the id of its last event."""
    timeline = Timeline(price_of(services(request).settings))
    events = await jobs.store_of(request).transcript(job.id)
    await asyncio.to_thread(told, timeline, [each[1:] for each in events])
    return timeline, events[-1][0] if events else border.BEFORE_ALL


def _order(event_id: str) -> tuple[int, ...]:
    return tuple(map(int, event_id.split("-")))


@router.get("/jobs/{job_id}/artifacts/{path:path}")
async def artifact(request: Request, job: jobs.OwnJob, path: str) -> Response:
    return await jobs.artifact(request, job, path)


@router.post("/jobs/{job_id}/cancel", dependencies=[Depends(from_our_page)])
async def cancel(request: Request, job: jobs.OwnJob, viewer: Viewer) -> Response:
    await jobs.end(request, job, viewer)
    return RedirectResponse(f"{home(request)}/jobs/{job.id}", 303, HEADERS)


@router.post("/jobs/{job_id}/retry", dependencies=[Depends(attested_run), Depends(from_our_page)])
@router.post("/jobs/{job_id}/retry/{repository:path}", dependencies=[Depends(attested_run), Depends(from_our_page)])
async def retry(request: Request, job_id: str, caller: Annotated[Caller, Depends(attested_run)]) -> Response:
    """Counted by the gateway as what begins a job anywhere. Pressed twice it begins one. A form has no headers: its
    path says to the gateway which repository the token has to allow; here what it attests of that counts."""
    await refuse_body(request)
    new = await retried(request, caller, job_id, f"dashboard-retry-{job_id}")
    return RedirectResponse(f"{home(request)}/jobs/{new.id}", 303, HEADERS)


@router.post("/jobs/{job_id}/permissions/{permission_id}", dependencies=[Depends(from_our_page)])
async def decide(
    request: Request, job: Annotated[Job, Depends(job_to_decide)], viewer: Viewer, permission_id: str
) -> Response:
    given = border.form(await request.body())
    await decided(request, job, permission_id, _answer_in(given, job.waiting, permission_id), viewer)
    place = "approvals" if given.get("back") == "approvals" else f"jobs/{job.id}"
    return RedirectResponse(f"{home(request)}/{place}", 303, HEADERS)


@router.post("/runs/{run_id}/permissions/{permission_id}", dependencies=[Depends(attested), Depends(from_our_page)])
async def decide_about_run(
    request: Request, run: Annotated[Run | PastRun, Depends(run_to_decide)], viewer: Viewer, permission_id: str
) -> Response:
    """The same of a run that is no job."""
    refuse_onlookers(viewer, run.subject)
    if isinstance(run, PastRun):
        raise decided_already(permission_id, run.view().decisions)
    given = _answer_in(border.form(await request.body()), run.permissions.waiting, permission_id)
    run.permissions.answer(permission_id, given, viewer.subject)
    return RedirectResponse(f"{home(request)}/approvals", 303, HEADERS)


def _answer_in(given: Mapping[str, str], waiting: Sequence[Permission], permission_id: str) -> PermissionAnswer:
    """What a form says about one of the calls that wait. Raises Problem 422."""
    decision = given.get("decision")
    said: dict[str, Any] = {"decision": decision}
    if decision == "deny" and (why := given.get("message", "").strip()):
        said["message"] = why
    asked = next((each for each in waiting if each.id == permission_id and each.tool == QUESTION), None)
    if decision == "allow" and asked is not None:
        texts = questions_of(asked.input)
        said["answers"] = {text: given.get(f"answer-{number}", "").strip() for number, text in enumerate(texts)}
    return checked(PermissionAnswer, said)


@router.get("/login", dependencies=[Depends(attested_visitor)])
async def login_page(request: Request) -> Response:
    return _login(request)


@router.post("/login", dependencies=[Depends(attested_visitor), Depends(from_our_page)])
async def login(request: Request) -> Response:
    """Keeps the token in a cookie that scripts cannot read. The gateway judges it, with every request."""
    token = border.form(await request.body()).get("token", "").strip().removeprefix("Bearer ").strip()
    if not _TOKEN.fullmatch(token) or len(token) > MAX_TOKEN:
        return _login(request, 422, "That is not a token: three parts with dots between them.")
    answer = RedirectResponse(home(request), 303, HEADERS)
    _set_cookie(request, answer, token)
    return answer


@router.post("/login/out", dependencies=[Depends(attested_visitor), Depends(from_our_page)])
async def logout(request: Request) -> Response:
    """Beside the login, so that it also works with a token that has expired. A session that oauth2-proxy keeps is ended
    by its own address, which leads back to the login."""
    login, sign_on = f"{home(request)}/login", services(request).settings.single_sign_on
    away = f"{sign_on}/sign_out?{urlencode({'rd': login})}" if sign_on else login
    answer = RedirectResponse(away, 303, HEADERS)
    _set_cookie(request, answer, "")
    return answer


@router.get("/login/", dependencies=[Depends(attested_visitor)])
async def login_with_slash(request: Request) -> Response:
    return RedirectResponse(f"{home(request)}/login", 303, HEADERS)


@slashed.get("/", dependencies=[Depends(attested)])
@slashed.get("/{inside:path}/", dependencies=[Depends(attested)])
async def with_slash(request: Request, inside: str = "") -> Response:
    """Leads to the page without it."""
    if not {".", ".."}.isdisjoint(inside.split("/")):  # a browser would go elsewhere
        raise Problem(404, "not-found")
    place, query = quote(inside.strip("/")), request.url.query
    return RedirectResponse(
        f"{home(request)}{'/' + place if place else ''}{'?' + query if query else ''}", 303, HEADERS
    )


@router.get("/static/{name}", dependencies=[Depends(attested_visitor)])
async def static(name: str) -> Response:
    if name not in STATIC:
        raise Problem(404, "not-found")
    headers = HEADERS | {"Cache-Control": "public, max-age=300"}
    return FileResponse(FOLDER / "static" / name, media_type=STATIC[name], headers=headers)


def _login(request: Request, status: int = 200, error: str = "") -> Response:
    return page(request, "login", status, error=error, sign_on=services(request).settings.single_sign_on)


def _set_cookie(request: Request, answer: Response, token: str) -> None:
    answer.set_cookie(
        COOKIE,
        token,
        max_age=None if token else 0,
        path=home(request),
        secure=request.headers.get("x-forwarded-proto") == "https",
        httponly=True,
        samesite="strict",
    )


async def _overview(request: Request, viewer: Caller) -> object:
    parts = services(request)
    return await overview(jobs.store_of(request), parts.engine, parts.ledger, viewer)


async def _job_values(request: Request, job: Job, viewer: Caller) -> dict[str, Any]:
    store: Store = jobs.store_of(request)
    return {
        "job": job,
        "viewer": viewer,
        "over": job.state in OVER,
        "refusal": refusal(job, viewer),
        "turn": await store.turn(job) if job.state == "queued" else None,
        "artifacts": jobs.artifacts_of(job),
        "difference": await _difference(request, job),
    }


async def _difference(request: Request, job: Job) -> patch.Shown | None:
    """What the job has changed in its repository; None where that is nothing, or cannot be had now."""
    found = patch_among(jobs.artifacts_of(job))
    if found is None or job.result is None or not job.result.changes:
        return None
    return await difference(jobs.files_of(request, job), found)
