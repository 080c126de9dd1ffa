"""kong.vault.* (kong/pdk/vault.lua) for the `env` vault."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, unquote

from minikong.context import Context
from minikong.declarative import resolve_env
from minikong.pdk.registry import PHASE_BITS, function

ALL = tuple(PHASE_BITS)


def is_vault_reference(value: Any) -> bool:
    return isinstance(value, bytes) and value.startswith(b"{vault://") and value.endswith(b"}")


@function("kong.vault.is_reference", ALL)
def is_reference(ctx: Context, reference: Any = None) -> bool:
    return is_vault_reference(reference)


@function("kong.vault.parse_reference", ALL)
def parse_reference(ctx: Context, reference: Any = None) -> dict[str, Any] | None:
    if not is_vault_reference(reference):
        return None
    text = reference[len(b"{vault://") : -1].decode("utf-8", "surrogateescape")
    text, _, fragment = text.partition("#")
    text, _, query = text.partition("?")
    name, _, path = text.partition("/")
    resource, _, key = path.strip("/").partition("/")
    if not name or not resource:
        return None
    parsed: dict[str, Any] = {"name": name, "resource": unquote(resource)}
    if key:
        parsed["key"] = unquote(key)
    if query:
        parsed["config"] = dict(parse_qsl(query, keep_blank_values=True))
    if fragment.isdigit():
        parsed["version"] = int(fragment)
    return parsed


@function("kong.vault.get", ALL)
def get(ctx: Context, reference: Any = None) -> str | None:
    if not is_vault_reference(reference):
        return None
    return resolve_env(reference.decode("utf-8", "surrogateescape"), ctx.gateway.environ)
