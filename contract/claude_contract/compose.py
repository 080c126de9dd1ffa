"""The gateway's additions to a prompt, applied to a document: pure, used by the plugin and by the invoker.

Where `claude-prompt-context` does not rewrite the body they travel in the attestation, and the invoker applies them.

Shapes: `invoke` (this project's invoker), `messages` (Anthropic's Messages API: `system` is a string or a list of
text blocks) and `chat` (OpenAI's chat completions: the system text is a message of role system or developer).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from claude_contract.claims import Additions

SYSTEM_ROLES = ("system", "developer")


class ShapeError(ValueError):
    """A document that the additions cannot be applied to. The text is meant for the caller."""


def apply(document: Mapping[str, Any], additions: Additions, shape: str = "invoke") -> dict[str, Any]:
    """A new document with the additions; `document` itself stays as it is. Members not named in them are kept.

    Raises ShapeError where `system`, `context` or `messages` do not have the shape's type.
    """
    dropped, prepend, append = additions.drop, additions.prepend, additions.append
    composed = {name: value for name, value in document.items() if name not in dropped}
    if shape == "chat":
        if "system" in dropped or prepend or append:
            composed["messages"] = _around_chat(composed.get("messages"), prepend, append, "system" in dropped)
    elif prepend or append:
        composed["system"] = _around(composed.get("system"), prepend, append)
    # Only the invoker's shape has a `context`: the public APIs refuse members they do not know.
    if additions.context and shape == "invoke":
        merged = _context(composed.get("context"), additions.context)
        if merged or composed.get("context") is not None:
            composed["context"] = merged
    return composed


def check_shape(document: Mapping[str, Any], shape: str, drop: Collection[str] = ()) -> None:
    """Raises ShapeError where `apply` would, whatever texts and values the additions hold."""
    apply(document, Additions("x", "x", {"x": "x"}, tuple(drop)), shape)


def sets(document: Mapping[str, Any], name: str, shape: str) -> bool:
    """True where the caller's document has the member; a chat's `system` is a message of that role."""
    if name == "system" and shape == "chat" and isinstance(document.get("messages"), list):
        return "system" in document or any(map(_is_system, document["messages"]))
    return name in document


def _around(system: Any, prepend: str, append: str) -> Any:
    """Plain concatenation for a string, blocks before and after for a list; absent → just ours."""
    if system is None:
        return prepend + append
    if isinstance(system, str):
        return prepend + system + append
    if isinstance(system, list) and all(map(_is_text_block, system)):
        before = [{"type": "text", "text": prepend}] if prepend else []
        after = [{"type": "text", "text": append}] if append else []
        return [*before, *system, *after]
    raise ShapeError("system must be a string or a list of text blocks")


def _around_chat(messages: Any, prepend: str, append: str, drop: bool) -> list[Any]:
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ShapeError("messages must be a list of objects")
    kept = [message for message in messages if not (drop and _is_system(message))]
    if not (prepend or append):
        return kept
    if kept and _is_system(kept[0]):
        return [{**kept[0], "content": _around(kept[0].get("content"), prepend, append)}, *kept[1:]]
    return [{"role": "system", "content": prepend + append}, *kept]


def _context(given: Any, ours: Mapping[str, Any]) -> dict[str, Any]:
    if given is not None and not isinstance(given, dict):
        raise ShapeError("context must be an object")
    merged = {name: value for name, value in (given or {}).items() if name not in ours}
    merged.update((name, value) for name, value in ours.items() if value is not None)
    return merged


def _is_text_block(block: Any) -> bool:
    return isinstance(block, dict) and block.get("type") == "text" and isinstance(block.get("text"), str)


def _is_system(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") in SYSTEM_ROLES
