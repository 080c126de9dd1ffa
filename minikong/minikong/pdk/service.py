"""kong.service.* (kong/pdk/service.lua)."""

from __future__ import annotations

from typing import Any

from minikong.context import Context
from minikong.luavalue import LuaError, tostring
from minikong.pdk.registry import function

ACCESS = ("access",)
TARGET = ("rewrite", "access", "balancer", "preread")


def _integer(value: Any, name: str, lowest: int, highest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise LuaError(f"{name} must be an integer")
    if not lowest <= value <= highest:
        raise LuaError(f"{name} must be an integer between {lowest} and {highest}: given {tostring(value).decode()}")
    return int(value)


@function("kong.service.set_upstream", ACCESS)
def set_upstream(ctx: Context, host: Any = None) -> bool | None:
    if not isinstance(host, bytes):
        raise LuaError("host must be a string")
    name = host.decode("utf-8", "surrogateescape")
    if name not in ctx.gateway.config.upstreams:
        return None
    assert ctx.upstream is not None
    ctx.upstream.host = name
    return True


@function("kong.service.set_target", TARGET)
def set_target(ctx: Context, host: Any = None, port: Any = None) -> None:
    if not isinstance(host, bytes):
        raise LuaError("host must be a string")
    port = _integer(port, "port", 0, 65535)
    ctx.upstream_host = host
    if ctx.upstream is None:
        raise LuaError("attempt to index field 'balancer_data' (a nil value)")
    ctx.upstream.host = host.decode("utf-8", "surrogateescape")
    ctx.upstream.port = port


@function("kong.service.set_target_retry_callback", ACCESS)
def set_target_retry_callback(ctx: Context, callback: Any = None) -> None:
    raise LuaError("retry_callback must be a function")


@function("kong.service.set_retries", ACCESS)
def set_retries(ctx: Context, retries: Any = None) -> None:
    count = _integer(retries, "retries", 0, 32767)
    assert ctx.upstream is not None
    ctx.upstream.retries = count


@function("kong.service.set_timeouts", ACCESS)
def set_timeouts(ctx: Context, connect: Any = None, write: Any = None, read: Any = None) -> None:
    highest = 2147483646
    connect = _integer(connect, "connect_timeout", 1, highest)
    write = _integer(write, "write_timeout", 1, highest)
    read = _integer(read, "read_timeout", 1, highest)
    assert ctx.upstream is not None
    ctx.upstream.connect_timeout = connect / 1000
    ctx.upstream.send_timeout = write / 1000
    ctx.upstream.read_timeout = read / 1000


@function("kong.service.set_tls_cert_key", TARGET)
def set_tls_cert_key(ctx: Context, chain: Any = None, key: Any = None) -> None:
    raise LuaError("chain must be a parsed cdata object")


@function("kong.service.set_tls_verify", TARGET)
def set_tls_verify(ctx: Context, on: Any = None) -> bool:
    if not isinstance(on, bool):
        raise LuaError("argument must be a boolean")
    ctx.tls_verify = on
    return True


@function("kong.service.set_tls_verify_depth", TARGET)
def set_tls_verify_depth(ctx: Context, depth: Any = None) -> bool:
    if isinstance(depth, bool) or not isinstance(depth, int | float):
        raise LuaError("argument must be a number")
    return True


@function("kong.service.set_tls_verify_store", TARGET)
def set_tls_verify_store(ctx: Context, store: Any = None) -> None:
    raise LuaError("argument must be a resty.openssl.x509.store object")
