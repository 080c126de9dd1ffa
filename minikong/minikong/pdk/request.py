"""kong.request.* (kong/pdk/request.lua)."""

from __future__ import annotations

from typing import Any

from minikong import cjson, uri
from minikong.context import Context
from minikong.luavalue import LuaError, falsy, number
from minikong.multipart import decode_multipart
from minikong.pdk.ip import is_trusted
from minikong.pdk.registry import PHASE_BITS, REQUEST, function

BEFORE_CONTENT = ("rewrite", "access", "response", "error", "admin_api")
ALL = tuple(PHASE_BITS)


def header_table(lines: list[tuple[bytes, bytes]], maximum: int = 100) -> dict[bytes, Any]:
    """`ngx.req.get_headers` / `ngx.resp.get_headers`: lower-case names, a list where a name repeats."""
    table: dict[bytes, Any] = {}
    for name, value in lines[:maximum] if maximum else lines:
        name = name.lower()
        held = table.get(name)
        if held is None:
            table[name] = value
        elif isinstance(held, list):
            held.append(value)
        else:
            table[name] = [held, value]
    return table


def lookup(table: dict[bytes, Any], name: bytes) -> Any:
    """The header table's `__index`: the name as it is, else lower case with `-` for `_`."""
    return table.get(name, table.get(name.lower().replace(b"_", b"-")))


def first(value: Any) -> Any:
    return value[0] if isinstance(value, list) else value


def nginx_header(ctx: Context, name: bytes) -> bytes | None:
    """nginx's $http_<name>: every line whose name fits, joined by ", " (cookies by "; ")."""
    wanted = name.lower().replace(b"-", b"_")
    found = [v for n, v in ctx.request.headers.lines if n.lower().replace(b"-", b"_") == wanted]
    if not found:
        return None
    return (b"; " if wanted == b"cookie" else b", ").join(found)


def get_header_value(ctx: Context, name: bytes) -> Any:
    """kong.tools.http.get_header."""
    value = nginx_header(ctx, name)
    if value is None or b", " not in value:
        return value
    return first(lookup(header_table(ctx.request.headers.lines, _max_headers(ctx)), name))


def _max_headers(ctx: Context) -> int:
    return int(ctx.gateway.conf.lua_max_req_headers)


def check_maximum(value: Any, name: str, highest: int = 1000) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise LuaError(f"{name} must be a number")
    if value < 1:
        raise LuaError(f"{name} must be >= 1")
    if value > highest:
        raise LuaError(f"{name} must be <= {highest}")


def _trusted(ctx: Context) -> bool:
    return is_trusted(ctx, ctx.request.client_addr[0])


@function("kong.request.get_scheme", REQUEST, needs_request=True)
def get_scheme(ctx: Context) -> bytes:
    return ctx.request.scheme.encode()


@function("kong.request.get_host", REQUEST, needs_request=True)
def get_host(ctx: Context) -> bytes:
    return ctx.request.host.encode("latin-1")


@function("kong.request.get_port", needs_request=True)
def get_port(ctx: Context) -> int:
    return ctx.request.server_addr[1]


@function("kong.request.get_forwarded_scheme", REQUEST, needs_request=True)
def get_forwarded_scheme(ctx: Context) -> bytes:
    if _trusted(ctx):
        scheme = get_header_value(ctx, b"X-Forwarded-Proto")
        if scheme:
            return bytes(scheme.lower())
    return get_scheme(ctx)


@function("kong.request.get_forwarded_host", REQUEST, needs_request=True)
def get_forwarded_host(ctx: Context) -> bytes:
    if _trusted(ctx):
        host = get_header_value(ctx, b"X-Forwarded-Host")
        if host is not None:
            if b"@" in host:
                host = host.split(b"@", 1)[1]
            return bytes(host.split(b":", 1)[0].lower())
    return get_host(ctx)


def _port(text: Any) -> int | None:
    if isinstance(text, bytes) and text.strip().isdigit() and 1 <= int(text) <= 65535:
        return int(text)
    return None


