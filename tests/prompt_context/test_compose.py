from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_contract.claims import Additions
from claude_contract.compose import ShapeError, apply, check_shape, sets
from tests.prompt_context.test_strict_json import JSON, TEXT

OURS = Additions("P ", " A", {"repository": "org/app", "branch": None})
BLOCK = {"type": "text", "text": "Be brief."}

TABLE: list[tuple[str, dict[str, Any], dict[str, Any], str, dict[str, Any]]] = [
    ("string", {"system": "S"}, {"prepend": "P ", "append": " A"}, "invoke", {"system": "P S A"}),
    ("absent", {}, {"prepend": "P ", "append": " A"}, "invoke", {"system": "P  A"}),
    ("null", {"system": None}, {"prepend": "P"}, "invoke", {"system": "P"}),
    ("empty", {"system": ""}, {"prepend": "P"}, "messages", {"system": "P"}),
    (
        "blocks",
        {"system": [BLOCK]},
        {"prepend": "P", "append": "A"},
        "messages",
        {"system": [{"type": "text", "text": "P"}, BLOCK, {"type": "text", "text": "A"}]},
    ),
    (
        "only append",
        {"system": [BLOCK]},
        {"append": "A"},
        "messages",
        {"system": [BLOCK, {"type": "text", "text": "A"}]},
    ),
    ("nothing", {"system": 5, "a": 1}, {}, "invoke", {"system": 5, "a": 1}),
    ("context", {}, {"context": {"r": "x"}}, "invoke", {"context": {"r": "x"}}),
    (
        "context merged",
        {"context": {"a": 1, "r": "evil"}},
        {"context": {"r": "x"}},
        "invoke",
        {"context": {"a": 1, "r": "x"}},
    ),
    ("context taken away", {"context": {"r": "evil"}}, {"context": {"r": None}}, "invoke", {"context": {}}),
    ("context not invented", {}, {"context": {"r": None}}, "invoke", {}),
    ("context null", {"context": None}, {"context": {"r": "x"}}, "invoke", {"context": {"r": "x"}}),
    ("no context for messages", {"messages": []}, {"context": {"r": "x"}}, "messages", {"messages": []}),
    ("drop", {"model": "m", "tools": [], "a": 1}, {"drop": ["model", "tools"]}, "invoke", {"a": 1}),
    ("drop system", {"system": 7}, {"drop": ["system"], "prepend": "P"}, "invoke", {"system": "P"}),
    ("drop context", {"context": 7}, {"drop": ["context"], "context": {"r": "x"}}, "invoke", {"context": {"r": "x"}}),
    (
        "chat without system",
        {"messages": [{"role": "user", "content": "hi"}]},
        {"prepend": "P", "append": "A"},
        "chat",
        {"messages": [{"role": "system", "content": "PA"}, {"role": "user", "content": "hi"}]},
    ),
    (
        "chat with system",
        {"messages": [{"role": "developer", "content": "S", "name": "n"}, {"role": "user", "content": "hi"}]},
        {"prepend": "P", "append": "A"},
        "chat",
        {"messages": [{"role": "developer", "content": "PSA", "name": "n"}, {"role": "user", "content": "hi"}]},
    ),
    (
        "chat with only append",
        {"messages": [{"role": "user", "content": "hi"}]},
        {"append": "A"},
        "chat",
        {"messages": [{"role": "system", "content": "A"}, {"role": "user", "content": "hi"}]},
    ),
    (
        "chat with only append to blocks",
        {"messages": [{"role": "system", "content": [BLOCK]}]},
        {"append": "A"},
        "chat",
        {"messages": [{"role": "system", "content": [BLOCK, {"type": "text", "text": "A"}]}]},
    ),
    (
        "chat with only prepend to nothing",
        {"messages": []},
        {"prepend": "P"},
        "chat",
        {"messages": [{"role": "system", "content": "P"}]},
    ),
    (
        "chat where a later message is the system's",
        {"messages": [{"role": "user", "content": "hi"}, {"role": "system", "content": "S"}]},
        {"append": "A"},
        "chat",
        {
            "messages": [
                {"role": "system", "content": "A"},
                {"role": "user", "content": "hi"},
                {"role": "system", "content": "S"},
            ]
        },
    ),
    (
        "chat drops and adds",
        {"messages": [{"role": "system", "content": "S"}, {"role": "developer", "content": "D"}], "system": 1},
        {"drop": ["system"], "append": "A"},
        "chat",
        {"messages": [{"role": "system", "content": "A"}]},
    ),
    ("no context for chat", {"messages": []}, {"context": {"r": "x"}}, "chat", {"messages": []}),
    ("chat without additions is not looked at", {"messages": 5}, {"drop": ["tools"]}, "chat", {"messages": 5}),
    ("empty string around", {"system": "S"}, {"append": ""}, "invoke", {"system": "S"}),
    (
        "only prepend to blocks",
        {"system": [BLOCK]},
        {"prepend": "P"},
        "messages",
        {"system": [{"type": "text", "text": "P"}, BLOCK]},
    ),
    ("only append to nothing", {}, {"append": "A"}, "messages", {"system": "A"}),
    (
        "chat drops every system message",
        {"messages": [{"role": "user", "content": "hi"}, {"role": "system", "content": "S"}]},
        {"drop": ["system"]},
        "chat",
        {"messages": [{"role": "user", "content": "hi"}]},
    ),
]


