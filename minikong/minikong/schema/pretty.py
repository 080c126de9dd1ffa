"""Lua tables as text, the way Penlight's pl.pretty.write prints them in Kong's error messages."""

from __future__ import annotations

import re
from typing import Any

from minikong.schema.tables import as_dict, is_table, tostring

_KEYWORDS = frozenset(
    {"and", "break", "do", "else", "elseif", "end", "false", "for", "function", "goto", "if", "in"}
    | {"local", "nil", "not", "or", "repeat", "return", "then", "true", "until", "while"}
)
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LONG_BRACKET = re.compile(r"([\[\]])(=*)\1")


def write(table: Any, space: str = "  ") -> str:
    """`pl.pretty.write(table, space)`: one line if `space` is empty, else one entry a line."""
    if not is_table(table):
        return _scalar(table)
    return _write(table, space, "")


def _write(table: Any, space: str, indent: str) -> str:
    entries = as_dict(table)
    inner = indent + space
    rows: list[str] = []
    position = 1
    while position in entries:
        rows.append(_value(entries[position], space, inner))
        position += 1
    names = sorted(k for k in entries if isinstance(k, str))
    holes = [k for k in entries if not isinstance(k, str) and not 1 <= k < position]
    equals = " = " if space else "="
    for key in [*names, *holes]:
        rows.append(_key(key) + equals + _value(entries[key], space, inner))
    if not rows:
        return "{\n" + indent + "}" if space else "{}"
    if not space:
        return "{" + ",".join(rows) + "}"
    return "{\n" + ",\n".join(inner + row for row in rows) + "\n" + indent + "}"


def _value(value: Any, space: str, indent: str) -> str:
    return _write(value, space, indent) if is_table(value) else _scalar(value)


def _scalar(value: Any) -> str:
    return _quote(value) if isinstance(value, str) else tostring(value)


def _key(key: Any) -> str:
    if not isinstance(key, str):
        return f"[{tostring(key)}]"
    if _IDENTIFIER.fullmatch(key) and key not in _KEYWORDS:
        return key
    return f"[{_quote(key)}]"


def _quote(text: str) -> str:
    levels = [len(m[2]) for m in _LONG_BRACKET.finditer(text + "]")]
    if ("\n" in text or levels) and "\r" not in text:
        equals = "=" * (max(levels, default=-1) + 1)
        return f"[{equals}[" + ("\n" if text.startswith("\n") else "") + f"{text}]{equals}]"
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\\n").replace("\0", "\\0")
    return '"' + escaped.replace("\r", "\\r") + '"'
