"""URIs as Kong and nginx see them: normalising, escaping, query strings.

Sources: kong/tools/uri.lua; ngx_lua's ngx_http_lua_args.c (`decode_args`, `encode_args`).
"""

from __future__ import annotations

import re
from typing import Any

from minikong.luavalue import LuaError, format_number, lua_type

_RESERVED = frozenset(b"!*'();:@&=+$,/?%#[]")
_TRIPLET = re.compile(rb"%([0-9A-Fa-f]{2})")
_UNSAFE = re.compile(rb"[^!#$&'()*+,/:;=?@\[\]A-Za-z0-9\-_.~%]")
_COMPONENT = re.compile(rb"[^A-Za-z0-9\-_.~!'()*]")


def _decode_triplet(match: re.Match[bytes]) -> bytes:
    byte = int(match[1], 16)
    return match[0].upper() if byte in _RESERVED else bytes([byte])


def normalize(path: bytes, merge_slashes: bool = False) -> bytes:
    """Percent-decodes all but reserved characters, removes dot segments, optionally merges slashes."""
    if path in (b"", b"/"):
        return path
    if b"%" in path:
        path = _TRIPLET.sub(_decode_triplet, path)
    if b"." not in path and not (merge_slashes and b"//" in path):
        return path
    segments: list[bytes] = []
    while path:
        if path == b"/.":
            path = b"/"
        elif path == b"/..":
            path = b"/"
            segments = segments[:-1]
        elif path in (b".", b".."):
            path = b""
        elif path.startswith(b"../"):
            path = path[3:]
        elif path.startswith(b"./") or path.startswith(b"/./"):
            path = path[2:]
        elif path.startswith(b"/../"):
            path = path[3:]
            segments = segments[:-1]
        elif merge_slashes and path.startswith(b"//"):
            path = path[1:]
        else:
            end = path.find(b"/", 1)
            end = len(path) if end < 0 else end
            segments.append(path[:end])
            path = path[end:]
    return b"".join(segments)


def escape(path: bytes) -> bytes:
    """Percent-encodes what is not safe in a request line; keeps reserved characters and `%`."""
    return _UNSAFE.sub(lambda m: b"%%%02X" % m[0][0], path)


def escape_component(text: bytes) -> bytes:
    return _COMPONENT.sub(lambda m: b"%%%02X" % m[0][0], text)


def unescape(text: bytes) -> bytes:
    """Percent-decoding with `+` as a space; broken triplets stay."""
    return _TRIPLET.sub(lambda m: bytes([int(m[1], 16)]), text.replace(b"+", b" "))


Args = dict[bytes, Any]  # value: bytes, True (no "="), or a list of them


def decode_args(query: bytes, max_args: int = 100) -> Args:
    """`ngx.decode_args`: a repeated name makes a list; at most `max_args` pairs (0: all)."""
    args: Args = {}
    count = 0
    for pair in query.split(b"&"):
        name, equals, value = pair.partition(b"=")
        name = unescape(name)
        if not name:
            continue
        item: bytes | bool = unescape(value) if equals else True
        if name not in args:
            args[name] = item
        elif isinstance(args[name], list):
            args[name].append(item)
        else:
            args[name] = [args[name], item]
        count += 1
        if count == max_args:
            break
    return args


def encode_arg(name: bytes, value: Any) -> bytes:
    """`ngx.encode_args` of one entry. Raises LuaError for a value it cannot take."""
    key = escape_component(name)
    values = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else [value]
    parts = []
    for item in values:
        if item is True:
            parts.append(key)
        elif item is False:
            continue
        elif isinstance(item, bytes):
            parts.append(key + b"=" + escape_component(item))
        elif isinstance(item, int | float):
            parts.append(key + b"=" + escape_component(format_number(item, 14)))
        else:
            raise LuaError("attempt to use " + lua_type(item) + " as query arg value")
    return b"&".join(parts)


def encode_sorted_args(args: Any) -> bytes:
    """make_ordered_args of kong/pdk/service/request.lua: each entry encoded, the results sorted.

    Raises LuaError("arg keys must be strings") and what `encode_arg` raises.
    """
    if isinstance(args, list):
        raise LuaError("arg keys must be strings")
    encoded = []
    for name, value in args.items():
        if not isinstance(name, bytes):
            raise LuaError("arg keys must be strings")
        encoded.append(encode_arg(name, value))
    return b"&".join(sorted(encoded))
