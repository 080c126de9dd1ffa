"""Kong's declarative configuration: from a kong.yml to entities, with Kong's ids, defaults and error texts.

Follows kong/db/declarative/init.lua and kong/db/schema/others/declarative_config.lua of Kong 3.9.1.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from minikong import lyaml
from minikong.entities import (
    Config,
    Consumer,
    Credential,
    PluginEntity,
    Route,
    Service,
    Target,
    Upstream,
    derived_id,
)
from minikong.schema import core, hosts, metaschema, pretty
from minikong.schema.record import Record
from minikong.schema.tables import Error, as_dict, is_table, items, sequence, tostring

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Tree = dict[Any, Any]
Errors = dict[Any, Error]


class DeclarativeError(Exception):
    """A declarative config that Kong refuses. `errors` is Kong's tree of texts by field and index (from 1)."""

    def __init__(self, errors: Errors, lines: lyaml.Lines | None = None) -> None:
        super().__init__(f"declarative config is invalid: {pretty.write(errors, '')}")
        self.errors = errors
        self.lines = lines or {}

    def body(self) -> dict[str, Any]:
        """What `POST /config` answers with status 400."""
        return {
            "code": 14,
            "name": "invalid declarative configuration",
            "message": str(self),
            "fields": json_table(self.errors),
        }

    def kong_text(self) -> str:
        """What `kong start` prints (pretty_print_error)."""
        return _pretty_print(self.errors)

    def located(self, filename: str) -> list[str]:
        """One text per problem: "kong.yml:12: services[1].routes[2].paths: …"."""
        found = []
        for path, text in _leaves(self.errors, ()):
            known = path
            while known and known not in self.lines:
                known = known[:-1]
            where = f"{filename}:{self.lines[known]}" if known in self.lines else filename
            name = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")
            found.append(f"{where}: {name}: {text}")
        return found


class InternalError(Exception):
    """What makes Kong itself fail with a Lua error (500 from the Admin API)."""


def json_table(table: Any) -> Any:
    """The table as cjson writes it: a list where all keys are indexes, with null in its holes."""
    if not is_table(table):
        return table
    entries = as_dict(table)
    if entries and all(type(k) is int for k in entries):
        return [json_table(entries.get(i)) for i in range(1, max(entries) + 1)]
    return {tostring(k): json_table(v) for k, v in entries.items()}


def _pretty_print(errors: Errors, item: str = "", indent: str = "") -> str:
    rows = []
    for key, error in items(errors):
        if isinstance(key, int):
            if not item:
                raise InternalError("attempt to concatenate local 'item' (a nil value)")
            head = f"{indent}- in entry {key} of '{item}'"
        else:
            head = f"{indent}in '{key}'"
        if is_table(error):
            rows += [head + ":", _pretty_print(error, str(key), indent + "  ")]
        else:
            rows.append(f"{head}: {error}")
    return "\n".join(rows)


def _leaves(errors: Any, path: lyaml.Path) -> Iterator[tuple[lyaml.Path, str]]:
    for key, error in items(errors):
        if is_table(error):
            yield from _leaves(error, (*path, key))
        else:
            yield (*path, key), str(error)


class Schema:
    """The schema of declarative configs for a set of plugins.

    Kong validates twice: first without the ids of nested parents, and where that fails again with them.

    Raises:
        metaschema.BadSchema: a plugin's Schema that Kong would not start with.
    """

    def __init__(self, plugin_schemas: Mapping[str, Any]) -> None:
        parent = Record({"fields": core.PLUGINS.fields})
        self._plugins = {
            name: metaschema.plugin_schema(name, definition, parent)
            for name, definition in sorted(plugin_schemas.items())
        }
        self._routes = {name: Record(made) for name, made in core.ROUTE_SUBSCHEMAS.items()}
        self._records: dict[tuple[str, bool, bool], Record] = {}
        self.partial = self._root(full=False)
        self.full = self._root(full=True)
        # An entity as it is stored: no children, foreign keys as tables.
        self.stored = {name: Record(self._definition(entity, entity.fields)) for name, entity in core.ENTITIES.items()}

    @property
    def plugins(self) -> Mapping[str, Record]:
        return self._plugins

    def _definition(self, entity: core.Entity, fields: list[core.Definition]) -> core.Definition:
        subschemas = {"plugins": self._plugins, "routes": self._routes}.get(entity.name, {})
        return {**(entity.extra or {}), "name": entity.name, "fields": fields, "subschemas": subschemas}

    def _root(self, *, full: bool) -> Record:
        arrays = [{name: self._array(entity, nested=False, full=full)} for name, entity in core.ENTITIES.items()]
        return Record(
            {
                "name": "declarative_config",
                "fields": [
                    {
                        "_format_version": {
                            "type": "string",
                            "required": True,
                            "one_of": ["1.1", "2.1", "3.0"],
                        }
                    },
                    {"_transform": {"type": "boolean", "default": True}},
                    *_EXTRA,
                    *arrays,
                ],
            }
        )

    def _array(self, entity: core.Entity, *, nested: bool, full: bool) -> core.Definition:
        record = self._record(entity, nested=nested, full=full)
        return {"type": "array", "elements": {"type": "record", "record": record}}

    def _record(self, entity: core.Entity, *, nested: bool, full: bool) -> Record:
        key = (entity.name, nested, full)
        if key not in self._records:
            fields = [
                {name: _foreign(attrs, nested) if attrs["type"] == "foreign" and not full else attrs}
                for name, attrs in (next(iter(entry.items())) for entry in entity.fields)
            ]
            children = [
                {child.name: self._array(child, nested=True, full=full)}
                for child in core.ENTITIES.values()
                if entity.name in child.foreign.values()
            ]
            self._records[key] = Record(self._definition(entity, [*fields, *_EXTRA, *children]))
        return self._records[key]


