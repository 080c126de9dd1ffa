"""What the audit log says of runs, and of requests to models themselves. No I/O; no prompt and no answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from claude_invoker.audit.line import Entry
from claude_invoker.model import Artifact, PermissionDecision
from claude_invoker.passthrough.message import Message
from claude_invoker.runs.run import Called, Run, digest_of

MOST_FILES = 50
_LONGEST_PATH, _LONGEST_TOOL = 200, 134  # characters


def began(run: Run) -> Entry:
    return Entry("run.start", run.subject, run.subject, _known(run))


def ended(run: Run) -> Entry:
    """`end`: succeeded, or the kind of the problem. `cancelled_by`: a subject; None where nobody has, and `reason` says
    why it was all the same."""
    was_cancelled = run.problem is not None and run.problem.kind == "cancelled"
    details = {
        **_known(run),
        "answered_by": run.model,
        "session": run.session,
        "cost_usd": run.cost_usd,
        "tokens": msgspec.structs.asdict(run.account.total),
        "seconds": round((run.finished_at or run.created_at) - run.created_at, 3),
        "end": run.problem.kind if run.problem is not None else "succeeded" if run.deferral is None else "deferred",
        "cancelled_by": (run.cancelled_by or None) if was_cancelled else None,
        "reason": run.cancel_reason if was_cancelled else None,
        "egress": run.egress,
        "commit": None if run.checkout is None else run.checkout.commit,
        "pushed": None if run.pushed is None or run.pushed.commit is None else run.pushed.branch,
        "calls": [_called(call) for call in run.calls],
        "calls_in_all": run.calls_in_all,
        "artifacts": [_kept(artifact) for artifact in run.artifacts[:MOST_FILES]],
        "artifacts_in_all": len(run.artifacts),
    }
    return Entry("run.end", run.subject, run.subject, details)


class Decidable(Protocol):
    """A run, or a job that has none now."""

    id: str
    subject: str
    tier: str


def decided(run: Decidable, decision: PermissionDecision, given: Mapping[str, Any]) -> Entry:
    """About a call of a tool with that input. Nobody has decided: the actor is whom the run is for."""
    details = {
        "run": run.id,
        "tier": run.tier,
        "permission": decision.id,
        "tool": decision.tool,
        "decision": decision.decision,
        "reason": decision.reason,
        "input": digest_of(given),
        "instead": None if decision.input is None else digest_of(decision.input),
        "answered": decision.answers is not None,
    }
    return Entry("permission.decided", decision.by or run.subject, run.subject, details)


class Withdrawable(Decidable, Protocol):
    """A job that has no run now."""

    @property
    def state(self) -> str: ...
    @property
    def tags(self) -> Sequence[str]: ...


def withdrawn(job: Withdrawable, by: str) -> Entry:
    """It was cancelled while it waited, so that no run of it ends."""
    details = {"run": job.id, "tier": job.tier, "tags": list(job.tags), "state": job.state}
    return Entry("job.cancelled", by, job.subject, details)


def answered(message: Message) -> Entry:
    """`session`, `agent` and `parent_agent` are what Claude Code has said; `answered_by` the models that were paid."""
    caller, session = message.caller, message.session
    details = {
        "message": message.key,
        "route": caller.route,
        "request_id": caller.request_id,
        "tier": caller.tier,
        "team": caller.team,
        "model": message.model[:200],
        "answered_by": sorted(message.figures.used),
        "session": session.id,
        "agent": session.agent,
        "parent_agent": session.parent_agent,
        "cost_usd": message.cost_usd,
        "tokens": msgspec.structs.asdict(message.figures.total),
        "seconds": round(message.seconds, 3),
        "end": message.outcome,
    }
    return Entry("message.end", caller.subject, caller.subject, details)


def _called(call: Called) -> dict[str, str]:
    return {"tool": call.tool.encode("ascii", "replace").decode()[:_LONGEST_TOOL], "input": call.input}


def _kept(artifact: Artifact) -> dict[str, object]:
    return {"path": artifact.path[:_LONGEST_PATH], "size": artifact.size, "sha256": artifact.sha256}


def _known(run: Run) -> dict[str, object]:
    return {
        "run": run.id,
        "route": run.route,
        "request_id": run.request_id,
        "tier": run.tier,
        "team": run.team,
        "model": run.plan.model,
        "tools": [*run.plan.tools, *run.plan.server_tools],
        "isolation": run.isolation,
        "job": run.is_job,
        "retry_of": run.retry_of or None,
        "repository": None if run.plan.repository is None else run.plan.repository.name,
        "tags": list(run.plan.tags),
    }
