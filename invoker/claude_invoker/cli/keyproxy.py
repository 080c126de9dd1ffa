"""The only holder of the API key: a proxy on a unix socket that adds it to the requests of running runs.

A tool shell has the CLI's user id and can read the CLI's memory, so no way of handing the key to the CLI
keeps it from a determined prompt. So the CLI gets a token instead, worth nothing before its run begins and
after it ends, and only for the models that the run may use. What its requests cost is counted, and bounded, here
(see `metering`): what the CLI says about it comes from a process that the run's tools can reach.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from claude_invoker.metering import request
from claude_invoker.metering.account import Account, Exhausted, Reservation
from claude_invoker.metering.prices import Price, UnknownPrice
from claude_invoker.metering.request import Asked, Refused
from claude_invoker.metering.usage import Meter

_MAX_BODY = 32 * 1024 * 1024
"""Of one request: the API itself takes no more."""
_MAX_HELD = 2 * _MAX_BODY
"""Of all requests of a run at once: none of them is given up before it is answered, and all of them are in memory."""
_DROPPED = frozenset(
    (b"host", b"authorization", b"x-api-key", b"content-length", b"connection", b"transfer-encoding",
     b"accept-encoding", b"proxy-authorization")
)  # fmt: skip
_HOP = frozenset((b"connection", b"transfer-encoding", b"keep-alive", b"content-encoding", b"content-length"))
_COUNT = "/v1/messages/count_tokens"
_PATHS = ("/v1/messages", _COUNT)
_COUNT_S = 10.0
_COUNT_MARGIN = (1.02, 64)
"""The API calls its own count an estimate: by this factor, and so many tokens, it may be too low."""
_LAST_WORD_S = 2.0
"""How long the API may take to say what a request has used so far of which nothing was heard when the run left."""

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


@dataclass
class Grant:
    """What a token is worth while its run lasts."""

    permits: Callable[[str], bool]
    """Whether the run may use a model."""
    requests_left: int
    account: Account
    server_tools: frozenset[str] = frozenset()
    """The API's own tools that the run may use."""
    held: int = 0
    """Bytes of the bodies that were read and are not answered yet."""
    refused: str | None = None
    """Why a request of the run was not forwarded."""
    api_status: int | None = None
    """The status of the API's last answer; None before the first, and where the API could not be reached."""
    unreachable: bool = False
    retry_after: str | None = None


@dataclass(frozen=True)
class Exchange:
    """One request of a run's, and how to answer it."""

    scope: dict[str, Any]
    asked: Asked
    grant: Grant
    receive: Receive
    send: Send