@function("kong.request.get_forwarded_port", REQUEST, needs_request=True)
def get_forwarded_port(ctx: Context) -> int:
    if _trusted(ctx):
        port = _port(get_header_value(ctx, b"X-Forwarded-Port"))
        if port is not None:
            return port
        host = get_header_value(ctx, b"X-Forwarded-Host")
        if host is not None:
            if b"@" in host:
                host = host.split(b"@", 1)[1]
            port = _port(host.partition(b":")[2])
            if port is not None:
                return port
    return get_port(ctx)


@function("kong.request.get_forwarded_path", REQUEST, needs_request=True)
def get_forwarded_path(ctx: Context) -> bytes:
    if _trusted(ctx):
        path = get_header_value(ctx, b"X-Forwarded-Path")
        if path is not None:
            return bytes(path)
    return get_path(ctx)


@function("kong.request.get_forwarded_prefix", REQUEST, needs_request=True)
def get_forwarded_prefix(ctx: Context) -> bytes | None:
    if _trusted(ctx):
        prefix = get_header_value(ctx, b"X-Forwarded-Prefix")
        if prefix is not None:
            return bytes(prefix)
    return ctx.forwarded_prefix


@function("kong.request.get_http_version", REQUEST, needs_request=True)
def get_http_version(ctx: Context) -> int | float:
    major, minor = ctx.request.http_version
    return number(major + minor / 10)


@function("kong.request.get_method", REQUEST, needs_request=True)
def get_method(ctx: Context) -> bytes:
    return ctx.request.method.encode("latin-1")


def request_uri(ctx: Context) -> bytes:
    """nginx's $request_uri: the target without scheme and authority, as it was sent."""
    target = ctx.request.target
    if not target.startswith(b"/") and b"://" in target.split(b"?", 1)[0]:
        rest = target.split(b"://", 1)[1]
        cut = min((i for i in (rest.find(b"/"), rest.find(b"?")) if i >= 0), default=-1)
        if cut < 0:
            return b"/"
        return rest[cut:] if rest[cut : cut + 1] == b"/" else b"/" + rest[cut:]
    return target


@function("kong.request.get_path", ALL, needs_request=True)
def get_path(ctx: Context) -> bytes:
    return uri.normalize(get_raw_path(ctx), True)


@function("kong.request.get_raw_path", REQUEST, needs_request=True)
def get_raw_path(ctx: Context) -> bytes:
    whole = request_uri(ctx)
    at = whole.find(b"?", 1)
    return whole if at < 0 else whole[:at]


@function("kong.request.get_path_with_query", REQUEST, needs_request=True)
def get_path_with_query(ctx: Context) -> bytes:
    return request_uri(ctx)


@function("kong.request.get_raw_query", REQUEST, needs_request=True)
def get_raw_query(ctx: Context) -> bytes:
    return ctx.args


@function("kong.request.get_query", REQUEST)
def get_query(ctx: Context, max_args: Any = None) -> uri.Args:
    check_maximum(max_args, "max_args")
    if ctx.in_timer:
        raise LuaError("API disabled in the current context")
    return uri.decode_args(ctx.args, int(max_args or ctx.gateway.conf.lua_max_uri_args))


@function("kong.request.get_query_arg", REQUEST)
def get_query_arg(ctx: Context, name: Any = None) -> Any:
    if not isinstance(name, bytes):
        raise LuaError("query argument name must be a string")
    return first(get_query(ctx).get(name))


@function("kong.request.get_header", REQUEST)
def get_header(ctx: Context, name: Any = None) -> Any:
    if not isinstance(name, bytes):
        raise LuaError("header name must be a string")
    if ctx.in_timer:
        raise LuaError("API disabled in the current context")
    return get_header_value(ctx, name)


