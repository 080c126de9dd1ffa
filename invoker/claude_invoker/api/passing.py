"""A request to a model itself, and who answers it: the metering proxy, on the client's own connection."""

from __future__ import annotations

import asyncio
import os

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from claude_invoker.api import border
from claude_invoker.api.languages import request_id
from claude_invoker.api.lending import connection_of
from claude_invoker.api.waiting import left
from claude_invoker.caller import Caller
from claude_invoker.ending import ended
from claude_invoker.metering import handing
from claude_invoker.metering.control import Terms
from claude_invoker.passthrough.desk import Desk
from claude_invoker.passthrough.heads import session_of, to_api
from claude_invoker.passthrough.message import Message
from claude_invoker.problem import Problem


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
        self._at = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises Problem where nothing was answered."""
        desk = self._desk
        session, trace = session_of(dict(scope["headers"])), border.traceparent(self._request)
        message = desk.begin(self._caller, self._model, session, self._terms, trace)
        try:
            answering = asyncio.create_task(self._answered(message))
            leaving = asyncio.create_task(left(receive))
            try:
                await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
                has_left = leaving.done()
            finally:
                await ended(leaving, answering)
        finally:
            desk.finish(message)
        if not has_left:
            answering.result()

    async def _answered(self, message: Message) -> None:
        scope, connection = self._request.scope, connection_of(self._request.scope)
        headers, name = to_api(scope["headers"]), request_id(self._request.headers)
        content = await self._request.body()
        try:
            lent = await connection.lend()
        except OSError as error:  # who has left hears nothing of it
            raise self._desk.unlent(message) from error
        try:
            try:
                asked = handing.Request(self._at, scope["query_string"], headers, content, lent, name)
                await self._desk.hand(message, asked)
            finally:
                os.close(lent)
            await self._desk.answer(message)
        except Problem:
            connection.unused()
            raise
        except BaseException:
            connection.end()
            raise
        connection.end()