class KeyProxy:
    """Forwards `POST /v1/messages` with the real key in place of a run's token."""

    def __init__(self, base_url: str, api_key: str) -> None:
        self._base_url = base_url.rstrip("/")
        self._api_key = api_key
        self._grants: dict[str, Grant | None] = {}
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(None, connect=10.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
            trust_env=False,
        )
        self._server: asyncio.Server | None = None
        self.socket = Path()

    async def start(self, socket: Path) -> None:
        """Listens there: every user may connect, and gets as far as a token. Raises OSError."""
        config = uvicorn.Config(
            self._application,
            interface="asgi3",
            proxy_headers=False,
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
        )
        config.load()
        state = ServerState()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(
            lambda: HttpToolsProtocol(config=config, server_state=state, app_state={}), str(socket)
        )
        socket.chmod(0o666)
        self.socket = socket

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._client.aclose()

    def issue(self) -> str:
        """A new token that grants nothing yet."""
        token = "run-" + secrets.token_urlsafe(32)
        self._grants[token] = None
        return token

    def grant(self, token: str, grant: Grant) -> None:
        self._grants[token] = grant

    def revoke(self, token: str) -> None:
        self._grants.pop(token, None)

    async def _application(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["method"] == "HEAD":
            await _respond(send, 200, {})
            return
        if scope["method"] != "POST" or scope["path"] not in _PATHS:
            await _respond(send, 404, _error("not_found_error", "not an endpoint that a run needs"))
            return
        headers = dict(scope["headers"])
        token = headers.get(b"x-api-key") or headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        grant = self._grants.get(token.decode("latin-1"))
        if grant is None:
            await _respond(send, 401, _error("authentication_error", "this run's token is not valid (any more)"))
            return
        if grant.requests_left <= 0:
            await _refuse(send, grant, "this run has used up its requests")
            return
        grant.requests_left -= 1  # whatever comes of it: to be asked is work too
        async with _Body(grant) as body:
            content = await body.read(receive)
            if content is None:
                await _respond(send, 413, _error("request_too_large", "the request is too large"))
                return
            try:
                asked, price = _read(content, grant)
            except (Refused, UnknownPrice) as refusal:
                await _refuse(send, grant, str(refusal))
                return
            exchange = Exchange(scope, asked, grant, receive, send)
            if scope["path"] == _COUNT:
                await self._forward(exchange, content, None)
                return
            try:
                reservation = await self._reserve(exchange, price)
            except Exhausted:
                # Not `refused`: the run ends as one that has used up its turns.
                await _respond(send, 403, _error("permission_error", "the budget of this run is used up"))
                return
            lowered = reservation.max_tokens < asked.max_tokens
            try:
                await self._forward(
                    exchange, asked.with_max_tokens(reservation.max_tokens) if lowered else asked.body(), reservation
                )
            finally:
                grant.account.settle(reservation, asked.model, None)  # where nothing was said about it

    async def _reserve(self, exchange: Exchange, price: Price) -> Reservation:
        """By the request's size, or by the API's own count where that is too much; after others of the run, where what
        they have reserved is not there for this one. Raises Exhausted."""
        asked, account = exchange.asked, exchange.grant.account
        tokens = asked.input_bound(price)
        if not account.suffices(asked, price, tokens):
            counted = await self._count(exchange, asked)
            if counted is not None:
                tokens = min(tokens, counted)
        while not account.suffices(asked, price, tokens) and await account.others_settled():
            pass
        return account.reserve(asked, price, tokens)

    async def _count(self, exchange: Exchange, asked: Asked) -> int | None:
        """The request's input tokens as the API counts them, which costs nothing. None where it does not say."""
        asking = self._request(exchange, _COUNT, asked.counted())
        try:
            async with asyncio.timeout(_COUNT_S):
                answer = await self._client.send(asking)
            tokens = orjson.loads(answer.content)["input_tokens"]
        except (httpx.HTTPError, TimeoutError, ValueError, KeyError, TypeError):
            return None
        if answer.status_code != 200 or not isinstance(tokens, int):
            return None
        return int(tokens * _COUNT_MARGIN[0]) + _COUNT_MARGIN[1] + asked.search_tokens

    def _request(self, exchange: Exchange, path: str, body: bytes) -> httpx.Request:
        headers = [(name, value) for name, value in exchange.scope["headers"] if name not in _DROPPED]
        headers.append((b"x-api-key", self._api_key.encode()))
        query = exchange.scope["query_string"].decode("latin-1")
        url = self._base_url + path + (f"?{query}" if query else "")
        return self._client.build_request("POST", url, headers=headers, content=body)

    async def _forward(self, exchange: Exchange, body: bytes, reservation: Reservation | None) -> None:
        sent = self._request(exchange, exchange.scope["path"], body)
        heard = asyncio.Event()
        forwarding = asyncio.create_task(self._relay(sent, exchange, reservation, heard))
        gone = asyncio.create_task(_disconnected(exchange.receive))
        await asyncio.wait((forwarding, gone), return_when=asyncio.FIRST_COMPLETED)
        if not forwarding.done() and reservation is not None:
            # The run has left. What it is billed for is what the API bills us for, which the API says first.
            last_word = asyncio.create_task(heard.wait())
            await asyncio.wait((forwarding, last_word), timeout=_LAST_WORD_S, return_when=asyncio.FIRST_COMPLETED)
            last_word.cancel()
        for task in (forwarding, gone):
            task.cancel()
        await asyncio.gather(forwarding, gone, return_exceptions=True)

    async def _relay(
        self, sent: httpx.Request, exchange: Exchange, reservation: Reservation | None, heard: asyncio.Event
    ) -> None:
        grant, send = exchange.grant, exchange.send
        try:
            response = await self._client.send(sent, stream=True)
        except httpx.HTTPError:
            grant.api_status, grant.unreachable = None, True
            await _respond(send, 502, _error("api_error", "the API cannot be reached"))
            return
        grant.api_status, grant.unreachable = response.status_code, False
        grant.retry_after = response.headers.get("retry-after")
        meter = Meter(stream=response.headers.get("content-type", "").startswith("text/event-stream"))
        try:
            head = [(name, value) for name, value in response.headers.raw if name.lower() not in _HOP]
            await send({"type": "http.response.start", "status": response.status_code, "headers": head})
            async for chunk in _chunks(response):
                meter.feed(chunk)
                if meter.seen:
                    heard.set()
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            meter.end()
            await send({"type": "http.response.body"})
        finally:
            if reservation is not None and (meter.seen or response.status_code != 200):
                grant.account.settle(reservation, meter.model or exchange.asked.model, meter.used)
            await response.aclose()


async def _chunks(response: httpx.Response) -> AsyncIterator[bytes]:
    """Raises httpx.HTTPError where the API breaks off: the server then resets the run's connection too."""
    async for chunk in response.aiter_bytes():
        yield chunk


class _Body:
    """A request's body, counted as held by its run until the request is answered."""

    def __init__(self, grant: Grant) -> None:
        self._grant = grant
        self._size = 0

    async def __aenter__(self) -> _Body:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._grant.held -= self._size

    async def read(self, receive: Receive) -> bytes | None:
        """None where it is too large, beside what the run has under way, or breaks off."""
        parts = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            part = message.get("body", b"")
            self._size += len(part)
            self._grant.held += len(part)
            if self._size > _MAX_BODY or self._grant.held > _MAX_HELD:
                return None
            parts += part
            if not message.get("more_body"):
                return bytes(parts)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _read(body: bytes, grant: Grant) -> tuple[Asked, Price]:
    """Raises Refused, UnknownPrice."""
    asked = request.read(body, grant.server_tools)
    if not grant.permits(asked.model):
        raise Refused(f"this run may not use model {asked.model[:200]}")
    return asked, grant.account.prices.price(asked.model)


async def _refuse(send: Send, grant: Grant, reason: str) -> None:
    grant.refused = reason
    await _respond(send, 403, _error("permission_error", reason))


def _error(kind: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}}


async def _respond(send: Send, status: int, document: dict[str, Any]) -> None:
    data = orjson.dumps(document) if document else b""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
