"""Configurations: dataclasses whose fields say what Kong checks, what Kong's users read, and what an instance gets.

    @dataclass(frozen=True, slots=True)
    class Config:
        minute: int | None = integer("Requests in any minute.", gt=0)

`fields(Config)` is its schema in Kong's dialect, `read(Config, …)` the object that a plugin instance is made from. A
default stands in the field alone, so that what Kong fills in and what the object has cannot differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from claude_contract.errors import ConfigError

Field = dict[str, dict[str, Any]]
"""One field in Kong's dialect: its name → its rules."""

Convert = Callable[[Any, str], Any]
"""(value, path of the field) → the typed value, or None where it counts as absent. Raises ConfigError."""

C = TypeVar("C")


def boolean(what: str, *, default: bool | None = None) -> Any:
    """A bool. Absent without a default: False."""
    return _field("boolean", what, _boolean, False, default)


def optional_boolean(what: str) -> Any:
    """A bool. Absent: None."""
    return _field("boolean", what, _boolean, None, None)


def integer(what: str, *, default: int | None = None, **rules: Any) -> Any:
    """An int. Absent without a default: None."""
    return _field("integer", what, _integer, None, default, **rules)


def number(what: str, *, default: float | None = None, **rules: Any) -> Any:
    """An int or a float, as it was given. Absent without a default: None."""
    return _field("number", what, _number, None, default, **rules)


def string(what: str, *, default: str | None = None, **rules: Any) -> Any:
    """A str. Absent without a default: None, which "" is too.

    Except where the field is `referenceable`: there "" is what Kong makes of a vault reference that it cannot resolve,
    and no reason to do without.
    """
    return _field("string", what, _reference if rules.get("referenceable") else _string, None, default, **rules)


def choice(what: str, choices: tuple[str, ...], *, default: str | None = None) -> Any:
    """A str, one of `choices`. Absent without a default: None."""
    return string(what, default=default, one_of=list(choices))


def strings(
    what: str, *, kind: str = "array", default: tuple[str, ...] | None = None, absent: Any = (), **rules: Any
) -> Any:
    """A tuple of str. `kind`: Kong's `array` or `set`; `elements`: rules for each. Without a default: `absent`."""
    elements = {"type": "string", **rules.pop("elements", {})}
    return _field(
        kind, what, _each(_reference), absent, None if default is None else list(default), elements=elements, **rules
    )


def records(what: str, of: type, *, checks: list[dict[str, Any]] | None = None, **rules: Any) -> Any:
    """A tuple of `of`. Absent: ()."""
    elements = _record(of) | ({"entity_checks": checks} if checks else {})
    return _field("array", what, _each(_reader(of)), (), None, elements=elements, **rules)


def mapping(what: str, of: type, *, keys: dict[str, Any]) -> Any:
    """Name → `of`. Absent: no names."""

    def convert(value: Any, path: str) -> Mapping[str, Any]:
        each = _reader(of)
        return {
            str(name): each({} if one is None else one, f"{path}.{name}") for name, one in _map(value, path).items()
        }

    named = {"type": "string", **keys}
    return _field("map", what, convert, None, None, factory=dict, keys=named, values=_record(of))


def record(what: str, of: type) -> Any:
    """An `of`, or None where it is absent.

    Never `required`: Kong would make `{}` of an absent one, and its presence alone switches something on.
    """
    return _field("record", what, _reader(of), None, None, fields=fields(of))


def given() -> Any:
    """A str that Kong adds to each configuration by itself, such as `route_id`: no field of the schema. Absent: ""."""
    return dataclasses.field(default="", metadata={"convert": _string})


def fields(of: type) -> list[Field]:
    """The schema of a configuration, in the order of its fields."""
    return [{f.name: f.metadata["kong"]} for f in dataclasses.fields(of) if "kong" in f.metadata]


def read(of: type[C], config: Mapping[str, Any], path: str = "") -> C:
    """The configuration that Kong hands over, typed. Raises ConfigError where a value is of another kind.

    Kong leaves absent fields out or has null for them, makes whole floats of some integers, and has [] for {} and the
    reverse, which are one in Lua.
    """
    found: dict[str, Any] = {}
    for field in dataclasses.fields(of):  # type: ignore[arg-type]  # C is one of the dataclasses of this module's fields
        name, value = field.name, config.get(field.name)
        if value is not None:
            typed = field.metadata["convert"](value, f"{path}.{name}" if path else name)
            if typed is not None:
                found[name] = typed
    return of(**found)


def _field(
    kind: str,
    what: str,
    convert: Convert,
    absent: Any,
    default: Any,
    *,
    factory: Callable[[], Any] | None = None,
    required: bool = False,
    **rules: Any,
) -> Any:
    kong = {"type": kind, "required": required, **rules, "description": what}
    if default is not None:
        kong["default"] = default
        absent = convert(default, "")
    metadata = {"kong": kong, "convert": convert}
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=absent, metadata=metadata)


def _record(of: type) -> dict[str, Any]:
    return {"type": "record", "fields": fields(of)}


def _reader(of: type) -> Convert:
    return lambda value, path: read(of, _map(value, path), path)


def _each(convert: Convert) -> Convert:
    def converted(value: Any, path: str) -> tuple[Any, ...]:
        if isinstance(value, Mapping) and not value:
            return ()
        if not isinstance(value, list | tuple):
            raise ConfigError(path, "must be a list")
        return tuple(convert(one, f"{path}[{number}]") for number, one in enumerate(value, 1))

    return converted


def _map(value: Any, path: str) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    if isinstance(value, list) and not value:
        return {}
    raise ConfigError(path, "must be a map of names to values")


def _boolean(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(path, "must be true or false")
    return value


def _integer(value: Any, path: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value % 1:
        raise ConfigError(path, "must be a whole number")
    return int(value)


def _number(value: Any, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(path, "must be a number")
    return value


def _reference(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(path, "must be a text")
    return value


def _string(value: Any, path: str) -> str | None:
    return _reference(value, path) or None
