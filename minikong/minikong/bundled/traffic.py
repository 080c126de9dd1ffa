"""request-termination, request-size-limiting, ip-restriction, acl (their handler.lua in kong/plugins/)."""

from __future__ import annotations

import ipaddress
import os
import socket
from typing import Any

from minikong.bundled.authentication import Denied, refusal
from minikong.context import Context
from minikong.entities import PluginEntity
from minikong.pdk.client import entity_table
from minikong.pdk.registry import Exit
from minikong.pdk.request import (
    captures,
    get_body,
    get_headers,
    get_path,
    get_query,
    get_raw_body,
    lookup,
)
from minikong.pdk.service_request import set_header

_TERMINATIONS = {
    401: "Unauthorized",
    404: "Not found",
    405: "Method not allowed",
    500: "An unexpected error occurred",
    502: "Bad Gateway",
    503: "Service unavailable",
}
_UNITS = {"bytes": 1, "kilobytes": 1 << 10, "megabytes": 1 << 20}


class RequestTermination:
    name = "request-termination"
    priority = 2
    version = "3.9.1"
    phases = frozenset({"access"})

    def __init__(self, gateway: Any) -> None:
        self.gateway = gateway

    async def run(self, phase: str, entity: PluginEntity, ctx: Context) -> None:
        conf = entity.config
        status = int(conf["status_code"])
        trigger = conf.get("trigger")
        if trigger:
            name = trigger.encode()
            if lookup(get_headers(ctx), name) is None and name not in get_query(ctx):
                return
        message = conf.get("message") or _TERMINATIONS.get(status)
        ctx.exited = True
        if conf.get("echo"):
            if ctx.client_body is None:
                ctx.client_body = await ctx.request.body.read()
            raise Exit(status, self._echo(ctx, message), None)
        if conf.get("body"):
            headers = {b"Content-Type": conf["content_type"].encode()} if conf.get("content_type") else None
            raise Exit(status, conf["body"].encode("utf-8", "surrogateescape"), headers)
        raise Exit(status, {"message": message} if message else None, None)

    def _echo(self, ctx: Context, message: str | None) -> dict[str, Any]:
        request = ctx.request
        content = {
            "message": message,
            "kong": {
                "node_id": str(self.gateway.node_id),
                "worker_pid": os.getpid(),
                "hostname": socket.gethostname(),
            },
            "request": {
                "scheme": request.scheme,
                "host": request.host,
                "port": request.server_addr[1],
                "headers": get_headers(ctx),
                "query": get_query(ctx),
                "body": get_body(ctx),
                "raw_body": get_raw_body(ctx),
                "method": request.method,
                "path": get_path(ctx),
                # Kong's table of them is an array of no elements.
                "uri_captures": {
                    name: found or ([] if name == b"unnamed" else {}) for name, found in captures(ctx).items()
                },
            },
            "matched_route": entity_table(ctx.route),
            "matched_service": entity_table(ctx.service),
        }
        content["request"] = _without_nil(content["request"])
        return _without_nil(content)


def _without_nil(table: dict[str, Any]) -> dict[str, Any]:
    """As a table in Lua is: what is nil is not there."""
    return {key: value for key, value in table.items() if value is not None}


class RequestSizeLimiting:
    name = "request-size-limiting"
    priority = 951
    version = "3.9.1"
    phases = frozenset({"access"})

    def __init__(self, gateway: Any) -> None:
        self.gateway = gateway

    async def run(self, phase: str, entity: PluginEntity, ctx: Context) -> None:
        conf = entity.config
        allowed = conf["allowed_payload_size"] * _UNITS[conf["size_unit"]]
        headers = ctx.request.headers
        length = headers.get(b"content-length")
        if length is not None and length.isdigit():
            size = int(length)
        else:
            if conf.get("require_content_length") and headers.get(b"transfer-encoding") != b"chunked":
                raise refusal(ctx, Denied(411, "A valid Content-Length header is required"))
            if ctx.client_body is None:
                ctx.client_body = await ctx.request.body.read()
            size = len(ctx.client_body)
        if size > allowed:
            expects = (headers.get(b"expect") or b"").strip().lower() == b"100-continue"
            raise refusal(ctx, Denied(417 if expects else 413, "Request size limit exceeded"))


class IpRestriction:
    name = "ip-restriction"
    priority = 990
    version = "3.9.1"
    phases = frozenset({"access"})

    def __init__(self, gateway: Any) -> None:
        self.gateway = gateway

    async def run(self, phase: str, entity: PluginEntity, ctx: Context) -> None:
        conf = entity.config
        address = ipaddress.ip_address(ctx.request.remote_addr[0])
        denied = _contains(conf.get("deny"), address)
        allow = conf.get("allow")
        if denied or (allow and not _contains(allow, address)):
            message = conf.get("message") or f"IP address not allowed: {address}"
            raise refusal(ctx, Denied(int(conf.get("status") or 403), message))


def _contains(networks: Any, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return any(address in ipaddress.ip_network(n, strict=False) for n in networks or ())


class Acl:
    name = "acl"
    priority = 950
    version = "3.9.1"
    phases = frozenset({"access"})

    def __init__(self, gateway: Any) -> None:
        self.gateway = gateway

    async def run(self, phase: str, entity: PluginEntity, ctx: Context) -> None:
        conf = entity.config
        consumer: Any = ctx.consumer
        if consumer is None:
            if ctx.credential is not None:
                raise refusal(ctx, Denied(403, "You cannot consume this service"))
            raise refusal(ctx, Denied(401, "Unauthorized"))
        groups = [
            c.fields["group"]
            for c in self.gateway.config.credentials
            if c.collection == "acls" and c.consumer_id == getattr(consumer, "id", None)
        ]
        deny = conf.get("deny")
        inside = any(group in groups for group in (deny or conf.get("allow") or ()))
        if inside if deny else not inside:
            raise refusal(ctx, Denied(403, "You cannot consume this service"))
        if not conf.get("hide_groups_header"):
            set_header(ctx, b"X-Consumer-Groups", ", ".join(groups).encode())
