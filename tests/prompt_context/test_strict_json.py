from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_contract.nesting import MAX_DEPTH, too_deep
from claude_contract.structure import MAX_PARTS
from kong_claude.strict_json import JSONError, parse_object, rewrite

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=25,
)
OBJECTS = st.dictionaries(TEXT, JSON, max_size=6)

REFUSED = {
    "empty": b"",
    "blank": b"  ",
    "not json": b"prompt=hi",
    "truncated": b'{"a":1',
    "trailing": b'{"a":1} x',
    "two documents": b'{"a":1}{"a":2}',
    "trailing comma": b'{"a":1,}',
    "single quotes": b"{'a':1}",
    "comment": b'{"a":1}//x',
    "array": b"[1]",
    "string": b'"a"',
    "null": b"null",
    "NaN": b'{"a":NaN}',
    "Infinity": b'{"a":Infinity}',
    "-Infinity": b'{"a":-Infinity}',
    "leading zero": b'{"a":01}',
    "plus": b'{"a":+1}',
    "hexadecimal": b'{"a":0x1}',
    "invalid UTF-8": b'{"a":"\xff"}',
    "overlong UTF-8": b'{"a":"\xc0\xaf"}',
    "UTF-8 surrogate": b'{"a":"\xed\xa0\x80"}',
    "byte order mark": b'\xef\xbb\xbf{"a":1}',
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "lone high surrogate": b'{"a":"\\ud800"}',
    "lone low surrogate": b'{"a":"\\udc00"}',
    "swapped surrogates": b'{"a":"\\udc00\\ud800"}',
    "lone surrogate in key": b'{"\\ud800":1}',
    "raw newline in string": b'{"a":"\n"}',
    "NUL in string": b'{"a":"\x00"}',
    "duplicate": b'{"a":1,"a":2}',
    "same duplicate": b'{"a":1,"a":1}',
    "escaped duplicate": b'{"a":1,"\\u0061":2}',
    "nested duplicate": b'{"x":[{"y":{"b":1,"c":2,"b":3}}]}',
    "duplicate of strings": b'{"a":"x","a":"y"}',
    "duplicate beside quotes": b'{"a":"\\"\\\\","a":"\\\\\\""}',
    "empty duplicate key": b'{"":1,"":2}',
    "duplicate object value": b'{"a":{},"a":{"b":[1,2]}}',
    "depth 300": b'{"a":' + b"[" * 300 + b"]" * 300 + b"}",
    "depth 100000": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "one level too deep": b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}",
    "objects deep": b'{"a":' * 2000 + b"1" + b"}" * 2000,
    "too many arrays": b'{"a":[' + b"[]," * (MAX_PARTS // 2) + b"1]}",
    "too many numbers": b'{"a":[' + b"1," * MAX_PARTS + b"1]}",
    "too many members": b"{" + b",".join(b'"%d":1' % n for n in range(MAX_PARTS // 2 + 1)) + b"}",
}


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED.keys())
def test_refuses(raw: bytes) -> None:
    with pytest.raises(JSONError) as refused:
        parse_object(raw)
    assert len(str(refused.value)) < 80


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("empty", "the body is empty: it must be a JSON object"),
        ("blank", "the body is not valid JSON (line 1, column 2)"),
        ("truncated", "the body is not valid JSON (line 1, column 6)"),
        ("array", "the body must be a JSON object"),
        ("duplicate", "the body has duplicate keys"),
        ("depth 300", "the body is nested more than 64 levels deep"),
        ("one level too deep", "the body is nested more than 64 levels deep"),
        ("invalid UTF-8", "the body is not UTF-8"),
        ("lone high surrogate", "a text in the body has half of a surrogate pair, as of an emoji that was cut"),
    ],
)
def test_what_is_wrong_is_said(name: str, said: str) -> None:
    with pytest.raises(JSONError) as refused:
        parse_object(REFUSED[name])
    assert str(refused.value) == said