@function("kong.request.get_headers", REQUEST)
def get_headers(ctx: Context, max_headers: Any = None) -> dict[bytes, Any]:
    check_maximum(max_headers, "max_headers")
    if ctx.in_timer:
        raise LuaError("API disabled in the current context")
    return header_table(ctx.request.headers.lines, int(max_headers or _max_headers(ctx)))


@function("kong.request.get_header", REQUEST, exposed=True)
def exposed_get_header(ctx: Context, name: Any = None) -> Any:
    if not ctx.in_timer:
        return get_header(ctx, name)
    if name is None:
        return None
    table = header_table(ctx.request.headers.lines, _max_headers(ctx))
    return first(lookup(table, name)) if isinstance(name, bytes) else None


@function("kong.request.get_headers", REQUEST, exposed=True)
def exposed_get_headers(ctx: Context, max_headers: Any = None) -> dict[bytes, Any]:
    if not ctx.in_timer:
        return get_headers(ctx, max_headers)
    return header_table(ctx.request.headers.lines, _max_headers(ctx))


@function("kong.request.get_raw_body", BEFORE_CONTENT, needs_body=True)
def get_raw_body(ctx: Context, max_allowed_file_size: Any = None) -> bytes | None:
    if ctx.body is not None:
        return ctx.body
    body = ctx.client_body or b""
    if body and ctx.request.body.spilled:
        if falsy(max_allowed_file_size):
            return None
        if isinstance(max_allowed_file_size, bool) or not isinstance(max_allowed_file_size, int | float):
            raise LuaError("attempt to compare number with " + type(max_allowed_file_size).__name__)
        if max_allowed_file_size < 0 or 0 < max_allowed_file_size < len(body):
            return None
    return body


@function("kong.request.get_body", BEFORE_CONTENT, needs_body=True)
def get_body(ctx: Context, mimetype: Any = None, max_args: Any = None, max_size: Any = None) -> Any:
    content_type = mimetype if not falsy(mimetype) else get_header_value(ctx, b"Content-Type")
    if content_type is None:
        return None
    if isinstance(content_type, int | float) and not isinstance(content_type, bool):
        content_type = str(content_type).encode()
    if not isinstance(content_type, bytes):
        raise LuaError("bad argument #1 to 'lower' (string expected, got table)")
    kind = content_type.lower().split(b";", 1)[0]
    if kind.startswith(b"application/x-www-form-urlencoded"):
        check_maximum(max_args, "max_args")
        body = ctx.body if ctx.body is not None else ctx.client_body or b""
        if body and ctx.body is None and ctx.request.body.spilled:
            return None  # ngx.req.get_post_args: "request body in temp file not supported"
        return uri.decode_args(body, int(max_args or ctx.gateway.conf.lua_max_post_args))
    if kind.startswith(b"application/json"):
        text = get_raw_body(ctx, max_size)
        return None if text is None else decode_json_body(text)
    if kind.startswith(b"multipart/form-data"):
        text = get_raw_body(ctx, max_size)
        return None if text is None else decode_multipart(text, content_type)
    return None


def decode_json_body(body: bytes) -> Any:
    """A JSON object or array, else None ("invalid json body")."""
    try:
        decoded = cjson.decode(body, array_mt=True)
    except ValueError:
        return None
    return decoded if isinstance(decoded, list | dict) else None


@function("kong.request.get_start_time", REQUEST)
def get_start_time(ctx: Context) -> int:
    return int(ctx.request.started * 1000)


def captures(ctx: Context) -> dict[bytes, Any]:
    """`named` and `unnamed` captures; an unnamed 0 is the whole match."""
    named: dict[bytes, Any] = {}
    unnamed: dict[Any, Any] = {}
    for key, value in ctx.uri_captures.items():
        if isinstance(key, int):
            unnamed[key] = value
        else:
            named[key.encode()] = value
    return {b"named": named, b"unnamed": unnamed}


@function("kong.request.get_uri_captures", REQUEST)
def get_uri_captures(ctx: Context, _ngx_ctx: Any = None) -> dict[bytes, Any]:
    return captures(ctx)
