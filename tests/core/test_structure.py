"""How many values a body may have."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_contract.structure import MAX_PARTS, too_many_parts

HOSTILE = {
    "lists": b'{"a":[' + b"[]," * 3_000_000 + b"[]]}",
    "objects": b'{"a":[' + b"{}," * 3_000_000 + b"{}]}",
    "numbers": b'{"a":[' + b"1," * 4_000_000 + b"1]}",
    "texts": b'{"a":[' + b'"",' * 3_000_000 + b'""]}',
    "members": b"{" + b",".join(b'"%d":1' % n for n in range(MAX_PARTS)) + b"}",
    "texts without anything between": b'""' * 4_000_000,
    "behind an escape": b'{"a":"\\\\","b":[' + b"[]," * MAX_PARTS + b"1]}",
}
HARMLESS = {
    "a table": json.dumps({"prompt": "1,2,[3],{4}\n" * 700_000}).encode(),
    "quoted quotes": json.dumps({"prompt": '"a","b",' * 500_000}).encode(),
    "backslashes": json.dumps({"prompt": "\\" * 4_000_000}).encode(),
    "short": b"[" * MAX_PARTS,
    # No JSON, which the parser says; each quote tried anew would take hours.
    "a text that does not end": b'"' + b'\\",' * 2_000_000,
    "an escape that does not end": b'{"a' + b"," * 4_000_000 + b"\\",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_takes_long_to_parse_is_refused_before(name: str) -> None:
    assert too_many_parts(HOSTILE[name])


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_long_is_not_thereby_large(name: str) -> None:
    assert not too_many_parts(HARMLESS[name])


def _parts(value: Any) -> int:
    match value:
        case dict():
            return 1 + len(value) + max(len(value) - 1, 0) + sum(map(_parts, value.values()))
        case list():
            return 1 + max(len(value) - 1, 0) + sum(map(_parts, value))
        case str():
            return 1
        case _:
            return 0


JSON = st.recursive(
    st.none() | st.integers() | st.text('"\\[{,: a\n'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('"\\[{,:'), inner),
    max_leaves=20,
)


@given(JSON, st.sampled_from([None, 1]))
def test_it_counts_what_there_is(value: Any, indent: int | None) -> None:
    body, parts = json.dumps(value, indent=indent).encode(), _parts(value)
    assert not too_many_parts(body, parts)
    if parts:
        assert too_many_parts(body, parts - 1)
