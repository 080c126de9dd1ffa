"""The only holder of the API key: a proxy on a unix socket that adds it to the requests of running runs.

A tool shell has the CLI's user id and can read the CLI's memory, so no way of handing the key to the CLI
keeps it from a determined prompt. So the CLI gets a token instead, worth nothing before its run begins and
after it ends, and only for the models that the run may use. What its requests cost is counted, bounded and written
down here, before and while they pass: what the CLI says about it comes from a process that the run's tools can reach.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp
import orjson
import uvicorn
from uvicorn.server import ServerState

from claude_invoker.bounded_http import heads_within
from claude_invoker.metering import request
from claude_invoker.metering.account import Exhausted
from claude_invoker.metering.bill import Bill, Reservation, unheard
from claude_invoker.metering.body import Body, disconnected
from claude_invoker.metering.exchange import Exchange, Grant, Receive, Send, Sent
from claude_invoker.metering.journal import CannotWrite
from claude_invoker.metering.outward import Outward
from claude_invoker.metering.peers import few
from claude_invoker.metering.prices import Price, UnknownPrice
from claude_invoker.metering.purse import CannotDraw
from claude_invoker.metering.replies import error, hold_back, refuse, respond
from claude_invoker.metering.request import Asked, Refused
from claude_invoker.metering.upstreams import AWAY, Upstreams
from claude_invoker.metering.usage import Meter, Used
from claude_invoker.metering.wire import Upstream

_log = logging.getLogger(__name__)
_DROPPED = frozenset(
    (b"host", b"authorization", b"x-api-key", b"cookie", b"content-length", b"content-type", b"content-encoding",
     b"connection", b"transfer-encoding", b"te", b"trailer", b"upgrade", b"expect", b"keep-alive", b"accept-encoding",
     b"proxy-authorization", b"proxy-connection", b"idempotency-key", b"x-idempotency-key",
     b"anthropic-workspace-id", b"anthropic-user-profile-id")
)  # fmt: skip
"""What is sent is JSON, whatever its sender calls it: read in another charset the same bytes could ask for other
things. A name with `_` is none of the API's, and servers there are that read it as one with `-`."""
_HOP = frozenset((b"connection", b"transfer-encoding", b"keep-alive", b"content-encoding", b"content-length"))
_MESSAGES, _COUNT = "/v1/messages", "/v1/messages/count_tokens"
_COUNT_S = 10.0
_COUNT_MARGIN = (1.02, 64)
"""The API calls its own count an estimate: by this factor, and so many tokens, it may be too low."""
_CONNECTIONS = 200
"""Of one run at once."""
_HEAD_S = 60.0
"""How long a run may have a connection without asking anything."""
_LAST_WORD_S = 60.0
"""How long the API may take to say what a request has used so far of which nothing was heard when the run left."""


