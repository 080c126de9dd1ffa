"""multipart/form-data as lua-multipart 0.5.9 reads it (`multipart(body, type):get_all_with_arrays()`).

It goes line by line and is lenient: bare CR or LF end lines too, a part may lack its end, a header without
a value ends the headers. All that is kept.
"""

from __future__ import annotations

import re

_BOUNDARY = re.compile(rb";[ \t\r\n\v\f]*boundary=([^ \t\r\n\v\f]+)")
_LINE_END = re.compile(rb"[\r\n]")
_HEADER = re.compile(rb"[^ \t\r\n\v\f]:[ \t\r\n\v\f]*[^ \t\r\n\v\f]")
_NAME = re.compile(rb"[ \t\r\n\v\f]*[Nn][Aa][Mm][Ee]=[ \t\r\n\v\f]*([^=]*)")


def decode_multipart(body: bytes, content_type: bytes) -> dict[bytes, object]:
    """Part name -> value, or a list of values for a repeated name; an empty table without a boundary."""
    boundary = _boundary(content_type)
    if boundary is None:
        return {}
    values: dict[bytes, list[bytes]] = {}
    for name, value, closed in _parts(body, boundary):
        if closed:
            values.setdefault(name, []).append(value)
        else:
            values[name] = [value]
    return {name: held[0] if len(held) == 1 else held for name, held in values.items()}


def _boundary(content_type: bytes) -> bytes | None:
    found = _BOUNDARY.search(content_type)
    if found is None:
        return None
    boundary = found[1]
    if len(boundary) > 1 and boundary[:1] == boundary[-1:] and boundary[:1] in (b'"', b"'"):
        boundary = boundary[1:-1]
    return boundary or None


def _parts(body: bytes, boundary: bytes) -> list[tuple[bytes, bytes, bool]]:
    """(name, value, whether its end was seen) of each part that has a name."""
    parts: list[tuple[bytes, bytes, bool]] = []
    name: bytes | None = None
    value: list[bytes] = []
    in_value = False
    position = 0
    marker = b"--" + boundary
    while True:
        found = _LINE_END.search(body, position)
        end = found.start() if found else len(body)
        line = body[position:end]
        position = end + 1
        if not line:
            if found and in_value:
                value.append(found[0])
        elif line.startswith(marker):
            in_value = False
            if name is not None:
                if value and value[-1] == b"\n":
                    value.pop()
                    if value and value[-1] == b"\r":
                        value.pop()
                elif len(value) > 1 and value[-2] == b"\r":
                    del value[-2]
                parts.append((name, b"".join(value), True))
                name, value = None, []
        elif not in_value and (line[:19].lower() == b"content-disposition" or _HEADER.search(line)):
            if line[:19].lower() == b"content-disposition":
                name = _part_name(line, name)
            if found and body[end : end + 4] == b"\r\n\r\n":
                in_value = True
                position = end + 4
        else:
            in_value = True
            value.append(line)
            if found:
                value.append(found[0])
        if not found:
            break
    if name is not None:
        parts.append((name, b"".join(value), False))
    return parts


def _part_name(line: bytes, name: bytes | None) -> bytes | None:
    for field in line.split(b";"):
        if field and not _HEADER.search(field):
            found = _NAME.match(field)
            if found:
                name = found[1].rstrip(b" \t\r\n\v\f")[1:-1]
    return name
