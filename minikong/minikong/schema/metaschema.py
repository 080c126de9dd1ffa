"""The schema of plugin Schemas: what makes Kong refuse to start (kong/db/schema/metaschema.lua)."""

from __future__ import annotations

from typing import Any

from minikong.schema import json_schema, pretty
from minikong.schema.record import TYPES, Field, Record
from minikong.schema.tables import Error, as_dict, is_table, sequence

Definition = dict[str, Any]


class BadSchema(Exception):
    """A plugin Schema that Kong would not start with; the text is Kong's."""


def _list(element: Definition, **more: Any) -> Definition:
    return {"type": "array", "elements": element, **more}


_STRING: Definition = {"type": "string"}
_ANY: Definition = {"type": "any"}
_STRINGS = _list(_STRING)
_MATCH_LIST = _list({"type": "record", "fields": [{"pattern": {"type": "string", "required": True}}, {"err": _STRING}]})
_MATCH_ANY: Definition = {
    "type": "record",
    "fields": [{"patterns": _list(_STRING, required=True)}, {"err": _STRING}],
}
_VALIDATORS: dict[str, Definition] = {
    "between": _list({"type": "number"}, len_eq=2),
    "eq": _ANY,
    "ne": _ANY,
    "gt": {"type": "number"},
    "len_eq": {"type": "integer"},
    "len_min": {"type": "integer"},
    "len_max": {"type": "integer"},
    "match": _STRING,
    "not_match": _STRING,
    "match_all": _MATCH_LIST,
    "match_none": _MATCH_LIST,
    "match_any": _MATCH_ANY,
    "starts_with": _STRING,
    "one_of": _list(_ANY),
    "not_one_of": _list(_ANY),
    "contains": _ANY,
    "is_regex": {"type": "boolean"},
    "timestamp": {"type": "boolean"},
    "uuid": {"type": "boolean"},
    "custom_validator": {"type": "function"},
    "mutually_exclusive_subsets": _list(_STRINGS),
}
_BOOLEAN: Definition = {"type": "boolean"}
_DEPRECATION: Definition = {
    "type": "record",
    "fields": [
        {"message": {"type": "string", "required": True}},
        {"removal_in_version": {"type": "string", "required": True}},
        {"old_default": {"type": "any", "required": False}},
        {
            "replaced_with": _list(
                {
                    "type": "record",
                    "required": False,
                    "fields": [
                        {"path": _list(_STRING, len_min=1, required=True)},
                        {"reverse_mapping_function": {"type": "function", "required": False}},
                    ],
                },
                required=False,
            )
        },
    ],
}
_JSON_SCHEMA: Definition = {
    "type": "record",
    "fields": [
        {"namespace": {"type": "string", "one_of": ["proxy-wasm-filters"]}},
        {"parent_subschema_key": _STRING},
        {"optional": _BOOLEAN},
        {"inline": _ANY},
        {"default": _ANY},
    ],
    "entity_checks": [
        {"at_least_one_of": ["inline", "namespace", "parent_subschema_key"]},
        {"mutually_required": ["namespace", "parent_subschema_key"]},
    ],
}


def _nilable(fields: dict[str, Definition]) -> list[Definition]:
    return [{name: {**attrs, "nilable": not attrs.get("required")}} for name, attrs in fields.items()]


