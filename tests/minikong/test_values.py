"""Lua values: over MessagePack, through JSON, and what LuaJIT itself says about tables with holes."""

from __future__ import annotations

import json
import math
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lupa import luajit21

from minikong import cjson
from minikong.luavalue import NULL, LuaError, Opaque, from_msgpack, pack, pack_map
from minikong.pdk.registry import unpack

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False),
    st.binary(max_size=40),
)
PLUGIN_DATA = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(st.binary(max_size=8), inner, max_size=5)),
    max_leaves=20,
)


def sent_back(value: Any) -> Any:
    """What a plugin gets of a value that it gave to kong.ctx.shared."""
    given = from_msgpack(msgpack.unpackb(msgpack.packb(value), raw=True, strict_map_key=False))
    return msgpack.unpackb(pack(given), raw=True, strict_map_key=False)


@given(PLUGIN_DATA)
def test_what_kong_gives_back_stays_the_same_from_then_on(value: Any) -> None:
    once = sent_back(value)
    assert sent_back(once) == once


@given(st.integers(-(2**53) + 2, 2**53 - 2))
def test_integers_up_to_a_double_stay_integers(value: int) -> None:
    assert type(sent_back(value)) is int
    assert sent_back(float(value)) == value
    assert type(sent_back(float(value))) is int


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (2**53, 9007199254740992.0),
        (2**64 - 1, 1.8446744073709552e19),
        ({}, []),
        ([], []),
        ({1: b"a", 2: b"b"}, [b"a", b"b"]),
        ([1, None, 2], {1: 1, 3: 2}),
        ([1, None], [1]),
        ({b"a": None}, []),
        ({b"a": {b"b": []}}, {b"a": {b"b": []}}),
        (0.5, 0.5),
        (3.0, 3),
    ],
)
def test_how_values_come_back(value: Any, seen: Any) -> None:
    got = sent_back(value)
    assert got == seen
    assert type(got) is type(seen)


@given(st.binary(min_size=32, max_size=300))
def test_strings_never_use_str8(text: bytes) -> None:
    assert pack(text)[0] != 0xD9
    assert pack(text)[0] not in (0xC4, 0xC5, 0xC6)


def test_what_cannot_be_packed() -> None:
    with pytest.raises(LuaError, match="pack 'thread' is unimplemented"):
        pack([Opaque("thread")])
    assert pack(NULL) == b"\xc0"
    assert pack_map({}) == b"\x80"


ARGUMENTS = st.lists(st.sampled_from([None, b"v"]), max_size=12)


@given(ARGUMENTS)
def test_arguments_with_nil_are_cut_where_luajit_cuts_them(arguments: list[bytes | None]) -> None:
    lua = luajit21.LuaRuntime(encoding=None)
    count = lua.eval(
        b"function(n, given) local t = {} for i = 1, n do t[i] = given[i - 1] end return select('#', unpack(t)) end"
    )
    got = unpack(from_msgpack(list(arguments)))
    while got and got[-1] is None:
        got = got[:-1]
    cut = arguments[: count(len(arguments), tuple(arguments))]
    while cut and cut[-1] is None:
        cut.pop()
    assert list(got) == cut


JSON_DATA = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.text(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4), st.dictionaries(st.text(max_size=6), inner, min_size=1, max_size=4)
    ),
    max_leaves=15,
)


@given(JSON_DATA)
def test_json_survives_the_round_trip(value: Any) -> None:
    assert json.loads(cjson.encode(cjson.decode(json.dumps(value).encode()))) == value


@given(JSON_DATA)
def test_the_slow_reader_agrees_with_the_fast_one(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    reader = cjson._Reader(text, False)
    assert reader.value(0) == cjson.decode(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b'"a\nb"', b"a\nb"),
        (b"[0x10]", [16]),
        (b"[01]", [1]),
        (b"1.", 1),
        (b'"\xff\xfe"', b"\xff\xfe"),
        (b'"\\ud83d\\ude00"', "😀".encode()),
        (b"null", NULL),
        (b"[]", {}),
        (b"{}", {}),
        (b"[1e999]", [math.inf]),
        (b" [ 1 , 2 ] ", [1, 2]),
    ],
)
def test_what_lua_cjson_reads(text: bytes, value: Any) -> None:
    assert cjson.decode(text) == value


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[1,]", b"{'a':1}", b'{"a":1}x', b'"\\ud800"', b'"\\udc80"', b'"\\x"', b"tru", b"[" * 5000, b'"\x00"'],
)
def test_what_lua_cjson_refuses(text: bytes) -> None:
    with pytest.raises(ValueError):
        cjson.decode(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, b"{}"),
        ([], b"[]"),
        ({1: b"a", 3: b"c"}, b'["a",null,"c"]'),
        ({0: b"a"}, b'{"0":"a"}'),
        ({1: b"a", b"x": b"b"}, b'{"1":"a","x":"b"}'),
        (b"a/b\x7f\xff", b'"a/b\\u007f\xff"'),
        (0.1, b"0.1"),
        (1e100, b"1e+100"),
    ],
)
def test_what_lua_cjson_writes(value: Any, text: bytes) -> None:
    assert cjson.encode(value) == text


@pytest.mark.parametrize("value", [math.nan, [math.inf], Opaque("function"), {(1, 2): 3}])
def test_what_lua_cjson_cannot_write(value: Any) -> None:
    with pytest.raises(LuaError, match="Cannot serialise"):
        cjson.encode(value)
