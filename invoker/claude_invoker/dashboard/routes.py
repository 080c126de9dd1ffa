"""`/dashboard`: pages, their live parts, and what their buttons do."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.responses import FileResponse, RedirectResponse, StreamingResponse

from claude_contract.rules import QUESTION
from claude_invoker.api import border, jobs
from claude_invoker.api.asking import asking
from claude_invoker.api.permissions import decided, job_to_decide, refuse_onlookers, run_to_decide
from claude_invoker.api.problems import checked
from claude_invoker.api.stream import HEADERS as STREAM
from claude_invoker.caller import Caller
from claude_invoker.dashboard import lists, patch
from claude_invoker.dashboard.guard import HEADERS, from_our_page
from claude_invoker.dashboard.overview import overview
from claude_invoker.dashboard.pages import home, page
from claude_invoker.dashboard.render import FOLDER, html
from claude_invoker.dashboard.transcript import read
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
from claude_invoker.trust import attested, attested_visitor
from claude_invoker.workspace.difference import PATCH

router = APIRouter(prefix="/dashboard", include_in_schema=False)
router.include_router(lists.router)
COOKIE = "claude_token"
LIVE_S = 300.0  # then the browser asks again, so that a token that has expired is noticed
TICK_S = 1.0
MAX_TOKEN = 3800  # browsers keep about 4,096 bytes of a cookie, its name and attributes included
STATIC = {"style.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
_TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")

Viewer = Annotated[Caller, Depends(attested)]


@router.get("")
async def front(request: Request, viewer: Viewer) -> Response:
    return page(request, "overview", viewer=viewer, view=await _overview(request, viewer))


@router.get("/live")
async def live(request: Request, viewer: Viewer) -> Response:
    """The first page's changing part, whenever it has changed."""

    async def now() -> str:
        return html("_overview", home=home(request), viewer=viewer, view=await _overview(request, viewer))

    return _live(now)


def _live(look: Callable[[], Awaitable[str]]) -> StreamingResponse:
    """A part of a page, whenever it has changed."""

    async def fragments() -> AsyncIterator[str]:
        shown, until = "", time.monotonic() + LIVE_S
        while time.monotonic() < until:
            now = await look()
            yield _event("fragment", now) if now != shown else ": still\n\n"
            shown = now
            await asyncio.sleep(TICK_S)

    return StreamingResponse(fragments(), media_type="text/event-stream", headers=HEADERS | STREAM)


@router.get("/approvals")
async def approvals(request: Request, viewer: Viewer) -> Response:
    """What waits for the viewer."""
    return page(request, "approvals", viewer=viewer, asking=await asking(request, viewer))


@router.get("/approvals/live")
async def approvals_live(request: Request, viewer: Viewer) -> Response:
    """The same, whenever it has changed."""

    async def now() -> str:
        return html("_approvals", home=home(request), viewer=viewer, asking=await asking(request, viewer))

    return _live(now)


@router.get("/jobs/{job_id}")
async def job_page(request: Request, job: jobs.OwnJob, viewer: Viewer) -> Response:
    text, lines, last = read(await jobs.store_of(request).transcript(job.id))
    values = await _job_values(request, job, viewer)
    return page(request, "job", **values, text=text, lines=lines, last=last)


@router.get("/jobs/{job_id}/live")
async def job_live(
    request: Request,
    job: jobs.OwnJob,
    viewer: Viewer,
    after: str = "0-0",
    last_seen: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
) -> Response:
    """A job's text and log as they come, and its state whenever that has changed."""
    last = border.stream_id(last_seen, after)
    return StreamingResponse(
        _job_events(request, job, viewer, last), media_type="text/event-stream", headers=HEADERS | STREAM
    )


async def _job_events(request: Request, job: Job, viewer: Caller, last: str) -> AsyncIterator[str]:
    store, shown, looked = jobs.store_of(request), "", 0.0
    until = time.monotonic() + LIVE_S
    async for event in store.follow(job.id, last, TICK_S):
        if event is not None:
            last, name, data = event
            text = text_of(json.loads(data)) if name == "content_block_delta" else ""
            if text:
                yield _event("text", json.dumps(text), last)
            else:
                for line in read([event])[1]:
                    yield _event("line", json.dumps(line), last)
        if event is None or event[1] == "run.started" or time.monotonic() - looked > TICK_S:
            looked = time.monotonic()
            now = html("_job", home=home(request), **await _job_values(request, await store.get(job.id) or job, viewer))
            if now != shown:
                yield _event("fragment", now)
            elif event is None:
                yield ": still\n\n"
            shown = now
            if looked > until:
                return
    now = html("_job", home=home(request), **await _job_values(request, await store.get(job.id) or job, viewer))
    yield _event("fragment", now)
    yield _event("end", "{}")


@router.get("/jobs/{job_id}/artifacts/{path:path}")
async def artifact(request: Request, job: jobs.OwnJob, path: str) -> Response:
    return await jobs.artifact(request, job, path)


@router.post("/jobs/{job_id}/cancel", dependencies=[Depends(from_our_page)])
async def cancel(request: Request, job: jobs.OwnJob) -> Response:
    await jobs.end(request, job)
    return RedirectResponse(f"{home(request)}/jobs/{job.id}", 303, HEADERS)


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
    return page(request, "login", error="")


@router.post("/login", dependencies=[Depends(attested_visitor), Depends(from_our_page)])
async def login(request: Request) -> Response:
    """Keeps the token in a cookie that scripts cannot read. The gateway judges it, with every request."""
    token = border.form(await request.body()).get("token", "").strip().removeprefix("Bearer ").strip()
    if not _TOKEN.fullmatch(token) or len(token) > MAX_TOKEN:
        return page(request, "login", 422, error="That is not a token: three parts with dots between them.")
    answer = RedirectResponse(home(request), 303, HEADERS)
    _set_cookie(request, answer, token)
    return answer


@router.post("/login/out", dependencies=[Depends(attested_visitor), Depends(from_our_page)])
async def logout(request: Request) -> Response:
    """Beside the login, so that it also works with a token that has expired."""
    answer = RedirectResponse(f"{home(request)}/login", 303, HEADERS)
    _set_cookie(request, answer, "")
    return answer


@router.get("/static/{name}", dependencies=[Depends(attested_visitor)])
async def static(name: str) -> Response:
    if name not in STATIC:
        raise Problem(404, "not-found")
    headers = HEADERS | {"Cache-Control": "public, max-age=300"}
    return FileResponse(FOLDER / "static" / name, media_type=STATIC[name], headers=headers)


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
        "position": await store.position(job) if job.state == "queued" else None,
        "artifacts": jobs.artifacts_of(job),
        "difference": await _difference(request, job),
    }


async def _difference(request: Request, job: Job) -> patch.Shown | None:
    """What the job has changed in its repository; None where that is nothing, or cannot be had now."""
    found = next((each for each in jobs.artifacts_of(job) if each.path == PATCH), None)
    if found is None or job.result is None or not job.result.changes:
        return None
    size = min(found.size, patch.MOST_BYTES)
    try:
        said = b"".join([piece async for piece in await jobs.files_of(request, job).read(found, 0, size)])
    except (Problem, OSError):
        return None
    return patch.shown(said, is_whole=size == found.size)


def _event(name: str, data: str, event_id: str = "") -> str:
    """One server-sent event. A carriage return ends a line there, too, and may be a user's."""
    lines = "".join(f"data: {line}\n" for line in re.split("\r\n|\r|\n", data))
    return f"{f'id: {event_id}' + chr(10) if event_id else ''}event: {name}\n{lines}\n"
