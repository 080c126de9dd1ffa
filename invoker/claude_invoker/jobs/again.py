"""Whether a job's request may be tried again: pure. What a tier allows of it is decided as of any, by today's."""

from __future__ import annotations

from claude_contract.claims import Repository
from claude_invoker.caller import Caller
from claude_invoker.jobs.record import OVER, Job
from claude_invoker.problem import Problem

_NOT_KEPT = {
    "large": "it is larger than 64 KiB",
    "attached": "it has images or documents",
    "deleted": "it was deleted",
    "": "another release ended the job",
}


def refusal(job: Job, caller: Caller) -> Problem | None:
    """Why this caller cannot have it tried again; None: he can. `caller`: as the gateway attests him now."""
    if not caller.owns(job.subject):
        return Problem(403, "forbidden", "only its caller tries a job again, who pays for it")
    if job.state not in OVER:
        what = "being cancelled" if job.cancel else job.state
        return Problem(409, "conflict", f"the job is {what}: it can be tried again when it has failed or was cancelled")
    if job.state == "done":
        return Problem(409, "conflict", "the job is done: send its request as a new one to have it done once more")
    if job.again != "kept":
        return Problem(410, "gone", f"the job's request is not kept, since {_NOT_KEPT[job.again]}: send it again")
    before = job.caller
    if before.owner != caller.owner:
        return Problem(403, "forbidden", "the job's caller had a token of another issuer: send its request again")
    if _place(before.repository) != _place(caller.repository):
        return Problem(409, "conflict", _other_place(before.repository, job.id))
    return None


def _place(repository: Repository | None) -> tuple[str, str | None] | None:
    return None if repository is None else (repository.name, repository.ref)


def _other_place(repository: Repository | None, job_id: str) -> str:
    """Whether a token allows a repository is asked of the request that names it."""
    if repository is None:
        return "the job works on no repository: name none"
    headers = f"X-Repo: {repository.name}" + (f" and X-Branch: {repository.ref}" if repository.ref else "")
    return f"the job works on a repository: POST /jobs/{job_id}/retry with {headers}, which your token has to allow"
