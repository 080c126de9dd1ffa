"""kong.service.request.* (kong/pdk/service/request.lua)."""

from __future__ import annotations

import random
from typing import Any

from minikong import cjson, uri
from minikong.context import Context
from minikong.luavalue import LuaError, falsy, lua_type, tostring
from minikong.pdk.headers import (
    host_of,
    normalize,
    quoted,
    set_request_header,
    validate_header,
    validate_headers,
)
from minikong.pdk.registry import function
from minikong.pdk.request import header_table, lookup

REWRITE_ACCESS = ("rewrite", "access")
REWRITE_ACCESS_BALANCER = ("rewrite", "access", "balancer")
METHODS = frozenset(
    b"GET HEAD PUT POST DELETE OPTIONS MKCOL COPY MOVE PROPFIND PROPPATCH LOCK UNLOCK PATCH TRACE".split()
)


def _string(value: Any, what: str) -> bytes:
    if not isinstance(value, bytes):
        raise LuaError(f"{what} must be a string")
    return value


@function("kong.service.request.enable_buffering", REWRITE_ACCESS_BALANCER)
def enable_buffering(ctx: Context) -> None:
    ctx.buffered = True


@function("kong.service.request.set_scheme", REWRITE_ACCESS_BALANCER)
def set_scheme(ctx: Context, scheme: Any = None) -> None:
    scheme = _string(scheme, "scheme")
    if scheme not in (b"http", b"https"):
        raise LuaError("invalid scheme: " + scheme.decode("utf-8", "replace"))
    if ctx.upstream is not None:
        ctx.upstream.scheme = scheme.decode()


@function("kong.service.request.set_path", REWRITE_ACCESS_BALANCER)
def set_path(ctx: Context, path: Any = None) -> None:
    path = _string(path, "path")
    if not path.startswith(b"/"):
        raise LuaError("path must start with /")
    if ctx.upstream is not None:
        ctx.upstream.path = uri.escape(path)


def _set_args(ctx: Context, query: bytes) -> None:
    """ngx.req.set_uri_args: changes nginx's $args (and drops $request_uri's right to be sent as it was)."""
    ctx.args = query
    ctx.args_changed = True


@function("kong.service.request.set_raw_query", REWRITE_ACCESS)
def set_raw_query(ctx: Context, query: Any = None) -> None:
    _set_args(ctx, _string(query, "query"))


@function("kong.service.request.set_query", REWRITE_ACCESS)
def set_query(ctx: Context, args: Any = None) -> None:
    if not isinstance(args, list | dict):
        raise LuaError("args must be a table")
    _set_args(ctx, uri.encode_sorted_args(args))


@function("kong.service.request.clear_query_arg", REWRITE_ACCESS)
def clear_query_arg(ctx: Context, name: Any = None) -> None:
    if not isinstance(name, bytes):
        raise LuaError("query argument name must be a string")
    if ctx.args:
        _set_args(ctx, _without(ctx.args, name))


def _without(query: bytes, name: bytes) -> bytes:
    """ada's URLSearchParams without `name`: what stays is decoded and encoded anew."""
    kept = []
    for pair in query.split(b"&"):
        if not pair:
            continue
        key, _, value = pair.partition(b"=")
        key, value = uri.unescape(key), uri.unescape(value)
        if key != name:
            kept.append(_form_encode(key) + b"=" + _form_encode(value))
    return b"&".join(kept)


_FORM_SAFE = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789*-._")


def _form_encode(text: bytes) -> bytes:
    return b"".join(bytes([b]) if b in _FORM_SAFE else b"+" if b == 0x20 else b"%%%02X" % b for b in text)


@function("kong.service.request.set_method", REWRITE_ACCESS)
def set_method(ctx: Context, method: Any = None) -> None:
    method = _string(method, "method")
    if method not in METHODS:
        raise LuaError("invalid method: " + method.decode("utf-8", "replace"))
    ctx.request.method = method.decode()
    if ctx.upstream is not None:
        ctx.upstream.method = method.decode()


def _set(ctx: Context, name: bytes, value: Any) -> None:
    """ngx.req.set_header, with what nginx keeps apart: $host and the length of the body."""
    low = name.lower()
    if low == b"host":
        host = value[-1] if isinstance(value, list) and value else value
        ctx.request.host = host_of(host) if isinstance(host, bytes) else "kong"
    set_request_header(ctx.request.headers, name, value)
    if low == b"content-length" and isinstance(value, bytes) and value.isdigit():
        announce = getattr(ctx.request.body, "announce", None)
        if announce is not None:
            announce(int(value))


