"""kong.nginx.* (kong/pdk/nginx.lua) and nginx's variables."""

from __future__ import annotations

import base64
import ipaddress
import os
import time
from typing import Any

from minikong.context import Context
from minikong.http.forwarded import upgrade_to, via, wants_trailers
from minikong.luavalue import LuaError
from minikong.pdk.registry import PHASE_BITS, TIMER_ERROR, function
from minikong.pdk.request import nginx_header, request_uri

ALL = tuple(PHASE_BITS)


def variable(ctx: Context, name: str) -> bytes | None:
    """nginx's $name; None where it has no value or does not exist."""
    if name.startswith("http_"):
        return nginx_header(ctx, name[5:].encode("latin-1"))
    if name.startswith("arg_"):
        wanted = name[4:].encode("latin-1").lower()
        for pair in ctx.args.split(b"&"):
            key, equals, value = pair.partition(b"=")
            if equals and key.lower() == wanted:
                return value
        return None
    if name.startswith("cookie_"):
        return _cookie(ctx, name[7:].encode("latin-1"))
    if name.startswith("upstream_x_forwarded_") and name != "upstream_x_forwarded_prefix":
        return _forwarded(ctx, name)
    if name.startswith("sent_http_") or name.startswith("upstream_http_"):
        return _response_header(ctx, name)
    getter = _VARIABLES.get(name)
    return getter(ctx) if getter else None


def _cookie(ctx: Context, name: bytes) -> bytes | None:
    for pair in (nginx_header(ctx, b"cookie") or b"").split(b";"):
        key, equals, value = pair.strip().partition(b"=")
        if equals and key.lower() == name.lower():
            return value
    return None


def _response_header(ctx: Context, name: str) -> bytes | None:
    upstream = name.startswith("upstream_http_")
    wanted = name.removeprefix("upstream_http_" if upstream else "sent_http_").replace("_", "-").encode("latin-1")
    headers = ctx.upstream_headers if upstream else ctx.response.headers if ctx.response else None
    found = headers.all(wanted) if headers else []
    return b", ".join(found) if found else None


def _forwarded(ctx: Context, name: str) -> bytes | None:
    """One of the X-Forwarded-* that routing computed; empty before it."""
    if ctx.forwarded is None:
        return b""
    header = name.removeprefix("upstream_").replace("_", "-").encode("latin-1")
    return next((value for key, value in ctx.forwarded if key.lower() == header), None)


def _upstream_connection(ctx: Context) -> bytes:
    if ctx.route is None:
        return b""
    return b"keep-alive, Upgrade" if upgrade_to(ctx.request) else b"keep-alive"


def _remote_user(ctx: Context) -> bytes | None:
    """The name of HTTP basic authentication."""
    kind, _, credentials = (ctx.request.headers.get(b"authorization") or b"").partition(b" ")
    if kind.lower() != b"basic":
        return None
    try:
        name, colon, _ = base64.b64decode(credentials.strip() + b"==").partition(b":")
    except ValueError:
        return None
    return name if colon and name else None


def _text(value: Any) -> bytes:
    return str(value).encode("utf-8", "surrogateescape")


def _upstream_uri(ctx: Context) -> bytes:
    return ctx.upstream.path if ctx.upstream is not None else b""


