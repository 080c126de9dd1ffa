"""Guards over the caller's own text: size, and patterns matched in linear time (RE2)."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import re2

from claude_contract.errors import ConfigError
from kong_claude.decision import Refuse

MAX_PATTERN_MEMORY = 8 << 20  # bytes a compiled pattern may take


def compile_pattern(pattern: str, field_name: str) -> Any:
    """An RE2 pattern: no backtracking, so no input can blow it up. Raises ConfigError where RE2 has no such syntax."""
    options = re2.Options()
    options.max_mem = MAX_PATTERN_MEMORY
    options.log_errors = False
    try:
        return re2.compile(pattern, options=options)
    except re2.error as error:
        reason = error.args[0] if error.args else "invalid"
        reason = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise ConfigError(field_name, f"RE2 cannot match this pattern in linear time: {reason}") from None


def compile_patterns(patterns: Sequence[str], field_name: str) -> list[Any]:
    """The patterns of a list. Raises ConfigError with the place of the one that is none."""
    return [compile_pattern(pattern, f"{field_name}[{number}]") for number, pattern in enumerate(patterns, 1)]


@dataclass(frozen=True)
class Guards:
    """`deny` is searched in every text and in all of them joined; `allow` must cover every text as a whole."""

    max_prompt_bytes: int | None
    deny: Sequence[Any]
    allow: Sequence[Any]

    def __bool__(self) -> bool:
        return bool(self.max_prompt_bytes or self.deny or self.allow)

    def check(self, document: Mapping[str, Any]) -> Refuse | None:
        """The refusal for the caller's document, or None."""
        found = list(texts(document))
        if self.max_prompt_bytes and sum(len(text.encode()) for text in found) > self.max_prompt_bytes:
            return Refuse(413, f"the prompt is larger than {self.max_prompt_bytes} bytes", "prompt_too_large")
        if not (self.deny or self.allow):
            return None
        # Joined too, so that no forbidden text hides by being split over parts.
        parts = found if len(found) == 1 else [*found, "".join(found)]
        views = [view for text in parts for view in readings(text)]
        if any(pattern.search(view) for pattern in self.deny for view in views):
            return Refuse(400, "the prompt holds text that this route does not accept", "prompt_denied")
        if self.allow:
            for text in found:
                normal = unicodedata.normalize("NFKC", text)
                if not any(pattern.fullmatch(normal) for pattern in self.allow):
                    return Refuse(400, "the prompt is not of a kind that this route accepts", "prompt_not_allowed")
        return None


def readings(text: str) -> tuple[str, ...]:
    """The text as a reader may take it: NFKC, and the same without invisible (format) characters."""
    if text.isascii():
        return (text,)
    normal = unicodedata.normalize("NFKC", text)
    shown = "".join(char for char in normal if unicodedata.category(char) != "Cf")
    return (normal,) if shown == normal else (normal, shown)


def texts(document: Mapping[str, Any]) -> Iterator[str]:
    """Every text of the caller in all three shapes: prompt, system, messages with their parts, context, tools."""
    for name in ("system", "prompt", "messages"):
        yield from _texts(document.get(name))
    yield from _strings(document.get("context"))
    yield from _descriptions(document.get("tools"))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for name in ("text", "content", "thinking", "title", "context", "refusal"):
            yield from _texts(value.get(name))
        source = value.get("source")
        if isinstance(source, dict) and source.get("type") != "base64":
            yield from _texts(source.get("data") or source.get("content"))
        # What a tool was called with: Anthropic's tool_use blocks and OpenAI's function calls.
        yield from _strings(value.get("input"))
        yield from _strings(value.get("tool_calls"))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _descriptions(value: Any) -> Iterator[str]:
    """What tools and their parameters are said to be: models read it as they read the prompt."""
    if isinstance(value, list):
        for item in value:
            yield from _descriptions(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _strings(item) if name == "description" else _descriptions(item)