@pytest.mark.parametrize(
    "raw",
    [b"{}", b' \r\n\t{ "a" : 1 } ', b'{"a":"\\ud83d\\ude00"}', '{"a":"😀 é"}'.encode(), b'{"a":{"a":{"a":1}}}'],
)
def test_accepts(raw: bytes) -> None:
    assert parse_object(raw) == json.loads(raw)


def test_accepts_a_long_text_and_as_many_values_as_it_says() -> None:
    raw = b'{"a":["%s",%s1]}' % (b"a, [1]: " * MAX_PARTS, b"1," * (MAX_PARTS - 5))
    assert parse_object(raw) == json.loads(raw)
    with pytest.raises(JSONError, match="too many values"):
        parse_object(raw.replace(b",1]", b",1,1]"))


def test_accepts_as_many_levels_as_it_says() -> None:
    raw = b'{"a":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b',"brackets":"%s"}' % (b"[" * 1000)
    assert parse_object(raw) == json.loads(raw)


@given(st.integers(1, 300), st.booleans())
def test_a_document_is_too_deep_exactly_above_the_bound(levels: int, objects: bool) -> None:
    document: Any = {} if objects else []
    for _ in range(levels - 1):
        document = {"a": 1, "b": document} if objects else [0, document]
    assert too_deep(document) is (levels > MAX_DEPTH)


@given(OBJECTS, st.sampled_from([None, 2]), st.booleans())
def test_accepts_whatever_json_writes(document: dict[str, Any], indent: int | None, ascii_only: bool) -> None:
    raw = json.dumps(document, indent=indent, ensure_ascii=ascii_only).encode()
    assert parse_object(raw).keys() == document.keys()


@given(OBJECTS.filter(bool), st.data())
def test_finds_any_duplicate(document: dict[str, Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(document)))
    spelt = "".join(f"\\u{ord(c):04x}" if ord(c) < 0x10000 else json.dumps(c)[1:-1] for c in name)
    raw = json.dumps(document)[:-1] + f',"{spelt}":{json.dumps(data.draw(JSON))}}}'
    with pytest.raises(JSONError, match="duplicate"):
        parse_object(raw.encode())


def test_large_texts_may_hold_any_punctuation() -> None:
    text = '{"a": [1, 2]},' * 50_000
    assert parse_object(json.dumps({"prompt": text}).encode()) == {"prompt": text}


@given(OBJECTS, TEXT, JSON)
def test_rewrite_keeps_everything_else(document: dict[str, Any], name: str, value: Any) -> None:
    raw = json.dumps(document, indent=1).encode()
    changed = json.loads(rewrite(raw, lambda old: {**old, name: value}))
    assert changed == {**document, name: value}


def test_rewrite_keeps_the_bytes_of_untouched_members() -> None:
    raw = b'{ "n" : 123456789012345678901234567890, "f":1.10e+2 , "z":-0.0,"e":0.1000000000000000055511151231257827, "u":"\\u00e9\\/"}'
    changed = rewrite(raw, lambda old: {**old, "system": "x"})
    assert changed == (
        b'{"n" : 123456789012345678901234567890,"f":1.10e+2,"z":-0.0,'
        b'"e":0.1000000000000000055511151231257827,"u":"\\u00e9\\/","system":"x"}'
    )


def test_rewrite_never_writes_infinities() -> None:
    """1e999 is JSON, but no double: its digits pass where they stand, and it is refused where it would be rewritten."""
    raw = b'{"n":1e999,"context":{"n":1}}'
    assert b'"n":1e999,' in rewrite(raw, lambda old: {**old, "context": {}})
    with pytest.raises(JSONError):
        rewrite(b'{"context":{"n":1e999}}', lambda old: {"context": {**old["context"]}})


def test_rewrite_keeps_big_integers_in_members_written_anew() -> None:
    raw = b'{"context":{"n":123456789012345678901234567890}}'
    assert rewrite(raw, lambda old: {"context": {**old["context"], "a": "b"}}) == (
        b'{"context":{"n":123456789012345678901234567890,"a":"b"}}'
    )
