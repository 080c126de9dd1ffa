"""The schemas of Kong's own entities (kong/db/schema/entities/*.lua, plugins/*/daos.lua) that minikong keeps."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from minikong.schema import hosts, typedefs, upstream_fields
from minikong.schema.record import Field, Shorthand

Definition = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Entity:
    """One collection: its fields, and how Kong derives an id for an entry that has none."""

    name: str
    fields: list[Definition]
    endpoint_key: str | None = None
    cache_key: tuple[str, ...] = ()
    extra: Definition | None = None  # entity_checks, shorthands, subschemas

    def attrs(self, field: str) -> Definition:
        return next((entry[field] for entry in self.fields if field in entry), {})

    @property
    def foreign(self) -> dict[str, str]:
        """Its foreign fields and the collections they refer to."""
        pairs = (next(iter(entry.items())) for entry in self.fields)
        return {name: attrs["reference"] for name, attrs in pairs if attrs["type"] == "foreign"}


_SCHEME = re.compile(r"([A-Za-z0-9][A-Za-z0-9+.\-]*):")


def _expand_url(given: str | None) -> dict[str, Any]:
    """A service's `url` as LuaSocket splits it. Absent parts are null, so that validation names them."""
    url = "userdata: NULL" if given is None else given  # Lua's tostring of a null
    scheme = _SCHEME.match(url)
    rest = url[scheme.end() :] if scheme else url
    host: str | None = None
    port: int | str | None = None
    if rest.startswith("//"):
        authority = re.split(r"[/?#]", rest[2:], maxsplit=1)[0]
        rest = rest[2 + len(authority) :]
        authority = authority.rpartition("@")[2] if authority.count("@") == 1 else authority
        with_port = re.search(r":([^:\]]*)$", authority)
        if with_port:
            authority = authority[: with_port.start()]
            port = int(with_port[1]) if with_port[1].isdigit() else with_port[1]
        host = authority.strip("[]") or None
    path = re.split(r"[#?;]", rest, maxsplit=1)[0] or None
    protocol = scheme[1] if scheme else {80: "http", 443: "https"}.get(port if type(port) is int else 0, "http")
    default_port = 443 if protocol == "https" else 80
    return {"protocol": protocol, "host": host, "port": default_port if port is None else port, "path": path}


def _only_for_tls(name: str) -> Definition:
    return {
        "conditional": {
            "if_field": "protocol",
            "if_match": {"not_one_of": ["https", "tls"]},
            "then_field": name,
            "then_match": {"eq": None},
        }
    }


_TIMEOUT: Definition = {"type": "integer", "between": [1, 2**31 - 2], "default": 60000}

SERVICES = Entity(
    "services",
    [
        {"id": typedefs.UUID},
        {"created_at": typedefs.TIMESTAMP_S},
        {"updated_at": typedefs.TIMESTAMP_S},
        {"name": typedefs.NAME},
        {"retries": {"type": "integer", "default": 5, "between": [0, 32767]}},
        {"protocol": {**typedefs.PROTOCOL, "required": True, "default": "http"}},
        {"host": {**typedefs.HOST, "required": True}},
        {"port": {**typedefs.PORT, "required": True, "default": 80}},
        {"path": typedefs.PATH},
        {"connect_timeout": _TIMEOUT},
        {"write_timeout": _TIMEOUT},
        {"read_timeout": _TIMEOUT},
        {"tags": typedefs.TAGS},
        {"client_certificate": typedefs.foreign("certificates")},
        {"tls_verify": {"type": "boolean"}},
        {"tls_verify_depth": {"type": "integer", "default": None, "between": [0, 64]}},
        {"ca_certificates": {"type": "array", "elements": {"type": "string", "uuid": True}}},
        {"enabled": {"type": "boolean", "required": True, "default": True}},
    ],
    endpoint_key="name",
    extra={
        "entity_checks": [
            {
                "conditional": {
                    "if_field": "protocol",
                    "if_match": {"one_of": ["tcp", "tls", "udp", "grpc", "grpcs"]},
                    "then_field": "path",
                    "then_match": {"eq": None},
                }
            },
            *(
                _only_for_tls(name)
                for name in ("client_certificate", "tls_verify", "tls_verify_depth", "ca_certificates")
            ),
        ],
        "shorthands": [Shorthand("url", Field({"type": "string"}), _expand_url)],
    },
)

