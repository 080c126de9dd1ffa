"""kong.log.* (kong/pdk/log.lua)."""

from __future__ import annotations

import copy
from typing import Any

from minikong import cjson, uri
from minikong.context import Context
from minikong.entities import WORKSPACE_ID
from minikong.luavalue import NULL, LuaError, falsy, number, tostring
from minikong.pdk.client import entity_table
from minikong.pdk.registry import FUNCTIONS, PHASE_BITS, Function, function
from minikong.pdk.request import header_table, request_uri
from minikong.pdk.response import response_header_table, source, status_out

ALL = tuple(PHASE_BITS)
LEVELS = ("debug", "info", "notice", "warn", "err", "crit", "alert", "emerg")
WITH_CTX = ("rewrite", "access", "header_filter", "response", "body_filter", "log")
SOURCES = {b"exit": "kong", b"error": "kong", b"service": "upstream"}
_BAD_VALUE = (
    "value must be nil, a number, string, boolean or a non-self-referencial table "
    "containing numbers, string and booleans"
)


def _writer(level: str) -> None:
    def write(ctx: Context, *arguments: Any) -> None:
        if not arguments:
            raise LuaError("bad argument #1 to 'select' (index out of range)")
        text = b"".join(tostring(a) for a in arguments).decode("utf-8", "surrogateescape")
        ctx.gateway.plugin_log(ctx, level, text)

    FUNCTIONS[f"kong.log.{level}"] = Function(f"kong.log.{level}", write, ALL, False, False)


for _level in LEVELS:
    _writer(_level)
FUNCTIONS["kong.log"] = Function("kong.log", FUNCTIONS["kong.log.notice"].body, ALL, False, False)


@function("kong.log.deprecation", ALL)
def deprecation(ctx: Context, *arguments: Any) -> None:
    texts = [tostring(a).decode("utf-8", "surrogateescape") for a in arguments if not isinstance(a, list | dict)]
    meta = arguments[-1] if arguments and isinstance(arguments[-1], dict) else {}
    notes = []
    if b"after" in meta:
        notes.append("deprecated after " + tostring(meta[b"after"]).decode())
    if b"removal" in meta:
        notes.append("scheduled for removal in " + tostring(meta[b"removal"]).decode())
    suffix = f" ({', '.join(notes)})" if notes else ""
    ctx.gateway.plugin_log(ctx, "warn", "".join(texts) + suffix)


@function("kong.log.inspect", ALL)
def inspect(ctx: Context, *arguments: Any) -> None:
    ctx.gateway.plugin_log(ctx, "notice", " ".join(repr(a) for a in arguments))


for _name in ("on", "off"):
    FUNCTIONS[f"kong.log.inspect.{_name}"] = Function(f"kong.log.inspect.{_name}", lambda ctx: None, ALL, False, False)


@function("kong.log.set_serialize_value", WITH_CTX)
def set_serialize_value(ctx: Context, key: Any = None, value: Any = None, options: Any = None) -> None:
    if not isinstance(key, bytes):
        raise LuaError("key must be a string")
    if not falsy(options) and not isinstance(options, list | dict | bytes):
        raise LuaError("attempt to index local 'options'")
    mode = (options.get(b"mode") if isinstance(options, dict) else None) or b"set"
    if mode not in (b"set", b"add", b"replace"):
        raise LuaError("mode must be 'set', 'add' or 'replace'")
    ctx.serialize_values.append((key, value, mode))


def _is_valid(value: Any, visited: set[int]) -> bool:
    if value is None or value is NULL or isinstance(value, bool | int | float | bytes | str):
        return True
    if not isinstance(value, list | dict) or id(value) in visited:
        return False
    visited.add(id(value))
    items = value.values() if isinstance(value, dict) else value
    return all(_is_valid(item, visited) for item in items)


