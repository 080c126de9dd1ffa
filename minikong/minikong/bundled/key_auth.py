"""key-auth (kong/plugins/key-auth/handler.lua)."""

from __future__ import annotations

from typing import Any

from minikong.bundled.authentication import Denied, authenticate_or, set_consumer
from minikong.context import Context
from minikong.entities import PluginEntity
from minikong.pdk.request import get_body, get_headers, get_query, lookup
from minikong.pdk.service_request import clear_header, clear_query_arg, set_body


class KeyAuth:
    name = "key-auth"
    priority = 1250
    version = "3.9.1"
    phases = frozenset({"access"})

    def __init__(self, gateway: Any) -> None:
        self.gateway = gateway

    async def run(self, phase: str, entity: PluginEntity, ctx: Context) -> None:
        conf = entity.config
        if not conf.get("run_on_preflight", True) and ctx.request.method == "OPTIONS":
            return
        if conf.get("key_in_body") and ctx.client_body is None:
            ctx.client_body = await ctx.request.body.read()
        authenticate_or(ctx, conf, lambda: self._authenticate(ctx, conf))

    def _authenticate(self, ctx: Context, conf: dict[str, Any]) -> None:
        realm = conf.get("realm")
        challenge = f'Key realm="{realm}"' if realm else "Key"
        key = self._key(ctx, conf, challenge)
        if not key:
            raise Denied(401, "No API key found in request", {"WWW-Authenticate": challenge})
        config = self.gateway.config
        credential = config.credential("keyauth_credentials", "key", key.decode("utf-8", "surrogateescape"))
        if credential is None:
            raise Denied(401, "Unauthorized", {"WWW-Authenticate": challenge})
        set_consumer(ctx, config.consumers.get(credential.consumer_id), credential)

    def _key(self, ctx: Context, conf: dict[str, Any], challenge: str) -> bytes | None:
        for text in conf.get("key_names") or ():
            name = text.encode("utf-8", "surrogateescape")
            value: Any = None
            if conf.get("key_in_header"):
                value = lookup(get_headers(ctx), name)
            if value is None and conf.get("key_in_query"):
                value = get_query(ctx).get(name)
            body: Any = None
            if value is None and conf.get("key_in_body"):
                body = get_body(ctx)
                value = body.get(name) if isinstance(body, dict) else None
            if isinstance(value, bytes):
                if conf.get("hide_credentials"):
                    clear_query_arg(ctx, name)
                    clear_header(ctx, name)
                    if isinstance(body, dict):
                        body.pop(name, None)
                        set_body(ctx, body)
                return value
            if isinstance(value, list):
                raise Denied(401, "Duplicate API key found", {"WWW-Authenticate": challenge})
        return None