_EXTRA: list[core.Definition] = [
    {"_comment": {"type": "string"}},
    {"_ignore": {"type": "array", "elements": {"type": "any"}}},
]


def _foreign(attrs: core.Definition, nested: bool) -> core.Definition:
    if nested:
        return {**attrs, "eq": None, "default": None, "required": False}
    kept = {k: v for k, v in attrs.items() if k not in ("reference", "on_delete")}
    return {**kept, "type": "string"}


def load(text: str, schema: Schema, filename: str | None = None, environ: Mapping[str, str] = os.environ) -> Config:
    """The entities of a kong.yml (or .json).

    Args:
        filename: decides between YAML and JSON; without one JSON is tried first, as `POST /config` does.
        environ: where `{vault://env/…}` references are looked up.

    Raises:
        DeclarativeError: Kong would refuse it.
        InternalError: Kong would fail over it.
    """
    tree, lines = _parse(text, filename)
    return load_tree(tree, schema, lines, environ)


def load_tree(
    tree: Any, schema: Schema, lines: lyaml.Lines | None = None, environ: Mapping[str, str] = os.environ
) -> Config:
    """The same from a parsed document; its empty lists and maps are both `{}`."""
    try:
        flat = _Flattener(schema).flatten(tree)
    except DeclarativeError as error:
        _pretty_print(error.errors)  # Kong prints first, and fails where it cannot
        raise DeclarativeError(error.errors, lines) from None
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

    The variable is NAME in capitals with `-` as `_` (kong/vaults/env).
    """
    vault, _, resource = reference.removeprefix("{vault://").removesuffix("}").partition("/")
    resource = resource.partition("?")[0].partition("#")[0]
    if vault != "env":
        return None
    name, _, key = resource.partition("/")
    value = environ.get(name.upper().replace("-", "_"))
    if value is None or not key:
        return value
    try:
        found = json.loads(value)[key]
    except (ValueError, KeyError, TypeError, IndexError):
        return None
    return found if isinstance(found, str) else json.dumps(found)


@dataclass(slots=True)
class _Index:
    """What the references of a config can point to."""

    by_id: dict[str, dict[str, Tree]] = field(default_factory=dict)
    by_key: dict[str, dict[str, Tree]] = field(default_factory=dict)

    def find(self, collection: str, key: Any) -> Tree | None:
        if not isinstance(key, str):
            return None
        return self.by_key.get(collection, {}).get(key) or self.by_id.get(collection, {}).get(key)


@dataclass(frozen=True, slots=True)
class _Expected:
    entity: str
    reference: str
    key: str
    value: Any
    at: Any


class _Flattener:
    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    def flatten(self, tree: Any) -> dict[str, dict[str, Tree]]:
        if isinstance(tree, dict):
            _migrate_paths(tree)
            unsupported = [key for key in tree if key in core.UNSUPPORTED]
            if unsupported:
                raise DeclarativeError(dict.fromkeys(unsupported, "minikong does not have this kind of entity"))
            tree.setdefault("_transform", True)
        errors = self._schema.partial.validate(tree)
        if errors:
            self._validate_with_ids(tree, errors)
        _generate_ids(tree)
        processed = self._schema.partial.process(tree, "insert")
        index = _Index()
        expected: list[_Expected] = []
        problems: Errors = {}
        _populate(processed, index, expected, problems)
        for want in expected:
            key = want.value.get("id", want.value) if isinstance(want.value, dict) else want.value
            if index.find(want.reference, key) is None:
                shown = want.value if isinstance(want.value, str) else json.dumps(want.value)
                texts = problems.setdefault(want.entity, {}).setdefault(want.at, {})
                texts[len(texts) + 1] = f"invalid reference '{want.key}: {shown}' (no such entry in '{want.reference}')"
        if problems:
            raise DeclarativeError(problems)
        return self._flat(index)

    def _validate_with_ids(self, tree: Any, errors: Errors) -> None:
        filled = copy.deepcopy(tree)
        index = _Index()
        if isinstance(filled, dict):
            _populate_ids(filled, index)
            for name, entries in index.by_id.items():
                for entry in entries.values():
                    _link(core.ENTITIES[name], entry, index)
        full_errors = self._schema.full.validate(filled)
        if full_errors:
            raise DeclarativeError(_merge(full_errors, _null_errors(errors)))

    def _flat(self, index: _Index) -> dict[str, dict[str, Tree]]:
        flat: dict[str, dict[str, Tree]] = {}
        problems: Errors = {}
        for name, entries in index.by_id.items():
            entity = core.ENTITIES[name]
            seen: dict[tuple[str, Any], bool] = {}
            for entry_id, entry in entries.items():
                kept = {n: entry[n] for f in entity.fields for n in f if n in entry}
                _link(entity, kept, index)
                for field_name, attrs in (next(iter(f.items())) for f in entity.fields):
                    value = kept.get(field_name)
                    if not attrs.get("unique") or value is None:
                        continue
                    if (field_name, value) in seen:
                        key = kept.get(entity.endpoint_key or "") or entry_id
                        problems.setdefault(name, {})[key] = _violation(name, field_name, value)
                    seen[field_name, value] = True
                flat.setdefault(name, {})[entry_id] = kept
        if problems:
            raise DeclarativeError(problems)
        return flat


def _migrate_paths(tree: Tree) -> None:
    """Formats before 3.0 had regex paths without `~` (kong/db/migrations/migrate_path_280_300.lua)."""
    if tree.get("_format_version") not in ("1.1", "2.1"):
        return
    services = [s for s in sequence(tree.get("services")) or [] if isinstance(s, dict)]
    for holder in (tree, *services):
        for route in sequence(holder.get("routes")) or []:
            paths = sequence(route.get("paths")) if isinstance(route, dict) else None
            if paths:
                route["paths"] = [f"~{p}" if isinstance(p, str) and not _PLAIN_PATH.issuperset(p) else p for p in paths]
    tree["_format_version"] = "3.0"


_PLAIN_PATH = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_~/%")


def _entries(tree: Tree, name: str) -> list[Any]:
    return sequence(tree.get(name)) or [] if is_table(tree.get(name)) else []


def _child_key(parent: str | None, entity: core.Entity) -> str | None:
    """The foreign field by which `entity` refers to `parent`."""
    return next((n for n, reference in entity.foreign.items() if reference == parent), None)


def _nested(tree: Tree, parent: str | None) -> Iterator[tuple[core.Entity, str | None, list[Any]]]:
    """The collections inside a config (`parent` None) or inside an entry of `parent`."""
    for name, entity in core.ENTITIES.items():
        key = _child_key(parent, entity)
        if parent is not None and key is None:
            continue
        entries = _entries(tree, name)
        if entries:
            yield entity, key, entries


def _id_key(entity: core.Entity, item: Tree, parent_id: str | None, child_key: str | None) -> str | None:
    """The key from which an entry's id is derived; None where the id is random."""
    if entity.cache_key:
        parts = [entity.name, "*"]
        for name in entity.cache_key:
            attrs = entity.attrs(name)
            if attrs.get("auto"):
                return None
            if name not in item:
                if name == child_key:
                    if parent_id is None:
                        return None
                    parts.append(parent_id)
                elif attrs.get("required"):
                    return None
                else:
                    parts.append("")
            elif isinstance(item[name], str):
                parts.append(item[name])
        return ":".join(parts)
    key = item.get(entity.endpoint_key) if entity.endpoint_key else None
    return key if isinstance(key, str) else None


