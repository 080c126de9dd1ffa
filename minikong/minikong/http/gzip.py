"""nginx's gzip filter (ngx_http_gzip_filter_module.c, ngx_http_gzip_ok)."""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING

from minikong.context import Context, Headers, Response

if TYPE_CHECKING:
    from minikong.conf import Gzip

_BUFFER = 4096  # gzip_buffers
_STATUSES = frozenset((200, 403, 404))


def _eligible(response: Response, conf: Gzip, length: int | None) -> bool:
    """Everything that does not depend on the client (then Vary is due)."""
    headers = response.headers
    if not conf.enabled or response.status not in _STATUSES or headers.get(b"content-encoding"):
        return False
    if length is not None and length < conf.min_length:
        return False
    content_type = (headers.get(b"content-type") or b"").partition(b";")[0].strip().lower().decode("latin-1")
    return content_type in conf.types or "*" in conf.types


def _length(response: Response) -> int | None:
    own = response.headers.get(b"content-length")
    return int(own) if own is not None and own.isdigit() else response.content_length


def vary_applies(ctx: Context, response: Response, conf: Gzip) -> bool:
    """gzip_vary on: the answer depends on Accept-Encoding, whether or not this client gets gzip."""
    if not (conf.enabled and conf.vary):
        return False
    if response.headers.get(b"content-encoding") == b"gzip" and ctx.gzipped:
        return True
    return _eligible(response, conf, _length(response))


def gzip_applies(ctx: Context, response: Response, conf: Gzip, length: int | None) -> bool:
    """Whether this client gets this response compressed."""
    if not _eligible(response, conf, length):
        return False
    request = ctx.request
    wanted = tuple(int(part) for part in conf.http_version.split("."))
    if request.http_version < wanted or not _accepts(request.headers.get(b"accept-encoding")):
        return False
    if request.headers.get(b"via") is not None and not _proxied_ok(request.headers, response.headers, conf):
        return False
    ctx.gzipped = True
    return True


def _accepts(value: bytes | None) -> bool:
    if value is None:
        return False
    for part in value.lower().split(b","):
        coding, *parameters = (piece.strip() for piece in part.split(b";"))
        if coding == b"gzip":
            return not any(re.fullmatch(rb"q=0(\.0{0,3})?", parameter) for parameter in parameters)
    return False


def _proxied_ok(request: Headers, response: Headers, conf: Gzip) -> bool:
    """gzip_proxied: whether a request that came through a proxy (Via) may be compressed."""
    proxied = set(conf.proxied)
    if "any" in proxied:
        return True
    control = (response.get(b"cache-control") or b"").lower()
    return (
        ("auth" in proxied and request.get(b"authorization") is not None)
        or ("expired" in proxied and response.get(b"expires") is not None)
        or ("no-cache" in proxied and b"no-cache" in control)
        or ("no-store" in proxied and b"no-store" in control)
        or ("private" in proxied and b"private" in control)
        or ("no_last_modified" in proxied and response.get(b"last-modified") is None)
        or ("no_etag" in proxied and response.get(b"etag") is None)
    )


def weaken_etag(headers: Headers) -> None:
    """A strong ETag no longer holds for the compressed body."""
    etag = headers.get(b"etag")
    if etag is not None and not etag.startswith(b"W/"):
        if len(etag) > 2 and etag.startswith(b'"'):
            headers.set(b"ETag", b"W/" + etag)
        else:
            headers.remove(b"etag")


class Gzipper:
    """The compressor with nginx's choice of window and memory for a known length."""

    def __init__(self, level: int, length: int | None) -> None:
        window, memory = 15, 8
        if length is not None:
            while length < (1 << (window - 1)) - 262:
                window -= 1
                memory -= 1
                if window == 8:
                    break
            memory = max(memory, 1)
        if level == 1:
            window = max(window, 13)
        self._zip = zlib.compressobj(level, zlib.DEFLATED, 16 + max(window, 9), memory)
        self._held = b""  # output leaves in full buffers

    def feed(self, data: bytes) -> bytes:
        self._held += self._zip.compress(data)
        if len(self._held) < _BUFFER:
            return b""
        out, self._held = self._held, b""
        return out

    def finish(self) -> bytes:
        return self._held + self._zip.flush(zlib.Z_FINISH)