_VARIABLES: dict[str, Any] = {
    "args": lambda c: c.args,
    "query_string": lambda c: c.args,
    "is_args": lambda c: b"?" if c.args else b"",
    "uri": lambda c: c.request.uri,
    "document_uri": lambda c: c.request.uri,
    "request_uri": request_uri,
    "request": lambda c: b"%b %b HTTP/%d.%d" % (_text(c.request.method), c.request.target, *c.request.http_version),
    "request_method": lambda c: _text(c.request.method),
    "request_id": lambda c: _text(c.request.id),
    "kong_request_id": lambda c: _text(c.request.id),
    "request_length": lambda c: _text(c.request.length),
    "request_time": lambda c: b"%.3f" % (time.time() - c.request.started),
    "request_body": lambda c: c.body if c.body is not None else (c.client_body or None),
    "scheme": lambda c: _text(c.request.scheme),
    "https": lambda c: b"on" if c.request.scheme == "https" else b"",
    "host": lambda c: _text(c.request.host),
    "hostname": lambda c: _text(os.uname().nodename),
    "pid": lambda c: _text(os.getpid()),
    "server_addr": lambda c: _text(c.request.server_addr[0]),
    "server_port": lambda c: _text(c.request.server_addr[1]),
    "server_name": lambda c: b"kong",
    "server_protocol": lambda c: b"HTTP/%d.%d" % c.request.http_version,
    "nginx_version": lambda c: b"1.25.3",
    "remote_addr": lambda c: _text(c.request.remote_addr[0]),
    "remote_port": lambda c: _text(c.request.remote_addr[1] or ""),
    "realip_remote_addr": lambda c: _text(c.request.client_addr[0]),
    "realip_remote_port": lambda c: _text(c.request.client_addr[1]),
    "content_type": lambda c: c.request.headers.get(b"content-type"),
    "content_length": lambda c: c.request.headers.get(b"content-length"),
    "status": lambda c: b"%03d" % (c.response.status if c.response else 0),
    "body_bytes_sent": lambda c: b"0",
    "bytes_sent": lambda c: _text(c.bytes_sent),
    "msec": lambda c: b"%.3f" % time.time(),
    "time_iso8601": lambda c: _text(time.strftime("%Y-%m-%dT%H:%M:%S%z")),
    "time_local": lambda c: _text(time.strftime("%d/%b/%Y:%H:%M:%S %z")),
    "connection": lambda c: b"1",
    "connection_requests": lambda c: b"1",
    "pipe": lambda c: b".",
    "request_completion": lambda c: b"",
    "proxy_protocol_addr": lambda c: None,
    "ssl_server_name": lambda c: _text(c.request.sni) if c.request.sni else None,
    "ssl_protocol": lambda c: b"TLSv1.3" if c.request.scheme == "https" else None,
    "kong_proxy_mode": lambda c: b"http",
    "upstream_host": lambda c: c.upstream_host,
    "upstream_scheme": lambda c: _text(c.upstream.scheme) if c.upstream else b"",
    "upstream_connect_time": lambda c: (b"0.000" if c.connected else b"-") if c.tries else None,
    "upstream_uri": _upstream_uri,
    "upstream_te": lambda c: b"trailers" if c.proxied and wants_trailers(c.request) else b"",
    "upstream_via": lambda c: via(c.request) if c.route else b"",
    "upstream_upgrade": lambda c: (upgrade_to(c.request) or b"") if c.route else b"",
    "upstream_connection": _upstream_connection,
    "upstream_status": lambda c: _text(c.upstream_status) if c.upstream_status else None,
    "upstream_x_forwarded_prefix": lambda c: c.forwarded_prefix,
    "ctx_ref": lambda c: b"",
    "limit_rate": lambda c: b"0",
    "binary_remote_addr": lambda c: ipaddress.ip_address(c.request.remote_addr[0]).packed,
    "remote_user": _remote_user,
    "document_root": lambda c: b"/usr/local/kong/html",
    "realpath_root": lambda c: None,
}


@function("kong.nginx.get_var", ALL, exposed=True)
def get_var(ctx: Context, name: Any = None) -> bytes | None:
    if ctx.in_timer:
        raise LuaError(TIMER_ERROR)
    if isinstance(name, int | float) and not isinstance(name, bool):
        return None  # a capture of an nginx location
    if not isinstance(name, bytes):
        raise LuaError("bad variable name")
    return variable(ctx, name.decode("latin-1").lower())


@function("kong.nginx.get_tls1_version_str", ALL, exposed=True)
def get_tls1_version_str(ctx: Context) -> bytes | None:
    if ctx.in_timer:
        return None
    return b"TLSv1.3" if ctx.request.scheme == "https" else None


@function("kong.nginx.req_start_time", ALL, exposed=True)
def req_start_time(ctx: Context) -> float:
    return round(ctx.request.started, 3)


@function("kong.nginx.get_subsystem", ALL)
def get_subsystem(ctx: Context) -> bytes:
    return b"http"


@function("kong.nginx.get_statistics", ALL)
def get_statistics(ctx: Context) -> dict[bytes, int]:
    statistics: dict[bytes, int] = ctx.gateway.statistics()
    return statistics