def _parent_id(tree: Tree, parent: str | None) -> str | None:
    found = tree.get("id") if parent else None
    return found if isinstance(found, str) else None


def _generate_ids(tree: Tree, parent: str | None = None) -> None:
    for entity, child_key, entries in _nested(tree, parent):
        for item in entries:
            if "id" not in item:
                key = _id_key(entity, item, _parent_id(tree, parent), child_key)
                if key is not None:
                    item["id"] = derived_id(entity.name, key)
            _generate_ids(item, entity.name)


def _populate_ids(tree: Tree, index: _Index, parent: str | None = None) -> None:
    for entity, child_key, entries in _nested(tree, parent):
        for item in entries:
            if not isinstance(item, dict):
                continue
            if "id" not in item:
                key = _id_key(entity, item, _parent_id(tree, parent), child_key)
                item["id"] = derived_id(entity.name, key) if key is not None else str(uuid.uuid4())
            _populate_ids(item, index, entity.name)
            index.by_id.setdefault(entity.name, {})[tostring(item["id"])] = item
            name = item.get(entity.endpoint_key) if entity.endpoint_key else None
            if isinstance(name, str):
                index.by_key.setdefault(entity.name, {}).setdefault(name, item)
            if child_key and child_key not in item:
                item[child_key] = {"id": tree.get("id")}