_MATCHERS = ["methods", "hosts", "headers", "paths"]
_STREAM = "'tcp', 'tls', 'tls_passthrough' or 'udp'"


def _none(definition: Definition, err: str) -> Definition:
    return {**definition, "eq": None, "err": err}


_HTTP_ROUTE: Definition = {
    "name": "http",
    "fields": [
        {name: _none(typedefs.SOURCES, f"cannot set '{name}' when 'protocols' is 'http' or 'https'")}
        for name in ("sources", "destinations")
    ],
    "entity_checks": [
        {
            "conditional_at_least_one_of": {
                "if_field": "protocols",
                "if_match": {"contains": "https"},
                "then_at_least_one_of": [*_MATCHERS, "snis"],
                "then_err": "must set one of %s when 'protocols' is 'https'",
                "else_match": {"contains": "http"},
                "else_then_at_least_one_of": _MATCHERS,
                "else_then_err": "must set one of %s when 'protocols' is 'http'",
            }
        }
    ],
}
_GRPC_ROUTE: Definition = {
    "name": "grpc",
    "fields": [
        {
            "strip_path": {
                "type": "boolean",
                "required": True,
                "default": False,
                "ne": True,
                "err": "cannot set 'strip_path' when 'protocols' is 'grpc' or 'grpcs'",
            }
        },
        {"methods": _none(typedefs.METHODS, "cannot set 'methods' when 'protocols' is 'grpc' or 'grpcs'")},
        {"sources": _none(typedefs.SOURCES, "cannot set 'sources' when 'protocols' is 'grpc' or 'grpcs'")},
        {"destinations": _none(typedefs.SOURCES, "cannot set 'destinations' when 'protocols' is 'grpc' or 'grpcs'")},
    ],
}
_STREAM_ROUTE: Definition = {
    "name": "tcp",
    "fields": [
        {name: _none(attrs, f"cannot set '{name}' when 'protocols' is {_STREAM}")}
        for name, attrs in (
            ("methods", typedefs.METHODS),
            ("hosts", typedefs.HOSTS),
            ("paths", typedefs.PATHS),
            ("headers", typedefs.HEADERS),
        )
    ],
}
ROUTE_SUBSCHEMAS: dict[str, Definition] = {
    **dict.fromkeys(("http", "https"), _HTTP_ROUTE),
    **dict.fromkeys(("tcp", "tls", "udp", "tls_passthrough"), _STREAM_ROUTE),
    **dict.fromkeys(("grpc", "grpcs"), _GRPC_ROUTE),
}

