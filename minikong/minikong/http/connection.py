"""A client connection: one request after the other, as nginx serves them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import TYPE_CHECKING, Protocol

from minikong.context import Context, Request
from minikong.http import parser
from minikong.http.body import RequestBody
from minikong.http.exchange import ClientExchange
from minikong.http.forwarded import real_ip
from minikong.http.seam import ClientGone, HttpError
from minikong.http.wire import Wire

if TYPE_CHECKING:
    from minikong.http.listener import Edge

log = logging.getLogger("minikong.http")

_LINGER = 2.0  # seconds for which input is still read after the last response


class Handler(Protocol):
    """Serves the requests of a listener: the gateway's phases or the Admin API."""

    async def __call__(self, ctx: Context, exchange: ClientExchange) -> None: ...


class ClientConnection(Wire):
    """Reads requests from its buffer and answers them in order, in a task of its own."""

    def __init__(
        self,
        edge: Edge,
        handler: Handler,
        scheme: str = "http",
        sni: str | None = None,
        refuse: int = 0,  # every request gets this error
    ) -> None:
        super().__init__()
        self.edge = edge
        self._refuse = refuse
        self.scheme = scheme
        self.sni = sni
        self.client_addr = ("", 0)
        self.server_addr = ("", 0)
        self._handler = handler

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.client_addr = _address(transport.get_extra_info("peername"))
        self.server_addr = _address(transport.get_extra_info("sockname"))
        self.edge.opened(self)
        self.edge.spawn(self._serve())

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.edge.closed(self)

    def abort_gently(self) -> None:
        """Ends the connection without an answer, but with FIN instead of RST."""
        self.lost = True
        self.transport.close()

    async def _serve(self) -> None:
        try:
            served = 0
            while await self._serve_one(first=served == 0):
                served += 1
                if served >= self.edge.keepalive_requests:
                    break
            await self._close()
        except Exception:
            log.exception("a request failed inside minikong")
            self.abort()

    async def _serve_one(self, *, first: bool) -> bool:
        """Serves the next request; False if the connection is to be closed."""
        head = await self._read_head(first=first)
        if head is None:
            return False
        conf = self.edge.conf
        del self.buffer[: head.size]
        body = RequestBody(self, head, conf)
        request = Request(
            method=head.method,
            target=head.target,
            http_version=head.version,
            headers=head.headers,
            body=body,
            scheme=self.scheme,
            client_addr=self.client_addr,
            server_addr=self.server_addr,
            host=head.host or "kong",
            uri=head.uri,
            length=head.size,
            sni=self.sni,
            id=os.urandom(16).hex(),
        )
        request.remote_addr = real_ip(request, conf) if conf.trusted_ips else self.client_addr
        body.request = request
        context = Context(request=request, args=head.target.partition(b"?")[2])
        exchange = ClientExchange(self, head, body, context)
        error = head.error or self._refuse
        if not error and conf.client_max_body_size and (head.length or 0) > conf.client_max_body_size:
            error = 413
        if error:
            phases = self._handler == self.edge.gateway.handle  # not for the Admin API
            await exchange.refuse(context, error, filtered=phases)
            if phases:
                await self.edge.gateway.refused(context)
        else:
            try:
                await self._handler(context, exchange)
            except HttpError as broken:  # the body could not be read
                await exchange.fail(context, broken.status)
            except ClientGone:
                self.abort()
                return False
        return await exchange.finish()

    async def _read_head(self, *, first: bool) -> parser.Head | None:
        """The next request's head; None if the client leaves, or is slower than client_header_timeout in all."""
        conf = self.edge.conf
        clock = asyncio.get_running_loop().time
        tried = 0
        deadline = clock() + (conf.client_header_timeout if first else conf.keepalive_timeout)
        while True:
            if len(self.buffer) > tried:
                if not tried:
                    deadline = clock() + conf.client_header_timeout
                tried = len(self.buffer)
                head = parser.parse(self.buffer, conf.large_client_header_buffers)
                if head is not None:
                    return head
            if self.lost or not await self.fill(max(0.0, deadline - clock())):
                return None

    async def _close(self) -> None:
        """Closes; input that still arrives is read for a while, so that it does not reset our last bytes."""
        if self.lost or self.eof or not self.transport.can_write_eof():
            self.transport.close()
            return
        with contextlib.suppress(TimeoutError, OSError):
            self.transport.write_eof()
            async with asyncio.timeout(_LINGER):
                while await self.fill(_LINGER):
                    self.buffer.clear()
        self.transport.close()


def _address(raw: object) -> tuple[str, int]:
    return (str(raw[0]), int(raw[1])) if isinstance(raw, tuple) and len(raw) >= 2 else ("unix:", 0)
