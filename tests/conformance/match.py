"""The value encoding of the golden data and the comparison that its README prescribes."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

_PLACEHOLDER = {"request_id": "[0-9a-f]{32}", "int": r"\d+"}


def match(got: Any, want: Any) -> bool:
    """Whether `got` (in the value encoding) is what was recorded."""
    if isinstance(want, dict):
        if "$volatile" in want:
            return type(got) is type(want["$volatile"]) or isinstance(got, (int, float))
        if "$json_string" in want:
            try:
                return match(json.loads(got), want["$json_string"])
            except (TypeError, ValueError):
                return False
        return isinstance(got, dict) and got.keys() == want.keys() and all(match(got[k], want[k]) for k in want)
    if isinstance(want, list):
        return isinstance(got, list) and len(got) == len(want) and all(map(match, got, want))
    if isinstance(want, str) and "{{" in want:
        pattern = re.sub(r"\\\{\\\{(\w+)(:\d+)?\\\}\\\}", lambda m: _PLACEHOLDER.get(m[1], ".+?"), re.escape(want))
        return isinstance(got, str) and re.fullmatch(pattern, got, re.S) is not None
    return got == want and type(got) is type(want)


def difference(got: Any, want: Any, path: str = "") -> str | None:
    """Where the first difference lies, for a reader; None if there is none."""
    if match(got, want):
        return None
    special = isinstance(want, dict) and any(k.startswith("$") for k in want)
    if isinstance(want, dict) and isinstance(got, dict) and not special:
        for key in want.keys() | got.keys():
            if key not in got:
                return f"{path}.{key}: missing, want {_short(want[key])}"
            if key not in want:
                return f"{path}.{key}: not wanted, got {_short(got[key])}"
            found = difference(got[key], want[key], f"{path}.{key}")
            if found:
                return found
    if isinstance(want, list) and isinstance(got, list):
        for index, (g, w) in enumerate(zip(got, want, strict=False)):
            found = difference(g, w, f"{path}[{index}]")
            if found:
                return found
    return f"{path}: got {_short(got)}, want {_short(want)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) < 1500 else text[:1500] + "…"


def encode(value: Any) -> Any:
    """A decoded MessagePack value (strings as `Text` or str, bytes as bin) in the value encoding."""
    if isinstance(value, bytes):
        try:
            return {"$bin": value.decode()}
        except UnicodeDecodeError:
            return {"$bin_b64": base64.b64encode(value).decode()}
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return {"$str_b64": base64.b64encode(value.encode(errors="surrogateescape")).decode()}
        return value
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return {"$float": repr(value)}
    if isinstance(value, list | tuple):
        return [encode(v) for v in value]
    if isinstance(value, dict):
        if all(isinstance(k, str) for k in value):
            return {encode(k): encode(v) for k, v in value.items()}
        return {"$map": [[encode(k), encode(v)] for k, v in value.items()]}
    return value


def decode(value: Any) -> Any:
    """The value to send for one in the value encoding; strings become str (surrogateescape), bin becomes bytes."""
    if isinstance(value, list):
        return [decode(v) for v in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        kind, inner = next(iter(value.items()))
        match kind:
            case "$bin":
                return inner.encode()
            case "$bin_b64":
                return base64.b64decode(inner)
            case "$str_b64":
                return base64.b64decode(inner).decode(errors="surrogateescape")
            case "$str_rep":
                return inner[0] * inner[1]
            case "$bin_rep":
                return inner[0].encode() * inner[1]
            case "$map":
                return {decode(k): decode(v) for k, v in inner}
            case "$float":
                return float(inner)
            case "$json_string":
                return json.dumps(inner)
            case "$volatile":
                return decode(inner)
    return {k: decode(v) for k, v in value.items()}


def expand(value: Any) -> Any:
    """The recorded `$str_rep` and `$bin_rep` written out, so that they compare with `encode`d values."""
    if isinstance(value, dict):
        if "$str_rep" in value:
            return value["$str_rep"][0] * value["$str_rep"][1]
        if "$bin_rep" in value:
            return {"$bin": value["$bin_rep"][0] * value["$bin_rep"][1]}
        return {k: expand(v) for k, v in value.items()}
    return [expand(v) for v in value] if isinstance(value, list) else value
