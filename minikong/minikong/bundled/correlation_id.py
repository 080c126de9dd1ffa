"""correlation-id (kong/plugins/correlation-id/handler.lua)."""

from __future__ import annotations

import itertools
import os
import time
import uuid
from typing import Any

from minikong.context import Context
from minikong.entities import PluginEntity
from minikong.pdk.headers import set_response_header
from minikong.pdk.request import get_header_value
from minikong.pdk.response import headers_out
from minikong.pdk.service_request import set_header


class CorrelationId:
    name = "correlation-id"
    priority = 100001
    version = "3.9.1"
    phases = frozenset({"access", "header_filter"})

    def __init__(self, gateway: Any) -> None:
        self._worker = str(uuid.uuid4())
        self._counter = itertools.count(1)

    def _generate(self, generator: str, ctx: Context) -> bytes:
        if generator == "uuid":
            return str(uuid.uuid4()).encode()
        if generator == "uuid#counter":
            return f"{self._worker}#{next(self._counter)}".encode()
        host, port = ctx.request.server_addr
        return f"{host}-{port}-{os.getpid()}-1-1-{time.time():0.3f}".encode()

    async def run(self, phase: str, entity: PluginEntity, ctx: Context) -> None:
        conf = entity.config
        name = conf["header_name"].encode()
        value = get_header_value(ctx, name)
        if not value:
            value = self._generate(conf["generator"], ctx)
            set_header(ctx, name, value)
        ctx.serialize_values.append((b"correlation_id", value, b"set"))
        if conf.get("echo_downstream"):
            ctx.nginx_ctx[(b"correlation_id", entity.id)] = value

    def header_filter(self, entity: PluginEntity, ctx: Context) -> None:
        conf = entity.config
        if not conf.get("echo_downstream"):
            return
        name = conf["header_name"].encode()
        value = ctx.nginx_ctx.get((b"correlation_id", entity.id)) or get_header_value(ctx, name)
        set_response_header(headers_out(ctx), name, value or self._generate(conf["generator"], ctx))