ROUTES = Entity(
    "routes",
    [
        {"id": typedefs.UUID},
        {"created_at": typedefs.TIMESTAMP_S},
        {"updated_at": typedefs.TIMESTAMP_S},
        {"name": typedefs.NAME},
        {
            "protocols": {
                "type": "set",
                "len_min": 1,
                "required": True,
                "elements": typedefs.PROTOCOL,
                "mutually_exclusive_subsets": [
                    ["http", "https"],
                    ["tcp", "tls", "udp"],
                    ["tls_passthrough"],
                    ["grpc", "grpcs"],
                ],
                "default": ["http", "https"],
            }
        },
        {
            "https_redirect_status_code": {
                "type": "integer",
                "one_of": [426, 301, 302, 307, 308],
                "default": 426,
                "required": True,
            }
        },
        {"strip_path": {"type": "boolean", "required": True, "default": True}},
        {"preserve_host": {"type": "boolean", "required": True, "default": False}},
        {"request_buffering": {"type": "boolean", "required": True, "default": True}},
        {"response_buffering": {"type": "boolean", "required": True, "default": True}},
        {"tags": typedefs.TAGS},
        {"service": typedefs.foreign("services")},
        {"snis": {"type": "set", "elements": typedefs.SNI}},
        {"sources": typedefs.SOURCES},
        {"destinations": typedefs.SOURCES},
        {"methods": typedefs.METHODS},
        {"hosts": typedefs.HOSTS},
        {"paths": typedefs.PATHS},
        {
            "headers": {
                **typedefs.HEADERS,
                "keys": {
                    **typedefs.HEADER_NAME,
                    "match_none": [
                        {
                            "pattern": "^[Hh][Oo][Ss][Tt]$",
                            "err": "cannot contain 'host' header, which must be specified in the 'hosts' attribute",
                        }
                    ],
                },
            }
        },
        {"regex_priority": {"type": "integer", "default": 0}},
        {"path_handling": {"type": "string", "default": "v0", "one_of": ["v0", "v1"]}},
    ],
    endpoint_key="name",
    extra={
        "subschema_key": "protocols",
        "entity_checks": [
            {
                "conditional": {
                    "if_field": "protocols",
                    "if_match": {
                        "elements": {
                            "type": "string",
                            "not_one_of": ["grpcs", "https", "tls", "tls_passthrough"],
                        }
                    },
                    "then_field": "snis",
                    "then_match": {"len_eq": 0},
                    "then_err": "'snis' can only be set when 'protocols' is 'grpcs', 'https', 'tls' or"
                    " 'tls_passthrough'",
                }
            }
        ],
    },
)

CONSUMERS = Entity(
    "consumers",
    [
        {"id": typedefs.UUID},
        {"created_at": typedefs.TIMESTAMP_S},
        {"updated_at": typedefs.TIMESTAMP_S},
        {"username": {"type": "string", "unique": True}},
        {"custom_id": {"type": "string", "unique": True}},
        {"tags": typedefs.TAGS},
    ],
    endpoint_key="username",
    extra={"entity_checks": [{"at_least_one_of": ["custom_id", "username"]}]},
)

PLUGINS = Entity(
    "plugins",
    [
        {"id": typedefs.UUID},
        {"name": {"type": "string", "required": True}},
        {"instance_name": typedefs.NAME},
        {"created_at": typedefs.TIMESTAMP_S},
        {"updated_at": typedefs.TIMESTAMP_S},
        {"route": typedefs.foreign("routes", default=None, on_delete="cascade")},
        {"service": typedefs.foreign("services", default=None, on_delete="cascade")},
        {"consumer": typedefs.foreign("consumers", default=None, on_delete="cascade")},
        {"config": {"type": "record", "abstract": True}},
        {"protocols": typedefs.PLUGIN_PROTOCOLS},
        {"enabled": {"type": "boolean", "required": True, "default": True}},
        {"tags": typedefs.TAGS},
    ],
    endpoint_key="instance_name",
    cache_key=("name", "route", "service", "consumer"),
    extra={
        "subschema_key": "name",
        "subschema_error": "plugin '{}' not enabled; add it to the 'plugins' configuration property",
    },
)


def _validate_upstream_name(name: str) -> str | None:
    try:
        found = hosts.parse(name)
    except hosts.InvalidHost:
        return f"Invalid name ('{name}'); must be a valid hostname"
    if found.kind != "name":
        return f"Invalid name ('{name}'); no ip addresses allowed"
    return None if found.port is None else f"Invalid name ('{name}'); no port allowed"


def _validate_target(target: str) -> str | None:
    try:
        hosts.parse(target)
    except hosts.InvalidHost:
        return f"Invalid target ('{target}'); not a valid hostname or ip address"
    return None


UPSTREAMS = Entity(
    "upstreams",
    [
        {"id": typedefs.UUID},
        {"created_at": typedefs.TIMESTAMP_S},
        {
            "name": {
                "type": "string",
                "required": True,
                "unique": True,
                "custom_validator": _validate_upstream_name,
            }
        },
        {"updated_at": typedefs.TIMESTAMP_S},
        # Of Kong's algorithms minikong has this one.
        {"algorithm": {"type": "string", "default": "round-robin", "one_of": ["round-robin"]}},
        *upstream_fields.FIELDS,
        {"slots": {"type": "integer", "default": 10000, "between": [10, 2**16]}},
        {"tags": typedefs.TAGS},
        {"host_header": typedefs.HOST_WITH_PORT},
        {"client_certificate": {"type": "string", "eq": None}},
        {"use_srv_name": {"type": "boolean", "default": False, "eq": False}},
    ],
    endpoint_key="name",
)

