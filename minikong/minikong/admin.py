"""The small part of Kong's Admin API that users and tests need, as functions from request to response."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import parse_qs

from minikong import declarative, lyaml
from minikong.entities import Config, Consumer, PluginEntity, Route, Service, Target, Upstream
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
    """Holds the running config; `on_config` is called with every new one."""

    def __init__(
        self,
        schema: declarative.Schema,
        config: Config | None = None,
        on_config: OnConfig = lambda config: None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._schema = schema
        self._on_config = on_config
        self._environ = environ
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
        return 200, {
            "version": VERSION,
            "edition": "community",
            "tagline": "Welcome to minikong",
            "configuration": {"database": "off"},
        }

    def status(self, body: bytes, query: Any, headers: Any) -> tuple[int, Any]:
        return 200, {"database": {"reachable": True}, "server": {}, "memory": {}}

    def post_config(self, body: bytes, query: Any, headers: Mapping[str, str]) -> tuple[int, Any]:
        text = body.decode(errors="surrogateescape")
        try:
            if headers.get("content-type", "").startswith("application/json"):
                config = self._load_json(text)
            elif not body:
                raise _Refused(400, {"message": "expected a declarative configuration"})
            else:
                config = declarative.load(text, self._schema, None, self._environ)
        except declarative.DeclarativeError as error:
            raise _Refused(400, error.body()) from None
        self.config = config
        self._on_config(config)
        return 201, {
            "services": {i: s.as_pdk() for i, s in config.services.items()},
            "routes": {i: r.as_pdk() for i, r in config.routes.items()},
            "plugins": {p.id: p.as_pdk() for p in config.plugins},
            "consumers": {i: c.as_pdk() for i, c in config.consumers.items()},
        }

    def _load_json(self, text: str) -> Config:
        try:
            tree = lyaml.load_json(text)
        except ValueError:
            raise _Refused(400, {"message": "Cannot parse JSON body"}) from None
        if isinstance(tree, dict) and "_format_version" not in tree:
            if not isinstance(tree.get("config"), str):
                raise _Refused(400, {"message": "expected a declarative configuration"})
            return declarative.load(tree["config"], self._schema, None, self._environ)
        return declarative.load_tree(tree, self._schema, None, self._environ)

    def validate_plugin(self, body: bytes, query: Any, headers: Any) -> tuple[int, Any]:
        try:
            given = lyaml.load_json(body.decode(errors="surrogateescape"))
        except ValueError:
            raise _Refused(400, {"message": "Cannot parse JSON body"}) from None
        record = self._schema.stored["plugins"]
        try:
            errors = record.validate(record.process(given if is_table(given) else {}, "insert"))
        except InvalidShorthand as invalid:
            errors = invalid.errors
        if errors:
            raise _Refused(400, _schema_violation(errors))
        return 200, {"message": "schema validation successful"}

    def entities(self, body: bytes, query: Any, headers: Any, collection: str) -> tuple[int, Any]:
        listed: dict[str, Iterable[Service | Route | PluginEntity | Consumer | Upstream]] = {
            "services": self.config.services.values(),
            "routes": self.config.routes.values(),
            "plugins": self.config.plugins,
            "consumers": self.config.consumers.values(),
            "upstreams": self.config.upstreams.values(),
        }
        return _page(listed[collection])

    def entity(self, body: bytes, query: Any, headers: Any, collection: str, key: str) -> tuple[int, Any]:
        _, listed = self.entities(body, query, headers, collection)
        names = ("id", "username") if collection == "consumers" else ("id", "name")
        if collection == "plugins":
            names = ("id", "instance_name")
        for found in listed["data"]:
            if any(found.get(name) == key for name in names):
                return 200, found
        raise _Refused(404, {"message": "Not found"})

    def targets(self, body: bytes, query: Any, headers: Any, key: str) -> tuple[int, Any]:
        for upstream in self.config.upstreams.values():
            if key in (upstream.id, upstream.name):
                return _page(upstream.targets)
        raise _Refused(404, {"message": "Not found"})


def _page(entities: Iterable[Service | Route | PluginEntity | Consumer | Upstream | Target]) -> tuple[int, Any]:
    return 200, {"data": [_public(e.as_pdk()) for e in entities], "next": None}


_COLLECTION = "(?P<collection>services|routes|plugins|consumers|upstreams)"
_ROUTES: list[tuple[re.Pattern[str], str, Callable[..., tuple[int, Any]]]] = [
    (re.compile("/"), "GET", Admin.root),
    (re.compile("/status"), "GET", Admin.status),
    (re.compile("/config"), "POST", Admin.post_config),
    (re.compile("/schemas/plugins/validate"), "POST", Admin.validate_plugin),
    (re.compile(f"/{_COLLECTION}"), "GET", Admin.entities),
    (re.compile(f"/{_COLLECTION}/(?P<key>[^/]+)"), "GET", Admin.entity),
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
