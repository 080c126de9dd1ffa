"""Where a context value comes from, and the rules that it has to meet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from claude_contract.errors import ConfigError
from kong_claude.decision import Refuse
from kong_claude.prompt_context.guards import compile_pattern
from kong_claude.prompt_context.schema import ContextConfig
from kong_claude.request import Request

KINDS = ("header", "query", "path", "claim", "consumer", "request", "const")
CONSUMER_FIELDS = ("username", "id", "custom_id")


class BadValue(Exception):
    """A value that breaks its rule. The text names where it came from and the rule, never the value."""

    def __init__(self, refusal: Refuse) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


@dataclass(frozen=True)
class Field:
    """One context value: `kind:key`, and its rules."""

    name: str
    kind: str
    key: str
    required: bool
    pattern: Any
    pattern_text: str
    max_length: int
    default: str | None
    render: bool

    def value(self, request: Request) -> str | None:
        """The value, its default, or None. Raises BadValue."""
        value = self._fetch(request)
        if value is None or value == "":
            if self.required:
                raise self._bad("is required")
            return self.default
        if len(value) > self.max_length:
            raise self._bad(f"must not be longer than {self.max_length} characters")
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            raise self._bad("must be UTF-8")
        if self.pattern is not None and not self.pattern.fullmatch(value):
            raise self._bad(f"must match {self.pattern_text}")
        return value

    def _fetch(self, request: Request) -> str | None:
        match self.kind:
            case "const":
                return self.key
            case "header":
                return self._only(request.sent(self.key.lower()))
            case "query":
                return self._only(query_values(request.raw_query, self.key))
            case "path":
                return request.captures.get(self.key)
            case "request":
                return request.id
            case "consumer":
                return _consumer(request, self.key)
            case _:
                return claim(request, self.key)

    def _only(self, values: list[str]) -> str | None:
        # Two values are two readings: ours and the upstream's.
        if len(values) > 1:
            raise self._bad("must be sent once")
        return values[0] if values else None

    def _bad(self, rule: str) -> BadValue:
        # A caller can repair a header, not the claims that an identity provider signed.
        status = 403 if self.kind in ("claim", "consumer") else 400
        return BadValue(Refuse(status, f"{self.kind} {self.key} {rule}", "bad_context"))


def parse_fields(config: Mapping[str, ContextConfig]) -> list[Field]:
    """The fields of the `context` section in a stable order. Raises ConfigError."""
    return [parse_field(name, config[name]) for name in sorted(config)]


def parse_field(name: str, config: ContextConfig) -> Field:
    where = f"context.{name}"
    kind, colon, key = (config.source or "").partition(":")
    if not colon or kind not in KINDS or not key:
        raise ConfigError(f"{where}.source", f"must be one of {', '.join(f'{k}:…' for k in KINDS)}")
    if kind == "request" and key != "id":
        raise ConfigError(f"{where}.source", "the only request value is request:id")
    if kind == "consumer" and key not in CONSUMER_FIELDS:
        raise ConfigError(f"{where}.source", f"a consumer has {', '.join(CONSUMER_FIELDS)}")
    pattern_text = config.pattern or ""
    return Field(
        name=name,
        kind=kind,
        key=key,
        required=config.required,
        pattern=compile_pattern(pattern_text, f"{where}.pattern") if pattern_text else None,
        pattern_text=pattern_text,
        max_length=config.max_length,
        default=config.default,
        render=config.render,
    )


def query_values(query: str, name: str) -> list[str]:
    """Decoded values of a query parameter; bytes that are not UTF-8 stay visible as surrogates."""
    if not query:
        return []
    pairs = parse_qsl(query, keep_blank_values=True, errors="surrogateescape")
    return [value for key, value in pairs if key == name]


def claim(request: Request, name: str) -> str | None:
    """A claim that claude-jwt-claims hands on, or one of the identity's own members; scalars only."""
    identity = request.identity
    if identity is None:
        return None
    own = {"sub": identity.subject, "iss": identity.issuer, "tier": identity.tier, "email": identity.email}
    value = identity.claims.get(name, own.get(name))
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int | float) else None


def _consumer(request: Request, name: str) -> str | None:
    if name == "username" and request.identity is not None and request.identity.consumer:
        return request.identity.consumer
    consumer = request.consumer or {}
    value = consumer.get(name)
    return str(value) if value else None
