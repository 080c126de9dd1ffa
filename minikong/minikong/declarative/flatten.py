"""From a parsed tree to flat collections: validation, ids, references (declarative_config.lua, `flatten`)."""

from __future__ import annotations

import copy
import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from minikong.declarative.errors import DeclarativeError, Errors, Unnamed
from minikong.declarative.schema import Schema
from minikong.entities import derived_id
from minikong.schema import core
from minikong.schema.tables import is_table, items, sequence, tostring

Tree = dict[Any, Any]


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


class Flattener:
    """Raises DeclarativeError for what Kong refuses."""

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
        _generate_ids(tree, int(time.time()))
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


def _generate_ids(tree: Tree, now: int, parent: str | None = None) -> None:
    """Ids for the entries that have none, and one time of creation for all: routes are sorted by it."""
    for entity, child_key, entries in _nested(tree, parent):
        for item in entries:
            if "id" not in item:
                key = _id_key(entity, item, _parent_id(tree, parent), child_key)
                if key is not None:
                    item["id"] = derived_id(entity.name, key)
            item.setdefault("created_at", now)
            _generate_ids(item, now, entity.name)


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
                    own = Unnamed(item["id"]) if unique and key is None else key or item["id"] or at
                    expected.append(_Expected(name, reference, field_name, item[field_name], own))
            if child_key:
                item[child_key] = {"id": tree["id"]}


def _null_errors(errors: dict[Any, Any] | list[Any]) -> Errors:
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
