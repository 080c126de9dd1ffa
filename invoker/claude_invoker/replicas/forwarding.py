"""A caller's request about a run, handed on to the replica that runs it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import orjson
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from msgspec.structs import replace
from starlette.types import Receive, Scope, Send

from claude_contract.attestation import HEADER, Signer
from claude_contract.claims import body_hash
from claude_contract.identity import Identity
from claude_invoker.caller import Caller
from claude_invoker.head import asked_method
from claude_invoker.problem import Problem

_log = logging.getLogger(__name__)
_ON = ("accept", "content-type", "if-none-match", "if-range", "last-event-id", "range", "x-request-id")
_HOP_BY_HOP = frozenset(("connection", "keep-alive", "transfer-encoding", "date", "server"))
_CONNECT_S = 2.0
_HEAD_S = 10.0
"""In which an answer begins: none waits for its run."""
_SILENCE_S = 90.0
"""How long an answer may pause at least; streams have heartbeats."""


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
    """Connections to the other replicas, as many as are asked for: each stream that is followed has one, and who
    cancels a run waits for none of them."""

    def __init__(self, heartbeat_s: float) -> None:
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(max(_SILENCE_S, 3 * heartbeat_s), connect=_CONNECT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
            trust_env=False,
            follow_redirects=False,
        )

    async def forward(self, request: Request, caller: Caller, peer: Peer) -> httpx.Response:
        """The other's answer to what is asked, to be closed. Raises Problem 503 where it cannot be reached."""
        path = request.scope["raw_path"].decode("latin-1").partition("?")[0]
        query = request.scope["query_string"].decode("latin-1")
        headers = {name: request.headers[name] for name in _ON if name in request.headers}
        return await self._asked(caller, peer, asked_method(request), path, query, headers, await request.body())

    async def follow(self, run: str, caller: Caller, peer: Peer) -> httpx.Response:
        """The events of the run at that path, as the other sends them; the same otherwise."""
        return await self._asked(caller, peer, "GET", f"{run}/events", "", {})

    async def asked_for(self, path: str, caller: Caller, peer: Peer) -> dict[str, Any]:
        """The other's answer in JSON, at that path. Raises Problem 503, ValueError for what is none, or an error."""
        answer = await self._asked(caller, peer, "GET", path, "", {"accept": "application/json"})
        try:
            said = orjson.loads(await answer.aread()) if answer.status_code == 200 else None
        except httpx.TransportError as error:
            raise unanswered() from error
        finally:
            await answer.aclose()
        if not isinstance(said, dict):
            raise ValueError("the other replica answers with something else")
        return said

    async def _asked(
        self, caller: Caller, peer: Peer, method: str, path: str, query: str, headers: dict[str, str], body: bytes = b""
    ) -> httpx.Response:
        signer = peer.signer
        fresh = signer.open(method=method, path=path, route=caller.route or "", request_id=caller.request_id or "")
        known = Identity(caller.subject, tier=caller.tier, roles=caller.roles, permissions=caller.permissions)
        checks = tuple(sorted(peer.checks))
        signed = signer.sign(replace(fresh, identity=known, checks=checks, body_hash=body_hash(body) if body else None))
        # identity: what is compressed is compressed here.
        headers |= {"accept-encoding": "identity", HEADER: signed}
        url = httpx.URL(peer.address).copy_with(raw_path=(path + (f"?{query}" if query else "")).encode("latin-1"))
        try:
            async with asyncio.timeout(_HEAD_S):
                answer = await self._client.send(
                    self._client.build_request(method, url, headers=headers, content=body or None), stream=True
                )
        except (httpx.TransportError, TimeoutError) as error:
            raise unanswered() from error
        if answer.status_code == 401:  # that is about us, not about the caller, whose token is good
            await answer.aclose()
            _log.error("%s does not believe this replica: do their clocks and Redis of runs agree?", peer.address)
            raise unanswered()
        return answer

    async def close(self) -> None:
        await self._client.aclose()


async def drained(answer: httpx.Response) -> None:
    """Returns at its end, whatever ends it."""
    try:
        async for _ in answer.aiter_raw():
            pass
    except httpx.TransportError:
        return
    finally:
        await answer.aclose()


class PassedOn(StreamingResponse):
    """Another's answer, which is closed however this one ends: also where its client has left before it began."""

    def __init__(self, answer: httpx.Response) -> None:
        kept = {name: value for name, value in answer.headers.items() if name not in _HOP_BY_HOP}
        super().__init__(answer.aiter_raw(), status_code=answer.status_code, headers=kept)
        self.answer = answer

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        except httpx.TransportError as error:  # nor is ours completed: its client sees that it lacks something
            _log.warning("%s broke off its answer: %s", self.answer.url.copy_with(path="/", query=None), error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.answer.aclose()