@pytest.mark.parametrize(("document", "additions", "shape", "want"), [r[1:] for r in TABLE], ids=[r[0] for r in TABLE])
def test_apply(document: dict[str, Any], additions: dict[str, Any], shape: str, want: dict[str, Any]) -> None:
    before = copy.deepcopy(document)
    assert apply(document, Additions(**additions), shape) == want
    assert document == before


@pytest.mark.parametrize(
    ("document", "shape"),
    [
        ({"system": 5}, "invoke"),
        ({"system": {"text": "x"}}, "messages"),
        ({"system": [{"type": "image"}]}, "messages"),
        ({"system": ["x"]}, "messages"),
        ({"context": []}, "invoke"),
        ({"context": "x"}, "invoke"),
        ({}, "chat"),
        ({"messages": "hi"}, "chat"),
        ({"messages": ["hi"]}, "chat"),
        ({"messages": [{"role": "user", "content": "hi"}, "hi"]}, "chat"),
        ({"system": [BLOCK, {"type": "text", "text": 5}]}, "messages"),
        ({"system": [BLOCK, {"type": "text"}]}, "messages"),
        ({"system": [{"type": "image", "text": "x"}]}, "messages"),
        ({"messages": [{"role": "system", "content": 1}]}, "chat"),
    ],
)
def test_wrong_shapes(document: dict[str, Any], shape: str) -> None:
    with pytest.raises(ShapeError):
        apply(document, OURS, shape)
    with pytest.raises(ShapeError):
        check_shape(document, shape)


@given(st.dictionaries(TEXT.filter(lambda name: name not in ("system", "context")), JSON, max_size=6), TEXT, JSON)
def test_everything_not_named_stays(document: dict[str, Any], text: str, value: Any) -> None:
    given_body = {**document, "system": text, "context": {"own": value, "repository": "spoofed"}}
    composed = apply(given_body, OURS)
    assert {name: composed[name] for name in document} == document
    assert composed["system"] == f"P {text} A"
    assert composed["context"] == {"own": value, "repository": "org/app"}
    assert composed.keys() == given_body.keys()


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"system": 5}, "system must be a string or a list of text blocks"),
        ({"context": 5}, "context must be an object"),
        ({"messages": 5}, "messages must be a list of objects"),
    ],
)
def test_a_wrong_shape_is_named(document: dict[str, Any], text: str) -> None:
    with pytest.raises(ShapeError, match=text):
        apply(document, OURS, "chat" if "messages" in document else "invoke")


def test_a_shape_is_checked_whatever_the_additions_hold() -> None:
    for shape in ("invoke", "messages"):
        check_shape({"system": "S"}, shape)
        check_shape({"system": 5}, shape, drop=["system"])
        with pytest.raises(ShapeError):
            check_shape({"system": 5}, shape)
    check_shape({"messages": [{"role": "system", "content": 5}]}, "chat", drop=["system"])


def test_a_chat_sets_system_by_a_message() -> None:
    assert sets({"messages": [{"role": "user"}, {"role": "system"}]}, "system", "chat")
    assert sets({"messages": [], "system": "x"}, "system", "chat")
    assert not sets({"messages": ["system"]}, "system", "chat")
    assert sets({"system": "x", "messages": 5}, "system", "chat") and not sets({"messages": 5}, "system", "chat")
    assert sets({"messages": 5}, "messages", "chat") and not sets({}, "tools", "chat")
    assert not sets({"messages": [{"role": "system"}]}, "system", "messages")
    assert sets({"messages": [{"role": "developer", "content": "x"}]}, "system", "chat")
    assert not sets({"messages": [{"role": "user", "content": "x"}]}, "system", "chat")
    assert sets({"system": None}, "system", "invoke")
