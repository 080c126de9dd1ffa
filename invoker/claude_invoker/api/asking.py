"""All that waits to be allowed, of jobs and of runs that are none, as far as a caller is to see it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from fastapi import Request

from claude_invoker.api.jobs import store_of
from claude_invoker.api.links import base
from claude_invoker.api.replicas import peer_of
from claude_invoker.caller import Caller
from claude_invoker.jobs.fairness import fairly
from claude_invoker.jobs.store import MOST_ASKING
from claude_invoker.model import Permission
from claude_invoker.problem import Problem
from claude_invoker.replicas.register import AskingRun
from claude_invoker.services import services

_MOST_ELSEWHERE = 50
"""Runs of other replicas that are looked at, at once."""


@dataclass(frozen=True)
class Asking:
    """A job, or a run that is none, and what of it waits."""

    place: Literal["jobs", "runs"]
    id: str
    subject: str
    tier: str
    title: str
    is_away: bool
    """Whether it is put away meanwhile."""
    waiting: list[Permission]


@dataclass(frozen=True)
class AllAsking:
    """`more`: jobs and runs that wait as well, and are left out."""

    shown: list[Asking]
    more: int = 0


async def asking(request: Request, caller: Caller) -> AllAsking:
    """What this caller may look on: of each subject as much as of any other, where it is too much. A run whose replica
    does not answer is left out."""
    jobs, in_all = await store_of(request).asking(caller.may_look_on)
    found = [
        Asking("jobs", job.id, job.subject, job.tier, job.title, job.state == "waiting_for_approval", job.waiting)
        for job in jobs
    ]
    elsewhere, more = await _elsewhere(request, caller)
    return AllAsking([*found, *_here(request, caller), *elsewhere], max(in_all - MOST_ASKING, 0) + more)


def _here(request: Request, caller: Caller) -> Iterable[Asking]:
    for run in services(request).engine.runs.values():
        if not run.is_job and run.permissions.waiting and caller.may_look_on(run.subject):
            yield Asking("runs", run.id, run.subject, run.tier, "", False, run.permissions.waiting)


async def _elsewhere(request: Request, caller: Caller) -> tuple[list[Asking], int]:
    """And how many are left out."""
    replicas = services(request).replicas
    if replicas is None:
        return [], 0
    try:
        known = [each for each in await replicas.register.asking() if caller.may_look_on(each.subject)]
    except Problem:
        return [], 0
    chosen = fairly([(each.subject, each) for each in known], _MOST_ELSEWHERE)
    looked = await asyncio.gather(*(_looked_at(request, caller, each) for each in chosen))
    found = [
        Asking("runs", each.id, each.subject, each.tier, "", False, waiting)
        for each, waiting in zip(chosen, looked, strict=True)
        if waiting
    ]
    return found, len(known) - len(chosen)


async def _looked_at(request: Request, caller: Caller, run: AskingRun) -> list[Permission]:
    replicas = services(request).replicas
    assert replicas is not None
    try:
        peer = await peer_of(request, run.owner)
        if peer is None:
            return []
        path = f"{base(request)}/runs/{run.id}/permissions"
        said = await replicas.forwarder.asked_for(path, caller, peer)
        return [Permission.model_validate(each) for each in said.get("waiting", [])]
    except (Problem, ValueError):
        return []