# The recursion (elements, keys, values, fields) is closed by appending to the list after it is made.
_FIELD: list[Definition] = _nilable(
    {
        "type": {"type": "string", "one_of": list(TYPES), "required": True},
        "required": _BOOLEAN,
        "reference": _STRING,
        "description": {"type": "string", "len_min": 10, "len_max": 500},
        "examples": _list(_ANY),
        "auto": _BOOLEAN,
        "unique": _BOOLEAN,
        "unique_across_ws": _BOOLEAN,
        "on_delete": {"type": "string", "one_of": ["restrict", "cascade", "null"]},
        "default": {"type": "self"},
        "abstract": _BOOLEAN,
        "generate_admin_api": _BOOLEAN,
        "immutable": _BOOLEAN,
        "err": _STRING,
        "encrypted": _BOOLEAN,
        "referenceable": _BOOLEAN,
        "json_schema": _JSON_SCHEMA,
        "transient": _BOOLEAN,
        "deprecation": _DEPRECATION,
        **_VALIDATORS,
    }
)
_FIELD_CHECKS = [
    {
        "conditional": {
            "if_field": "unique_across_ws",
            "if_match": {"eq": True},
            "then_field": "unique",
            "then_match": {"eq": True, "required": True},
        }
    }
]
_FIELDS = _list(
    {
        "type": "map",
        "keys": _STRING,
        "values": {"type": "record", "fields": _FIELD, "entity_checks": _FIELD_CHECKS},
        "required": True,
        "len_eq": 1,
    }
)
_NESTED: Definition = {"type": "record", "fields": _FIELD}
_CONDITION: Definition = {
    "type": "record",
    "fields": [
        {"required": _BOOLEAN},
        *({name: _NESTED} for name in ("elements", "keys", "values")),
        *({name: attrs} for name, attrs in _VALIDATORS.items()),
    ],
}
# pairs() of Kong's table of checkers, in the order that its error text has.
_CHECK_NAMES = [
    "mutually_required",
    "mutually_exclusive",
    "at_least_one_of",
    "distinct",
    "conditional_at_least_one_of",
    "conditional",
    "only_one_of",
    "custom_entity_check",
    "mutually_exclusive_sets",
]
_CHECKS: Definition = _list(
    {
        "type": "record",
        "fields": [
            {"at_least_one_of": _STRINGS},
            {
                "conditional_at_least_one_of": {
                    "type": "record",
                    "fields": [
                        {"if_field": _STRING},
                        {"if_match": _CONDITION},
                        {"then_at_least_one_of": _STRINGS},
                        {"then_err": _STRING},
                        {"else_match": _CONDITION},
                        {"else_then_at_least_one_of": _STRINGS},
                        {"else_then_err": _STRING},
                    ],
                }
            },
            {"only_one_of": _STRINGS},
            {"distinct": _STRINGS},
            {
                "conditional": {
                    "type": "record",
                    "fields": [
                        {"if_field": _STRING},
                        {"if_match": _CONDITION},
                        {"then_field": _STRING},
                        {"then_match": _CONDITION},
                        {"then_err": _STRING},
                    ],
                }
            },
            {
                "custom_entity_check": {
                    "type": "record",
                    "fields": [
                        {"field_sources": _STRINGS},
                        {"fn": {"type": "function"}},
                        {"run_with_missing_fields": _BOOLEAN},
                        {"run_with_invalid_fields": _BOOLEAN},
                    ],
                }
            },
            {"mutually_required": _STRINGS},
            {"mutually_exclusive": _STRINGS},
            {"mutually_exclusive_sets": {"type": "record", "fields": [{"set1": _STRINGS}, {"set2": _STRINGS}]}},
        ],
        "entity_checks": [{"only_one_of": _CHECK_NAMES}],
    },
    nilable=True,
)
_SHORTHANDS = _list(
    {
        "type": "map",
        "keys": _STRING,
        "values": {"type": "record", "fields": [*_FIELD, {"func": {"type": "function", "required": True}}]},
        "required": True,
        "len_eq": 1,
    },
    nilable=True,
)
_FIELD += [
    *({name: {**_NESTED, "nilable": True}} for name in ("elements", "keys", "values")),
    {"fields": {**_FIELDS, "nilable": True}},
    {"entity_checks": _CHECKS},
    {"shorthand_fields": _SHORTHANDS},
]
_TRANSFORMATIONS = _list(
    {
        "type": "record",
        "fields": [
            {"input": _list(_STRING, required=False)},
            {"needs": _list(_STRING, required=False)},
            {"on_write": {"type": "function", "required": False}},
            {"on_read": {"type": "function", "required": False}},
        ],
        "entity_checks": [{"at_least_one_of": ["on_write", "on_read"]}],
    },
    nilable=True,
)

_REQUIRED_ATTRIBUTES = {
    "array": ("elements",),
    "set": ("elements",),
    "map": ("keys", "values"),
    "record": ("fields",),
    "json": ("json_schema",),
}
_UNIQUE = frozenset({"string", "number", "integer", "foreign"})
_ATTRIBUTE_TYPES: dict[str, frozenset[str]] = {
    "between": frozenset({"integer", "number"}),
    "len_eq": frozenset({"array", "set", "string", "map"}),
    "match": frozenset({"string"}),
    "one_of": frozenset({"string", "number", "integer"}),
    "contains": frozenset({"array", "set"}),
    "is_regex": frozenset({"string"}),
    "timestamp": frozenset({"number", "integer"}),
    "uuid": frozenset({"string"}),
    "unique": _UNIQUE,
    "unique_across_ws": _UNIQUE,
    "abstract": frozenset({"string", "number", "integer", "record", "array", "set", "map"}),
    "json_schema": frozenset({"json"}),
    "transient": frozenset({"string", "number", "integer", "array", "set", "boolean"}),
}


def _check_fields(schema: Any, errors: dict[Any, Error]) -> dict[Any, Error]:
    for entry in sequence(schema.get("fields")) or []:
        if not is_table(entry):
            errors["fields"] = "each entry in fields must be a sub-table"
            break
        name, field = next(iter(as_dict(entry).items()), (None, None))
        if name is None:
            errors["fields"] = "field entry table is empty"
            break
        if is_table(field):
            _check_field(name, as_dict(field), errors)
        else:
            errors[name] = f"'{name}' must be a table"
    return errors


