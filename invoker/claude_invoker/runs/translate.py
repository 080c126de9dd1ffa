"""From the CLI's messages to the run's public events: Anthropic's event names for the model's stream, and
`run.started`, `tool`. (`artifact`, `run.finished` and `error` are the engine's.)"""

from __future__ import annotations

from typing import Any

from claude_invoker.runs.run import Run

MAX_TOOL_TEXT = 20_000


class Translator:
    def __init__(self, run: Run) -> None:
        self._run = run
        self._run.model = run.plan.model
        self.open_tools: set[str] = set()
        """Tool calls without a result yet: while one runs, the model's silence says nothing."""

    def take(self, message: dict[str, Any]) -> bool:
        """Adds the events of one CLI message. Whether the model has been heard of by it."""
        kind = message.get("type")
        if kind == "stream_event":
            event = message.get("event")
            if isinstance(event, dict) and message.get("parent_tool_use_id") is None:
                self._run.events.append(str(event.get("type")), event)
            return True
        if kind == "system" and message.get("subtype") == "init":
            self._started(message)
        elif kind == "assistant":
            self._tool_calls(message)
            return True
        elif kind == "user":
            self._tool_results(message)
        return False

    def _started(self, message: dict[str, Any]) -> None:
        run = self._run
        run.model = str(message.get("model") or run.model)
        run.events.append(
            "run.started",
            {"id": run.id, "model": run.model, "session": run.session, "tools": list(run.plan.tools)},
        )

    def _tool_calls(self, message: dict[str, Any]) -> None:
        for block in _blocks(message):
            if block.get("type") == "tool_use":
                self.open_tools.add(str(block.get("id")))
                call = {"id": block.get("id"), "name": block.get("name"), "input": block.get("input")}
                self._run.events.append("tool", call | {"state": "started"})

    def _tool_results(self, message: dict[str, Any]) -> None:
        for block in _blocks(message):
            if block.get("type") == "tool_result":
                self.open_tools.discard(str(block.get("tool_use_id")))
                outcome = {"id": block.get("tool_use_id"), "is_error": bool(block.get("is_error"))}
                text = _text(block.get("content"))[:MAX_TOOL_TEXT]
                self._run.events.append("tool", outcome | {"content": text, "state": "finished"})


def _blocks(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = (message.get("message") or {}).get("content")
    return [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))
