"""Who the client is, and what the service is told about it: realip, X-Forwarded-*, the upstream request head.

Sources: ngx_http_realip_module.c, kong/runloop/handler.lua (access), kong/templates/nginx_kong.lua
(proxy_set_header), ngx_http_proxy_module.c (header order).
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING

from minikong.context import Context, Request
from minikong.http.head import SERVER

if TYPE_CHECKING:
    from minikong.conf import KongConf

_UNSAFE = re.compile(rb"[\x00-\x20\x7f]")  # what a plugin may have put into path or query
_NEVER_PASSED = frozenset(
    (
        b"te",
        b"via",
        b"host",
        b"upgrade",
        b"connection",
        b"x-forwarded-for",
        b"x-forwarded-proto",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-path",
        b"x-forwarded-prefix",
        b"x-real-ip",
        b"content-length",
        b"transfer-encoding",
        b"keep-alive",
        b"expect",
        b"proxy",
        b"proxy-connection",
    )
)


def is_trusted(address: str, conf: KongConf) -> bool:
    """Kong's kong.ip.is_trusted for `trusted_ips`."""
    if not conf.trusted_ips:
        return False
    if address == "unix:":
        return "unix:" in conf.trusted_ips
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(not isinstance(net, str) and ip.version == net.version and ip in net for net in conf.trusted_ips)


def real_ip(request: Request, conf: KongConf) -> tuple[str, int]:
    """$remote_addr and $remote_port after nginx's realip module."""
    peer = request.client_addr
    if not is_trusted(peer[0], conf):
        return peer
    wanted = conf.real_ip_header.lower().encode()
    if wanted == b"x-real-ip":
        first = request.headers.get(b"x-real-ip")
        values = [] if first is None else [first]
    else:
        values = request.headers.all(wanted)
    addresses = [part.strip(b" ") for value in values for part in value.split(b",")]
    current = peer
    for text in reversed(addresses):
        if not is_trusted(current[0], conf):
            break
        parsed = _address(text.decode("latin-1"))
        if parsed is None:
            break
        current = parsed
        if not conf.real_ip_recursive or wanted == b"x-real-ip":
            break
    return current


def _address(text: str) -> tuple[str, int] | None:
    """An address with an optional port, as ngx_parse_addr_port reads it."""
    host, port = text, "0"
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":") or "0"
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        ip = ipaddress.ip_address(host)
        number = int(port)
    except ValueError:
        return None
    return (str(ip), number) if 0 <= number <= 65535 else None


def upstream_head(ctx: Context, conf: KongConf, body_length: int | None, *, chunked: bool) -> bytes:
    """The request head for `ctx.upstream`, in the order and case Kong sends it.

    `body_length` None and not `chunked`: the request has no body framing at all.
    """
    request, upstream = ctx.request, ctx.upstream
    assert upstream is not None
    headers = request.headers
    target = upstream.path if upstream.query is None else upstream.path + b"?" + upstream.query
    if _UNSAFE.search(target):
        target = _UNSAFE.sub(lambda match: b"%%%02X" % match[0][0], target)
    out = [b"%b %b HTTP/1.1\r\n" % (upstream.method.encode(), target)]

    def put(name: bytes, value: bytes | None) -> None:
        if value:
            out.append(b"%b: %b\r\n" % (name, value))

    put(b"TE", b"trailers" if wants_trailers(request) else None)
    via, *rest = ctx.forwarded if ctx.forwarded is not None else forwarded(ctx, conf)
    put(*via)
    put(b"Host", upstream.host_header)
    upgrade = upgrade_to(request)
    put(b"Upgrade", upgrade)
    put(b"Connection", b"keep-alive, Upgrade" if upgrade else b"keep-alive")
    for name, value in rest:
        put(name, value)
    put(b"X-Real-IP", request.remote_addr[0].encode())
    hidden = _NEVER_PASSED
    if "x-kong-request-id" in conf.headers_upstream:
        put(b"X-Kong-Request-Id", request.id.encode())
        hidden |= {b"x-kong-request-id"}
    if chunked:
        out.append(b"Transfer-Encoding: chunked\r\n")
    elif body_length is not None:
        out.append(b"Content-Length: %d\r\n" % body_length)
    hop = _connection_names(headers.get(b"connection"))
    if hop:
        hidden |= hop
    out += [b"%b: %b\r\n" % line for line in headers.lines if line[0].lower() not in hidden]
    out.append(b"\r\n")
    return b"".join(out)


def upgrade_to(request: Request) -> bytes | None:
    """ "websocket" if the client asks for it; Kong passes no other upgrade."""
    value = request.headers.get(b"upgrade")
    return b"websocket" if value is not None and value.lower() == b"websocket" else None


def wants_trailers(request: Request) -> bool:
    value = request.headers.get(b"te")
    return value is not None and b"trailers" in [token.strip() for token in value.lower().split(b",")]


def _connection_names(connection: bytes | None) -> frozenset[bytes]:
    """Header names that the client's Connection header makes hop-by-hop."""
    if connection is None or connection in (b"keep-alive", b"close", b"upgrade"):
        return frozenset()
    return frozenset(name.strip() for name in connection.lower().split(b","))


def via(request: Request) -> bytes:
    version = {(0, 9): b"0.9 ", (1, 0): b"1 ", (1, 1): b"1.1 "}.get(request.http_version, b"")
    own = version + SERVER
    before = request.headers.get(b"via")
    return own if before is None else before + b", " + own


def forwarded(ctx: Context, conf: KongConf) -> list[tuple[bytes, bytes | None]]:
    """Via and the X-Forwarded-* headers of the upstream request, as they are when the route is found."""
    request = ctx.request
    headers = request.headers
    peer = request.client_addr[0]
    proto: bytes | None = request.scheme.encode()
    host: bytes | None = request.host.encode("latin-1")
    port: bytes | None = str(request.server_addr[1]).encode()
    path = prefix = None
    if is_trusted(peer, conf):
        proto = headers.get(b"x-forwarded-proto") or proto
        host = headers.get(b"x-forwarded-host") or host
        port = headers.get(b"x-forwarded-port") or port
        path = headers.get(b"x-forwarded-path")
        prefix = headers.get(b"x-forwarded-prefix")
    if path is None:
        at = request.target.find(b"?", 1)
        path = request.target if at < 0 else request.target[:at]
    if prefix is None:
        prefix = ctx.forwarded_prefix
    chain = headers.get(b"x-forwarded-for")  # of several headers Kong hands on the first
    return [
        (b"Via", via(request)),
        (b"X-Forwarded-For", request.remote_addr[0].encode() if chain is None else chain + b", " + peer.encode()),
        (b"X-Forwarded-Proto", proto),
        (b"X-Forwarded-Host", host),
        (b"X-Forwarded-Port", port),
        (b"X-Forwarded-Path", path),
        (b"X-Forwarded-Prefix", prefix),
    ]
