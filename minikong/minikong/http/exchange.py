"""One request and its one response on a client connection: what the gateway drives (`seam.Exchange`)."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from minikong.context import Context, Headers, Response
from minikong.http import errors, proxy
from minikong.http import head as heads
from minikong.http.forwarded import upgrade_to, wants_trailers
from minikong.http.gzip import Gzipper, gzip_applies, vary_applies, weaken_etag
from minikong.http.seam import ClientGone, HttpError
from minikong.http.upstream import UpstreamFailure

if TYPE_CHECKING:
    from minikong.http.body import RequestBody
    from minikong.http.connection import ClientConnection
    from minikong.http.parser import Head
    from minikong.http.proxy import Try

log = logging.getLogger("minikong.http")

_CLOSES = frozenset((400, 413, 414, 494, 497, 500, 501))  # nginx's special responses end keep-alive
_SILENT = frozenset((408, 444, 499))
_NO_ANSWER = frozenset((100, 101))  # Kong sends nothing and keeps the client waiting
_MAX_REDIRECTS = 10  # nginx's limit of internal redirects


class ClientExchange:
    """Implements `minikong.http.seam.Exchange`."""

    def __init__(self, connection: ClientConnection, head: Head, body: RequestBody, context: Context) -> None:
        self._connection = connection
        self._edge = connection.edge
        self._conf = connection.edge.conf
        self._body = body
        self._context = context
        self._keep_alive = head.keep_alive and head.error == 0
        self._done = False

    # seam.Exchange

    async def respond(self, ctx: Context) -> None:
        response = ctx.response
        assert response is not None
        if ctx.client_gone:
            self._gone(ctx)
            return
        if response.close_silently or response.status in _SILENT:
            self._connection.abort_gently()
            self._end()
            return
        if response.status in _NO_ANSWER:
            while not self._connection.eof:
                await self._connection.fill(self._conf.keepalive_timeout)
                self._connection.buffer.clear()
            self._gone(ctx)
            return
        if response.nginx_page:
            self._fill_page(ctx, response, response.status)
        self._body.expect_answered()  # nginx does so before it discards a body nobody read
        await self._send_whole(ctx, response)

    async def proxy(self, ctx: Context) -> None:
        attempt = await self._attempt(ctx)
        for _ in range(_MAX_REDIRECTS):
            if attempt is None:
                return
            if attempt.head.raw.get(b"x-accel-redirect") is None:
                break
            # nginx runs `location /` again; it is the same request to the same service, now a GET
            attempt.finish(clean=False)
            if ctx.upstream is not None and ctx.upstream.method != "HEAD":
                ctx.upstream.method = "GET"
            attempt = await self._attempt(ctx)
        if attempt is None:
            return
        clean = False
        try:
            clean = await self._pass_on(ctx, attempt)
        finally:
            self._connection.on_eof = None
            attempt.finish(clean=clean)
        self._end()

    async def fetch(self, ctx: Context) -> bool:
        attempt = await self._attempt(ctx)
        if attempt is None:
            return False
        ctx.buffered = True
        clean = False
        assert ctx.upstream is not None
        try:
            pieces = []
            if not _has_no_body(ctx, attempt.head.status):
                async for piece in proxy.relay(attempt, ctx.upstream.read_timeout, buffering=True):
                    pieces.append(piece)
            clean = True
        except proxy.Cut:
            attempt.finish(clean=False)
            if self._connection.eof:
                self._gone(ctx)
                return False
            await self._proxy_failed(ctx, 502)
            return False
        finally:
            self._connection.on_eof = None
        attempt.finish(clean=clean)
        head = attempt.head
        ctx.timings["response"] = time.time()
        ctx.upstream_status = head.status
        ctx.upstream_headers = head.raw
        headers = Headers(ctx.added_response_headers.lines + head.passed.lines)
        if head.length is not None:
            headers.set(b"Content-Length", b"%d" % head.length)
        ctx.response = Response(head.status, headers, "service", b"".join(pieces))
        return True

    # what nginx refuses itself

    async def refuse(self, ctx: Context, status: int, *, filtered: bool) -> None:
        """Answers a request that never reaches the phases (400, 405, 413, 414, 494, 497, 501, 505)."""
        self._keep_alive = False
        ctx.unexpected = True
        ctx.response = Response(status, Headers(), "error", nginx_page=True)
        self._fill_page(ctx, ctx.response, status)
        await self._send_whole(ctx, ctx.response, filtered=filtered)

    async def fail(self, ctx: Context, status: int) -> None:
        """Ends a request whose body cannot be read with nginx's error for it (408: closed without an answer)."""
        ctx.unexpected = True
        ctx.response = Response(status, Headers(list(ctx.added_response_headers.lines)), "error", nginx_page=True)
        await self.respond(ctx)

    async def finish(self) -> bool:
        """After the handler: gets rid of an unread body. True if the connection can serve another request."""
        connection = self._connection
        if not self._done:
            log.error("the gateway did not answer a request")
            connection.abort()
            return False
        if connection.lost or not self._keep_alive or self._context.closing:
            return False
        return await self._body.discard(5.0)

    # answers that are complete

    def _fill_page(self, ctx: Context, response: Response, status: int) -> None:
        """Puts nginx's page, or Kong's where `error_page` says so, into `response`."""
        response.source = "error" if ctx.unexpected else response.source
        if status in _CLOSES:
            self._keep_alive = False
        if status in errors.KONG_PAGES:
            self._kong_page(ctx, response, status)
            return
        page = errors.nginx_page(status)
        response.body = page or b""
        response.status = 400 if status == 497 else status
        response.content_length = len(response.body)
        response.headers.remove(b"content-length")
        if page is not None:
            response.headers.set(b"Content-Type", b"text/html")

    def _kong_page(self, ctx: Context, response: Response, status: int) -> None:
        headers = ctx.request.headers

        def text(name: bytes) -> str | None:
            value = headers.get(name)
            return None if value is None else value.decode("latin-1")

        response.status, mime_type, body = errors.kong_page(
            status, text(b"accept"), text(b"content-type"), self._conf.error_default_type, ctx.request.id
        )
        response.body = body
        response.nginx_page = False
        response.headers.set(b"Content-Type", mime_type.encode())
        response.headers.set(b"Content-Length", b"%d" % len(body))

    async def _send_whole(self, ctx: Context, response: Response, *, filtered: bool = True) -> None:
        """Sends a response whose body is known; runs header_filter."""
        self._filter(ctx, None, filtered=filtered)
        if response.close_silently:  # header_filter failed
            self._connection.abort_gently()
            self._end()
            return
        body = response.body if response.body is not None else b""
        if filtered and not _has_no_body(ctx, response.status):
            changed = self._edge.gateway.body_filter(ctx, body, is_last=True)
            if changed is None:
                self._connection.abort_gently()
                self._end()
                return
            body = changed
        sized = response.headers.get(b"content-length") is not None or response.content_length is not None
        version = ctx.request.http_version
        no_body = _has_no_body(ctx, response.status)
        if response.status == 204:  # nginx leaves out what describes a body, unless a plugin sized it itself
            response.content_length = None
            response.headers.remove(b"content-type")
        gzip = not no_body and gzip_applies(ctx, response, self._conf.gzip, len(body) if sized else None)
        if gzip:
            response.headers.remove(b"content-length")
            response.content_length = None
            sized = False
            response.headers.add(b"Content-Encoding", b"gzip")
            weaken_etag(response.headers)
            zipper = Gzipper(self._conf.gzip.comp_level, len(body))
            body = zipper.feed(body) + zipper.finish()
        chunked = not sized and not no_body and version >= (1, 1)
        if not sized and not no_body and version < (1, 1):
            self._keep_alive = False
        head = heads.build(
            response,
            heads.status_line(response.status),
            self._conf,
            date=True,
            chunked=chunked,
            connection=self._connection_header(),
            vary=vary_applies(ctx, response, self._conf.gzip),
        )
        if version < (1, 0):
            head, self._keep_alive = b"", False
        if no_body:
            body = b""
        elif chunked:
            body = (b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)) if body else b"0\r\n\r\n"
        self._write(ctx, head + body)
        await self._connection.drain(self._conf.send_timeout)
        self._end()

    def _filter(self, ctx: Context, attempt: Try | None, *, filtered: bool = True) -> None:
        """The header_filter phase: Kong's own part around the plugins'."""
        ctx.timings["header_filter"] = time.time()
        raw = attempt.head.raw if attempt is not None else ctx.upstream_headers
        if raw is not None and ctx.proxied and ctx.response is not None and ctx.response.source == "service":
            heads.drop_hop_by_hop(ctx, raw, upgrade_to(ctx.request) or b"")
            if not wants_trailers(ctx.request):
                ctx.response.headers.remove(b"trailer")
        heads.add_upstream_status(ctx, self._edge.enabled_headers)
        if filtered:
            self._edge.gateway.header_filter(ctx)
        via = raw.get(b"via") if raw is not None and ctx.response is not None else None
        heads.add_kong_headers(ctx, self._edge.enabled_headers, via)

    # answers of the service

    async def _attempt(self, ctx: Context) -> Try | None:
        """A try that has a response head; None if there is none and that is answered."""
        ctx.proxied = True
        try:
            attempt = await proxy.send_request(ctx, self._conf, self._edge.pool, self._body, self._connection)
        except ClientGone as gone:
            self._gone(ctx, gone.status)
            return None
        except HttpError as error:
            if error.status == 408:
                self._gone(ctx, 408)
                return None
            await self._proxy_failed(ctx, error.status)
            return None
        except UpstreamFailure as failure:
            log.info("%s", failure)
            await self._proxy_failed(ctx, failure.status)
            return None
        self._connection.on_eof = attempt.connection.abort
        return attempt

    async def _proxy_failed(self, ctx: Context, status: int) -> None:
        ctx.proxy_error = status
        await self.fail(ctx, status)

    def _gone(self, ctx: Context, status: int = 499) -> None:
        ctx.client_gone = True
        if ctx.response is None:
            ctx.response = Response(status, Headers(list(ctx.added_response_headers.lines)), "service")
        self._keep_alive = False
        self._connection.abort()
        self._end()

    async def _pass_on(self, ctx: Context, attempt: Try) -> bool:
        """Relays the service's answer; True if the service's connection can be used again."""
        connection, conf, head = self._connection, self._conf, attempt.head
        assert ctx.upstream is not None
        ctx.upstream_status = head.status
        ctx.upstream_headers = head.raw
        response = ctx.response = Response(
            head.status,
            Headers(ctx.added_response_headers.lines + head.passed.lines),
            "service",
            content_length=head.length,
        )
        buffering = ctx.route is None or ctx.route.response_buffering
        if (head.raw.get(b"x-accel-buffering") or b"").lower() in (b"no", b"yes"):
            buffering = (head.raw.get(b"x-accel-buffering") or b"").lower() == b"yes"
        self._filter(ctx, attempt)
        if response.close_silently:  # header_filter failed
            connection.abort_gently()
            return False
        version = ctx.request.http_version
        no_body = _has_no_body(ctx, head.status)
        own_length = response.headers.get(b"content-length")
        zipper = None
        if not head.http09 and gzip_applies(ctx, response, conf.gzip, head.length):
            zipper = Gzipper(conf.gzip.comp_level, head.length)
            response.headers.add(b"Content-Encoding", b"gzip")
            weaken_etag(response.headers)
            response.headers.remove(b"content-length")
            response.content_length = own_length = None
        sized = own_length is not None or response.content_length is not None
        chunked = not (sized or no_body or head.http09) and version >= (1, 1) and head.status >= 200
        if not sized and not no_body and version < (1, 1):
            self._keep_alive = False
        line = head.line if response.status == head.status else heads.status_line(response.status)
        upgraded = head.status == 101 and upgrade_to(ctx.request) is not None
        start = heads.build(
            response,
            line,
            conf,
            date=False,
            chunked=chunked,
            connection=b"upgrade" if head.status == 101 else self._connection_header(),
            vary=vary_applies(ctx, response, conf.gzip),
        )
        if version < (1, 0) or head.http09:
            start = b""
            self._keep_alive = self._keep_alive and version >= (1, 0)
        if upgraded:
            self._write(ctx, start)
            connection.on_eof = None
            self._keep_alive = False
            await proxy.tunnel(connection, attempt, ctx.upstream.read_timeout)
            return False
        if no_body:
            self._write(ctx, start)
            return head.keep_alive
        if not buffering:
            self._write(ctx, start)
            start = b""
        try:
            async for piece in self._pieces(ctx, attempt, buffering=buffering):
                if zipper is not None:
                    piece = zipper.feed(piece)
                    if not piece:
                        continue
                self._write(ctx, start + (b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece))
                start = b""
                if not await connection.drain(conf.send_timeout):
                    self._gone(ctx)
                    return False
        except proxy.Cut as cut:
            self._keep_alive = False
            if connection.eof:
                self._gone(ctx)
            else:
                log.info("%s while reading upstream", cut)
                if start and cut.flush:
                    self._write(ctx, start)
            return False
        end = zipper.finish() if zipper is not None else b""
        if chunked:
            end = (b"%x\r\n%b\r\n" % (len(end), end) if end else b"") + b"0\r\n\r\n"
        if start or end:
            self._write(ctx, start + end)
        await connection.drain(conf.send_timeout)
        return head.keep_alive

    async def _pieces(self, ctx: Context, attempt: Try, *, buffering: bool) -> AsyncIterator[bytes]:
        """The service's body as the plugins leave it. Raises Cut."""
        assert ctx.upstream is not None
        gateway = self._edge.gateway
        async for piece in proxy.relay(attempt, ctx.upstream.read_timeout, buffering=buffering):
            changed = gateway.body_filter(ctx, piece, is_last=False)
            if changed is None:
                raise proxy.Cut("body_filter failed")
            if changed:
                yield changed
        last = gateway.body_filter(ctx, b"", is_last=True)
        if last is None:
            raise proxy.Cut("body_filter failed")
        if last:
            yield last

    # small things

    def _connection_header(self) -> bytes:
        return b"keep-alive" if self._keep_alive and not self._context.closing else b"close"

    def _write(self, ctx: Context, data: bytes) -> None:
        ctx.bytes_sent += len(data)
        self._connection.write(data)

    def _end(self) -> None:
        self._done = True
        self._context.timings["sent"] = time.time()


def _has_no_body(ctx: Context, status: int) -> bool:
    return ctx.request.method == "HEAD" or status in (204, 304)
