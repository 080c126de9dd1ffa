"""Which replica answers for a run."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import Request

from claude_invoker.api.links import base
from claude_invoker.caller import Caller
from claude_invoker.replicas.forwarding import Elsewhere, PassedOn, Peer, drained, unanswered
from claude_invoker.replicas.record import PastRun, RunRecord, past
from claude_invoker.replicas.register import Register
from claude_invoker.runs.engine import no_such_run
from claude_invoker.runs.kept import Files, gone, pending
from claude_invoker.runs.run import Run
from claude_invoker.services import services


async def run_of(
    request: Request, run_id: str, caller: Caller, may: Callable[[Caller, str], bool] = Caller.may_see
) -> Run | PastRun:
    """A run that the caller `may` see: one of this process, or one that is over from its record. Raises Elsewhere with
    the answer of the replica that runs it, Problem 404 (also for the runs of others) and 503."""
    parts = services(request)
    if parts.replicas is None or run_id in parts.engine.runs or was_forwarded(request):
        return parts.engine.find(run_id, caller, may)
    register = parts.replicas.register
    known = await register.find(run_id)
    if known is None or not may(caller, known.subject):
        raise no_such_run()
    if not known.is_over:
        if known.owner == register.name:  # its end could not be written, and it is not kept here any more
            raise no_such_run()
        await _forward(request, caller, known.owner)
    return await _over(register, known)


async def files_of(request: Request, run: Run | PastRun, caller: Caller) -> Files:
    """The run's artifacts. Raises Elsewhere where only the replica that ran it has them, Problem 404 where that is
    gone, 503 where it does not answer and the store does not have them yet."""
    keeping = services(request).engine.keeping
    files = keeping.files(run.id)
    if isinstance(run, Run) or not run.artifacts or files.directory.is_dir():
        return files
    if files.store is not None:
        found = await keeping.now(run.id, run.artifacts)
        if not any(artifact.pending for artifact in found):
            return files
        await _forward(request, caller, run.owner)
        raise pending()
    await _forward(request, caller, run.owner)
    raise gone()


def was_forwarded(request: Request) -> bool:
    """Whether another replica asks, which does not ask again."""
    return bool(getattr(request.state, "forwarded", False))


async def attached(request: Request, run_id: str, caller: Caller, *, live: bool) -> PastRun | None:
    """A run of the caller's that another replica has, once it is over; the caller counts there as one who follows it
    until then. None where it is kept no more. Raises Elsewhere (`live`) with its events, Problem 503."""
    parts = services(request)
    assert parts.replicas is not None
    register = parts.replicas.register
    known = await register.find(run_id)
    if known is None or known.subject != caller.subject or (known.owner == register.name and not known.is_over):
        return None
    if not known.is_over and (peer := await peer_of(request, known.owner)) is not None:
        answer = await parts.replicas.forwarder.follow(f"{base(request)}/runs/{run_id}", caller, peer)
        if live:
            raise Elsewhere(PassedOn(answer))
        await drained(answer)
        known = await register.ended(run_id) or known
    return await _over(register, known)


async def _over(register: Register, known: RunRecord) -> PastRun:
    """The run of a record, given up where its replica is gone. Raises Problem 503."""
    if not known.is_over:
        known = await register.give_up(known)
        if not known.is_over:  # said by its replica meanwhile, which is there after all
            raise unanswered()
    return past(known)


async def _forward(request: Request, caller: Caller, owner: str) -> None:
    """Raises Elsewhere, unless the owner is gone or this very replica."""
    replicas = services(request).replicas
    assert replicas is not None
    if (peer := await peer_of(request, owner)) is not None:
        raise Elsewhere(PassedOn(await replicas.forwarder.forward(request, caller, peer)))


async def peer_of(request: Request, owner: str) -> Peer | None:
    """None where it is gone, or this very replica. Raises Problem 503."""
    parts = services(request)
    assert parts.replicas is not None
    if owner == parts.replicas.register.name:
        return None
    address, signer = await parts.replicas.register.address_of(owner), parts.replicas.register.signer(owner)
    return None if address is None or signer is None else Peer(address, signer, parts.settings.required_checks)
