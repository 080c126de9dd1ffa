"""JSON as lua-cjson 2.1 (OpenResty) reads and writes it; values as in `minikong.luavalue`.

Reading differs from RFC 8259: raw control characters may stand in strings, numbers are C's strtod ("0x10",
"nan", "01"), a surrogate must have its pair, bytes need not be UTF-8.
"""

from __future__ import annotations

import json
import re
from typing import Any

from minikong.luavalue import NULL, LuaError, format_number, lua_type, number

MAX_DEPTH = 1000

_ESCAPES = {i: f"\\u{i:04x}".encode() for i in range(32)}
_ESCAPES |= {8: b"\\b", 9: b"\\t", 10: b"\\n", 12: b"\\f", 13: b"\\r", 34: b'\\"', 92: b"\\\\", 127: b"\\u007f"}
_MUST_ESCAPE = re.compile(rb'[\x00-\x1f"\\\x7f]')


def _string(value: bytes) -> bytes:
    return b'"' + _MUST_ESCAPE.sub(lambda m: _ESCAPES[m[0][0]], value) + b'"'


def _sequence_length(table: dict[Any, Any]) -> int:
    """lua-cjson's lua_array_length: the highest key if all are positive whole numbers, else -1.

    Raises LuaError for a sparse array (more than half of it holes, and beyond Kong's limit of 2^15).
    """
    longest = 0
    for key in table:
        if type(key) is not int or key <= 0:
            return -1
        longest = max(longest, key)
    if longest > len(table) * 2 and longest > 2**15:
        raise LuaError("Cannot serialise table: excessively sparse array")
    return longest if table else -1


def encode(value: Any, precision: int = 16, depth: int = 0) -> bytes:
    """As Kong sets lua-cjson up: precision 16 in the PDK, 14 for a plain `require "cjson"`.

    Raises LuaError with lua-cjson's text for NaN, infinity, unknown types and bad keys.
    """
    kind = type(value)
    if kind is bytes:
        return _string(value)
    if kind is str:
        return _string(value.encode("utf-8", "surrogateescape"))
    if value is None or value is NULL:
        return b"null"
    if kind is bool:
        return b"true" if value else b"false"
    if kind is int or kind is float:
        if value != value or value in (float("inf"), float("-inf")):
            raise LuaError("Cannot serialise number: must not be NaN or Infinity")
        return format_number(value, precision)
    if depth > MAX_DEPTH:
        raise LuaError("Cannot serialise, excessive depth (1001)")
    if isinstance(value, list):
        return b"[" + b",".join([encode(item, precision, depth + 1) for item in value]) + b"]"
    if isinstance(value, dict):
        return _table(value, precision, depth)
    raise LuaError(f"Cannot serialise {lua_type(value)}: type not supported")


def _table(table: dict[Any, Any], precision: int, depth: int) -> bytes:
    length = _sequence_length(table)
    if length > 0:
        return b"[" + b",".join([encode(table.get(i), precision, depth + 1) for i in range(1, length + 1)]) + b"]"
    entries = []
    for key, item in table.items():
        if isinstance(key, bool) or not isinstance(key, int | float | bytes | str):
            raise LuaError("Cannot serialise table: table key must be a number or string")
        name = format_number(key, precision) if isinstance(key, int | float) else key
        if isinstance(name, str):
            name = name.encode("utf-8", "surrogateescape")
        entries.append(_string(name) + b":" + encode(item, precision, depth + 1))
    return b"{" + b",".join(entries) + b"}"


_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def decode(text: bytes, *, array_mt: bool = False) -> Any:
    """The value of a JSON text. Raises ValueError for what lua-cjson refuses.

    Args:
        array_mt: an empty array stays one (Kong's `decode_with_array_mt`), instead of an empty table.
    """
    if not _SURROGATE.search(text):
        try:
            return _converted(json.loads(text.decode("utf-8", "surrogateescape")), array_mt)
        except (ValueError, RecursionError):
            pass  # lua-cjson may still take it
    reader = _Reader(text, array_mt)
    try:
        value = reader.value(0)
    except RecursionError:
        raise ValueError("Found too many nested data structures (1001)") from None
    reader.skip()
    if reader.at != len(text):
        raise ValueError(f"Expected the end but found something at character {reader.at + 1}")
    return value


def _converted(value: Any, array_mt: bool) -> Any:
    kind = type(value)
    if kind is str:
        return value.encode("utf-8", "surrogateescape")
    if kind is dict:
        return {k.encode("utf-8", "surrogateescape"): _converted(v, array_mt) for k, v in value.items()}
    if kind is list:
        if not value:
            return [] if array_mt else {}
        return [_converted(item, array_mt) for item in value]
    if value is None:
        return NULL
    return value if kind is bool else number(value)