def _link(entity: core.Entity, entry: Tree, index: _Index) -> None:
    """Names in foreign fields become ids."""
    for name, reference in entity.foreign.items():
        if isinstance(entry.get(name), str):
            found = index.find(reference, entry[name])
            if found is not None:
                entry[name] = {"id": found["id"]}


def _violation(entity: str, key: str, value: Any) -> str:
    return f"uniqueness violation: '{entity}' entity with {key} set to '{value}' already declared"


def _populate(
    tree: Tree,
    index: _Index,
    expected: list[_Expected],
    problems: Errors,
    parent: str | None = None,
    parent_at: int = 0,
) -> None:
    for entity, child_key, entries in _nested(tree, parent):
        name = entity.name
        unique = bool(entity.endpoint_key and entity.attrs(entity.endpoint_key).get("unique"))
        for at, item in enumerate(entries, 1):
            _populate(item, index, expected, problems, name, at)
            key = item.get(entity.endpoint_key) if unique else None
            known = index.by_key.setdefault(name, {})
            failed = key is not None and key in known
            if failed:
                problems.setdefault(name, {})[at] = _violation(name, str(entity.endpoint_key), key)
            elif key is not None:
                known[key] = item
            ids = index.by_id.setdefault(name, {})
            if not failed and item["id"] in ids:
                if parent is not None:
                    holder = problems.setdefault(parent, {}).setdefault(parent_at, {})
                    holder.setdefault(name, {})[at] = _violation(name, "primary key", item["id"])
                else:
                    problems.setdefault(name, {})[at] = _violation(name, "primary key", item["id"])
            else:
                ids[item["id"]] = item
            for field_name, reference in entity.foreign.items():
                if item.get(field_name) is not None:
                    expected.append(_Expected(name, reference, field_name, item[field_name], key or item["id"] or at))
            if child_key:
                item[child_key] = {"id": tree["id"]}


def _null_errors(errors: Errors) -> Errors:
    """Of the first validation only "value must be null" is told: what must not stand in a nested entry."""
    kept: Errors = {}
    for key, error in items(errors):
        if is_table(error):
            inner = _null_errors(error)
            if inner:
                kept[key] = inner
        elif error == "value must be null":
            kept[key] = error
    return kept


def _merge(errors: Errors, more: Errors) -> Errors:
    merged = dict(errors)
    for key, error in more.items():
        both = is_table(merged.get(key)) and is_table(error)
        merged[key] = _merge(merged[key], error) if both else error
    return merged


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

    config = Config()
    for entry in stored("services"):
        config.services[entry["id"]] = Service(**{"name": None, **_known(entry, Service)})
    for entry in stored("routes"):
        known = {"name": None, **_known(entry, Route), "service_id": _reference(entry, "service")}
        config.routes[entry["id"]] = Route(**known)
    for entry in stored("consumers"):
        config.consumers[entry["id"]] = Consumer(**_known(entry, Consumer))
    for entry in stored("plugins"):
        owners = {f"{name}_id": _reference(entry, name) for name in ("route", "service", "consumer")}
        known = {"config": {}, **_known(entry, PluginEntity), **owners}
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
        target = Target(_with_port(entry["target"]), entry.get("weight", 100))
        by_id[_reference(entry, "upstream") or ""].targets.append(target)
    return config


def _with_port(target: str) -> str:
    found = hosts.parse(target)
    host = f"[{found.host}]" if found.kind == "ipv6" else found.host
    return f"{host}:{8000 if found.port is None else found.port}"
