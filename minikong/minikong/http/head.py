"""Response heads: the lines and the order of nginx's header filter, and Kong's own headers.

Sources: ngx_http_header_filter_module.c, ngx_http_charset_filter_module.c, kong/runloop/handler.lua (header_filter).
"""

from __future__ import annotations

import re
import time
from email.utils import formatdate
from typing import TYPE_CHECKING

from minikong.context import Context, Headers, Response

if TYPE_CHECKING:
    from minikong.conf import KongConf

SERVER = b"kong/3.9.1"
_VIA = b"1.1 " + SERVER
_CHARSET_TYPES = frozenset(
    (
        b"text/html",
        b"text/xml",
        b"text/plain",
        b"text/vnd.wap.wml",
        b"application/javascript",
        b"application/rss+xml",
    )
)
# nginx's table; a status that is not in it gets an empty reason.
_REASONS = {
    200: "OK", 201: "Created", 202: "Accepted", 204: "No Content", 206: "Partial Content",
    301: "Moved Permanently", 302: "Moved Temporarily", 303: "See Other", 304: "Not Modified",
    307: "Temporary Redirect", 308: "Permanent Redirect",
    400: "Bad Request", 401: "Unauthorized", 402: "Payment Required", 403: "Forbidden", 404: "Not Found",
    405: "Not Allowed", 406: "Not Acceptable", 408: "Request Time-out", 409: "Conflict", 410: "Gone",
    411: "Length Required", 412: "Precondition Failed", 413: "Request Entity Too Large",
    414: "Request-URI Too Large", 415: "Unsupported Media Type", 416: "Requested Range Not Satisfiable",
    421: "Misdirected Request", 429: "Too Many Requests",
    500: "Internal Server Error", 501: "Not Implemented", 502: "Bad Gateway",
    503: "Service Temporarily Unavailable", 504: "Gateway Time-out", 505: "HTTP Version Not Supported",
    507: "Insufficient Storage",
}  # fmt: skip
_LINE_BREAK = re.compile(rb"[\r\n\x00]")
_GROUPS = {
    "server_tokens": ("server", "via"),
    "latency_tokens": ("x-kong-response-latency", "x-kong-proxy-latency", "x-kong-upstream-latency"),
}
_date: tuple[int, bytes] = (0, b"")


def enabled_headers(names: frozenset[str]) -> frozenset[str]:
    """The `headers` setting with Kong's groups (server_tokens, latency_tokens) written out."""
    return frozenset(header for name in names for header in _GROUPS.get(name, (name,)))


def http_date() -> bytes:
    global _date
    now = int(time.time())
    if _date[0] != now:
        _date = (now, formatdate(now, usegmt=True).encode())
    return _date[1]


def status_line(status: int) -> bytes:
    """nginx's own status line."""
    return b"%d %s" % (status, _REASONS.get(status, "").encode())


def drop_hop_by_hop(ctx: Context, upstream: Headers, upgrade: bytes) -> None:
    """Kong's header_filter.before: what the service said about its own connection is not passed on."""
    response = ctx.response
    assert response is not None
    connection = upstream.get(b"connection")
    if connection and connection not in (b"keep-alive", b"close", b"upgrade"):
        for name in connection.lower().split(b","):
            name = name.strip()
            if name and name not in (b"close", b"upgrade", b"keep-alive"):
                response.headers.remove(name)
    offered = upstream.get(b"upgrade")
    if offered is not None and offered.lower() != upgrade.lower():
        response.headers.remove(b"upgrade")


def add_upstream_status(ctx: Context, enabled: frozenset[str]) -> None:
    """X-Kong-Upstream-Status, for who asks for it in `headers`."""
    if ctx.proxied and ctx.response is not None and "x-kong-upstream-status" in enabled:
        status = ctx.upstream_status if ctx.upstream_status is not None else ctx.response.status
        ctx.response.headers.set(b"X-Kong-Upstream-Status", b"%d" % status)


def add_kong_headers(ctx: Context, enabled: frozenset[str], upstream_via: bytes | None) -> None:
    """Kong's header_filter.after: latencies, Via, Server, request id."""
    response = ctx.response
    assert response is not None
    headers = response.headers
    timings = ctx.timings
    now = timings.get("header_filter") or time.time()
    started = ctx.request.started
    if ctx.proxied:
        balancer = timings.get("balancer", now)
        if "server" in enabled and not ctx.buffered and response.source == "service":
            # a streamed answer has it before the latencies, any other one after them
            _default_server(headers)
        if "x-kong-upstream-latency" in enabled:
            end = timings.get("response", now)
            headers.set(b"X-Kong-Upstream-Latency", _milliseconds(end - balancer))
        if "x-kong-proxy-latency" in enabled:
            headers.set(b"X-Kong-Proxy-Latency", _milliseconds(balancer - started))
        if "via" in enabled:
            headers.set(b"Via", _VIA if upstream_via is None else upstream_via + b", " + _VIA)
        if "server" in enabled:
            _default_server(headers)
    else:
        if "x-kong-response-latency" in enabled:
            headers.set(b"X-Kong-Response-Latency", _milliseconds(timings.get("response", now) - started))
        if not ("via" in enabled and headers.get(b"via") == SERVER):
            if "server" in enabled:
                headers.set(b"Server", SERVER)
            else:
                headers.remove(b"server")
    if "x-kong-request-id" in enabled:
        headers.set(b"X-Kong-Request-Id", ctx.request.id.encode())


def _default_server(headers: Headers) -> None:
    if headers.get(b"server") is None:
        headers.add(b"Server", SERVER)


def _milliseconds(seconds: float) -> bytes:
    return b"%d" % max(0, int(seconds * 1000))


def build(
    response: Response,
    first_line: bytes,
    conf: KongConf,
    *,
    date: bool,
    chunked: bool,
    connection: bytes,
    vary: bool = False,
) -> bytes:
    """The bytes of a response head. `first_line` is what stands after "HTTP/1.1 "."""
    lines = response.headers.lines
    content_type: bytes | None = None
    has_date = has_length = False
    rest: list[bytes] = []
    for name, value in lines:
        low = name.lower()
        if low == b"content-type":
            content_type = value
            continue
        if low == b"date":
            has_date = True
        elif low == b"content-length":
            has_length = True
        elif low == b"transfer-encoding":
            continue
        if _LINE_BREAK.search(value):
            value = _LINE_BREAK.sub(lambda m: b"%%%02X" % m[0][0], value)
        rest.append(b"%b: %b\r\n" % (name, value))
    out = [b"HTTP/1.1 ", first_line, b"\r\n"]
    if date and not has_date:
        out.append(b"Date: %b\r\n" % http_date())
    if content_type is not None:
        plain = conf.charset != "off" and not (response.nginx_page and response.status in (301, 302))
        if plain and content_type.lower() in _CHARSET_TYPES:
            content_type = b"%b; charset=%b" % (content_type, conf.charset.encode())
            response.headers.set(b"Content-Type", content_type)  # the log phase sees what was sent
        out.append(b"Content-Type: %b\r\n" % (_LINE_BREAK.sub(b"", content_type) or b" "))
    if response.content_length is not None and not has_length and not chunked:
        out.append(b"Content-Length: %d\r\n" % response.content_length)
        response.headers.add(b"Content-Length", b"%d" % response.content_length)
    if chunked:
        out.append(b"Transfer-Encoding: chunked\r\n")
    out.append(b"Connection: %b\r\n" % connection)
    if vary:
        out.append(b"Vary: Accept-Encoding\r\n")
    out += rest
    out.append(b"\r\n")
    return b"".join(out)
