"""Lua's values in Python, as they travel over MessagePack-RPC and through lua-cjson.

Lua has one string type (bytes), one number type (double) and one table type. In minikong:

    nil      None                       string   bytes (str where the gateway made it)
    boolean  bool                       number   int or float; whole numbers up to 2^53-2 are int
    table    list (a sequence without holes) or dict (anything else, also an empty table);
             an empty list is a table with lua-cjson's array metatable: `[]` in JSON, not `{}`
    cjson.null  NULL                    function, coroutine, userdata   Opaque

Sources: lua-MessagePack 0.5 (`packers`, `unpackers`), lua-cjson 2.1 (OpenResty), LuaJIT's `tostring`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgpack

MAX_INTEGER = 2**53 - 2  # lua-MessagePack sends larger whole numbers as doubles


class LuaError(Exception):
    """`error()` in Lua: nobody answers the plugin, the phase fails."""

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where


class _Null:
    def __repr__(self) -> str:
        return "NULL"

    def __bool__(self) -> bool:
        return True


NULL = _Null()


@dataclass(frozen=True, slots=True)
class Opaque:
    """A Lua value that has no Python form: `kind` is its Lua type."""

    kind: str
    value: Any = None


def lua_type(value: Any) -> str:
    """Lua's `type(value)`."""
    match value:
        case None:
            return "nil"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case bytes() | str():
            return "string"
        case list() | dict():
            return "table"
        case Opaque():
            return value.kind
    return "userdata"


def falsy(value: Any) -> bool:
    """nil or false; 0 and "" are true in Lua."""
    return value is None or value is False


def number(value: int | float) -> int | float:
    """A double: whole numbers that lua-MessagePack sends as integers become int, all others float."""
    if isinstance(value, int):
        return value if -MAX_INTEGER <= value <= MAX_INTEGER else float(value)
    if value.is_integer() and -MAX_INTEGER <= value <= MAX_INTEGER:
        return int(value)
    return value


def tostring(value: Any) -> bytes:
    """Lua's `tostring` (numbers as "%.14g"; tables and functions with a made-up address)."""
    match value:
        case None:
            return b"nil"
        case bool():
            return b"true" if value else b"false"
        case int() | float():
            return format_number(value, 14)
        case bytes():
            return value
        case str():
            return value.encode("utf-8", "surrogateescape")
        case _Null():
            return b"userdata: NULL"
    return f"{lua_type(value)}: 0x{id(value) & 0xFFFFFFFFFFFF:012x}".encode()


def format_number(value: int | float, precision: int) -> bytes:
    """C's "%.<precision>g"."""
    if value != value:
        return b"nan"
    if value in (float("inf"), float("-inf")):
        return b"inf" if value > 0 else b"-inf"
    return (f"%.{precision}g" % value).encode()


def from_msgpack(value: Any) -> Any:
    """What lua-MessagePack would make of a value that msgpack decoded with raw=True."""
    kind = type(value)
    if kind is bytes or value is None or kind is bool:
        return value
    if kind is int or kind is float:
        return number(value)
    if kind is list:
        return sequence([from_msgpack(item) for item in value])
    if kind is dict:
        table = {number(k) if isinstance(k, float) else k: from_msgpack(v) for k, v in value.items() if k is not None}
        return table_of(table)
    return None  # ext types: lua-MessagePack's build_ext gives nil


class Holey(dict[Any, Any]):
    """A table made by `t[i] = items[i]` for i = 1..`stores`, some of them nil (its `#` depends on that)."""

    stores: int = 0


def sequence(items: list[Any]) -> list[Any] | dict[Any, Any]:
    """The table that `t[i] = items[i]` makes: nil leaves a hole."""
    if None in items:
        holey = Holey({i: item for i, item in enumerate(items, 1) if item is not None})
        holey.stores = len(items)
        while items and items[-1] is None:
            items.pop()
        return holey if None in items or not items else items
    return items or {}


def table_of(table: dict[Any, Any]) -> list[Any] | dict[Any, Any]:
    """A table by its keys: nil values vanish, keys 1..n make a sequence."""
    if None in table.values():
        table = {k: v for k, v in table.items() if v is not None}
    count = len(table)
    if count and 1 in table and all(type(k) is int and 1 <= k <= count for k in table):
        return [table[i] for i in range(1, count + 1)]
    return table


def _to_msgpack(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _to_msgpack(v) for k, v in value.items()} if value else []
    if isinstance(value, list):
        return [_to_msgpack(item) for item in value]
    if type(value) is float:
        return number(value)
    if value is NULL:
        return None
    if isinstance(value, Opaque):
        if value.kind == "function":
            raise BrokenFrame
        raise LuaError(f"pack '{value.kind}' is unimplemented")
    return value


class BrokenFrame(Exception):
    """A Lua function inside the data: lua-MessagePack calls it, and the frame lacks that value."""


_packer = msgpack.Packer(use_bin_type=False, unicode_errors="surrogateescape")
_bin_packer = msgpack.Packer(use_bin_type=True)


def pack(value: Any) -> bytes:
    """One value as lua-MessagePack packs it: strings never as `str 8`, an empty table as an array.

    Raises LuaError for what cannot be packed, BrokenFrame for a function.
    """
    kind = type(value)
    if kind is not bytes and kind is not int and kind is not str:
        try:
            value = _to_msgpack(value)
        except RecursionError:
            raise LuaError("stack overflow") from None
    try:
        packed: bytes = _packer.pack(value)
    except ValueError as error:  # nested deeper than msgpack goes
        raise LuaError(str(error)) from None
    return packed


def pack_binary(value: bytes) -> bytes:
    """A string in MessagePack's bin format (fix_raw in kong/runloop/plugin_servers/rpc/mp_rpc.lua)."""
    packed: bytes = _bin_packer.pack(value)
    return packed


def pack_map(entries: dict[Any, Any]) -> bytes:
    """A table that is a map even if it is empty (mp_empty_map)."""
    return pack(entries) if entries else b"\x80"
