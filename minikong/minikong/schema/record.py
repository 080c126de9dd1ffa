"""Kong's schema language: what a record may hold, its defaults, and Kong's own error texts.

Follows kong/db/schema/init.lua of Kong 3.9.1. A definition is the JSON of a plugin's `Schema` (or the same
thing written in Python); `fields` is a list of one-entry maps. See `minikong.schema.tables` for nil and null.
"""

from __future__ import annotations

import logging
import math
import random
import string
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from minikong.schema import checks, json_schema
from minikong.schema.tables import (
    MISSING,
    Error,
    as_dict,
    is_reference,
    is_table,
    items,
    sequence,
    tostring,
    whole,
)
from minikong.schema.validators import VALIDATORS

Context = Literal["insert", "select"]
Resolve = Callable[[str], str | None]

REQUIRED = "required field missing"
UNKNOWN = "unknown field"

TYPES = ("json", "number", "map", "function", "array", "record", "foreign", "integer", "boolean", "set", "string")

_log = logging.getLogger("minikong")


class Field:
    """One field definition. `attrs` is the definition itself, so that entity checks can lay one over another."""

    def __init__(self, attrs: dict[str, Any]) -> None:
        self.attrs = attrs
        self.type: str = attrs.get("type", "")
        self.required: bool = bool(attrs.get("required"))

    @cached_property
    def elements(self) -> Field:
        return Field({**self.attrs["elements"], "required": True})

    @cached_property
    def keys(self) -> Field:
        return Field({**self.attrs["keys"], "required": True})

    @cached_property
    def values(self) -> Field:
        return Field({**self.attrs["values"], "required": True})

    @cached_property
    def record(self) -> Record:
        made = self.attrs.get("record")  # a ready Record, for definitions written in Python
        return made if isinstance(made, Record) else Record(self.attrs)

    def validate(self, value: Any) -> Error | None:
        """The error of `value` (None is null), or None."""
        attrs = self.attrs
        if value is None:
            return self._validate_null()
        if "eq" in attrs and attrs["eq"] is None:
            return attrs.get("err") or "value must be null"
        if attrs.get("abstract"):
            return "error in schema definition: abstract field was not specialized"
        self._warn_deprecated(value)
        error = self._validate_type(value)
        if error is not None:
            return None if error is _REFERENCE else error
        for name, validator in VALIDATORS.items():
            argument = attrs.get(name)
            if name == "len_min" and argument is None and self.type == "string":
                argument = 1  # empty strings are not accepted unless the Schema says so
            if argument is not None:
                error = validator(value, argument)
                if error is not None:
                    return attrs.get("err") or error
        return None

    def _validate_null(self) -> Error | None:
        attrs = self.attrs
        if "ne" in attrs and attrs["ne"] is None:
            return attrs.get("err") or "value must not be null"
        if attrs.get("eq") is not None:
            return f"value must be {tostring(attrs['eq'])}"
        return REQUIRED if self.required else None

    def _warn_deprecated(self, value: Any) -> None:
        deprecation = self.attrs.get("deprecation")
        if deprecation and ("old_default" not in deprecation or deprecation["old_default"] != value):
            _log.warning("%s (deprecated after %s)", deprecation["message"], deprecation["removal_in_version"])

    def _validate_type(self, value: Any) -> Error | None:
        match self.type:
            case "string":
                if not isinstance(value, str):
                    return "expected a string"
                return _REFERENCE if self.attrs.get("referenceable") and is_reference(value) else None
            case "integer":
                return None if _is_number(value) and _is_integral(value) else "expected an integer"
            case "number":
                return None if _is_number(value) else "expected a number"
            case "boolean":
                return None if isinstance(value, bool) else "expected a boolean"
            case "array" | "set":
                return self._validate_elements(value)
            case "map":
                return self._validate_map(value)
            case "record":
                if not is_table(value):
                    return "expected a record"
                try:
                    filled = self.record.process(value, "insert")
                except InvalidShorthand as invalid:
                    return invalid.errors
                return self.record.validate(filled)
            case "foreign":
                return self._validate_foreign(value)
            case "function":
                return None if callable(value) else "expected a function"
            case "any":
                return None
            case "json":
                return "expected a json"
        return f"invalid type: {self.type or 'nil'}"

    def _validate_elements(self, value: Any) -> Error | None:
        elements = sequence(value)
        if elements is None:
            return f"expected {'an array' if self.type == 'array' else 'a set'}"
        errors = {i: e for i, v in enumerate(elements, 1) if (e := self.elements.validate(v)) is not None}
        return errors or None

    def _validate_map(self, value: Any) -> Error | None:
        if not is_table(value):
            return "expected a map"
        for key, entry in items(value):
            for field, part in ((self.keys, key), (self.values, entry)):
                error = field.validate(part)
                if error is not None:
                    return error
        return None

    def _validate_foreign(self, value: Any) -> Error | None:
        identifier = value.get("id") if isinstance(value, dict) else None
        if identifier is None:
            return {"id": "missing primary key"}
        error = Field({"type": "string", "uuid": True}).validate(identifier)
        return None if error is None else {"id": error}


