"""The Schemas of Kong's bundled plugins that minikong runs (kong/plugins/*/schema.lua)."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

from minikong.schema import typedefs

Definition = dict[str, Any]
CheckLua = Callable[[str], str | None]

_TRUE: Definition = {"type": "boolean", "required": True, "default": True}
_FALSE: Definition = {"type": "boolean", "required": True, "default": False}
_STRING: Definition = {"type": "string"}


def _plugin(
    name: str,
    config: dict[str, Definition],
    *,
    protocols: Definition = typedefs.PLUGIN_PROTOCOLS_HTTP,
    any_consumer: bool = True,
    validator: Callable[[dict[str, Any]], str | None] | None = None,
    checks: list[Definition] | None = None,
) -> Definition:
    record: Definition = {"type": "record", "fields": [{n: attrs} for n, attrs in config.items()]}
    if validator:
        record["custom_validator"] = validator
    fields = [] if any_consumer else [{"consumer": typedefs.NO_CONSUMER}]
    return {
        "name": name,
        "fields": [*fields, {"protocols": protocols}, {"config": record}],
        "entity_checks": checks or [],
    }


def _check_termination(config: dict[str, Any]) -> str | None:
    message, content_type, body = (bool(config.get(n)) for n in ("message", "content_type", "body"))
    if message and (content_type or body):
        return "message cannot be used with content_type or body"
    if content_type and not body:
        return "content_type requires a body"
    if config.get("echo") and (content_type or body):
        return "echo cannot be used with content_type and body"
    return None


_PERIODS = ("second", "minute", "hour", "day", "month", "year")


def _check_limits(config: dict[str, Any]) -> str | None:
    set_periods = [(p, config[p]) for p in _PERIODS if isinstance(config.get(p), int | float)]
    for at, (lower, low) in enumerate(set_periods):
        for upper, high in set_periods[at + 1 :]:
            if high < low:
                return f"The limit for {upper}({high:.1f}) cannot be lower than the limit for {lower}({low:.1f})"
    if config.get("sync_rate") != -1:
        return "sync_rate can only be used with the redis policy"
    return None


def _check_network(text: str) -> str | None:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return f"invalid ip or cidr range: '{text}'"
    return None


_NETWORKS: Definition = {"type": "array", "elements": {"type": "string", "custom_validator": _check_network}}
_LIMIT: Definition = {"type": "number", "gt": 0}
_STRINGS: Definition = {"type": "set", "elements": _STRING}


def _functions(name: str, check_lua: CheckLua) -> Definition:
    def validate(text: str) -> str | None:
        problem = check_lua(text)
        return None if problem is None else f"error parsing {name}: {problem}"

    phases = ("certificate", "rewrite", "access", "header_filter", "body_filter", "log")

    def refuse(text: str) -> str:
        return "minikong does not run body_filter functions"

    def functions(phase: str) -> Definition:
        check = refuse if phase == "body_filter" else validate
        elements = {"type": "string", "required": False, "custom_validator": check}
        return {"type": "array", "required": True, "default": [], "elements": elements}

    return _plugin(
        name,
        {phase: functions(phase) for phase in phases},
        protocols=typedefs.PLUGIN_PROTOCOLS,
        any_consumer=False,
        checks=[{"at_least_one_of": [f"config.{phase}" for phase in phases]}],
    )


def schemas(check_lua: CheckLua = lambda text: None) -> dict[str, Definition]:
    """The Schemas by plugin name. `check_lua` gives Lua's message for code that does not compile, or None."""
    return {
        "pre-function": _functions("pre-function", check_lua),
        "post-function": _functions("post-function", check_lua),
        **{made["name"]: made for made in _SCHEMAS},
    }


