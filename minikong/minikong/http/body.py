"""The request body as nginx reads it: on demand, buffered, spilled, limited (ngx_http_request_body.c)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from minikong.http.chunked import ChunkedDecoder, ChunkError
from minikong.http.seam import ClientGone, HttpError

if TYPE_CHECKING:
    from minikong.conf import KongConf
    from minikong.context import Request
    from minikong.http.connection import ClientConnection
    from minikong.http.parser import Head


class RequestBody:
    """Reads one body from its connection, once: whole by `read`, or piece by piece by `stream`."""

    def __init__(self, connection: ClientConnection, head: Head, conf: KongConf) -> None:
        self._connection = connection
        self._conf = conf
        self._decoder = ChunkedDecoder() if head.chunked else None
        self._left = head.length or 0
        self._preread = min(head.preread, len(connection.buffer))  # came in nginx's header buffer
        self._raw = 0  # bytes taken off the connection
        self._expect = head.expect_continue
        self._failed: HttpError | ClientGone | None = None
        self.request: Request | None = None  # whose `length` grows
        self.length = head.length  # Content-Length, None without one
        self.chunked = head.chunked
        self.data: bytes | None = None  # the body if it was read whole

    def announce(self, length: int) -> None:
        """A plugin changed Content-Length before the body was read: nginx now reads that many bytes."""
        if self._decoder is None and self.data is None and self._raw == 0:
            self.length = self._left = length

    @property
    def complete(self) -> bool:
        """Nothing of it is left on the connection."""
        return self._decoder.done if self._decoder is not None else self._left == 0

    @property
    def ready(self) -> bool:
        """Some of it has arrived already."""
        return bool(self._connection.buffer) and not self.complete

    @property
    def spilled(self) -> bool:
        """True where nginx uses a temporary file: what did not come in the header buffer fills the body buffer.

        That is 1.25 x client_body_buffer_size with a Content-Length, 1 x (with the chunk heads) when chunked.
        """
        size = self._conf.client_body_buffer_size
        if self._decoder is not None:
            return self._raw - self._preread > size
        return (self.length or 0) - self._preread >= size + (size >> 2)

    async def read(self) -> bytes:
        """The whole body. Raises HttpError (400, 408, 413) or ClientGone; the same again if called again."""
        if self.data is None:
            self.data = b"".join([piece async for piece in self.stream()])
        return self.data

    async def stream(self) -> AsyncIterator[bytes]:
        """Decoded pieces as they arrive; everything again in one piece after `read`. Raises as `read`."""
        if self.data is not None:
            if self.data:
                yield self.data
            return
        if self._failed is not None:
            raise self._failed
        self.expect_answered()
        try:
            while not self.complete:
                piece = self._take()
                if piece:
                    yield piece
                elif not self.complete:
                    await self._fill()
        except (HttpError, ClientGone) as error:
            self._failed = error
            raise

    def expect_answered(self) -> None:
        """Sends 100 Continue, once, to a client that waits for it."""
        if self._expect:
            self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._expect = False

    def _take(self) -> bytes:
        """What the connection's buffer has for this body."""
        buffer = self._connection.buffer
        if self._decoder is None:
            piece = bytes(buffer[: self._left])
            del buffer[: len(piece)]
            self._connection.taken()
            self._left -= len(piece)
            self._count(len(piece))
            return piece
        raw = bytes(buffer)
        if not raw:
            return b""
        buffer.clear()
        self._connection.taken()
        try:
            piece = self._decoder.feed(raw)
        except ChunkError:
            raise HttpError(400) from None
        limit = self._conf.client_max_body_size
        if limit and self._decoder.announced > limit:
            raise HttpError(413)
        if self._decoder.done:
            buffer[:0] = self._decoder.rest
        self._count(len(raw) - len(self._decoder.rest))
        return piece

    def _count(self, size: int) -> None:
        self._raw += size
        if self.request is not None:
            self.request.length += size

    async def _fill(self) -> None:
        if not await self._connection.fill(self._conf.client_body_timeout):
            if self._connection.eof:
                raise ClientGone(400)
            raise HttpError(408)

    async def discard(self, patience: float) -> bool:
        """Drops what is left of the body, waiting at most `patience` seconds for each part of it.

        False if it did not end properly: the connection cannot be used again.
        """
        if self._failed is not None:
            return False
        try:
            while not self.complete:
                self._take()
                if not self.complete and not await self._connection.fill(patience):
                    return False
        except HttpError:
            return False
        return True
