"""Lua's tables in Python, as far as Kong's schema language depends on them.

A Lua table is a `dict` or a `list` here (an empty one of either is both), `nil` is an absent key (`MISSING`
where a value is passed on), `ngx.null` is `None`. List indexes count from 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, TypeGuard

MISSING: Final = object()

# An error is a text, or a table of errors by field name or by index from 1.
Error = Any


def is_table(value: object) -> TypeGuard[dict[Any, Any] | list[Any]]:
    return isinstance(value, dict | list)


def items(table: dict[Any, Any] | list[Any]) -> Iterator[tuple[Any, Any]]:
    """Lua's `pairs`."""
    if isinstance(table, list):
        yield from enumerate(table, 1)
    else:
        yield from list(table.items())


def as_dict(table: dict[Any, Any] | list[Any]) -> dict[Any, Any]:
    """A shallow copy with Lua's keys."""
    return dict(items(table))


def sequence(table: object) -> list[Any] | None:
    """The elements if `table` is a sequence (kong/db/schema/init.lua, is_sequence), else None."""
    if isinstance(table, list):
        return table
    if isinstance(table, dict) and all(type(k) is int and 1 <= k <= len(table) for k in table):
        return [table[i] for i in range(1, len(table) + 1)]
    return None


def nonempty(value: object) -> bool:
    """Neither absent, null, an empty table nor the empty string."""
    return not (value is MISSING or value is None or value == "" or (is_table(value) and not value))


def get_path(table: Any, name: str) -> Any:
    """`get_path(t, "x.y")` is `t.x.y`; MISSING where nothing stands."""
    for part in name.split("."):
        if not isinstance(table, dict) or part not in table:
            return MISSING
        table = table[part]
    return table


def set_path(table: dict[Any, Any], name: str, value: Any) -> None:
    *parents, last = name.split(".")
    for part in parents:
        child = table.get(part)
        if not isinstance(child, dict):
            child = table[part] = {}
        table = child
    table[last] = value


def equal(a: object, b: object) -> bool:
    """Lua's `==`: no table equals another, and booleans are no numbers."""
    if is_table(a) or is_table(b):
        return a is b
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def number_text(number: float, precision: int = 14) -> str:
    """Lua's `tostring` of a number."""
    return f"{number:.{precision}g}"


def tostring(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return number_text(value)
    if is_table(value):
        return f"table: 0x{id(value):08x}"
    return str(value)


def whole(number: float) -> int | float:
    """The number as cjson (16 digits) writes it: without a fraction it is an int, from 1e16 on a float."""
    as_float = float(number)
    if as_float == as_float and abs(as_float) < 1e16 and as_float.is_integer():
        return int(as_float)
    return as_float


def is_reference(value: object) -> bool:
    return isinstance(value, str) and len(value) > 10 and value.startswith("{vault://") and value.endswith("}")
