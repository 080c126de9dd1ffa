"""Reads a kong.yml and makes the entities of it (kong/db/declarative/init.lua)."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from minikong import lyaml
from minikong.declarative.errors import DeclarativeError
from minikong.declarative.flatten import Flattener, Tree
from minikong.declarative.schema import Schema
from minikong.entities import Config, Consumer, Credential, PluginEntity, Route, Service, Target, Upstream
from minikong.schema import hosts
from minikong.schema.tables import is_table

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def load(text: str, schema: Schema, filename: str | None = None, environ: Mapping[str, str] = os.environ) -> Config:
    """The entities of a kong.yml (or .json).

    Args:
        filename: decides between YAML and JSON; without one JSON is tried first, as `POST /config` does.
        environ: where `{vault://env/…}` references are looked up.

    Raises:
        DeclarativeError: Kong would refuse it.
    """
    tree, lines = _parse(text, filename)
    return load_tree(tree, schema, lines, environ)


def load_tree(
    tree: Any, schema: Schema, lines: lyaml.Lines | None = None, environ: Mapping[str, str] = os.environ
) -> Config:
    """The same from a parsed document; its empty lists and maps are both `{}`."""
    try:
        flat = Flattener(schema).flatten(tree)
    except DeclarativeError as error:
        raise DeclarativeError(error.errors, lines, tree) from None
    return _config(flat, schema, lambda reference: resolve_env(reference, environ))


def _parse(text: str, filename: str | None) -> tuple[Any, lyaml.Lines | None]:
    problem: str | None = None
    if filename is None or filename.endswith("json"):
        try:
            tree = lyaml.load_json(text)
        except ValueError as error:
            problem = str(error)
        else:
            if is_table(tree):
                return tree, None
    if filename is None or filename.endswith((".yml", ".yaml")):
        try:
            tree, lines = lyaml.load(text)
        except lyaml.YamlError as error:
            problem = str(error)
        else:
            if is_table(tree):
                return tree, lines
            problem = "expected an object"
    elif not filename.endswith("json"):
        raise DeclarativeError({"error": f"unknown file type: {filename}. (Accepted types: json, yaml)"})
    raise DeclarativeError({"error": f"failed parsing declarative configuration: {problem}"})


def resolve_env(reference: str, environ: Mapping[str, str]) -> str | None:
    """The value of `{vault://env/name}` or `{vault://env/name/key}` (a key of a JSON object); None if there is none.

    The variable is NAME in capitals with `-` as `_`, after the `?prefix=` (kong/vaults/env).
    """
    parts = urlsplit(reference.removeprefix("{").removesuffix("}"))
    if (parts.scheme, parts.netloc) != ("vault", "env"):
        return None
    prefix = parse_qs(parts.query).get("prefix", [""])[0]
    resource = prefix + parts.path.removeprefix("/")
    name, _, key = resource.partition("/")
    value = environ.get(name.upper().replace("-", "_"))
    if value is None or not key:
        return value
    try:
        found = json.loads(value)[key]
    except (ValueError, KeyError, TypeError, IndexError):
        return None
    return found if isinstance(found, str) else json.dumps(found)


def _reference(entry: Tree, name: str) -> str | None:
    found = entry.get(name)
    return found["id"] if isinstance(found, dict) else None


def _known(entry: Tree, kind: type[DataclassInstance]) -> dict[str, Any]:
    return {f.name: entry[f.name] for f in dataclasses.fields(kind) if f.name in entry}


def _config(flat: dict[str, dict[str, Tree]], schema: Schema, resolve: Callable[[str], str | None]) -> Config:
    def stored(name: str) -> list[Tree]:
        # Kong's storage is sorted by id; so is the order in which it hands out __seq__.
        entries = flat.get(name, {})
        return [schema.stored[name].process(entries[i], "select", resolve) for i in sorted(entries)]

    def kept(name: str) -> list[Tree]:
        return [schema.stored[name].process(entry, "select") for _, entry in sorted(flat[name].items())]

    config = Config(stored={name: kept(name) for name in schema.stored if name in flat})
    for entry in stored("services"):
        config.services[entry["id"]] = Service(**{"name": None, **_known(entry, Service)})
    for entry in stored("routes"):
        known = {"name": None, **_known(entry, Route), "service_id": _reference(entry, "service")}
        config.routes[entry["id"]] = Route(**known)
    for entry in stored("consumers"):
        config.consumers[entry["id"]] = Consumer(**_known(entry, Consumer))
    # Kong resolves references only for the plugin itself (kong/db/schema/init.lua, process_auto_fields).
    unresolved = {entry["id"]: entry.get("config", {}) for entry in config.stored.get("plugins", ())}
    for entry in stored("plugins"):
        owners = {f"{name}_id": _reference(entry, name) for name in ("route", "service", "consumer")}
        known = {"config": {}, **_known(entry, PluginEntity), **owners, "shown": unresolved[entry["id"]]}
        config.plugins.append(PluginEntity(**known))
    for collection in ("keyauth_credentials", "jwt_secrets", "acls"):
        for entry in stored(collection):
            consumer = _reference(entry, "consumer")
            if consumer is None:
                continue
            own = {"id", "consumer", "tags", "created_at"}
            rest = {k: v for k, v in entry.items() if k not in own}
            config.credentials.append(
                Credential(entry["id"], collection, consumer, rest, entry.get("tags"), entry.get("created_at", 0))
            )
    by_id: dict[str, Upstream] = {}
    for entry in stored("upstreams"):
        by_id[entry["id"]] = config.upstreams[entry["name"]] = Upstream(**_known(entry, Upstream))
    for entry in stored("targets"):
        owner = _reference(entry, "upstream") or ""
        target = Target(_with_port(entry["target"]), entry.get("weight", 100), entry["id"], owner)
        by_id[owner].targets.append(target)
    return config


def _with_port(target: str) -> str:
    found = hosts.parse(target)
    host = f"[{found.host}]" if found.kind == "ipv6" else found.host
    return f"{host}:{8000 if found.port is None else found.port}"
