"""Header names and values as the PDK checks them and as `ngx.header` and `ngx.req.set_header` store them.

Sources: kong/pdk/private/checks.lua, ngx_http_lua_headers_out.c, ngx_http_lua_headers_in.c.
"""

from __future__ import annotations

from typing import Any

from minikong.context import Headers
from minikong.luavalue import LuaError, lua_type, tostring

# Names that nginx keeps once, in a field of its own: a new value replaces the old with its spelling, the last of
# several wins, adding is setting (ngx_http_lua_set_handlers without its multi headers).
SINGLE = frozenset(
    b"content-type content-length content-encoding content-range location refresh last-modified etag e-tag server "
    b"date accept-ranges expires".split()
)


def quoted(value: Any) -> str:
    """Lua's "%q" of a value that `fmt` would convert to a string."""
    return '"' + tostring(value).decode("latin-1").replace("\\", "\\\\").replace('"', '\\"') + '"'


def sequence_part(value: list[Any] | dict[Any, Any]) -> list[Any]:
    """What `ipairs` visits."""
    if isinstance(value, list):
        return value
    items: list[Any] = []
    while len(items) + 1 in value:
        items.append(value[len(items) + 1])
    return items


def validate_header(name: Any, value: Any) -> None:
    """Raises LuaError as checks.validate_header does."""
    if not isinstance(name, bytes):
        raise LuaError(f"invalid header name {quoted(name)}: got {lua_type(name)}, expected string")
    if isinstance(value, list | dict):
        for item in sequence_part(value):
            if not isinstance(item, bytes):
                raise LuaError(f"invalid header value in array {quoted(name)}: got {lua_type(item)}, expected string")
    elif not isinstance(value, bytes | bool | int | float):
        raise LuaError(
            f"invalid header value for {quoted(name)}: got {lua_type(value)}, "
            "expected array of string, string, number or boolean"
        )


def validate_headers(headers: Any) -> dict[Any, Any]:
    """Raises LuaError as checks.validate_headers does; gives the table as a dict."""
    if isinstance(headers, list):
        headers = dict(enumerate(headers, 1))
    if not isinstance(headers, dict):
        raise LuaError("headers must be a table")
    for name, value in headers.items():
        if not isinstance(name, bytes):
            raise LuaError(f"invalid header name {quoted(name)}: got {lua_type(name)}, expected string")
        if isinstance(value, list | dict):
            validate_header(name, value)
        elif not isinstance(value, bytes | bool | int | float):
            raise LuaError(
                f"invalid header value for {quoted(name)}: got {lua_type(value)}, "
                "expected string, number, boolean or array of strings"
            )
    return headers


def normalize(value: Any) -> bytes | list[bytes]:
    """checks.normalize_multi_header: an empty value becomes a space."""
    if isinstance(value, list | dict):
        return [item or b" " for item in sequence_part(value)]
    return tostring(value) or b" "


_ESCAPE_VALUE = {i: b"%%%02X" % i for i in (*range(0x20), 0x7F) if i != 0x09}
_SEPARATORS = b'\t "(),/:;<=>?@[\\]{}'
_ESCAPE_NAME = _ESCAPE_VALUE | {i: b"%%%02X" % i for i in (*_SEPARATORS, *range(0x80, 0x100))}


def escape(text: bytes, table: dict[int, bytes]) -> bytes:
    """ngx_lua percent-encodes control characters in header names and values."""
    if not any(b in table for b in text):
        return text
    return b"".join(table.get(b, bytes([b])) for b in text)


def set_response_header(headers: Headers, name: bytes, value: Any, *, add: bool = False) -> None:
    """`ngx.header[name] = value`, or ngx.resp.add_header: value is bytes, a list (empty: removes), or None (removes).

    Raises LuaError for a Content-Length that is no number.
    """
    if not name:  # nginx keeps no such line; a request's has one (`: v`)
        return
    name = escape(name.replace(b"_", b"-"), _ESCAPE_NAME)
    low = name.lower()
    if value is None or value == []:
        if not add:
            headers.remove(name)
        return
    values = value if isinstance(value, list) else [value]
    values = [escape(v, _ESCAPE_VALUE) for v in values]
    if low in SINGLE:
        if low == b"content-length" and not values[-1].isdigit():
            raise LuaError("failed to set header")
        headers.set(name, values[-1])
    elif add:
        headers.lines.extend((name, v) for v in values)
    else:
        _replace(headers, name, values)


def set_request_header(headers: Headers, name: bytes, value: Any) -> None:
    """`ngx.req.set_header(name, value)`: as above, on the request that goes to the service."""
    name = escape(name, _ESCAPE_NAME)
    if value is None or value == []:
        headers.remove(name)
        return
    values = value if isinstance(value, list) else [value]
    _replace(headers, name, [escape(v, _ESCAPE_VALUE) for v in values])


def host_of(value: bytes) -> str:
    """$host of a Host header: lower case, without port and a last dot. Raises LuaError for an invalid one."""
    end, state, dot = len(value), "usual", -2
    for i, char in enumerate(value):
        if char == 0x2E:
            if dot == i - 1:
                raise LuaError("failed to set header")
            dot = i
        elif char in b"\0/":
            raise LuaError("failed to set header")
        elif char == 0x3A and state == "usual":
            end, state = i, "rest"
        elif char == 0x5B and i == 0:
            state = "literal"
        elif char == 0x5D and state == "literal":
            end, state = i + 1, "rest"
    if dot == end - 1:
        end -= 1
    if end == 0:
        raise LuaError("failed to set header")
    return value[:end].decode("latin-1").lower()


def _replace(headers: Headers, name: bytes, values: list[bytes]) -> None:
    """The first line of `name` keeps its place and spelling and gets the first value; the others go to the end."""
    low = name.lower()
    lines = headers.lines
    at = next((i for i, (n, _) in enumerate(lines) if n.lower() == low), None)
    if at is None:
        lines.extend((name, value) for value in values)
        return
    kept = [line for line in lines[at + 1 :] if line[0].lower() != low]
    headers.lines = [*lines[:at], (lines[at][0], values[0]), *kept, *((name, value) for value in values[1:])]
