"""The small part of Kong's Admin API that users and tests need, as functions from request to response."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import parse_qs

import yaml

from minikong import declarative, posted
from minikong.entities import Config, Consumer, PluginEntity, Route, Service, Upstream
from minikong.schema import core
from minikong.schema.record import InvalidShorthand
from minikong.schema.tables import as_dict, is_table

VERSION = "3.9.1"

Headers = list[tuple[str, str]]
Response = tuple[int, Headers, bytes]
OnConfig = Callable[[Config], None]


class _Refused(Exception):
    def __init__(self, status: int, body: Any) -> None:
        super().__init__(status, body)
        self.status = status
        self.body = body


class Admin:
    """Holds the running config; `on_config` is called with every new one. `settings`: those of kong.conf."""

    def __init__(
        self,
        schema: declarative.Schema,
        config: Config | None = None,
        on_config: OnConfig = lambda config: None,
        environ: Mapping[str, str] = os.environ,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._schema = schema
        self._on_config = on_config
        self._environ = environ
        self._settings = settings or {}
        self.config = config or Config()

    def handle(self, method: str, target: str, body: bytes, headers: Mapping[str, str]) -> Response:
        """Answers one request. `target` is the path with its query; header names are in lower case."""
        path, _, query = target.partition("?")
        path = path.rstrip("/") or "/"
        known = {found for pattern, found, _ in _ROUTES if pattern.fullmatch(path)}
        try:
            for pattern, verb, action in _ROUTES:
                match = pattern.fullmatch(path)
                if match and (verb == method or (verb == "GET" and method == "HEAD")):
                    status, answer = action(self, body, parse_qs(query), headers, **match.groupdict())
                    return _json(status, answer)
            if known:
                return _json(405, {"message": "Method not allowed"}, [("Allow", ", ".join(sorted(known)))])
            return _json(404, {"message": "Not found"})
        except _Refused as refused:
            return _json(refused.status, refused.body)
        except (declarative.InternalError, TypeError, ValueError, KeyError, AttributeError, RecursionError):
            return _json(500, {"message": "An unexpected error occurred"})

    def root(self, body: bytes, query: Any, headers: Any) -> tuple[int, Any]:
        listed = {plugin.name: None for plugin in self.config.plugins}
        return 200, {
            "version": VERSION,
            "edition": "community",
            "tagline": "Welcome to minikong",
            "plugins": {
                "available_on_server": {name: {} for name in self._schema.plugins},
                "enabled_in_cluster": list(listed),
            },
            "configuration": {"database": "off", **shown(self._settings)},
        }

    def status(self, body: bytes, query: Any, headers: Any) -> tuple[int, Any]:
        return 200, {"database": {"reachable": True}, "server": {}, "memory": {}}

    def post_config(self, body: bytes, query: Any, headers: Mapping[str, str]) -> tuple[int, Any]:
        given, text = self._posted(body, headers)
        try:
            config = self._configuration(given, text)
        except declarative.DeclarativeError as error:
            error.kong_text()  # Kong prints it first, and fails where it cannot
            raise _Refused(400, error.body()) from None
        self.config = config
        self._on_config(config)
        return 201, {
            "services": {i: s.as_pdk() for i, s in config.services.items()},
            "routes": {i: r.as_pdk() for i, r in config.routes.items()},
            "plugins": {p.id: p.as_pdk() for p in config.plugins},
            "consumers": {i: c.as_pdk() for i, c in config.consumers.items()},
        }

    def _configuration(self, given: Any, text: str) -> Config:
        """A whole document, or its text in the field `config`, or else the body is that text."""
        if not isinstance(given, dict) or "_format_version" in given:
            return declarative.load_tree(given, self._schema, None, self._environ)
        text = given.get("config", text)
        if not isinstance(text, str) or not text:
            raise _Refused(400, {"message": "expected a declarative configuration"})
        return declarative.load(text, self._schema, None, self._environ)

    def _posted(self, body: bytes, headers: Mapping[str, str]) -> tuple[Any, str]:
        try:
            return posted.parameters(body, headers.get("content-type", ""))
        except posted.NotTaken as problem:
            raise _Refused(problem.status, {"message": problem.message}) from None

    def export(self, body: bytes, query: Any, headers: Any) -> tuple[int, Any]:
        """All of it as a file that Kong and minikong read."""
        document: dict[str, Any] = {"_format_version": "3.0", "_transform": False}
        for collection, entries in self.config.stored.items():
            foreign = core.ENTITIES[collection].foreign
            document[collection] = [
                {name: value["id"] if name in foreign and value else value for name, value in entry.items()}
                for entry in entries
            ]
        return 200, {"config": yaml.safe_dump(document, sort_keys=False, allow_unicode=True)}

    def validate_plugin(self, body: bytes, query: Any, headers: Any) -> tuple[int, Any]:
        given, _ = self._posted(body, {"content-type": headers.get("content-type") or posted.JSON})
        record = self._schema.stored["plugins"]
        try:
            errors = record.validate(record.process(given if is_table(given) else {}, "insert"))
        except InvalidShorthand as invalid:
            errors = invalid.errors
        if errors:
            raise _Refused(400, _schema_violation(errors))
        return 200, {"message": "schema validation successful"}

    def enabled(self, body: bytes, query: Any, headers: Any) -> tuple[int, Any]:
        return 200, {"enabled_plugins": list(self._schema.plugins)}

    def plugin_schema(self, body: bytes, query: Any, headers: Any, name: str) -> tuple[int, Any]:
        found = self._schema.plugins.get(name)
        if found is None:
            raise _Refused(404, {"message": f"No plugin named '{name}'"})
        return 200, _jsonable({"entity_checks": found.entity_checks, "fields": found.definition["fields"]})

    def tags(self, body: bytes, query: Any, headers: Any, tag: str | None = None) -> tuple[int, Any]:
        """On one page; Kong gives each kind of entity pages of its own."""
        found = [
            {"entity_name": collection, "entity_id": entry["id"], "tag": each}
            for collection, entries in self.config.stored.items()
            for entry in entries
            for each in entry.get("tags") or ()
            if tag is None or each == tag
        ]
        return 200, {"data": found, "next": None}

    def entities(self, body: bytes, query: Mapping[str, list[str]], headers: Any, collection: str) -> tuple[int, Any]:
        listed: dict[str, Iterable[Service | Route | PluginEntity | Consumer | Upstream]] = {
            "services": self.config.services.values(),
            "routes": self.config.routes.values(),
            "plugins": self.config.plugins,
            "consumers": self.config.consumers.values(),
            "upstreams": self.config.upstreams.values(),
        }
        return 200, _page(_public(entity.as_pdk()) for entity in listed[collection])

    def entity(self, body: bytes, query: Any, headers: Any, collection: str, key: str) -> tuple[int, Any]:
        return 200, self._found(collection, key)

    def _found(self, collection: str, key: str) -> Any:
        _, listed = self.entities(b"", {}, None, collection)
        names = ("id", "username") if collection == "consumers" else ("id", "name")
        if collection == "plugins":
            names = ("id", "instance_name")
        for found in listed["data"]:
            if any(found.get(name) == key for name in names):
                return found
        raise _Refused(404, {"message": "Not found"})

    def children(self, body: bytes, query: Any, headers: Any, collection: str, key: str, child: str) -> tuple[int, Any]:
        """Such as the plugins of a route."""
        parent = self._found(collection, key)
        _, listed = self.entities(b"", {}, None, child)
        one = collection.removesuffix("s")
        return 200, _page(found for found in listed["data"] if found.get(one) == {"id": parent["id"]})

    def targets(self, body: bytes, query: Any, headers: Any, key: str) -> tuple[int, Any]:
        for upstream in self.config.upstreams.values():
            if key in (upstream.id, upstream.name):
                return 200, _page(_public(target.as_pdk()) for target in upstream.targets)
        raise _Refused(404, {"message": "Not found"})


def _page(entities: Iterable[Any]) -> dict[str, Any]:
    return {"data": list(entities), "next": None}


def shown(settings: Mapping[str, str]) -> dict[str, str | list[str]]:
    """Settings as Kong shows them: lists as lists, secrets not at all."""
    told: dict[str, str | list[str]] = {}
    for name, value in settings.items():
        if name in _LISTS:
            told[name] = [part.strip() for part in value.split(",") if part.strip()]
        else:
            told[name] = "******" if name in _SENSITIVE and value else value
    return told


def _jsonable(value: Any) -> Any:
    """Without what is code, as Kong leaves it out."""
    if isinstance(value, Mapping):
        return {name: _jsonable(each) for name, each in value.items() if not callable(each)}
    if isinstance(value, list | tuple):
        return [_jsonable(each) for each in value]
    return value


# kong/conf_loader/constants.lua: typ = "array", and CONF_SENSITIVE, of what minikong knows.
_LISTS = frozenset(
    """
    plugins pluginserver_names proxy_listen admin_listen status_listen stream_listen headers headers_upstream
    trusted_ips ssl_cert admin_ssl_cert untrusted_lua_sandbox_requires untrusted_lua_sandbox_environment
    """.split()  # noqa: SIM905 -- a word list reads better
)
_SENSITIVE = frozenset({"ssl_cert_key", "admin_ssl_cert_key", "declarative_config_string"})
_COLLECTION = "(?P<collection>services|routes|plugins|consumers|upstreams)"
_ROUTES: list[tuple[re.Pattern[str], str, Callable[..., tuple[int, Any]]]] = [
    (re.compile("/"), "GET", Admin.root),
    (re.compile("/status"), "GET", Admin.status),
    (re.compile("/config"), "GET", Admin.export),
    (re.compile("/config"), "POST", Admin.post_config),
    (re.compile("/plugins/enabled"), "GET", Admin.enabled),
    (re.compile("/tags(?:/(?P<tag>[^/]+))?"), "GET", Admin.tags),
    (re.compile("/schemas/plugins/validate"), "POST", Admin.validate_plugin),
    (re.compile(f"/{_COLLECTION}"), "GET", Admin.entities),
    (re.compile(f"/{_COLLECTION}/(?P<key>[^/]+)"), "GET", Admin.entity),
    (re.compile("/schemas/plugins/(?P<name>[^/]+)"), "GET", Admin.plugin_schema),
    (re.compile("/(?P<collection>services)/(?P<key>[^/]+)/(?P<child>routes|plugins)"), "GET", Admin.children),
    (re.compile("/(?P<collection>routes|consumers)/(?P<key>[^/]+)/(?P<child>plugins)"), "GET", Admin.children),
    (re.compile("/upstreams/(?P<key>[^/]+)/targets"), "GET", Admin.targets),
]


def _public(table: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in table.items() if k != "ws_id"}


def _schema_violation(errors: dict[Any, Any]) -> dict[str, Any]:
    from minikong.schema.metaschema import schema_violation

    fields = declarative.json_table(as_dict(errors))
    return {"code": 2, "name": "schema violation", "message": schema_violation(errors), "fields": fields}


def _json(status: int, body: Any, extra: Headers | None = None) -> Response:
    content = json.dumps(body, separators=(",", ":")).encode(errors="surrogateescape")
    headers = [
        ("Content-Type", "application/json; charset=utf-8"),
        ("Access-Control-Allow-Origin", "*"),
        *(extra or []),
        ("Content-Length", str(len(content))),
        ("Server", f"kong/{VERSION}"),
    ]
    return status, headers, content
