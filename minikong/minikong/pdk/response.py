"""kong.response.* (kong/pdk/response.lua) and the answer that `exit` and `error` make."""

from __future__ import annotations

from typing import Any

from minikong import cjson
from minikong.context import Context, Headers, Response
from minikong.http.errors import error_template, response_type
from minikong.luavalue import LuaError, tostring
from minikong.pdk.headers import normalize, sequence_part, set_response_header, validate_header, validate_headers
from minikong.pdk.registry import Exit, function
from minikong.pdk.request import check_maximum, first, header_table, lookup

HEADER_BODY_LOG = ("response", "header_filter", "body_filter", "log", "error", "admin_api")
REWRITE_ACCESS_HEADER = ("rewrite", "access", "response", "balancer", "header_filter", "error", "admin_api")
BODY_FILTER = ("body_filter",)
MIN_STATUS, MAX_STATUS, MIN_ERROR_STATUS = 100, 599, 400
MESSAGES = {
    400: "Bad request",
    401: "Unauthorized",
    402: "Payment required",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    406: "Not acceptable",
    407: "Proxy authentication required",
    408: "Request timeout",
    409: "Conflict",
    410: "Gone",
    411: "Length required",
    412: "Precondition failed",
    413: "Payload too large",
    414: "URI too long",
    415: "Unsupported media type",
    416: "Range not satisfiable",
    417: "Expectation failed",
    418: "I'm a teapot",
    421: "Misdirected request",
    422: "Unprocessable entity",
    423: "Locked",
    424: "Failed dependency",
    425: "Too early",
    426: "Upgrade required",
    428: "Precondition required",
    429: "Too many requests",
    431: "Request header fields too large",
    451: "Unavailable for legal reasons",
    494: "Request header or cookie too large",
    500: "An unexpected error occurred",
    501: "Not implemented",
    502: "An invalid response was received from the upstream server",
    503: "The upstream server is currently unavailable",
    504: "The upstream server is timing out",
    505: "HTTP version not supported",
    506: "Variant also negotiates",
    507: "Insufficient storage",
    508: "Loop detected",
    510: "Not extended",
    511: "Network authentication required",
}


def headers_out(ctx: Context) -> Headers:
    """The response headers as they stand now."""
    if ctx.response is not None and ctx.phase in ("response", "header_filter", "body_filter", "log"):
        return ctx.response.headers
    return ctx.added_response_headers


def status_out(ctx: Context) -> int:
    return ctx.response.status if ctx.response is not None else 0


def response_header_table(ctx: Context, maximum: int = 100) -> dict[bytes, Any]:
    """`ngx.resp.get_headers`: nginx's own Connection, Content-Type and framing included."""
    table = header_table([line for line in headers_out(ctx).lines if line[0].lower() != b"date"], maximum)
    table.setdefault(b"connection", b"close" if ctx.phase == "log" else b"keep-alive")
    return table


@function("kong.response.get_status", HEADER_BODY_LOG)
def get_status(ctx: Context) -> int:
    return status_out(ctx)


@function("kong.response.get_status", HEADER_BODY_LOG, exposed=True)
def exposed_get_status(ctx: Context) -> int:
    return status_out(ctx)


@function("kong.response.get_header", HEADER_BODY_LOG)
def get_header(ctx: Context, name: Any = None) -> Any:
    if not isinstance(name, bytes):
        raise LuaError("header name must be a string")
    return first(lookup(get_headers(ctx), name))


@function("kong.response.get_header", HEADER_BODY_LOG, exposed=True)
def exposed_get_header(ctx: Context, name: Any = None) -> Any:
    if ctx.in_timer:
        return first(lookup(get_headers(ctx), name)) if isinstance(name, bytes) else None
    return get_header(ctx, name)


@function("kong.response.get_headers", HEADER_BODY_LOG)
def get_headers(ctx: Context, max_headers: Any = None) -> dict[bytes, Any]:
    check_maximum(max_headers, "max_headers")
    return response_header_table(ctx, int(max_headers or ctx.gateway.conf.lua_max_resp_headers))


@function("kong.response.get_headers", HEADER_BODY_LOG, exposed=True)
def exposed_get_headers(ctx: Context, max_headers: Any = None) -> dict[bytes, Any]:
    return get_headers(ctx, None if ctx.in_timer else max_headers)


def source(ctx: Context) -> bytes:
    if ctx.unexpected:
        return b"error"
    if ctx.exited:
        return b"exit"
    return b"service" if ctx.proxied else b"error"


@function("kong.response.get_source", HEADER_BODY_LOG)
def get_source(ctx: Context, _ngx_ctx: Any = None) -> bytes:
    return source(ctx)


@function("kong.response.set_status", REWRITE_ACCESS_HEADER)
def set_status(ctx: Context, status: Any = None) -> None:
    _check_status(status, MIN_STATUS)
    if ctx.response is not None and ctx.phase in ("response", "header_filter"):
        ctx.response.status = int(status)


def _check_status(status: Any, lowest: int) -> None:
    if isinstance(status, bool) or not isinstance(status, int | float):
        raise LuaError("code must be a number")
    if not lowest <= status <= MAX_STATUS:
        raise LuaError(f"code must be a number between {lowest} and {MAX_STATUS}")


def _is_transfer_encoding(name: bytes) -> bool:
    return name.lower().replace(b"_", b"-") == b"transfer-encoding"


@function("kong.response.set_header", REWRITE_ACCESS_HEADER)
def set_header(ctx: Context, name: Any = None, value: Any = None) -> None:
    validate_header(name, value)
    if _is_transfer_encoding(name):
        ctx.gateway.log("warn", "manually setting Transfer-Encoding. Ignored.")
        return
    set_response_header(headers_out(ctx), name, normalize(value))


