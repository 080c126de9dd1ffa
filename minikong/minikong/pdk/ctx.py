"""kong.ctx.* and kong.nginx.{get,set}_ctx as plugin servers get them (`exposed_api`)."""

from __future__ import annotations

from typing import Any

from minikong.context import Context
from minikong.entities import WORKSPACE_ID
from minikong.luavalue import LuaError, falsy
from minikong.pdk.client import entity_table
from minikong.pdk.registry import PHASE_BITS, TABLES, function
from minikong.pdk.request import request_uri
from minikong.schema import hosts

TABLES.update(("kong.ctx", "kong.ctx.shared", "kong.ctx.core"))
ALL = tuple(PHASE_BITS)


def _key(key: Any) -> Any:
    if key is None:
        raise LuaError("table index is nil")
    if isinstance(key, float) and key != key:
        raise LuaError("table index is NaN")
    return id(key) if isinstance(key, list | dict) else key


@function("kong.ctx.shared.get", ALL, exposed=True)
def shared_get(ctx: Context, key: Any = None) -> Any:
    return None if key is None else ctx.shared.get(_key(key))


@function("kong.ctx.shared.set", ALL, exposed=True)
def shared_set(ctx: Context, key: Any = None, value: Any = None) -> None:
    key = _key(key)
    if value is None:
        ctx.shared.pop(key, None)
    else:
        ctx.shared[key] = value


def _kong_ctx(ctx: Context, key: Any) -> Any:
    """The fields of `ngx.ctx` that Kong itself keeps."""
    match key:
        case b"route":
            return entity_table(ctx.route)
        case b"service":
            return entity_table(ctx.service)
        case b"authenticated_consumer":
            return entity_table(ctx.consumer)
        case b"authenticated_credential":
            return entity_table(ctx.credential)
        case b"workspace":
            return WORKSPACE_ID
        case b"plugin_id":
            return ctx.plugin.id if ctx.plugin else None
        case b"request_uri":
            return request_uri(ctx) if ctx.route is not None else None
        case b"scheme":
            return ctx.request.scheme if ctx.route is not None else None
        case b"KONG_PHASE":
            return PHASE_BITS[ctx.phase]
        case b"KONG_PROCESSING_START":
            return int(ctx.request.started * 1000)
        case b"KONG_REWRITE_START" | b"KONG_ACCESS_START":
            return int(ctx.request.started * 1000)
        case b"KONG_PROXIED":
            return ctx.proxied or None
        case b"KONG_EXITED":
            return ctx.exited or None
        case b"KONG_UNEXPECTED":
            return ctx.unexpected or None
        case b"buffered_proxying":
            return ctx.buffered or None
        case b"delay_response":
            return ctx.delay_response or None
        case b"KONG_LOG":  # its functions would be called while it is packed, kong.log.serialize among them
            raise LuaError(f"function cannot be called in {ctx.phase} phase (only in: log)")
        case b"router_matches":
            return _router_matches(ctx)
        case b"balancer_data":
            return _balancer_data(ctx)
    return None


def _text(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _router_matches(ctx: Context) -> dict[bytes, Any]:
    """Captures are one table here, by number and by name."""
    made: dict[bytes, Any] = {}
    for kind, found in ctx.matched_by.items():
        made[_text(kind)] = _text(found) if isinstance(found, str) else {_text(n): _text(v) for n, v in found.items()}
    if ctx.uri_captures:
        made[b"uri_captures"] = {n if isinstance(n, int) else _text(n): _text(v) for n, v in ctx.uri_captures.items()}
    return made


def _balancer_data(ctx: Context) -> dict[bytes, Any] | None:
    """Where the request goes. Once it has gone there by an upstream the table holds the upstream's own tables, which
    cannot be packed."""
    upstream = ctx.upstream
    if upstream is None:
        return None
    named = ctx.service.host if ctx.service is not None and ctx.tries else upstream.host
    if ctx.tries and named in ctx.gateway.config.upstreams:
        raise LuaError("pack 'function' is unimplemented")
    made: dict[bytes, Any] = {
        b"type": hosts.kind(named).encode(),
        b"connect_timeout": round(upstream.connect_timeout * 1000),
        b"send_timeout": round(upstream.send_timeout * 1000),
        b"read_timeout": round(upstream.read_timeout * 1000),
        b"retries": upstream.retries,
        b"tries": [{_text(name): value for name, value in one.items()} for one in ctx.tries],
        b"try_count": len(ctx.tries),
    }
    if ctx.service is not None:
        made |= {b"scheme": _text(upstream.scheme), b"host": _text(named), b"port": upstream.port}
    if ctx.tries:
        made |= {b"ip": _text(upstream.host), b"hostname": _text(named)}
    return made


@function("kong.nginx.get_ctx", ALL, exposed=True)
def get_ctx(ctx: Context, key: Any = None) -> Any:
    if key is None:
        return None
    key = _key(key)
    if key in ctx.nginx_ctx:
        return ctx.nginx_ctx[key]
    return _kong_ctx(ctx, key)


@function("kong.nginx.set_ctx", ALL, exposed=True)
def set_ctx(ctx: Context, key: Any = None, value: Any = None) -> None:
    ctx.nginx_ctx[_key(key)] = value
    match key:  # Kong's own fields live in the same table
        case b"authenticated_consumer":
            ctx.consumer = value
        case b"authenticated_credential":
            ctx.credential = value
        case b"buffered_proxying":
            ctx.buffered = not falsy(value)
