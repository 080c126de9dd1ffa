"""A request to a model itself, and the API's answer to it, as they come: nothing is kept, merged or waited for."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from fastapi import Request, Response
from starlette.types import Message as Sent
from starlette.types import Receive, Scope, Send

from claude_invoker.api.languages import identified
from claude_invoker.api.waiting import left
from claude_invoker.caller import Caller
from claude_invoker.ending import ended
from claude_invoker.metering.control import Terms
from claude_invoker.passthrough.desk import Desk
from claude_invoker.passthrough.heads import session_of, to_api, to_client
from claude_invoker.passthrough.hop import Answer, BrokenOff
from claude_invoker.passthrough.message import Message

_log = logging.getLogger(__name__)


class Passed(Response):
    """The answer to a request for a message of `model`. Who leaves ends the request at the API."""

    def __init__(self, desk: Desk, request: Request, caller: Caller, model: str, terms: Terms, path: str) -> None:
        """`path`: at the API. The request's body has been read."""
        super().__init__()
        self._desk = desk
        self._request = request
        self._caller = caller
        self._model = model
        self._terms = terms
        query = request.scope["query_string"].decode("latin-1")
        self._target = f"{path}?{query}" if query else path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises Problem before the answer has begun."""
        desk, headers = self._desk, scope["headers"]
        message = await desk.begin(self._caller, self._model, session_of(dict(headers)), self._terms)
        try:
            relaying = asyncio.create_task(self._relay(message, send))
            leaving = asyncio.create_task(left(receive))
            try:
                await asyncio.wait((relaying, leaving), return_when=asyncio.FIRST_COMPLETED)
            finally:
                await ended(leaving, relaying)
        finally:
            desk.finish(message)
        if not relaying.cancelled():
            relaying.result()

    async def _relay(self, message: Message, send: Send) -> None:
        request = self._request
        answer = await self._desk.ask(message, self._target, to_api(request.scope["headers"]), await request.body())
        try:
            await send(_head(answer, identified(request.headers)))
            is_first = True
            async for chunk in answer.pieces():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                if is_first:  # is written when this task has paused: before the others that have come by now
                    is_first = await asyncio.sleep(0, False)
            message.end = "complete"
            await send({"type": "http.response.body"})
        except BrokenOff:
            # Without its end the answer is broken off for the client, too: the server closes its connection.
            message.end = "broken"
            _log.warning("message %s: the API has broken off its answer", message.key)


def _head(answer: Answer, identified: dict[str, str]) -> Sent:
    """With the API's own name of the request, else the gateway's."""
    headers: list[tuple[Any, Any]] = to_client(answer.headers)
    if not any(name == b"request-id" for name, _ in answer.headers):
        headers += [(name.encode(), value.encode()) for name, value in identified.items()]
    return {"type": "http.response.start", "status": answer.status, "headers": headers}
