"""A list of a caller's runs, whichever replica runs them or has run them."""

from __future__ import annotations

import asyncio
import contextlib

from fastapi import Request

from claude_contract.versions import UnknownVersion
from claude_invoker.api.links import base
from claude_invoker.caller import Caller
from claude_invoker.model import RunList, RunSummary
from claude_invoker.place import Place
from claude_invoker.replicas.register import Register
from claude_invoker.runs.engine import Engine
from claude_invoker.runs.summary import Filter, Summary, summary_of
from claude_invoker.services import services

LOOKED_AT = 200
"""Runs, at once."""
PAGES = 10
"""Of so many, for one page of a list."""


async def listed(request: Request, caller: Caller, wanted: Filter, before: Place | None, limit: int) -> RunList:
    """The newest `limit` of them that come `before`. Raises Problem 503."""
    found, before = await summaries(request, caller.subject, wanted, before, limit)
    return RunList(runs=[_shown(request, each) for each in found], next=None if before is None else str(before))


async def summaries(
    request: Request, subject: str | None, wanted: Filter, before: Place | None, limit: int
) -> tuple[list[Summary], Place | None]:
    """The same of any subject, or of all (None), and where to go on. Raises Problem 503."""
    parts, found = services(request), list[Summary]()
    for _ in range(PAGES):
        if parts.replicas is None:
            page, before = _remembered(parts.engine, subject, before)
        else:
            page, before = await _recorded(parts.replicas.register, parts.engine, subject, wanted, before)
        found += filter(wanted.takes, page)
        if before is None or len(found) > limit:
            break
    if len(found) > limit:
        found = found[:limit]
        before = found[-1].place
    return found, before


def _remembered(engine: Engine, subject: str | None, before: Place | None) -> tuple[list[Summary], Place | None]:
    """Where no Redis knows them: those of this process."""
    known = (run for run in engine.runs.values() if subject in (None, run.subject) and not run.is_job)
    rest = [each for each in map(summary_of, known) if before is None or each.place < before]
    rest.sort(key=lambda each: each.place, reverse=True)
    page = rest[:LOOKED_AT]
    return page, page[-1].place if len(page) < len(rest) else None


async def _recorded(
    register: Register, engine: Engine, subject: str | None, wanted: Filter, before: Place | None
) -> tuple[list[Summary], Place | None]:
    """From their records. Those whose replicas are gone are given up; those of this very process whose end could not be
    written, and that it keeps no more, are left out."""
    page, following = await register.page(subject, wanted, before, LOOKED_AT)
    if await _given_up(register, [each for each in page if not each.is_over]):
        page, following = await register.page(subject, wanted, before, LOOKED_AT)
    return [each for each in page if each.is_over or each.owner != register.name or each.id in engine.runs], following


async def _given_up(register: Register, going_on: list[Summary]) -> bool:
    """Whether any were."""
    owners = list({run.owner for run in going_on} - {register.name})
    addresses = await asyncio.gather(*map(register.address_of, owners))
    gone = {owner for owner, address in zip(owners, addresses, strict=True) if address is None}
    for run in going_on:
        if run.owner in gone:
            with contextlib.suppress(UnknownVersion):
                known = await register.find(run.id)
                if known is not None and not known.is_over:
                    await register.give_up(known)
    return bool(gone)


def _shown(request: Request, run: Summary) -> RunSummary:
    return RunSummary(
        id=run.id,
        state=run.state,
        created_at=run.created_at,
        finished_at=run.finished_at,
        model=run.model,
        session=run.session,
        repository=run.repository,
        cost_usd=run.cost_usd,
        tags=list(run.tags),
        links={"self": f"{base(request)}/runs/{run.id}"},
    )
