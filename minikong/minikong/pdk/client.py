"""kong.client.* and kong.client.tls.* (kong/pdk/client.lua, client/tls.lua)."""

from __future__ import annotations

import re
from typing import Any

from minikong.context import Context
from minikong.luavalue import LuaError, falsy, tostring
from minikong.pdk.ip import is_trusted
from minikong.pdk.registry import TIMER_ERROR, function
from minikong.pdk.request import nginx_header

AUTH_AND_LATER = ("access", "header_filter", "response", "body_filter", "log")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)


@function("kong.client.get_ip", needs_request=True)
def get_ip(ctx: Context) -> bytes:
    return ctx.request.client_addr[0].encode()


@function("kong.client.get_forwarded_ip", needs_request=True)
def get_forwarded_ip(ctx: Context) -> bytes:
    return ctx.request.remote_addr[0].encode()


@function("kong.client.get_port", needs_request=True)
def get_port(ctx: Context) -> int:
    return ctx.request.client_addr[1]


@function("kong.client.get_forwarded_port", needs_request=True)
def get_forwarded_port(ctx: Context) -> int | None:
    return ctx.request.remote_addr[1] or None


def entity_table(entity: Any) -> Any:
    """What a plugin sees of an entity; tables that a plugin made pass as they are."""
    return entity.as_pdk() if hasattr(entity, "as_pdk") else entity


@function("kong.client.get_credential", AUTH_AND_LATER)
def get_credential(ctx: Context) -> Any:
    return entity_table(ctx.credential)


@function("kong.client.load_consumer", AUTH_AND_LATER)
def load_consumer(ctx: Context, consumer_id: Any = None, search_by_username: Any = None) -> Any:
    if not isinstance(consumer_id, bytes):
        raise LuaError("consumer_id must be a string")
    search = not falsy(search_by_username)
    name = consumer_id.decode("utf-8", "surrogateescape")
    is_uuid = _UUID.fullmatch(name) is not None
    if not is_uuid and not search:
        raise LuaError("cannot load a consumer with an id that is not a uuid")
    config = ctx.gateway.config
    consumer = config.consumers.get(name) if is_uuid else None
    if consumer is None and search:
        consumer = config.consumer_by_username(name)
    return entity_table(consumer)


@function("kong.client.get_consumer", AUTH_AND_LATER)
def get_consumer(ctx: Context) -> Any:
    return entity_table(ctx.consumer)


@function("kong.client.authenticate", ("access",))
def authenticate(ctx: Context, consumer: Any = None, credential: Any = None) -> None:
    for what, value in (("consumer", consumer), ("credential", credential)):
        if value is not None and not isinstance(value, list | dict):
            raise LuaError(f"{what} must be a table or nil")
    if consumer is None and credential is None:
        raise LuaError("either credential or consumer must be provided")
    ctx.consumer = consumer
    ctx.credential = credential


@function("kong.client.get_protocol", AUTH_AND_LATER)
def get_protocol(ctx: Context, allow_terminated: Any = None) -> bytes | None:
    if ctx.route is None:
        return None
    if len(ctx.route.protocols) == 1:
        return ctx.route.protocols[0].encode()
    if ctx.in_timer:
        raise LuaError(TIMER_ERROR)
    trusted = is_trusted(ctx, ctx.request.client_addr[0])
    if ctx.request.scheme == "https":
        return b"https"
    if falsy(allow_terminated) or not trusted:
        return b"http"
    scheme = nginx_header(ctx, b"x-forwarded-proto")
    if scheme is None:
        return b"http"
    if b"," in scheme:
        return None
    return b"https" if scheme.lower() == b"https" else b"http"


@function("kong.client.tls.request_client_certificate", ("certificate",))
def request_client_certificate(ctx: Context, ca_certs: Any = None) -> bool:
    return True


@function("kong.client.tls.disable_session_reuse", ("certificate",))
def disable_session_reuse(ctx: Context) -> bool:
    return True


@function("kong.client.tls.get_full_client_certificate_chain", ("rewrite", "access", "response", "balancer", "log"))
def get_full_client_certificate_chain(ctx: Context) -> None:
    if ctx.in_timer:
        raise LuaError("no request found")


@function("kong.client.tls.set_client_verify", ("rewrite", "access", "response", "balancer"))
def set_client_verify(ctx: Context, value: Any = None) -> None:
    if not isinstance(value, bytes):
        raise LuaError("assertion failed!")
    if value not in (b"SUCCESS", b"NONE") and not value.startswith(b"FAILED:"):
        raise LuaError(
            "unknown client verify value: "
            + tostring(value).decode("utf-8", "replace")
            + ' accepted values are: "SUCCESS", "NONE" or "FAILED:<reason>"'
        )
    ctx.nginx_ctx[b"CLIENT_VERIFY_OVERRIDE"] = value


@function("kong.client.tls.disable_http2_alpn", ("client_hello",))
def disable_http2_alpn(ctx: Context) -> bool:
    return True
