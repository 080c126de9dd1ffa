"""Kong's entities as minikong keeps them after `minikong.declarative` has validated and flattened a config.

Names, defaults and units are those of Kong 3.9 (kong/db/schema/entities/*.lua). `as_pdk()` gives the
table that `kong.router.get_route()` and its likes hand to a plugin: fields without a value are absent.
"""

from __future__ import annotations

import dataclasses
import uuid
from dataclasses import dataclass, field
from typing import Any

WORKSPACE_ID = "0dc6f45b-8f8d-40d2-a504-473544ee190b"  # the default workspace of DB-less Kong
_NAMESPACE = uuid.UUID("fd02801f-0957-4a15-a55a-c8d9606f30b5")


def derived_id(collection: str, key: str) -> str:
    """The id DB-less Kong gives an entity that has none: uuid5(uuid5(NS, collection), key)."""
    return str(uuid.uuid5(uuid.uuid5(_NAMESPACE, collection), key))


class _Entity:
    """What all entities share: the table form that the PDK hands out."""

    def as_pdk(self) -> dict[str, Any]:
        raise NotImplementedError


def _present(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _ref(entity_id: str | None) -> dict[str, str] | None:
    return None if entity_id is None else {"id": entity_id}


@dataclass(slots=True)
class Service(_Entity):
    id: str
    name: str | None
    host: str
    protocol: str = "http"
    port: int = 80
    path: str | None = None
    retries: int | None = 5
    connect_timeout: int | None = 60000  # milliseconds, as the next two
    write_timeout: int | None = 60000
    read_timeout: int | None = 60000
    enabled: bool = True
    tags: list[str] | None = None
    tls_verify: bool | None = None
    created_at: int = 0  # seconds since the epoch
    updated_at: int = 0

    def as_pdk(self) -> dict[str, Any]:
        table = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return _present(ws_id=WORKSPACE_ID, **table)


@dataclass(slots=True)
class Route(_Entity):
    id: str
    name: str | None
    service_id: str | None = None
    protocols: list[str] = field(default_factory=lambda: ["http", "https"])
    methods: list[str] | None = None
    hosts: list[str] | None = None
    paths: list[str] | None = None
    headers: dict[str, list[str]] | None = None
    snis: list[str] | None = None
    https_redirect_status_code: int = 426
    regex_priority: int | None = 0
    strip_path: bool = True
    preserve_host: bool = False
    path_handling: str | None = "v0"
    request_buffering: bool = True
    response_buffering: bool = True
    tags: list[str] | None = None
    created_at: int = 0
    updated_at: int = 0

    def as_pdk(self) -> dict[str, Any]:
        table = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "service_id"}
        return _present(ws_id=WORKSPACE_ID, service=_ref(self.service_id), **table)


@dataclass(slots=True)
class Consumer(_Entity):
    id: str
    username: str | None = None
    custom_id: str | None = None
    tags: list[str] | None = None
    created_at: int = 0
    updated_at: int = 0

    def as_pdk(self) -> dict[str, Any]:
        return _present(**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)})


@dataclass(slots=True)
class Credential(_Entity):
    """One credential; `collection` is Kong's name of its table, `fields` the rest as Kong keeps it.

    keyauth_credentials: key; jwt_secrets: key, secret, algorithm, rsa_public_key; acls: group;
    basicauth_credentials: username, password.
    """

    id: str
    collection: str
    consumer_id: str
    fields: dict[str, Any]
    tags: list[str] | None = None
    created_at: int = 0

    def as_pdk(self) -> dict[str, Any]:
        return _present(
            id=self.id,
            consumer=_ref(self.consumer_id),
            created_at=self.created_at,
            tags=self.tags,
            **self.fields,
        )


@dataclass(slots=True)
class Target(_Entity):
    target: str  # "host:port", the port filled in (8000 if absent)
    weight: int = 100
    id: str = ""
    upstream_id: str = ""

    def as_pdk(self) -> dict[str, Any]:
        return {"id": self.id, "target": self.target, "weight": self.weight, "upstream": _ref(self.upstream_id)}


@dataclass(slots=True)
class Upstream(_Entity):
    id: str
    name: str
    algorithm: str = "round-robin"
    host_header: str | None = None
    slots: int = 10000
    healthchecks: dict[str, Any] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)

    def as_pdk(self) -> dict[str, Any]:
        table = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "targets"}
        return _present(**table)


@dataclass(slots=True, eq=False)
class PluginEntity(_Entity):
    """One configured plugin. Compared by identity: a new load of the same config makes new entities.

    `config` is what a Lua plugin gets (defaults filled, references resolved, no absent fields).
    A plugin server gets `instance_config()`. `shown` is what the Admin API tells: the same with its vault references.
    """

    id: str
    name: str
    config: dict[str, Any] = field(repr=False)
    shown: dict[str, Any] = field(default_factory=dict, repr=False)
    route_id: str | None = None
    service_id: str | None = None
    consumer_id: str | None = None
    enabled: bool = True
    protocols: list[str] = field(default_factory=lambda: ["grpc", "grpcs", "http", "https"])
    instance_name: str | None = None
    tags: list[str] | None = None
    created_at: int = 0
    updated_at: int = 0
    seq: int = 0  # Kong's __seq__: counts configured plugins over the life of the process

    @property
    def key(self) -> str:
        """Kong's cache key (`__key__`), e.g. "plugins:probe:<route id>:<service id>:<consumer id>::<ws>"."""
        parts = (self.name, self.route_id or "", self.service_id or "", self.consumer_id or "")
        return "plugins:" + ":".join(parts) + "::" + WORKSPACE_ID

    def instance_config(self) -> dict[str, Any]:
        """The table whose JSON is `Config` of plugin.StartInstance."""
        return {
            **self.config,
            "__key__": self.key,
            "__seq__": self.seq,
            "__plugin_id": self.id,
            "__ws_id": WORKSPACE_ID,
            **_present(
                route_id=self.route_id,
                service_id=self.service_id,
                consumer_id=self.consumer_id,
                plugin_instance_name=self.instance_name,
            ),
        }

    def as_pdk(self) -> dict[str, Any]:
        return _present(
            id=self.id,
            name=self.name,
            instance_name=self.instance_name,
            config=self.shown,
            protocols=self.protocols,
            enabled=self.enabled,
            tags=self.tags,
            route=_ref(self.route_id),
            service=_ref(self.service_id),
            consumer=_ref(self.consumer_id),
            created_at=self.created_at,
            updated_at=self.updated_at,
        )


@dataclass(slots=True)
class Config:
    """A whole declarative config after validation. The dicts are keyed by id."""

    services: dict[str, Service] = field(default_factory=dict)
    routes: dict[str, Route] = field(default_factory=dict)
    plugins: list[PluginEntity] = field(default_factory=list)
    consumers: dict[str, Consumer] = field(default_factory=dict)
    credentials: list[Credential] = field(default_factory=list)
    upstreams: dict[str, Upstream] = field(default_factory=dict)  # keyed by name
    stored: dict[str, list[dict[str, Any]]] = field(default_factory=dict, repr=False)
    """Everything by collection as Kong stores it: all fields, references not resolved. What the Admin API exports."""

    def consumer_by_username(self, username: str) -> Consumer | None:
        return next((c for c in self.consumers.values() if c.username == username), None)

    def credential(self, collection: str, unique_field: str, value: str) -> Credential | None:
        """The credential of `collection` whose `unique_field` (e.g. "key") is `value`."""
        return next(
            (c for c in self.credentials if c.collection == collection and c.fields.get(unique_field) == value),
            None,
        )