TARGETS = Entity(
    "targets",
    [
        {"id": typedefs.UUID},
        {"created_at": typedefs.TIMESTAMP_MS},
        {"updated_at": typedefs.TIMESTAMP_MS},
        {"upstream": typedefs.foreign("upstreams", required=True, on_delete="cascade")},
        {"target": {"type": "string", "required": True, "custom_validator": _validate_target}},
        {"weight": {"type": "integer", "default": 100, "between": [0, 65535]}},
        {"tags": typedefs.TAGS},
    ],
    endpoint_key="target",
    cache_key=("upstream", "target"),
)

_CONSUMER = typedefs.foreign("consumers", required=True, on_delete="cascade")
_AUTO_KEY: Definition = {"type": "string", "required": False, "unique": True, "auto": True}

KEYAUTH_CREDENTIALS = Entity(
    "keyauth_credentials",
    [
        {"id": typedefs.UUID},
        {"created_at": typedefs.TIMESTAMP_S},
        {"consumer": _CONSUMER},
        {"key": _AUTO_KEY},
        {"tags": typedefs.TAGS},
    ],
    endpoint_key="key",
    cache_key=("key",),
)

JWT_ALGORITHMS = [f"{family}{bits}" for family in ("HS", "RS", "ES", "PS") for bits in (256, 384, 512)]


def _validate_public_key(key: str) -> str | None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        load_pem_public_key(key.encode())
    except (ValueError, UnsupportedAlgorithm):
        return "invalid key"
    return None


JWT_SECRETS = Entity(
    "jwt_secrets",
    [
        {"id": typedefs.UUID},
        {"created_at": typedefs.TIMESTAMP_S},
        {"consumer": _CONSUMER},
        {"key": _AUTO_KEY},
        {"secret": {"type": "string", "auto": True}},
        {"rsa_public_key": {"type": "string"}},
        {"algorithm": {"type": "string", "default": "HS256", "one_of": [*JWT_ALGORITHMS, "EdDSA"]}},
        {"tags": typedefs.TAGS},
    ],
    endpoint_key="key",
    cache_key=("key",),
    extra={
        "entity_checks": [
            {
                "conditional": {
                    "if_field": "algorithm",
                    "if_match": {"match_any": {"patterns": ["^RS%d+$", "^PS%d+$", "^EdDSA$"]}},
                    "then_field": "rsa_public_key",
                    "then_match": {"required": True, "custom_validator": _validate_public_key},
                }
            }
        ]
    },
)

ACLS = Entity(
    "acls",
    [
        {"id": typedefs.UUID},
        {"created_at": typedefs.TIMESTAMP_S},
        {"consumer": _CONSUMER},
        {"group": {"type": "string", "required": True}},
        {"tags": typedefs.TAGS},
    ],
    cache_key=("consumer", "group"),
)

# Parents before children, as Kong's topological sort gives them.
ENTITIES: dict[str, Entity] = {
    entity.name: entity
    for entity in (
        CONSUMERS,
        SERVICES,
        UPSTREAMS,
        TARGETS,
        ROUTES,
        PLUGINS,
        KEYAUTH_CREDENTIALS,
        JWT_SECRETS,
        ACLS,
    )
}

# Collections that Kong knows and minikong does not keep: refused by name, not as a mistake of the user.
UNSUPPORTED = frozenset(
    """
    certificates snis ca_certificates vaults keys key_sets workspaces filter_chains parameters tags
    basicauth_credentials hmacauth_credentials oauth2_credentials oauth2_tokens oauth2_authorization_codes
    sessions acme_storage clustering_data_planes consumer_groups
    """.split()  # noqa: SIM905
)
