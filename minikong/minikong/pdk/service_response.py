"""kong.service.response.* (kong/pdk/service/response.lua)."""

from __future__ import annotations

from typing import Any

from minikong import uri
from minikong.context import Context
from minikong.luavalue import LuaError, falsy
from minikong.multipart import decode_multipart
from minikong.pdk.registry import TIMER_ERROR, function
from minikong.pdk.request import check_maximum, decode_json_body, first, header_table, lookup

HEADER_BODY_LOG = ("response", "header_filter", "body_filter", "log")
NOT_BUFFERED = (
    "service body is only available with buffered proxying (see: kong.service.request.enable_buffering function)"
)


@function("kong.service.response.get_status", HEADER_BODY_LOG)
def get_status(ctx: Context) -> int | None:
    if ctx.service_response is not None:
        return ctx.service_response.status
    if ctx.in_timer:
        raise LuaError(TIMER_ERROR)
    return ctx.upstream_status


def _headers(ctx: Context) -> dict[bytes, Any]:
    if ctx.service_response is not None:
        return header_table(ctx.service_response.headers.lines)
    if ctx.in_timer:
        raise LuaError(TIMER_ERROR)
    assert ctx.response is not None
    return header_table(ctx.response.headers.lines) if ctx.proxied else {}


@function("kong.service.response.get_headers", HEADER_BODY_LOG)
def get_headers(ctx: Context, max_headers: Any = None) -> dict[bytes, Any]:
    check_maximum(max_headers, "max_headers")
    if ctx.service_response is not None:
        return {}  # a table with only an __index: `pairs` finds nothing in it
    return _headers(ctx)


@function("kong.service.response.get_header", HEADER_BODY_LOG)
def get_header(ctx: Context, name: Any = None) -> Any:
    if not isinstance(name, bytes):
        raise LuaError("name must be a string")
    return first(lookup(_headers(ctx), name))


def _body(ctx: Context) -> bytes:
    if not ctx.buffered:
        raise LuaError(NOT_BUFFERED)
    return ctx.service_response.body or b"" if ctx.service_response is not None else b""


@function("kong.service.response.get_raw_body", HEADER_BODY_LOG)
def get_raw_body(ctx: Context) -> bytes:
    return _body(ctx)


@function("kong.service.response.get_body", HEADER_BODY_LOG)
def get_body(ctx: Context, mimetype: Any = None, max_args: Any = None) -> Any:
    body = _body(ctx)
    content_type = mimetype if not falsy(mimetype) else get_header(ctx, b"Content-Type")
    if not isinstance(content_type, bytes):
        return None
    kind = content_type.lower().split(b";", 1)[0]
    if kind.startswith(b"application/x-www-form-urlencoded"):
        check_maximum(max_args, "max_args")
        return uri.decode_args(body, int(max_args or 100))
    if kind.startswith(b"application/json"):
        return decode_json_body(body)
    if kind.startswith(b"multipart/form-data"):
        return decode_multipart(body, content_type)
    return None
