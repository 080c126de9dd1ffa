"""multipart/form-data as lua-multipart 0.5.9 reads it (`multipart(body, type):get_all_with_arrays()`)."""

from __future__ import annotations

import re

_BOUNDARY = re.compile(rb"""boundary=("?)([^;"]+)\1""", re.IGNORECASE)
_NAME = re.compile(rb'name="([^"]*)"', re.IGNORECASE)


def decode_multipart(body: bytes, content_type: bytes) -> dict[bytes, object]:
    """Part name -> value, or a list of values for a repeated name; an empty table without a boundary."""
    found = _BOUNDARY.search(content_type)
    parts: dict[bytes, object] = {}
    if found is None:
        return parts
    marker = b"--" + found[2]
    name: bytes | None = None
    in_headers = False
    value: list[bytes] = []

    def finish() -> None:
        if name is None:
            return
        text = b"\r\n".join(value)
        held = parts.get(name)
        if held is None:
            parts[name] = text
        elif isinstance(held, list):
            held.append(text)
        else:
            parts[name] = [held, text]

    for line in body.split(b"\r\n"):
        if line.startswith(marker):
            finish()
            name, in_headers, value = None, True, []
        elif in_headers and line == b"":
            in_headers = False
        elif in_headers:
            if line.lower().startswith(b"content-disposition:"):
                field = _NAME.search(line)
                name = field[1] if field else None
        else:
            value.append(line)
    return parts
