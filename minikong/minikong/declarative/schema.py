"""The schema of declarative configs for a set of plugins (kong/db/schema/others/declarative_config.lua)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minikong.schema import core, metaschema
from minikong.schema.record import Record


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