_REFERENCE: Any = object()  # the value is a vault reference: no validator applies


class InvalidShorthand(Exception):
    """A shorthand field (such as a service's `url`) of the wrong type."""

    def __init__(self, errors: dict[str, Error]) -> None:
        super().__init__(errors)
        self.errors = errors


@dataclass(frozen=True, slots=True)
class Shorthand:
    """A field that stands for others: `expand` gives them."""

    name: str
    field: Field
    expand: Callable[[Any], dict[str, Any] | None]


@dataclass(frozen=True)
class _Fields:
    """A record's fields as its checks see them: a condition is a field, too."""

    find: Callable[[str], Field | None]

    def over(self, name: str, attrs: dict[str, Any]) -> Field:
        base = self.find(name)
        return Field({**(base.attrs if base else {}), **attrs})


class Record:
    """A set of fields with checks over several of them; `subschemas` specialise it by the value of one field."""

    def __init__(self, definition: dict[str, Any]) -> None:
        self.definition = definition
        self.name: str = definition.get("name", "")
        self.fields: list[tuple[str, Field]] = [
            (name, Field(attrs)) for entry in definition.get("fields") or [] for name, attrs in entry.items()
        ]
        self.by_name: dict[str, Field] = dict(self.fields)
        self.entity_checks: list[dict[str, Any]] = definition.get("entity_checks") or []
        self.shorthands: list[Shorthand] = definition.get("shorthands") or []
        self.subschema_key: str | None = definition.get("subschema_key")
        self.subschema_error: str = definition.get("subschema_error", "unknown type: {}")
        self.subschemas: dict[str, Record] = definition.get("subschemas") or {}
        self.check: Callable[[dict[Any, Any]], dict[str, Error]] | None = definition.get("check")

    def field(self, path: str) -> Field | None:
        """The field at "x" or "x.y"."""
        head, _, rest = path.partition(".")
        found = self.by_name.get(head)
        if not rest or found is None:
            return found
        return found.record.field(rest) if "fields" in found.attrs or "record" in found.attrs else None

    def subschema(self, values: dict[Any, Any]) -> Record | None:
        if self.subschema_key is None:
            return None
        key = values.get(self.subschema_key)
        if isinstance(key, str):
            return self.subschemas.get(key)
        names = (name for name in sequence(key) or [] if isinstance(name, str) and name in self.subschemas)
        return next((self.subschemas[name] for name in names), None)

    def each_field(self, values: dict[Any, Any]) -> Iterator[tuple[str, Field]]:
        """The fields, specialised by the subschema that `values` choose."""
        special = self.subschema(values)
        for name, field in self.fields:
            yield name, (special.by_name.get(name, field) if special else field)

    # -- validation

    def validate(self, given: dict[Any, Any] | list[Any]) -> dict[Any, Error] | None:
        """All errors of a record whose defaults are filled in, by field name and "@entity"; None if there are none."""
        values = as_dict(given)
        if self.subschema_key is not None:
            key = values.get(self.subschema_key)
            if key is None:
                return {self.subschema_key: REQUIRED}
            if self.subschema(values) is None:
                named = key if isinstance(key, str) else next(iter(sequence(key) or []), "nil")
                return {self.subschema_key: self.subschema_error.format(tostring(named))}
        errors = self._field_errors(values)
        for name, field in self.fields:
            if field.required and values.get(name) is None:
                errors[name] = REQUIRED
        self._entity_errors(values, errors)
        return errors or None

    def _field_errors(self, values: dict[Any, Any]) -> dict[Any, Error]:
        errors: dict[Any, Error] = {}
        special = self.subschema(values)
        for key, value in values.items():
            name = str(key)
            field = self.by_name.get(name)
            if special is not None:
                field = special.by_name.get(name, field) if field else None
            if field is not None and field.type == "json":
                error: Error | None = json_schema.validate(value, field.attrs.get("json_schema") or {})
            elif field is not None and field.type == "self":
                error = _validate_default(values, value)
            elif name == "updated_at":
                continue
            else:
                error = UNKNOWN if field is None else field.validate(value)
            if error is not None:
                errors[key] = error
        return errors

    def _entity_errors(self, values: dict[Any, Any], errors: dict[Any, Error]) -> None:
        checks.run(self.entity_checks, values, errors, _Fields(self.field))
        special = self.subschema(values)
        if special is not None:
            both = _Fields(lambda path: special.field(path) or self.field(path))
            checks.run(special.entity_checks, values, errors, both)
        if self.check is not None:
            errors.update(self.check(values))

    # -- defaults and automatic values

    def process(
        self, given: dict[Any, Any] | list[Any], context: Context, resolve: Resolve | None = None
    ) -> dict[Any, Any]:
        """A copy with shorthands expanded and defaults filled ("insert"), or as a plugin sees it ("select").

        In "select" nulls, unknown keys and empty strings go, and vault references become their values
        (`resolve` gives None for one that it cannot resolve: the empty string).

        Raises:
            InvalidShorthand: a shorthand field of the wrong type.
        """
        values = as_dict(given)
        if context == "insert":
            self._expand_shorthands(values)
        references: dict[str, Any] = {}
        for name, field in list(self.each_field(values)):
            value = values.get(name, MISSING)
            if context == "insert" and field.attrs.get("auto"):
                value = _automatic(name, field, value)
            value = _adjust(field, value, context, resolve)
            if context == "select":
                value = _selected(name, field, value, resolve, references)
            if value is MISSING:
                values.pop(name, None)
            else:
                values[name] = value
        if context == "select":
            for key in [k for k in values if k not in self.by_name]:
                del values[key]
            for name, field in self.by_name.items():
                empty = field.type == "string" and values.get(name) == "" and field.attrs.get("len_min", 1) > 0
                if empty and name not in references:
                    del values[name]
            if references:
                values["$refs"] = references
        return values

    def _expand_shorthands(self, values: dict[Any, Any]) -> None:
        errors: dict[str, Error] = {}
        for shorthand in self.shorthands:
            value = values.get(shorthand.name, MISSING)
            if value is MISSING:
                continue
            error = shorthand.field.validate(value)
            if error is not None:
                errors[shorthand.name] = error
                continue
            del values[shorthand.name]
            values.update(shorthand.expand(value) or {})
        if errors:
            raise InvalidShorthand(errors)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integral(value: float) -> bool:
    return math.isfinite(value) and float(value).is_integer()


