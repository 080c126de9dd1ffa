"""Whether a job's request may be tried again: pure. What a tier allows of it is decided as of any, by today's."""

from __future__ import annotations

from dataclasses import replace

from claude_invoker.caller import Caller
from claude_invoker.jobs.record import OVER, Job
from claude_invoker.problem import Problem

MOST_KEPT = 64 * 1024
"""Bytes of a request, as JSON, that is kept (`finish.lua`)."""
_NOT_KEPT = {
    "large": f"it is larger than {MOST_KEPT // 1024} KiB",
    "attached": "it has images or documents",
    "deleted": "it was deleted",
    "": "another release ended the job",
}


def refusal(job: Job, caller: Caller) -> Problem | None:
    """Why this caller cannot have it tried again; None: he can, where his token allows the job's repository still
    (`misplaced`). `caller`: as the gateway attests him now."""
    if not caller.owns(job.subject):
        return Problem(403, "forbidden", "only its caller tries a job again, who pays for it")
    if job.state not in OVER:
        what = "being cancelled" if job.cancel else job.state
        return Problem(409, "conflict", f"the job is {what}: it can be tried again when it has failed or was cancelled")
    if job.state == "done":
        return Problem(409, "conflict", "the job is done: send its request as a new one to have it done once more")
    if job.again != "kept":
        return Problem(410, "gone", f"the job's request is not kept, since {_NOT_KEPT[job.again]}: send it again")
    if job.caller.owner != caller.owner:
        return Problem(403, "forbidden", "the job's caller had a token of another issuer: send its request again")
    return None


def misplaced(job: Job, caller: Caller) -> Problem | None:
    """Why this request is not about the job's repository; None: it is. Whether a token allows a repository is asked by
    the gateway, of the request that names it."""
    before, now = job.caller.repository, caller.repository
    if before is None:
        return None if now is None else Problem(409, "conflict", "the job works on no repository: name none")
    if now is not None and now.name == before.name and now.ref in (None, before.ref):
        return None
    asked = f"POST /jobs/{job.id}/retry with X-Repo: {before.name}"
    branch = f" (X-Branch is {before.ref}, if it is said)" if before.ref else " and no X-Branch"
    return Problem(409, "conflict", f"the job works on a repository: {asked}{branch}; your token has to allow it")


def in_place(job: Job, caller: Caller) -> Caller:
    """The same caller, on the job's branch: that is a part of what is tried again, and needs no token's leave."""
    if caller.repository is None or job.caller.repository is None:
        return caller
    return replace(caller, repository=replace(caller.repository, ref=job.caller.repository.ref))
