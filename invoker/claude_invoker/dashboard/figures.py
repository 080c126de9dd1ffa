"""`/dashboard/charts`: what happened lately, out of what is kept of jobs and runs of all invokers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import get_args

import msgspec
from fastapi import APIRouter, Request, Response

from claude_contract.ledger import Lease
from claude_invoker.api import listing
from claude_invoker.api.jobs import store_of
from claude_invoker.dashboard.charts import Outcome, Point, Span, begins, charts
from claude_invoker.dashboard.guard import Viewer
from claude_invoker.dashboard.pages import page
from claude_invoker.jobs.finding import LOOKED_AT, newest
from claude_invoker.runs.summary import Filter, Summary

router = APIRouter(prefix="/dashboard", include_in_schema=False)

_FIELDS = ("created_at", "state", "tier", "model", "cost_usd", "started_at", "first_token_s", "caller")
_OUTCOMES: Mapping[str, Outcome] = {"done": "done", "succeeded": "done", "failed": "failed", "cancelled": "cancelled"}


@router.get("/charts")
async def figures(request: Request, viewer: Viewer, span: Span = "1h") -> Response:
    """Everybody's for an admin, one's own for others."""
    subject = None if "admin" in viewer.roles else viewer.subject
    now = time.time()
    since = float(begins(span, now))
    jobs = await newest(store_of(request), subject, since, _FIELDS)
    runs, _ = await listing.summaries(request, subject, Filter(since=since), None, LOOKED_AT)
    points = [*(_of_job(job, now) for job in jobs), *map(_of_run, runs)]
    # What is behind the newest of a kind is not looked at: bars from there on would be too low.
    kinds = (points[: len(jobs)], points[len(jobs) :])
    edges = [min(point.at for point in kind) for kind in kinds if len(kind) == LOOKED_AT]
    return page(
        request,
        "charts",
        viewer=viewer,
        span=span,
        spans=get_args(Span),
        charts=charts(points, span, now),
        edge=max(edges, default=None),
        most=LOOKED_AT,
        count=len(points),
    )


def _of_job(job: Mapping[str, str], now: float) -> Point:
    accepted, state = float(job["created_at"]), job["state"]
    began = float(job["started_at"]) if "started_at" in job else now if state == "queued" else None
    return Point(
        accepted,
        _OUTCOMES.get(state, "not over"),
        job.get("tier", ""),
        job.get("model", ""),
        float(job.get("cost_usd", 0)),
        None if began is None else max(0.0, began - accepted),
        float(job["first_token_s"]) if "first_token_s" in job else None,
        _pools_of(job.get("caller", "")),
    )


class _Holder(msgspec.Struct):
    """Of a job's caller what charts need: all of it is some kilobytes, of 2,000 jobs."""

    lease: str | None = None


_HOLDER = msgspec.json.Decoder(_Holder)


def _pools_of(caller: str) -> tuple[tuple[str, str], ...]:
    """None where the lease is none that this release reads: its costs are in all other charts."""
    try:
        lease = _HOLDER.decode(caller).lease
        return () if lease is None else Lease.parse(lease).shared.names
    except ValueError:
        return ()


def _of_run(run: Summary) -> Point:
    outcome = _OUTCOMES.get(run.state, "not over")
    return Point(run.created_at, outcome, run.tier, run.model, run.cost_usd, None, run.first_token_s, run.pools)
