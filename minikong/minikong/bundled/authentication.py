"""What key-auth and jwt share: identity headers, anonymous consumers, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minikong.context import Context
from minikong.entities import Consumer, Credential
from minikong.pdk.registry import Exit
from minikong.pdk.response import error_exit
from minikong.pdk.service_request import clear_header, set_header


class Denied(Exception):
    """The request is not authenticated; kong.response.error's arguments."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers or {}


def authenticate_or(ctx: Context, conf: dict[str, Any], authenticate: Callable[[], None]) -> None:
    """Runs `authenticate`; with `anonymous` set a refusal makes the anonymous consumer instead. Raises Exit."""
    anonymous = conf.get("anonymous")
    if anonymous and ctx.credential is not None:
        return
    try:
        authenticate()
    except Denied as denied:
        if not anonymous:
            raise refusal(ctx, denied) from None
        config = ctx.gateway.config
        consumer = config.consumers.get(anonymous) or config.consumer_by_username(anonymous)
        set_consumer(ctx, consumer, None)


def refusal(ctx: Context, denied: Denied) -> Exit:
    ctx.exited = True
    headers = {name.encode(): value.encode("utf-8", "surrogateescape") for name, value in denied.headers.items()}
    return error_exit(ctx, denied.status, denied.message.encode(), headers)


def set_consumer(ctx: Context, consumer: Consumer | None, credential: Credential | None) -> None:
    """kong.client.authenticate and the X-Consumer-* headers for the service."""
    ctx.consumer = consumer
    made: Any = credential
    ctx.credential = made
    values = {
        b"X-Consumer-ID": consumer and consumer.id,
        b"X-Consumer-Custom-ID": consumer and consumer.custom_id,
        b"X-Consumer-Username": consumer and consumer.username,
        b"X-Credential-Identifier": credential and _identifier(credential),
        b"X-Anonymous-Consumer": None if credential else "true",
    }
    for name, value in values.items():
        if value:
            set_header(ctx, name, value.encode("utf-8", "surrogateescape"))
        else:
            clear_header(ctx, name)


def _identifier(credential: Credential) -> str:
    """The credential's id (key-auth), its key (jwt)."""
    if credential.collection == "jwt_secrets":
        return str(credential.fields.get("key"))
    return credential.id