_WORDS = {b"true": True, b"false": False, b"null": NULL}
_WORD = re.compile(rb"true|false|null")
_NUMBER = re.compile(
    rb"[-+]?(?:0[xX][0-9a-fA-F]+(?:\.[0-9a-fA-F]*)?(?:[pP][-+]?\d+)?|\d+\.?\d*(?:[eE][-+]?\d+)?|(?i:infinity|inf|nan))"
)
_PLAIN = re.compile(rb'[^"\\\x00]+')
_SIMPLE_ESCAPES = {34: b'"', 92: b"\\", 47: b"/", 98: b"\b", 102: b"\f", 110: b"\n", 114: b"\r", 116: b"\t"}


class _Reader:
    """A recursive-descent reader for what Python's json does not read the same way."""

    def __init__(self, text: bytes, array_mt: bool) -> None:
        self.text = text
        self.at = 0
        self.array_mt = array_mt

    def skip(self) -> None:
        while self.text[self.at : self.at + 1] in (b" ", b"\t", b"\n", b"\r") and self.at < len(self.text):
            self.at += 1

    def _peek(self) -> bytes:
        self.skip()
        return self.text[self.at : self.at + 1]

    def _error(self, wanted: str) -> ValueError:
        found = "T_END" if self.at >= len(self.text) else "invalid token"
        return ValueError(f"Expected {wanted} but found {found} at character {self.at + 1}")

    def value(self, depth: int) -> Any:
        first = self._peek()
        if first == b'"':
            return self._string()
        if first in (b"{", b"["):
            if depth >= MAX_DEPTH or depth > 900:
                raise ValueError("Found too many nested data structures (1001)")
            return self._object(depth) if first == b"{" else self._array(depth)
        word = _WORD.match(self.text, self.at)
        if word:
            self.at = word.end()
            return _WORDS[word[0]]
        found = _NUMBER.match(self.text, self.at)
        if found and first != b"+":
            self.at = found.end()
            return _strtod(found[0])
        raise self._error("value")

    def _object(self, depth: int) -> dict[bytes, Any]:
        self.at += 1
        table: dict[bytes, Any] = {}
        if self._peek() == b"}":
            self.at += 1
            return table
        while True:
            if self._peek() != b'"':
                raise self._error("object key string")
            key = self._string()
            if self._peek() != b":":
                raise self._error("colon")
            self.at += 1
            table[key] = self.value(depth + 1)
            if not self._more(b"}"):
                return table

    def _array(self, depth: int) -> Any:
        self.at += 1
        if self._peek() == b"]":
            self.at += 1
            return [] if self.array_mt else {}
        items = []
        while True:
            items.append(self.value(depth + 1))
            if not self._more(b"]"):
                return items

    def _more(self, end: bytes) -> bool:
        token = self._peek()
        self.at += 1
        if token == b",":
            return True
        if token != end:
            self.at -= 1
            raise self._error("comma or end")
        return False

    def _string(self) -> bytes:
        self.at += 1
        out = []
        while True:
            plain = _PLAIN.match(self.text, self.at)
            if plain:
                out.append(plain[0])
                self.at = plain.end()
            mark = self.text[self.at : self.at + 1]
            if mark == b'"':
                self.at += 1
                return b"".join(out)
            if mark != b"\\" or self.at + 1 >= len(self.text):
                raise self._error("string end")
            escape = self.text[self.at + 1]
            if escape == 0x75:
                out.append(self._unicode())
            elif escape in _SIMPLE_ESCAPES:
                out.append(_SIMPLE_ESCAPES[escape])
                self.at += 2
            else:
                raise self._error("escape code")

    def _hex(self) -> int:
        digits = self.text[self.at + 2 : self.at + 6]
        if self.text[self.at : self.at + 2] != b"\\u" or not re.fullmatch(rb"[0-9a-fA-F]{4}", digits):
            raise self._error("unicode escape code")
        self.at += 6
        return int(digits, 16)

    def _unicode(self) -> bytes:
        code = self._hex()
        if 0xDC00 <= code <= 0xDFFF:
            raise self._error("unicode escape code")
        if 0xD800 <= code <= 0xDBFF:
            low = self._hex()
            if not 0xDC00 <= low <= 0xDFFF:
                raise self._error("unicode escape code")
            code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
        return chr(code).encode()


def _strtod(text: bytes) -> int | float:
    word = text.decode().lower()
    if "x" in word:
        return number(float.fromhex(word))
    return number(float(word))
