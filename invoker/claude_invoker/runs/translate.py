"""From the CLI's messages to the run's public events: Anthropic's event names for the model's stream, and
`run.started`, `tool`. (`artifact`, `check`, `run.finished` and `error` are the engine's.)"""

from __future__ import annotations

import time
from typing import Any

from claude_invoker.cli.messages import Heard, Message, ModelEvent, Said, Started
from claude_invoker.runs.run import Run

_MAX_OPEN = 1000


class Translator:
    def __init__(self, run: Run, *, goes_on: bool = False, awaited: str | None = None) -> None:
        """`goes_on`: the run has begun before, by another process; `awaited`: the call of a tool that was under way."""
        self._run = run
        self._goes_on = goes_on
        self._run.model = run.plan.model
        self.open_tools: set[str] = set() if awaited is None else {awaited}
        """Tool calls without a result yet: while one runs, the model's silence says nothing."""
        self._is_speaking = False

    def take(self, message: Message) -> bool:
        """Adds the events of one CLI message. Whether the model has been heard of by it."""
        match message:
            case ModelEvent():
                if not message.of_subagent:
                    self._is_speaking = message.name != "message_stop"
                    if self._run.first_token_at is None and message.name == "content_block_delta":
                        self._run.first_token_at = time.time()
                    self._run.events.append_json(message.name, message.data)
                return True
            case Said():
                self._calls(message)
                return True
            case Started():
                self._started(message)
            case Heard():
                self._results(message)
        return False

    def _started(self, message: Started) -> None:
        run = self._run
        run.model = message.model or run.model
        if self._goes_on:
            return
        started: dict[str, Any] = {
            "id": run.id,
            "model": run.model,
            "session": run.session,
            "tools": [*run.plan.tools, *run.plan.server_tools],
        }
        if run.repository is not None:
            started["repository"] = run.repository.model_dump(mode="json")
        run.events.append("run.started", started)

    def is_last(self, call: str) -> bool:
        """Whether the model has said all that it wants, and of that this call of a tool alone has no result. (A
        subagent's has none, nor has the call by which it was begun.)"""
        return not self._is_speaking and self.open_tools == {call}

    def _calls(self, message: Said) -> None:
        for call in message.calls:
            self._run.called(call)
            if len(self.open_tools) < _MAX_OPEN:
                self.open_tools.add(call.id)
            self._run.events.append("tool", {"id": call.id, "name": call.name, "input": call.input, "state": "started"})

    def _results(self, message: Heard) -> None:
        for result in message.results:
            self.open_tools.discard(result.id)
            self._run.heard(result)
            finished = {"id": result.id, "is_error": result.is_error, "content": result.text, "state": "finished"}
            self._run.events.append("tool", finished)