def _edit(root: dict[Any, Any], edits: list[tuple[bytes, Any, bytes]]) -> None:
    for raw_key, value, mode in edits:
        if not _is_valid(value, set()):
            raise LuaError(_BAD_VALUE)
        key = raw_key.decode("utf-8", "surrogateescape")
        *path, last = _split(key)
        node: Any = root
        for part in path:
            held = node.get(part, node.get(part.encode("utf-8", "surrogateescape")))
            if held is None:
                if mode == b"replace":
                    node = None
                    break
                held = node[part] = {}
            elif not isinstance(held, list | dict):
                raise LuaError(
                    f"The key '{key}' could not be used as a serialize value. Subkey '{part}' is not a table. "
                    f"It's {tostring(held).decode('utf-8', 'replace')}"
                )
            node = held
        if not isinstance(node, dict):
            continue
        name: Any = last.encode("utf-8", "surrogateescape")
        if name not in node:
            name = last
        exists = node.get(name) is not None
        if mode == b"set" or (mode == b"add") != exists:
            if value is None:
                node.pop(name, None)
            else:
                node[name] = value


def _split(key: str) -> list[str]:
    """The parts between dots; a dot at the very start is part of the name."""
    return [key[:1] + part if i == 0 else part for i, part in enumerate(key[1:].split("."))]


def serialize(ctx: Context) -> dict[Any, Any]:
    """The table of kong.log.serialize()."""
    request, response = ctx.request, ctx.response
    target = request_uri(ctx)
    upstream_uri = ctx.upstream.path if ctx.upstream is not None else b""
    if upstream_uri and b"?" not in upstream_uri:
        if target.endswith(b"?"):
            upstream_uri += b"?"
        elif ctx.args:
            upstream_uri += b"?" + ctx.args
    request_headers = header_table(request.headers.lines, ctx.gateway.conf.lua_max_req_headers)
    for name in (b"authorization", b"proxy-authorization"):
        if name in request_headers:
            request_headers[name] = b"REDACTED"
    url = b"%b://%b:%d%b" % (
        request.scheme.encode(),
        request.host.encode("latin-1"),
        request.server_addr[1],
        target,
    )
    started = request.started
    times = ctx.timings
    root: dict[Any, Any] = {
        "request": {
            "id": request.id,
            "uri": target,
            "url": url,
            "querystring": uri.decode_args(ctx.args, ctx.gateway.conf.lua_max_uri_args),
            "method": request.method,
            "headers": request_headers,
            "size": request.length,
        },
        "upstream_uri": upstream_uri,
        "upstream_status": str(ctx.upstream_status) if ctx.upstream_status else "",
        "response": {
            "status": status_out(ctx),
            "headers": response_header_table(ctx, ctx.gateway.conf.lua_max_resp_headers) if response else {},
            "size": ctx.bytes_sent,
        },
        "latencies": {
            "kong": _milliseconds(times.get("balancer", times.get("header_filter", started)) - started),
            "proxy": _milliseconds(times["header_filter"] - times["balancer"])
            if ctx.proxied and "balancer" in times and "header_filter" in times
            else -1,
            "request": _milliseconds(times.get("sent", started) - started),
            "receive": _milliseconds(times.get("sent", started) - times.get("header_filter", started))
            if ctx.proxied
            else 0,
        },
        "tries": [dict(t) for t in ctx.tries] if ctx.upstream is not None else None,
        "route": entity_table(ctx.route),
        "service": entity_table(ctx.service),
        "consumer": entity_table(ctx.consumer),
        "client_ip": request.remote_addr[0],
        "started_at": int(started * 1000),
        "source": SOURCES[source(ctx)],
        "workspace": WORKSPACE_ID,
        "workspace_name": "default",
    }
    if request.scheme == "https":
        root["request"]["tls"] = {"version": "TLSv1.3", "cipher": "TLS_AES_256_GCM_SHA384", "client_verify": "NONE"}
    credential = entity_table(ctx.credential)
    if isinstance(credential, dict):
        consumer_id = credential.get("consumer_id", credential.get(b"consumer_id"))
        identifier = credential.get("id", credential.get(b"id"))
        root["authenticated_entity"] = {
            k: v for k, v in (("id", identifier), ("consumer_id", consumer_id)) if v is not None
        }
    root = {k: v for k, v in root.items() if v is not None}
    if ctx.serialize_values:
        root = copy.deepcopy(root)
        _edit(root, ctx.serialize_values)
    return root


def _milliseconds(seconds: float) -> int | float:
    return number(max(0, round(seconds * 1000)))


@function("kong.log.serialize", ("log",))
def pdk_serialize(ctx: Context, options: Any = None) -> dict[Any, Any]:
    return serialize(ctx)


@function("kong.log.serialize", ("log",), exposed=True)
def exposed_serialize(ctx: Context) -> bytes:
    return cjson.encode(serialize(ctx))