def _validate_default(definition: dict[Any, Any], value: Any) -> Error | None:
    """A `default` must itself be a valid value of the field that declares it."""
    try:
        return Field(definition).validate(value)
    except (TypeError, KeyError, ValueError, AttributeError):
        return "error in schema prevents from validating this field"


def _automatic(name: str, field: Field, value: Any) -> Any:
    if field.attrs.get("uuid"):
        return str(uuid.uuid4()) if value is MISSING else value
    if field.type == "string":
        letters = string.ascii_letters + string.digits
        return "".join(random.SystemRandom().choices(letters, k=32)) if value is MISSING else value
    if (name == "created_at" and (value is MISSING or value is None)) or name == "updated_at":
        return round(time.time(), 3) if field.type == "number" else int(time.time())
    return value


def _default(field: Field) -> Any:
    """What stands in for a missing value (`handle_missing_field`)."""
    if "default" in field.attrs:
        return _copy(field.attrs["default"])
    if field.attrs.get("nilable"):
        return MISSING
    if not field.required:
        return None
    if field.type == "record" and not field.attrs.get("abstract"):
        return field.record.process({}, "insert")
    return MISSING


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list) else value


def _adjust(field: Field, value: Any, context: Context, resolve: Resolve | None) -> Any:
    if context == "select" and value is None and field.required:
        return _default(field)
    if field.attrs.get("abstract"):
        return value
    if field.type == "record":
        if value is MISSING and field.required:
            value = _default(field)
        if is_table(value):
            return field.record.process(value, context, resolve)
    elif is_table(value):
        value = _adjust_container(field, value, context, resolve)
    return _default(field) if value is MISSING else value


def _adjust_container(field: Field, value: Any, context: Context, resolve: Resolve | None) -> Any:
    if field.type == "map":
        return {k: _adjust(field.values, v, context, resolve) for k, v in items(value)}
    if field.type not in ("array", "set"):
        return value
    elements = sequence(value)
    if elements is None:
        return value  # not a sequence: validation says so
    if field.type == "set":
        elements = _without_duplicates(elements)
    return [_adjust(field.elements, v, context, resolve) for v in elements]


def _without_duplicates(elements: list[Any]) -> list[Any]:
    kept: list[Any] = []
    for element in elements:
        if is_table(element) or not any(type(k) is type(element) and k == element for k in kept):
            kept.append(element)
    return kept


def _selected(name: str, field: Field, value: Any, resolve: Resolve | None, references: dict[str, Any]) -> Any:
    if value is None:
        return MISSING
    if field.type == "integer" and _is_number(value):
        return whole(math.floor(value))
    if resolve is None or value is MISSING:
        return value
    if field.type == "string":
        if field.attrs.get("referenceable") and is_reference(value):
            references[name] = value
            return resolve(value) or ""
    elif field.type in ("array", "set", "map") and is_table(value):
        inner = field.values if field.type == "map" else field.elements
        if inner.type == "string" and inner.attrs.get("referenceable"):
            found = {k: v for k, v in items(value) if is_reference(v)}
            if found:
                references[name] = found
            resolved = {k: (resolve(v) or "") if is_reference(v) else v for k, v in items(value)}
            return resolved if field.type == "map" else list(resolved.values())
    return value