@function("kong.response.add_header", REWRITE_ACCESS_HEADER)
def add_header(ctx: Context, name: Any = None, value: Any = None) -> None:
    validate_header(name, value)
    set_response_header(headers_out(ctx), name, normalize(value), add=True)


@function("kong.response.clear_header", REWRITE_ACCESS_HEADER)
def clear_header(ctx: Context, name: Any = None) -> None:
    if not isinstance(name, bytes):
        raise LuaError("header name must be a string")
    set_response_header(headers_out(ctx), name, None)


@function("kong.response.set_headers", REWRITE_ACCESS_HEADER)
def set_headers(ctx: Context, headers: Any = None) -> None:
    for name, value in validate_headers(headers).items():
        if _is_transfer_encoding(name):
            ctx.gateway.log("warn", "manually setting Transfer-Encoding. Ignored.")
        else:
            set_response_header(headers_out(ctx), name, normalize(value))


@function("kong.response.get_raw_body", BODY_FILTER)
def get_raw_body(ctx: Context) -> bytes | None:
    """The whole body with its last piece, before that nothing: so no piece is sent before."""
    kept: list[bytes] = ctx.nginx_ctx.setdefault((b"ctx", b"body_buffer"), [])
    kept.append(ctx.chunk or b"")
    ctx.chunk = None
    if not ctx.is_last:
        return None
    ctx.chunk = b"".join(kept)
    kept.clear()
    return ctx.chunk


@function("kong.response.set_raw_body", BODY_FILTER)
def set_raw_body(ctx: Context, body: Any = None) -> None:
    if not isinstance(body, bytes):
        raise LuaError("body must be a string")
    ctx.chunk, ctx.is_last = body or b"\n", True


@function("kong.response.exit", REWRITE_ACCESS_HEADER)
def pdk_exit(ctx: Context, status: Any = None, body: Any = None, headers: Any = None) -> None:
    _check_status(status, MIN_STATUS)
    if body is not None and not isinstance(body, bytes | list | dict):
        raise LuaError("body must be a nil, string or table")
    if headers is not None and not isinstance(headers, list | dict):
        raise LuaError("headers must be a nil or table")
    if headers is not None:
        headers = validate_headers(headers)
    ctx.exited = True
    raise Exit(int(status), body, headers)


@function("kong.response.error", REWRITE_ACCESS_HEADER)
def pdk_error(ctx: Context, status: Any = None, message: Any = None, headers: Any = None) -> None:
    _check_status(status, MIN_ERROR_STATUS)
    if isinstance(message, list | dict):
        try:
            message = cjson.encode(message)
        except LuaError as error:
            raise LuaError(f"could not JSON encode the error message: {error.message}") from None
    if message is not None and not isinstance(message, bytes):
        raise LuaError("message must be a nil, a string or a table")
    if headers is not None and not isinstance(headers, list | dict):
        raise LuaError("headers must be a nil or table")
    headers = dict(validate_headers(headers)) if headers is not None else {}
    ctx.exited = True
    raise error_exit(ctx, int(status), message, headers)


def error_exit(ctx: Context, status: int, message: bytes | None, headers: dict[Any, Any]) -> Exit:
    """What kong.response.error ends with: the error template of the wanted type."""
    content_type = headers.get(b"Content-Type")
    if content_type is None:
        accept = lookup(header_table(ctx.request.headers.lines), b"Accept")
        if isinstance(accept, list):
            accept = b",".join(accept)
        content_type = response_type(None if accept is None else accept.decode("latin-1")).encode()
        headers[b"Content-Type"] = content_type
    elif isinstance(content_type, list | dict):
        content_type = (sequence_part(content_type) or [None])[0]
        headers[b"Content-Type"] = content_type
    if message is None:
        message = MESSAGES.get(status, f"The upstream server responded with {status}").encode()
    return Exit(status, _error_body(content_type, message, ctx.request.id.encode()), headers)


def _error_body(content_type: Any, message: bytes, request_id: bytes) -> bytes:
    kind = tostring(content_type).decode("latin-1")
    if kind in ("", "application/grpc"):
        return b""
    template = error_template(kind) or error_template(f"{kind}; charset=utf-8")
    if template is None:
        raise LuaError("bad argument #1 to 'fmt' (string expected, got nil)")
    return template.encode() % (message, request_id)


def send(ctx: Context, exit_: Exit) -> None:
    """`send` of kong/pdk/response.lua: makes `ctx.response`. Raises LuaError if the body cannot be encoded."""
    headers = Headers(list(headers_out(ctx).lines))
    has_type = has_length = False
    for name, value in (exit_.headers or {}).items():
        lower = name.lower().replace(b"_", b"-")
        if lower == b"transfer-encoding":
            ctx.gateway.log("warn", "manually setting Transfer-Encoding. Ignored.")
        else:
            set_response_header(headers, name, normalize(value))
        has_type = has_type or lower == b"content-type"
        has_length = has_length or lower == b"content-length"
    body: bytes | None = exit_.body
    if isinstance(exit_.body, list | dict):
        try:
            body = cjson.encode(exit_.body)
        except LuaError as error:
            raise LuaError(f"body encoding failed while flushing response: {error.message}") from None
        if not has_type:
            set_response_header(headers, b"Content-Type", b"application/json; charset=utf-8")
    if not has_length and (body is not None or (exit_.status < 300 and exit_.status != 204)):
        set_response_header(headers, b"Content-Length", b"%d" % len(body or b""))
    ctx.response = Response(exit_.status, headers, "exit", body)