@function("kong.service.request.set_header", REWRITE_ACCESS_BALANCER)
def set_header(ctx: Context, header: Any = None, value: Any = None) -> None:
    validate_header(header, value)
    if header.lower() == b"host":
        ctx.upstream_host = tostring(value)
    if header.lower() == b":authority":
        return
    _set(ctx, header, normalize(value))


@function("kong.service.request.add_header", REWRITE_ACCESS)
def add_header(ctx: Context, header: Any = None, value: Any = None) -> None:
    validate_header(header, value)
    if header.lower() == b"host":
        ctx.upstream_host = tostring(value)
    held = lookup(header_table(ctx.request.headers.lines, ctx.gateway.conf.lua_max_req_headers), header)
    values = list(held) if isinstance(held, list) else [] if held is None else [held]
    added = normalize(value)
    if isinstance(added, list):  # a table inside the list: ngx.req.set_header tostring()s it
        added = f"table: 0x{id(added) & 0xFFFFFFFFFFFF:012x}".encode()
    _set(ctx, header, [*values, added])


@function("kong.service.request.clear_header", REWRITE_ACCESS)
def clear_header(ctx: Context, header: Any = None) -> None:
    if not isinstance(header, bytes):
        raise LuaError("header must be a string")
    _set(ctx, header, None)


@function("kong.service.request.set_headers", REWRITE_ACCESS)
def set_headers(ctx: Context, headers: Any = None) -> None:
    if not isinstance(headers, list | dict):
        raise LuaError("headers must be a table")
    for name, value in validate_headers(headers).items():
        if name.lower() == b"host":
            ctx.upstream_host = tostring(value)
        _set(ctx, name, normalize(value))


@function("kong.service.request.set_raw_body", REWRITE_ACCESS_BALANCER, needs_body=True)
def set_raw_body(ctx: Context, body: Any = None) -> None:
    if not isinstance(body, bytes):
        raise LuaError("body must be a string")
    _set_body(ctx, body)


def _set_body(ctx: Context, body: bytes) -> None:
    """ngx.req.set_body_data: also sets Content-Length."""
    ctx.body = body
    set_request_header(ctx.request.headers, b"Content-Length", b"%d" % len(body))


@function("kong.service.request.set_body", REWRITE_ACCESS, needs_body=True)
def set_body(ctx: Context, args: Any = None, mime: Any = None) -> bool | None:
    if not isinstance(args, list | dict):
        raise LuaError("args must be a table")
    if not falsy(mime) and not isinstance(mime, bytes):
        raise LuaError("mime must be a string")
    if falsy(mime):
        mime = lookup(header_table(ctx.request.headers.lines), b"Content-Type")
        if mime is None:
            return None
        if isinstance(mime, list):
            raise LuaError("bad argument #1 to 'string_find' (string expected, got table)")
    kind = mime.split(b";", 1)[0]
    if kind == b"application/x-www-form-urlencoded":
        body = uri.encode_sorted_args(args)
    elif kind == b"application/json":
        body = cjson.encode(args)
    elif kind == b"multipart/form-data":
        body, mime = _multipart(args, mime)
    else:
        raise LuaError("unsupported content type " + mime.decode("utf-8", "replace"))
    _set_body(ctx, body)
    set_request_header(ctx.request.headers, b"Content-Type", mime)
    return True


def _multipart(args: Any, mime: bytes) -> tuple[bytes, bytes]:
    """A multipart body of string, number and boolean fields, sorted by name, and its Content-Type."""
    boundary = None
    at = mime.find(b"boundary=")
    if at >= 0:
        boundary = mime[at + 9 :]
        if boundary.startswith(b'"'):
            boundary = boundary[1:].split(b'"', 1)[0]
    items = dict(enumerate(args, 1)) if isinstance(args, list) else args
    for key, value in items.items():
        if not isinstance(key, bytes):
            raise LuaError(f"invalid key {quoted(key)}: got {lua_type(key)}, expected string")
        if not isinstance(value, bytes | bool | int | float):
            raise LuaError(f"invalid value {quoted(key)}: got {lua_type(value)}, expected string, number or boolean")
    while boundary is None or any(b"\n--" + boundary in tostring(v) for v in items.values()):
        boundary = str(random.randint(1, 10**10)).encode()  # noqa: S311 -- Kong's own way, no secret
    out = b""
    for key in sorted(items):
        if isinstance(items[key], bool):
            raise LuaError("bad argument #1 to 'put' (string/number expected, got boolean)")
        out += b"--" + boundary + b'\r\nContent-Disposition: form-data; name="' + key + b'"\r\n\r\n'
        out += tostring(items[key]) + b"\r\n"
    return out + b"--" + boundary + b"--\r\n", b"multipart/form-data; boundary=" + boundary