_SCHEMAS = [
    _plugin(
        "correlation-id",
        {
            "header_name": {"type": "string", "default": "Kong-Request-ID"},
            "generator": {
                "type": "string",
                "default": "uuid#counter",
                "required": True,
                "one_of": ["uuid", "uuid#counter", "tracker"],
            },
            "echo_downstream": _FALSE,
        },
    ),
    _plugin(
        "key-auth",
        {
            "key_names": {
                "type": "array",
                "required": True,
                "elements": typedefs.HEADER_NAME,
                "default": ["apikey"],
            },
            "hide_credentials": _FALSE,
            "anonymous": _STRING,
            "key_in_header": _TRUE,
            "key_in_query": _TRUE,
            "key_in_body": _FALSE,
            "run_on_preflight": _TRUE,
            "realm": _STRING,
        },
        any_consumer=False,
    ),
    _plugin(
        "jwt",
        {
            "uri_param_names": {**_STRINGS, "default": ["jwt"]},
            "cookie_names": {**_STRINGS, "default": []},
            "key_claim_name": {"type": "string", "default": "iss"},
            "secret_is_base64": _FALSE,
            "claims_to_verify": {"type": "set", "elements": {"type": "string", "one_of": ["exp", "nbf"]}},
            "anonymous": _STRING,
            "run_on_preflight": _TRUE,
            "maximum_expiration": {"type": "number", "default": 0, "between": [0, 31536000]},
            "header_names": {**_STRINGS, "default": ["authorization"]},
            "realm": _STRING,
        },
        any_consumer=False,
        checks=[
            {
                "conditional": {
                    "if_field": "config.maximum_expiration",
                    "if_match": {"gt": 0},
                    "then_field": "config.claims_to_verify",
                    "then_match": {"contains": "exp"},
                }
            }
        ],
    ),
    _plugin(
        "acl",
        {
            "allow": {"type": "array", "elements": _STRING},
            "deny": {"type": "array", "elements": _STRING},
            "hide_groups_header": _FALSE,
            "always_use_authenticated_groups": _FALSE,
        },
        any_consumer=False,
        checks=[
            {"only_one_of": ["config.allow", "config.deny"]},
            {"at_least_one_of": ["config.allow", "config.deny"]},
        ],
    ),
    _plugin(
        "request-termination",
        {
            "status_code": {"type": "integer", "required": True, "default": 503, "between": [100, 599]},
            "message": _STRING,
            "content_type": _STRING,
            "body": _STRING,
            "echo": _FALSE,
            "trigger": typedefs.HEADER_NAME,
        },
        validator=_check_termination,
    ),
    _plugin(
        "request-size-limiting",
        {
            "allowed_payload_size": {"type": "integer", "default": 128},
            "size_unit": {
                "type": "string",
                "required": True,
                "default": "megabytes",
                "one_of": ["megabytes", "kilobytes", "bytes"],
            },
            "require_content_length": _FALSE,
        },
    ),
    _plugin(
        "ip-restriction",
        {
            "allow": _NETWORKS,
            "deny": _NETWORKS,
            "status": {"type": "number", "required": False},
            "message": {"type": "string", "required": False},
        },
        protocols={
            **typedefs.PLUGIN_PROTOCOLS,
            "default": ["http", "https", "tcp", "tls", "grpc", "grpcs"],
        },
        checks=[{"at_least_one_of": ["config.allow", "config.deny"]}],
    ),
    _plugin(
        "rate-limiting",
        {
            **dict.fromkeys(_PERIODS, _LIMIT),
            "limit_by": {
                "type": "string",
                "default": "consumer",
                "one_of": ["consumer", "credential", "ip", "service", "header", "path"],
            },
            "header_name": typedefs.HEADER_NAME,
            "path": typedefs.PATH,
            # Kong has "redis" too; minikong counts in its own memory only, and says so by refusing it.
            "policy": {"type": "string", "default": "local", "len_min": 0, "one_of": ["local"]},
            "fault_tolerant": _TRUE,
            "hide_client_headers": _FALSE,
            "error_code": {"type": "number", "default": 429, "gt": 0},
            "error_message": {"type": "string", "default": "API rate limit exceeded"},
            "sync_rate": {"type": "number", "required": True, "default": -1},
        },
        validator=_check_limits,
    ),
]
