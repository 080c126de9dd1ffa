"""Kong's ready-made field definitions (kong/db/schema/typedefs.lua), as far as the entities here use them."""

from __future__ import annotations

import re
from typing import Any

from minikong.schema import hosts, pcre
from minikong.uri import normalize

Definition = dict[str, Any]

PROTOCOLS = ["grpc", "grpcs", "http", "https", "tcp", "tls", "tls_passthrough", "udp"]
HTTP_PROTOCOLS = ["grpc", "grpcs", "http", "https"]

_PATH = re.compile(r"/[\w.\-~/%:@!$&'()*+,;=]*", re.ASCII)
_NAME = re.compile(r"[\w.\-~\u0080-\U0010ffff]+", re.ASCII)
_TAG = re.compile(r"[ !-+\-.0-~\u0080-\U0010ffff]+")
_TOKEN = re.compile(r"[\w\-]+", re.ASCII)
_COOKIE = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


def _validate_host(host: str) -> str | None:
    try:
        found = hosts.parse(host)
    except hosts.InvalidHost as problem:
        return "must not have a port" if str(problem) == "invalid port number" else f"invalid value: {host}"
    return "must not have a port" if found.port is not None else None


def _validate_sni(host: str) -> str | None:
    error = _validate_host(host)
    if error:
        return error
    return None if hosts.kind(host) == "name" else "must not be an IP"


def _validate_host_with_port(host: str) -> str | None:
    try:
        hosts.parse(host)
    except hosts.InvalidHost as problem:
        return str(problem)
    return None


def _validate_route_host(host: str) -> str | None:
    return _validate_host_with_port(host.replace("*", "abc"))


def _path_error(path: str) -> tuple[str, str] | None:
    """The error of a path and its kind: "rfc3986" or "percent"."""
    if not _PATH.fullmatch(path):
        reserved = "(characters outside of the reserved list of RFC 3986 found)"
        return f"invalid path: '{path}' {reserved}", "rfc3986"
    raw = re.sub(r"%[0-9A-Fa-f]{2}", "___", path)
    if "%" in raw:
        at = raw.index("%")
        return f"invalid url-encoded value: '{raw[at : at + 3]}'", "percent"
    return None


def _validate_path(path: str) -> str | None:
    error = _path_error(path)
    return error[0] if error else None


def _validate_route_path(path: str) -> str | None:
    error = _path_error(path)
    if error and error[1] == "percent":
        return error[0]
    if not path.startswith("~"):
        normalized = normalize(path.encode(), merge_slashes=True).decode(errors="surrogateescape")
        if path != normalized:
            return f"non-normalized path, consider use '{normalized}' instead"
        return None
    try:
        pcre.compile(path[1:])
    except re.error as problem:
        return f"invalid regex: '{path[1:]}' (PCRE returned: {pcre.explain(path[1:], problem)})"
    return None


def _validate_name(name: str) -> str | None:
    if _NAME.fullmatch(name):
        return None
    return f"invalid value '{name}': the only accepted ascii characters are alphanumerics or ., -, _, and ~"


def _validate_tag(tag: str) -> str | None:
    if _TAG.fullmatch(tag):
        return None
    return f"invalid tag '{tag}': expected printable ascii (except `,` and `/`) or valid utf-8 sequences"


def _validate_header_name(name: str) -> str | None:
    if _TOKEN.fullmatch(name):
        return None
    return f"bad header name '{name}', allowed characters are A-Z, a-z, 0-9, '_', and '-'"


def _validate_cookie_name(name: str) -> str | None:
    if _COOKIE.fullmatch(name):
        return None
    return f"'{name}' is not a valid cookie name"


UUID: Definition = {"type": "string", "uuid": True, "auto": True}
TIMESTAMP_S: Definition = {"type": "integer", "timestamp": True, "auto": True}
TIMESTAMP_MS: Definition = {"type": "number", "timestamp": True, "auto": True}
NAME: Definition = {"type": "string", "unique": True, "custom_validator": _validate_name}
TAGS: Definition = {
    "type": "set",
    "elements": {"type": "string", "required": True, "custom_validator": _validate_tag},
}
PROTOCOL: Definition = {"type": "string", "one_of": PROTOCOLS}
PLUGIN_PROTOCOLS: Definition = {
    "type": "set",
    "required": True,
    "default": HTTP_PROTOCOLS,
    "elements": PROTOCOL,
}
PLUGIN_PROTOCOLS_HTTP: Definition = {
    **PLUGIN_PROTOCOLS,
    "elements": {"type": "string", "one_of": HTTP_PROTOCOLS},
}
HOST: Definition = {"type": "string", "custom_validator": _validate_host}
HOST_WITH_PORT: Definition = {"type": "string", "custom_validator": _validate_host_with_port}
SNI: Definition = {"type": "string", "custom_validator": _validate_sni}
PORT: Definition = {"type": "integer", "between": [0, 65535]}
TIMEOUT: Definition = {"type": "integer", "between": [0, 2**31 - 2]}
NO_EMPTY_SEGMENTS = [{"pattern": "//", "err": "must not have empty segments"}]
PATH: Definition = {
    "type": "string",
    "starts_with": "/",
    "match_none": NO_EMPTY_SEGMENTS,
    "custom_validator": _validate_path,
}
HEADER_NAME: Definition = {"type": "string", "custom_validator": _validate_header_name}
COOKIE_NAME: Definition = {"type": "string", "custom_validator": _validate_cookie_name}
METHODS: Definition = {"type": "set", "elements": {"type": "string", "match": "^%u+$"}}
HOSTS: Definition = {
    "type": "array",
    "elements": {
        "type": "string",
        "match_all": [{"pattern": "^[^*]*%*?[^*]*$", "err": "invalid wildcard: must have at most one wildcard"}],
        "match_any": {
            "patterns": [r"^%*%.", r"%.%*$", "^[^*]*$"],
            "err": "invalid wildcard: must be placed at leftmost or rightmost label",
        },
        "custom_validator": _validate_route_host,
    },
}
PATHS: Definition = {
    "type": "array",
    "elements": {
        "type": "string",
        "match_any": {
            "patterns": ["^/", "^~/"],
            "err": "should start with: / (fixed path) or ~/ (regex path)",
        },
        "match_none": NO_EMPTY_SEGMENTS,
        "custom_validator": _validate_route_path,
    },
}
HEADERS: Definition = {
    "type": "map",
    "keys": HEADER_NAME,
    "values": {"type": "array", "elements": {"type": "string"}},
}
SOURCES: Definition = {
    "type": "set",
    "elements": {
        "type": "record",
        "fields": [{"ip": {"type": "string"}}, {"port": PORT}],
        "entity_checks": [{"at_least_one_of": ["ip", "port"]}],
    },
}


def foreign(reference: str, **more: Any) -> Definition:
    return {"type": "foreign", "reference": reference, **more}


NO_CONSUMER = foreign("consumers", eq=None)
