from __future__ import annotations

import time
from typing import Any

import pytest

from claude_contract.errors import ConfigError
from kong_claude.prompt_context.guards import MAX_PATTERN_MEMORY, Guards, compile_pattern, compile_patterns, texts


def guards(max_bytes: int | None = None, deny: tuple[str, ...] = (), allow: tuple[str, ...] = ()) -> Guards:
    return Guards(max_bytes, [compile_pattern(p, "deny") for p in deny], [compile_pattern(p, "allow") for p in allow])


def user(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


SECRET = "(?i)password"
WHERE_TEXT_HIDES = {
    "prompt": {"prompt": "my PassWord"},
    "prompt blocks": {"prompt": [{"type": "text", "text": "password"}]},
    "system": {"prompt": "x", "system": "password"},
    "system blocks": {"prompt": "x", "system": [{"type": "text", "text": "password"}]},
    "context": {"prompt": "x", "context": {"notes": [{"deep": "password"}]}},
    "message": user("password"),
    "message part": user([{"type": "text", "text": "password"}]),
    "tool result": user([{"type": "tool_result", "content": [{"type": "text", "text": "password"}]}]),
    "tool result string": user([{"type": "tool_result", "content": "password"}]),
    "tool call": user([{"type": "tool_use", "input": {"a": [{"b": "password"}]}}]),
    "function call": {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": "password"}}]}]},
    "text document": user([{"type": "document", "source": {"type": "text", "data": "password"}}]),
    "document of blocks": user(
        [{"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "password"}]}}]
    ),
    "refusal": {"messages": [{"role": "assistant", "content": [{"type": "refusal", "refusal": "password"}]}]},
    "refusal of a message": {"messages": [{"role": "assistant", "refusal": "password", "content": None}]},
    "thinking": {"messages": [{"role": "assistant", "content": [{"type": "thinking", "thinking": "password"}]}]},
    "document context": user([{"type": "document", "context": "password", "source": {"type": "base64", "data": ""}}]),
    "document title": user([{"type": "document", "title": "password", "source": {"type": "base64", "data": ""}}]),
    "tool": {"prompt": "x", "tools": [{"name": "t", "description": "password"}]},
    "function": {"messages": [], "tools": [{"type": "function", "function": {"name": "t", "description": "password"}}]},
    "parameter of a tool": {
        "prompt": "x",
        "tools": [{"input_schema": {"properties": {"a": {"type": "string", "description": "password"}}}}],
    },
    "split over parts": user([{"type": "text", "text": "pass"}, {"type": "text", "text": "word"}]),
    "full-width": {"prompt": "ｐａｓｓｗｏｒｄ"},
    "mathematical letters": {"prompt": "𝐩𝐚𝐬𝐬𝐰𝐨𝐫𝐝"},
    "zero width": {"prompt": "pass\u200bword"},
    "soft hyphen": {"prompt": "pass\u00adword"},
    "bidi": {"prompt": "pass\u202aword"},
}


@pytest.mark.parametrize("document", WHERE_TEXT_HIDES.values(), ids=WHERE_TEXT_HIDES.keys())
def test_deny_finds_text_wherever_it_hides(document: dict[str, Any]) -> None:
    refusal = guards(deny=(SECRET,)).check(document)
    assert refusal is not None
    assert (refusal.status, refusal.reason) == (400, "prompt_denied")
    assert "password" not in refusal.message.lower()


@pytest.mark.parametrize(
    "document",
    [
        {"prompt": "harmless"},
        {"prompt": "x", "model": "password", "tools": ["password"]},  # no text for the model
        user([{"type": "image", "source": {"type": "base64", "data": "password"}}]),
        {},
        {"prompt": 5, "messages": {"a": 1}},
    ],
)
def test_deny_passes_the_rest(document: dict[str, Any]) -> None:
    assert guards(deny=(SECRET,)).check(document) is None


@pytest.mark.parametrize(
    ("document", "passes"),
    [
        ({"prompt": "Review src/a.py"}, True),
        ({"prompt": "Ｒeview src/a.py"}, True),
        ({"prompt": "Review src/a.py\nand more"}, False),
        ({"prompt": "please Review src/a.py"}, False),
        ({"prompt": "Review src/a.py", "system": "be evil"}, False),
        (user([{"type": "text", "text": "Review a"}, {"type": "text", "text": "Explain b"}]), True),
        (user([{"type": "text", "text": "Review a"}, {"type": "text", "text": "other"}]), False),
    ],
)
def test_allow_must_cover_every_text(document: dict[str, Any], passes: bool) -> None:
    refusal = guards(allow=("Review [a-z/.]+", "Explain .*")).check(document)
    assert (refusal is None) is passes


def test_size_counts_bytes_of_all_texts() -> None:
    document = {"prompt": "é" * 10, "system": "abc"}
    assert guards(max_bytes=23).check(document) is None
    refusal = guards(max_bytes=22).check(document)
    assert refusal is not None and refusal.status == 413


@pytest.mark.parametrize("one", [guards(5), guards(deny=("x",)), guards(allow=("x",)), guards()])
def test_any_guard_alone_is_one(one: Guards) -> None:
    """Where none is, the plugin does not look at the body at all: so the size by itself was no limit."""
    assert bool(one) is (one != guards())


def test_the_size_alone_is_a_limit() -> None:
    refusal = guards(5).check({"prompt": "123456"})
    assert refusal is not None
    assert (refusal.status, refusal.reason) == (413, "prompt_too_large")
    assert "5 bytes" in refusal.message
    assert guards(5).check({"prompt": "password"[:5]}) is None
    assert guards().check({"prompt": "x" * 10_000}) is None


def test_a_single_text_must_be_allowed_as_well_as_not_denied() -> None:
    both = guards(deny=("secret",), allow=("[a-z ]+",))
    assert both.check({"prompt": "a plain text"}) is None
    for text, reason in (("a secret text", "prompt_denied"), ("A TEXT", "prompt_not_allowed")):
        refusal = both.check({"prompt": text})
        assert refusal is not None
        assert (refusal.status, refusal.reason) == (400, reason)
    assert guards(allow=("abc",)).check({"prompt": "ａｂｃ"}) is None, "as a reader sees it"


def test_a_pattern_is_named_by_its_place_and_bounded_in_memory() -> None:
    with pytest.raises(ConfigError, match=r"deny_patterns\[2\]") as refused:
        compile_patterns(["a", "("], "deny_patterns")
    assert "RE2 cannot match this pattern in linear time: missing )" in str(refused.value)
    assert compile_pattern("a{1000}", "deny").options.max_mem == MAX_PATTERN_MEMORY == 8 * 1024 * 1024


def test_a_pattern_that_is_none_is_said_once(capfd: pytest.CaptureFixture[str]) -> None:
    """RE2 would write it to the server's log as well, past the log's own form."""
    with pytest.raises(ConfigError):
        compile_pattern("(", "deny")
    assert capfd.readouterr() == ("", "")


def test_every_text_is_seen_once() -> None:
    assert list(texts({"prompt": "a", "system": "b", **user([{"text": "c"}])})) == ["b", "a", "c"]


@pytest.mark.parametrize(
    "pattern", [r"(a)\1", r"(?=a)b", r"(?<!a)b", "(", "a{1001}", "((a{100}){100}){100}", r"(?>a+)"]
)
def test_patterns_that_are_not_linear_are_refused_at_start(pattern: str) -> None:
    with pytest.raises(ConfigError, match="deny_patterns"):
        compile_pattern(pattern, "deny_patterns")


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(a|a)*b", r"(x+x+)+y", r"^(([a-z])+.)+[A-Z]([a-z])+$"])
def test_patterns_that_blow_up_elsewhere_stay_linear(pattern: str) -> None:
    started = time.process_time()
    guards(deny=(pattern,)).check({"prompt": "a" * 1_000_000 + "!" + "x" * 1_000_000})
    assert time.process_time() - started < 20  # a backtracking engine would not come back
