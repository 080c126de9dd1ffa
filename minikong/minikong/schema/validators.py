"""The validators that affect one field (kong/db/schema/init.lua, `Schema.validators`), with Kong's texts.

Each takes the value and the argument from the Schema and returns None or the error text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from minikong.schema import lua_pattern, pcre
from minikong.schema.tables import equal, number_text, sequence, tostring

Validator = Callable[[Any, Any], Any]

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)


def quoted_list(words: list[Any]) -> str:
    """`'a', 'b'`; a nested list in parentheses."""
    return ", ".join(f"({quoted_list(w)})" if isinstance(w, list) else f"'{tostring(w)}'" for w in words)


def _whole(number: float) -> str:
    return str(int(number))


def _concat(values: list[Any]) -> str:
    return ", ".join(tostring(v) for v in values)


def _between(value: float, limits: list[float]) -> str | None:
    low, high = limits
    return None if low <= value <= high else f"value should be between {_whole(low)} and {_whole(high)}"


def _eq(value: Any, wanted: Any) -> str | None:
    return None if equal(value, wanted) else f"value must be {tostring(wanted)}"


def _ne(value: Any, wanted: Any) -> str | None:
    return None if not equal(value, wanted) else f"value must not be {tostring(value)}"


def _gt(value: float, limit: float) -> str | None:
    return None if value > limit else f"value must be greater than {number_text(limit)}"


def _length(value: Any) -> int:
    # A map given as a list counts twice in Kong: by `#` and by its pairs. Nobody can tell from outside.
    return len(value.encode(errors="surrogateescape")) if isinstance(value, str) else len(value)


def _len_eq(value: Any, n: int) -> str | None:
    return None if _length(value) == n else f"length must be {_whole(n)}"


def _len_min(value: Any, n: int) -> str | None:
    return None if _length(value) >= n else f"length must be at least {_whole(n)}"


def _len_max(value: Any, n: int) -> str | None:
    return None if _length(value) <= n else f"length must be at most {_whole(n)}"


def _match(value: str, pattern: str) -> str | None:
    return None if lua_pattern.matches(value, pattern) else f"invalid value: {value}"


def _not_match(value: str, pattern: str) -> str | None:
    return f"invalid value: {value}" if lua_pattern.matches(value, pattern) else None


def _match_all(value: str, patterns: list[dict[str, Any]]) -> str | None:
    for entry in patterns:
        if not lua_pattern.matches(value, entry["pattern"]):
            return entry.get("err") or f"invalid value: {value}"
    return None


def _match_none(value: str, patterns: list[dict[str, Any]]) -> str | None:
    for entry in patterns:
        if lua_pattern.matches(value, entry["pattern"]):
            return entry.get("err") or f"invalid value: {value}"
    return None


def _match_any(value: str, arg: dict[str, Any]) -> str | None:
    if any(lua_pattern.matches(value, pattern) for pattern in arg["patterns"]):
        return None
    return arg.get("err") or f"invalid value: {value}"


def _is_regex(value: str, _: Any) -> str | None:
    try:
        pcre.compile(value)
    except re.error:
        return f"not a valid regex: {value}"
    return None


def _starts_with(value: str, expected: str) -> str | None:
    return None if value.startswith(expected) else f"should start with: {expected}"


def _one_of(value: Any, options: list[Any]) -> str | None:
    return None if any(equal(value, o) for o in options) else f"expected one of: {_concat(options)}"


def _not_one_of(value: Any, options: list[Any]) -> str | None:
    return f"must not be one of: {_concat(options)}" if any(equal(value, o) for o in options) else None


def _timestamp(value: float, _: Any) -> str | None:
    return None if value > 0 else "expected a valid timestamp"


def _uuid(value: str, _: Any) -> str | None:
    return None if _UUID.fullmatch(value) else "expected a valid UUID"


def _contains(value: Any, wanted: Any) -> str | None:
    found = any(equal(element, wanted) for element in sequence(value) or [])
    return None if found else f"expected to contain: {tostring(wanted)}"


def _mutually_exclusive_subsets(value: Any, subsets: list[list[str]]) -> str | None:
    members: list[list[str]] = []
    for element in sequence(value) or []:
        for subset in subsets:
            if element in subset and subset not in members:
                members.append(subset)
    return None if len(members) <= 1 else f"these sets are mutually exclusive: {quoted_list(members)}"


def _custom(value: Any, function: Callable[[Any], Any]) -> Any:
    return function(value)


# In Kong's order (`Schema.validators_order`).
VALIDATORS: dict[str, Validator] = {
    "eq": _eq,
    "ne": _ne,
    "not_one_of": _not_one_of,
    "one_of": _one_of,
    "gt": _gt,
    "timestamp": _timestamp,
    "uuid": _uuid,
    "is_regex": _is_regex,
    "between": _between,
    "len_eq": _len_eq,
    "len_min": _len_min,
    "len_max": _len_max,
    "starts_with": _starts_with,
    "not_match": _not_match,
    "match_none": _match_none,
    "match": _match,
    "match_all": _match_all,
    "match_any": _match_any,
    "contains": _contains,
    "custom_validator": _custom,
    "mutually_exclusive_subsets": _mutually_exclusive_subsets,
}