def _check_field(name: Any, field: dict[Any, Any], errors: dict[Any, Error]) -> None:
    kind = field.get("type")
    if not kind:
        errors[name] = "missing type declaration"
        return
    if not (kind == "record" and field.get("abstract")):
        for attribute in _REQUIRED_ATTRIBUTES.get(kind, ()):
            if attribute not in field:
                errors[name] = f"field of type '{kind}' must declare '{attribute}'"
    for attribute in field:
        allowed = _ATTRIBUTE_TYPES.get(attribute)
        if allowed is not None and kind not in allowed:
            errors[name] = f"field of type '{kind}' cannot have attribute '{attribute}'"
    for attribute in ("elements", "keys", "values"):
        if attribute in field:
            if is_table(field[attribute]):
                _check_field(name, as_dict(field[attribute]), errors)
            else:
                errors[name] = f"'{attribute}' must be a table"
    if "fields" in field:
        _check_fields(field, errors)


def _check_subschema(schema: dict[Any, Any]) -> dict[Any, Error]:
    missing = {n: "field required for entity check" for n in ("name", "fields") if n not in schema}
    return missing or _check_fields(schema, {})


_META_SUBSCHEMA = Record(
    {
        "name": "metasubschema",
        "fields": [
            {"name": {"type": "string", "required": True}},
            {"fields": _FIELDS},
            {"entity_checks": _CHECKS},
            {"shorthand_fields": _SHORTHANDS},
            {"transformations": _TRANSFORMATIONS},
            {"check": {"type": "function", "nilable": True}},
        ],
        "check": _check_subschema,
    }
)


def schema_violation(errors: dict[Any, Error]) -> str:
    """Kong's one-line summary of errors (kong/db/errors.lua, schema_violation)."""
    found = [str(text) for text in as_dict(errors.get("@entity") or {}).values()]
    for name in sorted((k for k in errors if k != "@entity"), key=str):
        error = errors[name]
        if is_table(error):
            for inner in sorted(as_dict(error), key=str):
                value = as_dict(error)[inner]
                found.append(f"{name}.{inner}: {pretty.write(value) if is_table(value) else value}")
        else:
            found.append(f"{name}: {error}")
    if len(found) == 1:
        return f"schema violation ({found[0]})"
    return f"{len(found)} schema violations ({'; '.join(found)})"


def plugin_schema(name: str, definition: Any, parent: Record) -> Record:
    """The Record of a plugin's `Schema`, which specialises the plugins entity `parent`.

    Raises:
        BadSchema: what Kong prints when it does not start because of it.
    """
    if not is_table(definition):
        raise BadSchema(f"no configuration schema found for plugin: {name}")
    errors = _META_SUBSCHEMA.validate(definition)
    if errors:
        raise BadSchema(f"on plugin '{name}': [off] {schema_violation(errors)}")
    record = Record(_records_required(as_dict(definition), top=True))
    for field_name, field in record.fields:
        inherited = parent.by_name.get(field_name)
        problem = None
        if inherited is None:
            problem = "cannot create a new field"
        elif not _compatible(inherited, field):
            problem = "cannot change type in a specialized field"
        if problem:
            raise BadSchema(
                f"on plugin '{name}': error initializing schema for plugin: "
                f"error in definition of '{name}': {field_name}: {problem}"
            )
    keyword = _unsupported_json(as_dict(definition))
    if keyword:
        raise BadSchema(f"on plugin '{name}': minikong does not know the JSON Schema keyword '{keyword}'")
    return record


def _records_required(definition: dict[str, Any], *, top: bool = False) -> dict[str, Any]:
    """Records are required unless they say otherwise (kong/db/schema/entity.lua)."""
    made = dict(definition)
    if not top:
        made.setdefault("required", True)
    made["fields"] = [
        {n: (_records_required(f) if f.get("type") == "record" else f) for n, f in as_dict(entry).items()}
        for entry in sequence(definition.get("fields")) or []
    ]
    return made


def _compatible(parent: Field, field: Field) -> bool:
    if parent.type == "record" and field.type == "json":
        return True
    if parent.type != field.type:
        return False
    if parent.type in ("array", "set"):
        return parent.elements.type == field.elements.type
    return parent.type != "map" or (parent.keys.type == field.keys.type and parent.values.type == field.values.type)


def _unsupported_json(definition: Any) -> str | None:
    if isinstance(definition, list):
        return next((k for d in definition if (k := _unsupported_json(d))), None)
    if not isinstance(definition, dict):
        return None
    if definition.get("type") == "json":
        return json_schema.unsupported((definition.get("json_schema") or {}).get("inline"))
    return next((k for d in definition.values() if (k := _unsupported_json(d))), None)
