"""A run that is put away while somebody is asked about a call of a tool, and what its next part goes on with. Pure.

Its process has ended and its session's tree is kept; the CLI has noted the call in the transcript, and the next process
in that tree asks about it again. All else that a run knows of itself is here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson
from pydantic import BaseModel

from claude_invoker.model import Permission, PermissionDecision, PermissionDenial, Usage
from claude_invoker.plan import Plan
from claude_invoker.problem import Problem

_DENIALS = 64 << 10
"""Bytes of JSON that the denied calls of an earlier part may have."""
_LEAST_USD = 0.000_001


class SoFar(BaseModel):
    """What a run has been in all its parts that are over."""

    cost_usd: float = 0.0
    usage: Usage = Usage()
    turns: int = 0
    seconds: float = 0.0
    denials: list[PermissionDenial] = []
    egress: list[str] = []

    def with_part(
        self,
        *,
        cost_usd: float,
        usage: Usage,
        turns: int,
        seconds: float,
        denials: Sequence[PermissionDenial],
        egress: Sequence[str],
    ) -> SoFar:
        """And one more."""
        summed = {name: getattr(self.usage, name) + getattr(usage, name) for name in Usage.model_fields}
        return SoFar(
            cost_usd=self.cost_usd + cost_usd,
            usage=Usage(**summed),
            turns=self.turns + turns,
            seconds=self.seconds + seconds,
            denials=[*self.denials, *denials],
            egress=list(dict.fromkeys([*self.egress, *egress])),
        )


class Deferral(BaseModel):
    """`session`: whose tree has the run; `remembered`: by calls, as `call_key` names them, and which of them hold in
    later turns (`for_session`); `changed`: paths of the files that it has left, since what its directory began with is
    not known to the next part; `repairs`: how often its check has sent it back."""

    session: str
    permission: Permission
    remembered: dict[str, PermissionDecision] = {}
    for_session: dict[str, PermissionDecision] = {}
    asked: int = 0
    changed: list[str] = []
    repairs: int = 0
    so_far: SoFar = SoFar()


def call_key(tool: str, given: Mapping[str, Any]) -> str:
    """The same for the same call."""
    return orjson.dumps([tool, given], option=orjson.OPT_SORT_KEYS).decode()


def deferrable(plan: Plan, after_s: float, kept_s: float) -> Plan:
    """The plan of a job that may be put away when a call has waited for `after_s`: in its session, or in one of its
    own, which is kept for `kept_s`. One that starts MCP servers is not: they would be others when it goes on. Nor one
    that calls some in a session of its caller's: a later turn that has none could not end the call."""
    is_held = plan.starts_servers or (plan.session is not None and plan.servers)
    if is_held or not (plan.asked and after_s < plan.approval_timeout_s <= kept_s):
        return plan
    return replace(plan, session=plan.session or "new", ends_session=plan.session is None, defers_after_s=after_s)


def resumed(plan: Plan, deferral: Deferral) -> Plan:
    """The plan of the next part: what is left of turns, money and time, and nothing that the first part was given.
    Where the job would not be put away any more it is held till it is denied."""
    return replace(
        plan,
        session=deferral.session,
        ends_session=plan.ends_session or plan.session is None,
        defers_after_s=plan.approval_timeout_s if plan.defers_after_s is None else plan.defers_after_s,
        content=(),
        files=(),
        archive=None,
        rebase=False,
        max_turns=max(1, plan.max_turns - deferral.so_far.turns),
        max_budget_usd=max(_LEAST_USD, plan.max_budget_usd - deferral.so_far.cost_usd),
        total_s=max(1.0, plan.total_s - deferral.so_far.seconds),
    )


def lost_meanwhile() -> Problem:
    """Of a job that cannot go on."""
    return Problem(
        410,
        "gone",
        "what the job had left when it was put away is not here any more, and nothing of the call has run; create the "
        "job again. It was deleted for its age (INVOKER_SESSION_TTL_S) or for room (INVOKER_SESSIONS_PER_SUBJECT, "
        "INVOKER_SESSIONS_IN_ALL), or another machine has it (INVOKER_STORE)",
    )


def few(denials: Sequence[PermissionDenial]) -> list[PermissionDenial]:
    """As many of the first as may be kept."""
    kept, size = [], 0
    for denial in denials:
        size += len(denial.model_dump_json())
        if size > _DENIALS:
            break
        kept.append(denial)
    return kept
