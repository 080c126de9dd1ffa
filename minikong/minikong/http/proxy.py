"""To the service and back: tries, time-outs, and the relay of the answer as nginx's event pipe does it.

Sources: ngx_http_upstream.c, ngx_event_pipe.c, ngx_http_proxy_module.c; kong/init.lua (balancer).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from minikong.context import Context
from minikong.http.chunked import ChunkedDecoder, ChunkError
from minikong.http.forwarded import upstream_head
from minikong.http.seam import ClientGone, HttpError
from minikong.http.upstream import Key, UpstreamConnection, UpstreamFailure, UpstreamHead, UpstreamPool

if TYPE_CHECKING:
    from minikong.conf import KongConf
    from minikong.http.body import RequestBody
    from minikong.http.connection import ClientConnection

_NOT_REPEATED = frozenset(("POST", "LOCK", "PATCH"))  # proxy_next_upstream without non_idempotent
_BUFFER = 4096  # proxy_buffers: a body with a length or until close is passed on in full buffers


class Cut(Exception):
    """The service broke off, timed out or sent nonsense in the middle of its body.

    `flush`: nginx still sends what it holds back for the client (not after nonsense).
    """

    def __init__(self, reason: str, *, flush: bool = True) -> None:
        super().__init__(reason)
        self.flush = flush


class Try:
    """One request that reached a service and the answer it is giving."""

    def __init__(self, pool: UpstreamPool, key: Key, connection: UpstreamConnection) -> None:
        self.pool = pool
        self.key = key
        self.connection = connection
        self.head = UpstreamHead()
        self.sender: asyncio.Task[None] | None = None

    def finish(self, *, clean: bool) -> None:
        """Gives the connection back to the pool, or closes it."""
        self.connection.on_eof = None
        if self.sender is not None and not self.sender.done():
            self.sender.cancel()
            clean = False
        if clean and self.head.keep_alive:
            self.pool.release(self.key, self.connection)
        else:
            self.connection.abort()


async def send_request(
    ctx: Context, conf: KongConf, pool: UpstreamPool, body: RequestBody, client: ClientConnection
) -> Try:
    """Sends the request, with Kong's retries, until a response head is there.

    Raises UpstreamFailure (502, 504), HttpError (400, 408, 413: the client's body), ClientGone.
    """
    upstream = ctx.upstream
    assert upstream is not None
    content: bytes | None = None
    streamed = False
    body.expect_answered()  # nginx asks for a body even where none was announced
    if ctx.body is not None:
        content = ctx.body
    elif upstream.body is not None:
        content = upstream.body
    elif body.chunked or body.length is not None:
        declared = ctx.request.headers.get(b"content-length")
        if declared is not None and declared.isdigit() and len(declared) < 19:
            body.announce(int(declared))
        streamed = body.data is None and ctx.route is not None and not ctx.route.request_buffering
        if not streamed:
            content = await body.read()
    length = len(content) if content is not None else body.length if streamed else None
    head = upstream_head(ctx, conf, length, chunked=streamed and body.chunked)
    sni = upstream.host_header.decode("latin-1").rpartition(":")[0] or upstream.host_header.decode("latin-1")
    key: Key = (upstream.host, upstream.port, sni if upstream.scheme == "https" else None)
    tries = upstream.retries + 1
    while True:
        if client.eof:
            raise ClientGone
        started = time.time()
        ctx.timings["balancer"] = started
        entry = {
            "ip": upstream.host,
            "port": upstream.port,
            "balancer_start": int(started * 1000),
            "balancer_start_ns": int(started * 1e9),
            "balancer_latency": 0,
            "balancer_latency_ns": 0,
        }
        ctx.tries.append(entry)
        connection = pool.take(key)
        cached = connection is not None
        sent = False
        attempt: Try | None = None
        try:
            if connection is None:
                connection = await pool.connect(key, upstream.connect_timeout)
            ctx.connected = True
            if client.eof:  # it has left while the connection was made, of which it tells nobody again
                connection.abort()
                raise ClientGone
            attempt = Try(pool, key, connection)
            client.on_eof = connection.abort
            connection.requests += 1
            sent = True
            if streamed:
                attempt.sender = asyncio.create_task(_send_body(head, body, connection, upstream.send_timeout))
            else:
                connection.write(head + content if content else head)
                if not await connection.drain(upstream.send_timeout):
                    raise UpstreamFailure(504 if not connection.lost else 502, "upstream send failed", retry=True)
            attempt.head = await connection.read_head(upstream.read_timeout)
        except UpstreamFailure as failure:
            if connection is not None:
                connection.abort()
            if client.eof:
                raise ClientGone from None
            entry["state"], entry["code"] = "failed", failure.status
            if attempt is not None and attempt.sender is not None and attempt.sender.done():
                broken = attempt.sender.exception()
                if broken is not None:  # the client's own body ended the try
                    raise broken from None
            tries += cached and failure.status == 502
            tries -= 1
            if not failure.retry or tries <= 0 or (sent and (streamed or upstream.method in _NOT_REPEATED)):
                raise
        else:
            return attempt
        finally:
            client.on_eof = None


async def _send_body(head: bytes, body: RequestBody, connection: UpstreamConnection, timeout: float) -> None:
    """Streams the client's body (request_buffering off); the head goes with what is there already."""
    if not body.ready:
        connection.write(head)
        head = b""
    try:
        async for piece in body.stream():
            connection.write(head + (b"%x\r\n%b\r\n" % (len(piece), piece) if body.chunked else piece))
            head = b""
            if not await connection.drain(timeout):
                return
        if head or body.chunked:
            connection.write(head + (b"0\r\n\r\n" if body.chunked else b""))
    except (HttpError, ClientGone):
        connection.abort()
        raise


async def relay(attempt: Try, timeout: float, *, buffering: bool) -> AsyncIterator[bytes]:
    """The decoded body in the pieces nginx would pass on. Raises Cut.

    With buffering a body with a length, or one that ends with the connection, is passed on in full
    buffers; a chunked one as it arrives.
    """
    connection, head = attempt.connection, attempt.head
    buffer = connection.buffer
    if head.chunked:
        decoder = ChunkedDecoder()
        while True:
            if buffer:
                raw = bytes(buffer)
                buffer.clear()
                try:
                    piece = decoder.feed(raw)
                except ChunkError:
                    raise Cut("upstream sent invalid chunked response", flush=False) from None
                if piece:
                    yield piece
                if decoder.done:
                    if decoder.rest:
                        head.keep_alive = False
                    return
            elif not await connection.fill(timeout):
                raise Cut("upstream prematurely closed connection")
    left = head.length
    while left is None or left > 0:
        # how much nginx waits for: a full buffer, or the end
        want = 1 if not buffering else _BUFFER if left is None else min(_BUFFER, left)
        if len(buffer) >= want:
            size = len(buffer) if left is None else min(len(buffer), left)
            if buffering and size != left:
                size -= size % _BUFFER
            piece = bytes(buffer[:size])
            del buffer[:size]
            if left is not None:
                left -= size
            yield piece
        elif not await connection.fill(timeout):
            if not connection.eof:
                raise Cut("upstream timed out")
            if buffer:  # at the end what waited for a full buffer is passed on, after a time-out it is not
                yield bytes(buffer)
                buffer.clear()
            if left is not None or connection.broken:
                raise Cut("upstream prematurely closed connection")
            return
    if buffer:
        head.keep_alive = False  # it sent more than it announced


async def tunnel(client: ClientConnection, attempt: Try, timeout: float) -> None:
    """After 101: bytes both ways until one side ends or is silent for `timeout` seconds."""
    connection = attempt.connection

    async def pump(source: object, sink: object) -> None:
        assert isinstance(source, (type(connection), type(client)))
        assert isinstance(sink, (type(connection), type(client)))
        while True:
            if source.buffer:
                data = bytes(source.buffer)
                source.buffer.clear()
                sink.write(data)
                if not await sink.drain(timeout):
                    return
            elif not await source.fill(timeout):
                return

    tasks = [asyncio.create_task(pump(connection, client)), asyncio.create_task(pump(client, connection))]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
