"""Fields of type `json`: their inline JSON Schema, with the error texts of lua-resty-ljsonschema.

Only the keywords below; a Schema with others is refused when it is loaded (`unsupported`).
"""

from __future__ import annotations

from typing import Any

from minikong.schema.tables import is_table, sequence

_KEYWORDS = frozenset(
    {"type", "properties", "required", "items", "enum", "additionalProperties", "title", "description", "$schema"}
)


def validate(value: Any, json_schema: dict[str, Any]) -> str | None:
    """The error of `value` under `json_schema["inline"]`, or None."""
    inline = json_schema.get("inline")
    return None if inline is None else _check(value, inline)


def unsupported(schema: Any) -> str | None:
    """The first keyword that minikong does not know, or None."""
    if not isinstance(schema, dict):
        return None
    for key, value in schema.items():
        if key not in _KEYWORDS:
            return str(key)
        nested = value.values() if key == "properties" else [value] if isinstance(value, dict) else []
        for inner in nested:
            found = unsupported(inner)
            if found:
                return found
    return None


def _type(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, str):
        return "string"
    if is_table(value):
        return "array" if value and sequence(value) is not None else "object" if value else "table"
    return "number"


def _is(value: Any, wanted: str) -> bool:
    found = _type(value)
    if wanted == "integer":
        return found == "number" and float(value).is_integer()
    return found == wanted or (found == "table" and wanted in ("array", "object"))


def _check(value: Any, schema: dict[str, Any]) -> str | None:
    wanted = schema.get("type")
    if isinstance(wanted, str) and not _is(value, wanted):
        return f"wrong type: expected {wanted}, got {_type(value)}"
    if isinstance(wanted, list) and not any(_is(value, w) for w in wanted):
        return f"wrong type: expected one of {', '.join(wanted)}, got {_type(value)}"
    if "enum" in schema and value not in schema["enum"]:
        return "matches none of the enum values"
    if isinstance(value, dict):
        return _check_object(value, schema)
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        for index, element in enumerate(value, 1):
            error = _check(element, schema["items"])
            if error:
                return f"failed to validate item {index}: {error}"
    return None


def _check_object(value: dict[Any, Any], schema: dict[str, Any]) -> str | None:
    properties = schema.get("properties") or {}
    for name, inner in properties.items():
        if name in value:
            error = _check(value[name], inner)
            if error:
                return f"property {name} validation failed: {error}"
    for name in schema.get("required") or []:
        if name not in value:
            return f"property {name} is required"
    extra = schema.get("additionalProperties", True)
    for name in value:
        if name in properties or extra is True:
            continue
        if extra is False:
            return f"additional properties forbidden, found {name}"
        error = _check(value[name], extra)
        if error:
            return f"failed to validate additional property {name}: {error}"
    return None
