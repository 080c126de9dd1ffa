"""A run as the event stream of one message: pure.

https://platform.claude.com/docs/en/build-with-claude/streaming
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from claude_invoker.api.anthropic.messages import STOPPED, Wanted, opening, usage
from claude_invoker.api.fields import answer_of, artifacts_of
from claude_invoker.api.languages import said
from claude_invoker.api.narration import Narration, Spoken
from claude_invoker.model import RunResult
from claude_invoker.problem import Problem
from claude_invoker.runs.events import Event


def event(name: str, document: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps({"type": name, **document}))


PING = event("ping", {})


class Stream:
    """`begin`, then `take` for each event of the run (None: nothing has happened), then `end` or `fail`."""

    def __init__(self, wanted: Wanted, run_id: str) -> None:
        self._wanted = wanted
        self._run_id = run_id
        self._schema = "output_schema" in wanted.invocation
        self._narration = Narration(silent=self._schema)
        self._blocks = 0
        self._open = False

    def begin(self) -> bytes:
        return event("message_start", {"message": opening(self._wanted, self._run_id)}) + PING

    def take(self, of_run: Event | None) -> Iterator[bytes]:
        if of_run is None:
            yield PING
            return
        for spoken in self._narration.take(of_run):
            yield self._say(spoken)

    def end(self, result: RunResult) -> Iterator[bytes]:
        for spoken in self._narration.end(answer_of(result, by_schema=self._schema)):
            yield self._say(spoken)
        yield self._close()
        stop = STOPPED.get(result.stop_reason, result.stop_reason)
        delta = {"stop_reason": stop, "stop_sequence": None}
        yield event("message_delta", {"delta": delta, "usage": usage(result.usage), "artifacts": artifacts_of(result)})
        yield event("message_stop", {})

    def fail(self, problem: Problem, request_id: str) -> bytes:
        return event("error", said(problem, "anthropic", request_id).body)

    def _say(self, spoken: Spoken) -> bytes:
        begun = b""
        if spoken.begins or not self._open:
            begun = self._close()
            block = {"type": "text", "text": ""}
            begun += event("content_block_start", {"index": self._blocks, "content_block": block})
            self._open = True
        delta = {"type": "text_delta", "text": spoken.text}
        return begun + event("content_block_delta", {"index": self._blocks, "delta": delta})

    def _close(self) -> bytes:
        if not self._open:
            return b""
        self._open = False
        self._blocks += 1
        return event("content_block_stop", {"index": self._blocks - 1})
