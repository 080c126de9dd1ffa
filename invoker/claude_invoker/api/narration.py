"""A run as text, while it runs: what the model says, and a line for each tool that it calls. Pure.

The vendors' clients know one message of one model. A run is many: their texts come one after the other, the last of
them is the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from claude_invoker.runs.events import Event

MAX_ARGUMENT = 120
_BREAK = "\n\n"


@dataclass(frozen=True)
class Spoken:
    """Text to add. `begins`: it is the first of a block of its own."""

    text: str
    begins: bool


class Narration:
    """Takes a run's events in their order.

    `silent`: nothing is told before the end, since the whole text is the result (JSON by a schema).
    """

    def __init__(self, *, silent: bool) -> None:
        self._silent = silent
        self._since_tool = ""
        """What the model has said since the last tool."""
        self._fresh = True
        """Whether the next text begins a block."""

    def take(self, event: Event) -> Iterator[Spoken]:
        if self._silent:
            return
        if event.name == "content_block_start":
            self._fresh = True
            return
        if event.name == "content_block_delta":
            text = _text_of(event.document)
            if text:
                yield self._say(text)
        elif event.name == "tool":
            call = event.document
            if call.get("state") == "started":
                yield Spoken(f"{_BREAK if self._since_tool else ''}{_line(call)}{_BREAK}", True)
                self._fresh, self._since_tool = True, ""

    def end(self, answer: str) -> Iterator[Spoken]:
        """What is still to be said of the run's answer: all of it, where the stream did not have it."""
        if not _bare(self._since_tool).endswith(_bare(answer)):
            self._fresh = True
            yield self._say(answer)

    def _say(self, text: str) -> Spoken:
        begins, self._fresh = self._fresh, False
        if begins and self._since_tool:
            text = _BREAK + text
        self._since_tool += text
        return Spoken(text, begins)


def _bare(text: str) -> str:
    return "".join(text.split())


def _text_of(document: Any) -> str:
    delta = document.get("delta")
    text = delta.get("text") if isinstance(delta, dict) and delta.get("type") == "text_delta" else None
    return text if isinstance(text, str) else ""


def _line(call: dict[str, Any]) -> str:
    """Such as `[Read src/app.py]`: the tool, and the first short text among its arguments."""
    arguments = call.get("input")
    values = arguments.values() if isinstance(arguments, dict) else ()
    texts = (" ".join(value.split()) for value in values if isinstance(value, str))
    first = next((text for text in texts if 0 < len(text) <= MAX_ARGUMENT), "")
    return f"[{call.get('name')}{' ' if first else ''}{first}]"