class KeyProxy:
    """Forwards `POST /v1/messages` with the real key in place of a run's token."""

    def __init__(self, upstreams: Sequence[Upstream], api_key: str, certificates: str | None = None) -> None:
        """`certificates`: see `Outward`."""
        self._upstreams = Upstreams([each.base_url for each in upstreams])
        self._api_key = api_key
        self._grants: dict[str, Grant] = {}
        self._outward = Outward(upstreams, certificates)
        self._config = uvicorn.Config(
            self._application,
            interface="asgi3",
            proxy_headers=False,
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
        )
        self._server: asyncio.Server | None = None
        self._forwarding: set[asyncio.Task[bool]] = set()
        self._keeps_in_us = False
        """Whether the API answers in the US what does not say where: so the key's workspace has it."""
        self.hold: str | None = None
        """Why no request of a run that is billed is forwarded now."""

    async def start(self, listener: socket.socket) -> None:
        """Answers there: every user may connect, and gets as far as a token. Raises OSError."""
        self._load()
        state = ServerState()
        loop, protocol = asyncio.get_running_loop(), few(heads_within(_HEAD_S), _CONNECTIONS)
        self._server = await loop.create_unix_server(
            lambda: protocol(config=self._config, server_state=state, app_state={}), sock=listener
        )

    def _load(self) -> None:
        if not self._config.loaded:
            self._config.load()

    async def rehearse(self) -> None:
        """Asks a server of its own once, in place of the API: much of the libraries' code is loaded when it is first
        used, and by then this process may be somebody who cannot reach it."""

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
            writer.close()

        self._load()
        await asyncio.to_thread(int)
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with await self._outward.post(f"http://localhost:{port}", "/", (), b"{}") as response:
                    await response.read()

    async def stop(self) -> None:
        """Leaves every request that is under way, and books what it has cost."""
        if self._server is not None:
            self._server.close()
        for token in list(self._grants):
            self.revoke(token)
        for task in self._forwarding:
            task.cancel()
        await asyncio.gather(*self._forwarding, return_exceptions=True)
        await self._outward.close()

    def grant(self, token: str, grant: Grant) -> None:
        self._grants[token] = grant

    def revoke(self, token: str) -> None:
        """From now on nothing is sent for it; what is under way goes on while its client is there."""
        if (grant := self._grants.pop(token, None)) is not None:
            grant.revoked = True

    async def _application(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["method"] == "HEAD":
            await respond(send, 200, {})
            return
        if scope["method"] != "POST" or scope["path"] not in (_MESSAGES, _COUNT):
            await respond(send, 404, error("not_found_error", "not an endpoint that a run needs"))
            return
        headers = dict(scope["headers"])
        token = headers.get(b"x-api-key") or headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        grant = self._grants.get(token.decode("latin-1"))
        if grant is None:
            await respond(send, 401, error("authentication_error", "this run's token is not valid (any more)"))
            return
        if grant.requests_left <= 0:
            await refuse(send, grant, "this run has used up its requests")
            return
        grant.requests_left -= 1  # whatever comes of it: to be asked is work too
        async with Body(grant) as body:
            content = await body.read(receive)
            if content is None:
                await respond(send, 413, error("request_too_large", "the request is too large"))
                return
            gone = asyncio.create_task(disconnected(receive))
            try:
                await self.answer(grant, scope, content, send, gone)
            finally:
                gone.cancel()

    async def answer(
        self, grant: Grant, scope: dict[str, Any], content: bytes, send: Send, gone: asyncio.Future[None]
    ) -> None:
        """Forwards a request whose body has been read. `scope`: its path, query and headers, as ASGI has them."""
        try:
            asked = _read(content, scope, grant)
            if self._keeps_in_us:
                asked = asked.kept_in_us()
            price = asked.price(grant.account.prices)
        except (Refused, UnknownPrice) as refusal:
            await refuse(send, grant, str(refusal))
            return
        if self.hold is not None and grant.purse is not None:
            await hold_back(send, grant, self.hold)
            return
        exchange = Exchange(scope, asked, grant, send, gone)
        if scope["path"] == _COUNT:
            await self._unmetered(exchange, content)
        else:
            await self._metered(exchange, price)

    async def _unmetered(self, exchange: Exchange, content: bytes) -> None:
        """The API counts for nothing."""

        async def ask() -> None:
            for url, last in self._upstreams.in_turn():
                if await self._relay(url, _COUNT, content, exchange, None, last=last):
                    return

        relaying = asyncio.create_task(ask())
        await asyncio.wait((relaying, exchange.gone), return_when=asyncio.FIRST_COMPLETED)
        relaying.cancel()
        await asyncio.gather(relaying, return_exceptions=True)

    async def _metered(self, exchange: Exchange, price: Price) -> None:
        """Each address that is asked is a request of its own: reserved, written down and settled for itself."""
        for url, last in self._upstreams.in_turn():
            reservation = await self._reserved(exchange, price)
            if reservation is None:
                return
            asked, grant = exchange.asked, exchange.grant
            sent = Sent(reservation, asked.stream, Meter(stream=asked.stream, bound=reservation.bound))
            grant.changed("", Used())
            forwarding = asyncio.create_task(self._forward(url, exchange, sent, last=last))
            self._forwarding.add(forwarding)
            forwarding.add_done_callback(self._forwarding.discard)
            await asyncio.wait((forwarding,))
            if forwarding.cancelled() or forwarding.result():
                return

    async def _reserved(self, exchange: Exchange, price: Price) -> Reservation | None:
        """None where the run has left, or has been told why not."""
        grant = exchange.grant
        reserving = asyncio.create_task(self._reserve(exchange, price))
        await asyncio.wait((reserving, exchange.gone), return_when=asyncio.FIRST_COMPLETED)
        if exchange.gone.done() or grant.revoked:  # it has not waited for its turn: nothing is sent for it
            reserving.cancel()
            await asyncio.gather(reserving, return_exceptions=True)
            if not reserving.cancelled() and reserving.exception() is None:
                grant.account.settle(reserving.result(), Bill())
            grant.settled()
            return None
        try:
            return reserving.result()
        except Exhausted:
            # Not `refused`: the run ends as one that has used up its turns.
            grant.changed("", Used())
            reason = grant.account.budget or "the request may cost more than is left of its budget"
            await respond(exchange.send, 403, error("permission_error", reason))
        except CannotDraw as held:
            grant.settled()
            await hold_back(exchange.send, grant, str(held))
        return None

    async def _forward(self, url: str, exchange: Exchange, sent: Sent, *, last: bool) -> bool:
        """Carries the answer over, and settles the request, whatever ends it. False where the next address is to be
        asked."""
        asked, grant, reservation = exchange.asked, exchange.grant, sent.reservation
        relaying = asyncio.create_task(self._relay(url, _MESSAGES, reservation.asked.body(), exchange, sent, last=last))
        try:
            await asyncio.wait((relaying, exchange.gone), return_when=asyncio.FIRST_COMPLETED)
            if not relaying.done() and sent.number:
                # The run has left. What it is billed for is what the API bills us for, which the API says first.
                heard = asyncio.create_task(sent.heard.wait())
                await asyncio.wait((relaying, heard), timeout=_LAST_WORD_S, return_when=asyncio.FIRST_COMPLETED)
                heard.cancel()
        finally:
            relaying.cancel()
            await asyncio.gather(relaying, return_exceptions=True)
            final = sent.bill
            grant.note(sent, final.usd)
            grant.account.settle(reservation, final)
            grant.settled()
            grant.metered(sent.metered(grant.run, final))
            model = sent.meter.model or asked.model
            grant.changed(model, final.used)
            for other, used in final.beside.items():
                grant.changed(other or model, used)
        return relaying.cancelled() or relaying.exception() is not None or relaying.result()

    async def _reserve(self, exchange: Exchange, price: Price) -> Reservation:
        """By the request's size, or by the API's own count where that is too much; after others of the run, where what
        they have reserved is not there for this one. Raises Exhausted."""
        asked, account, purse = exchange.asked, exchange.grant.account, exchange.grant.purse
        tokens = asked.input_bound(price)
        if not account.suffices(asked, price, tokens):
            counted = await self._count(exchange, asked)
            if counted is not None:
                tokens = min(tokens, counted)
        while not account.suffices(asked, price, tokens) and await account.others_settled():
            pass
        return account.reserve(asked, price, tokens) if purse is None else await purse.reserve(asked, price, tokens)

    async def _count(self, exchange: Exchange, asked: Asked) -> int | None:
        """The request's input tokens as the API counts them, which costs nothing. None where it does not say."""
        url, _ = next(self._upstreams.in_turn())
        try:
            async with asyncio.timeout(_COUNT_S), await self._ask(url, _COUNT, asked.counted(), exchange) as answer:
                tokens = orjson.loads(await _short(answer.content))["input_tokens"]
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):
            return None
        if answer.status != 200 or not isinstance(tokens, int):
            return None
        return int(tokens * _COUNT_MARGIN[0]) + _COUNT_MARGIN[1]

    async def _ask(
        self, url: str, path: str, body: bytes, exchange: Exchange, sent: Sent | None = None
    ) -> aiohttp.ClientResponse:
        """`sent`: of what costs something, which is written down on its way. Raises aiohttp.ClientError."""
        given = exchange.scope["headers"]
        headers = [(name, value) for name, value in given if name not in _DROPPED and b"_" not in name]
        # What is compressed comes in other pieces, and later, than it was sent in.
        headers += ((b"accept-encoding", b"identity"), (b"x-api-key", self._api_key.encode()))
        headers += ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)))
        query = exchange.scope["query_string"].decode("latin-1")
        content = body if sent is None else _written_down(body, exchange, sent)
        return await self._outward.post(url, f"{path}?{query}" if query else path, headers, content)

    async def _relay(
        self, url: str, path: str, body: bytes, exchange: Exchange, sent: Sent | None, *, last: bool
    ) -> bool:
        """`sent`: None for what costs nothing. False where nothing was answered, and the next address is to be asked;
        who may have begun to work on it is billed as one whom the run has left."""
        grant, send = exchange.grant, exchange.send
        try:
            response = await self._ask(url, path, body, exchange, sent)
        except aiohttp.ClientError:
            if sent is not None and sent.is_unwritable:
                await hold_back(send, grant, "what it costs cannot be written down: the disk is full?")
                return True
            self._upstreams.failed(url)
            if not last:
                _log.warning("%s cannot be reached: the next address of the API is asked", url)
                return False
            if sent is not None:
                sent.ending = "failed"
            grant.api_status, grant.unreachable = None, True
            grant.changed("", Used())
            await respond(send, 502, error("api_error", "the API cannot be reached"))
            return True
        try:
            if response.status in AWAY:
                self._upstreams.failed(url)
                if not last:
                    _log.warning("%s has answered %d: the next address is asked", url, response.status)
                    if sent is not None:
                        sent.status = response.status
                    return False
            else:
                self._upstreams.answered(url)
            grant.api_status, grant.unreachable = response.status, False
            grant.retry_after = _seconds(response.headers.get("retry-after", ""))
            if sent is not None:
                sent.status = response.status
                sent.request_id = response.headers.get("request-id", "").encode("ascii", "replace").decode()
                is_stream = response.headers.get("content-type", "").startswith("text/event-stream")
                sent.meter = Meter(stream=is_stream, bound=sent.reservation.bound)
            grant.changed("", Used())
            head = [(name, value) for name, value in response.raw_headers if name.lower() not in _HOP]
            await send({"type": "http.response.start", "status": response.status, "headers": head})
            is_first = True
            try:
                read = response.content.readchunk
                while True:
                    chunk, is_end = await read()
                    if not chunk:
                        if is_end:
                            continue  # of a piece
                        break
                    if sent is not None:
                        self._listen(sent, chunk, grant)
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                    if is_first:  # is written when this task has paused: before the others that have come by now
                        is_first = await asyncio.sleep(0, False)
            except asyncio.CancelledError:
                if sent is not None:
                    _hear_out(sent, response)
                raise
            except aiohttp.ClientError:
                if sent is not None:
                    sent.ending = "failed"
                raise
            except _TooOften:
                _log.warning(
                    "run %s: an answer used the API's tools more often than it may, and was broken off", grant.run
                )
                raise
            if sent is not None:
                sent.meter.end()
                self._learn(sent)
                sent.ending = "complete"
                grant.note(sent, sent.bill.usd)
            await send({"type": "http.response.body"})
            return True
        finally:
            response.release()

    def _listen(self, sent: Sent, chunk: bytes, grant: Grant) -> None:
        """Before the run has the chunk it is written down what it has cost."""
        sent.listen(chunk)
        if sent.meter.seen and sent.is_news():
            sent.heard.set()
            self._learn(sent)
            grant.note(sent, sent.cut_off_usd)
        if sent.meter.again > sent.reservation.asked.again():
            raise _TooOften

    def _learn(self, sent: Sent) -> None:
        """Where the key's workspace has the API answer: the next request is reserved at that price."""
        if sent.meter.geo in ("us", "global") and not sent.reservation.asked.names_geo:
            self._keeps_in_us = sent.meter.geo == "us"


