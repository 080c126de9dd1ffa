"""A caller's request about a run, handed on to the replica that runs it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import httpx
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from msgspec.structs import replace

from claude_contract.attestation import HEADER, Signer
from claude_contract.identity import Identity
from claude_invoker.caller import Caller
from claude_invoker.head import asked_method
from claude_invoker.problem import Problem

_ON = ("accept", "if-none-match", "if-range", "last-event-id", "range", "x-request-id")
_HOP_BY_HOP = frozenset(("connection", "keep-alive", "transfer-encoding", "date", "server"))
_TIMEOUTS = httpx.Timeout(10.0, connect=2.0, read=90.0)  # streams have heartbeats


class Elsewhere(Exception):
    """The answer is another replica's."""

    def __init__(self, answer: Response) -> None:
        self.answer = answer


def unanswered() -> Problem:
    """The replica that runs it cannot be reached, and has not been gone for long enough to be given up."""
    return Problem(503, "busy", "the invoker that runs it does not answer", {"Retry-After": "1"})


@dataclass(frozen=True)
class Peer:
    """Another replica, and as what it is asked. `checks`: those that the gateway has made."""

    address: str
    signer: Signer
    checks: Sequence[str]


class Forwarder:
    """One pool of connections to the other replicas."""

    def __init__(self) -> None:
        self._client = httpx.AsyncClient(timeout=_TIMEOUTS, trust_env=False, follow_redirects=False)

    async def forward(self, request: Request, caller: Caller, peer: Peer) -> httpx.Response:
        """The other's answer to what is asked, to be closed. Raises Problem 503 where it cannot be reached."""
        path = request.scope["raw_path"].decode("latin-1").partition("?")[0]
        query = request.scope["query_string"].decode("latin-1")
        headers = {name: request.headers[name] for name in _ON if name in request.headers}
        return await self._asked(caller, peer, asked_method(request), path, query, headers)

    async def follow(self, run_id: str, caller: Caller, peer: Peer) -> httpx.Response:
        """A run's events, as the other sends them; the same otherwise."""
        return await self._asked(caller, peer, "GET", f"/runs/{run_id}/events", "", {})

    async def _asked(
        self, caller: Caller, peer: Peer, method: str, path: str, query: str, headers: dict[str, str]
    ) -> httpx.Response:
        signer = peer.signer
        fresh = signer.open(method=method, path=path, route=caller.route or "", request_id=caller.request_id or "")
        known = Identity(caller.subject, tier=caller.tier, roles=caller.roles)
        signed = signer.sign(replace(fresh, identity=known, checks=tuple(sorted(peer.checks))))
        # identity: what is compressed is compressed here.
        headers |= {"accept-encoding": "identity", HEADER: signed}
        url = httpx.URL(peer.address).copy_with(raw_path=(path + (f"?{query}" if query else "")).encode("latin-1"))
        try:
            return await self._client.send(self._client.build_request(method, url, headers=headers), stream=True)
        except httpx.TransportError as error:
            raise unanswered() from error

    async def close(self) -> None:
        await self._client.aclose()


async def drained(answer: httpx.Response) -> None:
    """Returns at its end, whatever ends it."""
    try:
        async with aclosing(_pieces(answer)) as pieces:
            async for _ in pieces:
                pass
    except httpx.TransportError:
        return


def passed_on(answer: httpx.Response) -> Response:
    """As it comes."""
    kept = {name: value for name, value in answer.headers.items() if name not in _HOP_BY_HOP}
    return StreamingResponse(_pieces(answer), status_code=answer.status_code, headers=kept)


async def _pieces(answer: httpx.Response) -> AsyncGenerator[bytes, None]:
    try:
        async for piece in answer.aiter_raw():
            yield piece
    finally:
        await answer.aclose()
