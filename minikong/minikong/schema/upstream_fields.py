"""Fields of an upstream that minikong reads and does nothing by, so that what Kong wrote down loads here.

Kong's defaults switch health checks off and hash by nothing (kong/db/schema/entities/upstreams.lua). Another hash is
refused: it would spread requests in another way. A health check that is configured is not made: see `makes_checks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minikong.schema import typedefs

Definition = dict[str, Any]
_HEALTHY = [200, 201, 202, 203, 204, 205, 206, 207, 208, 226, 300, 301, 302, 303, 304, 305, 306, 307, 308]
_DEFAULTS: dict[str, Any] = {
    "active": {
        "type": "http",
        "timeout": 1,
        "concurrency": 10,
        "http_path": "/",
        "https_sni": None,
        "https_verify_certificate": True,
        "headers": None,
        "healthy": {"interval": 0, "http_statuses": [200, 302], "successes": 0},
        "unhealthy": {
            "interval": 0,
            "http_statuses": [429, 404, 500, 501, 502, 503, 504, 505],
            "tcp_failures": 0,
            "timeouts": 0,
            "http_failures": 0,
        },
    },
    "passive": {
        "type": "http",
        "healthy": {"http_statuses": _HEALTHY, "successes": 0},
        "unhealthy": {"http_statuses": [429, 500, 503], "tcp_failures": 0, "timeouts": 0, "http_failures": 0},
    },
}
_SECONDS = {"type": "number", "between": [0, 65535]}
_BYTE = {"type": "integer", "between": [0, 255]}
_TYPES: dict[str, Definition] = {
    "type": {"type": "string", "one_of": ["tcp", "http", "https", "grpc", "grpcs"]},
    "timeout": _SECONDS,
    "concurrency": {"type": "integer", "between": [1, 2**31]},
    "interval": _SECONDS,
    "successes": _BYTE,
    "tcp_failures": _BYTE,
    "timeouts": _BYTE,
    "http_failures": _BYTE,
    "http_path": typedefs.PATH,
    "http_statuses": {"type": "array", "elements": {"type": "integer", "between": [100, 999]}},
    "https_sni": typedefs.SNI,
    "https_verify_certificate": {"type": "boolean", "required": True},
    "headers": typedefs.HEADERS,
}


def _fields(defaults: Mapping[str, Any]) -> list[dict[str, Definition]]:
    made = []
    for name, default in defaults.items():
        kind = {**_TYPES[name]} if name in _TYPES else {"type": "record", "fields": _fields(default)}
        made.append({name: kind if default is None else {**kind, "default": _present(default)}})
    return made


def _present(default: Any) -> Any:
    if not isinstance(default, Mapping):
        return default
    return {name: _present(value) for name, value in default.items() if value is not None}


HEALTHCHECKS: Definition = {
    "type": "record",
    "default": _present(_DEFAULTS),
    "fields": [*_fields(_DEFAULTS), {"threshold": {"type": "number", "default": 0, "between": [0, 100]}}],
}
_NONE = {"type": "string", "default": "none", "one_of": ["none"]}
_UNUSED = ("query_arg", "uri_capture")

FIELDS: list[dict[str, Definition]] = [
    {"hash_on": _NONE},
    {"hash_fallback": _NONE},
    *({f"hash_{which}_header": typedefs.HEADER_NAME} for which in ("on", "fallback")),
    {"hash_on_cookie": typedefs.COOKIE_NAME},
    {"hash_on_cookie_path": {**typedefs.PATH, "default": "/"}},
    *({f"hash_{w}_{by}": {"type": "string", "len_min": 1}} for w in ("on", "fallback") for by in _UNUSED),
    {"healthchecks": HEALTHCHECKS},
]


def makes_checks(healthchecks: Mapping[str, Any]) -> bool:
    """Whether Kong would take targets out of turn by them."""
    active, passive = healthchecks.get("active") or {}, healthchecks.get("passive") or {}
    probes = [(active.get(side) or {}).get("interval") for side in ("healthy", "unhealthy")]
    counts = [(passive.get("unhealthy") or {}).get(name) for name in ("tcp_failures", "timeouts", "http_failures")]
    return any(probes) or any(counts)