class _TooOften(Exception):
    """The API has read a request more often than it was reserved for."""


def _seconds(text: str) -> str | None:
    """None for what is no number of seconds; of a header of other bytes than UTF-8 no JSON could be made."""
    return text if re.fullmatch(r"[0-9]{1,9}", text) else None


def _hear_out(sent: Sent, response: aiohttp.ClientResponse) -> None:
    """The run has left, and may have been slow before: what has come by now was put out for it."""
    with contextlib.suppress(aiohttp.ClientError):
        sent.meter.feed(response.content.read_nowait())


async def _short(content: aiohttp.StreamReader) -> bytes:
    """All of it. Raises ValueError for what does not end soon."""
    try:
        await content.readexactly(request.MAX_COUNTED)
    except asyncio.IncompleteReadError as over:
        return over.partial
    raise ValueError("the answer is too long for a number")


async def _written_down(body: bytes, exchange: Exchange, sent: Sent) -> AsyncIterator[bytes]:
    """A request's body, and in front of its last byte the line that it is sent: without that byte the API has no
    request. Any earlier it would bill what a proxy that is killed meanwhile has not sent. Raises CannotWrite."""
    grant = exchange.grant
    yield body[:-1]
    try:
        sent.number = grant.notes.send(grant.run, unheard(sent.reservation, stream=sent.stream).usd)
    except CannotWrite:
        sent.is_unwritable = True
        raise
    yield body[-1:]


def _read(body: bytes, scope: dict[str, Any], grant: Grant) -> Asked:
    """Raises Refused."""
    betas = [value.decode("latin-1") for name, value in scope["headers"] if name == b"anthropic-beta"]
    asked = request.read(body, grant.features, betas)
    if not grant.permits(asked.model):
        raise Refused(f"model {asked.model[:200]} is not allowed here")
    return asked
