"""A run as the event stream of one chat completion: pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from claude_invoker.api.fields import answer_of, artifacts_of
from claude_invoker.api.languages import said
from claude_invoker.api.narration import Narration
from claude_invoker.api.openai.chat import Wanted, finish_reason, opening, usage
from claude_invoker.api.stream import HEARTBEAT
from claude_invoker.model import RunResult
from claude_invoker.problem import Problem
from claude_invoker.runs.events import Event

DONE = b"data: [DONE]\n\n"


def _data(document: dict[str, Any]) -> bytes:
    return b"data: %s\n\n" % orjson.dumps(document)


class Stream:
    """`begin`, then `take` for each event of the run (None: nothing has happened), then `end` or `fail`."""

    def __init__(self, wanted: Wanted, run_id: str, created: float) -> None:
        self._opening = opening(wanted, run_id, created, "chat.completion.chunk")
        self._schema = "output_schema" in wanted.invocation
        self._with_usage = wanted.with_usage
        self._narration = Narration(silent=self._schema)

    def begin(self) -> bytes:
        return self._chunk({"role": "assistant", "content": ""})

    def take(self, of_run: Event | None) -> Iterator[bytes]:
        if of_run is None:
            yield HEARTBEAT
            return
        for spoken in self._narration.take(of_run):
            yield self._chunk({"content": spoken.text})

    def end(self, result: RunResult) -> Iterator[bytes]:
        for spoken in self._narration.end(answer_of(result, by_schema=self._schema)):
            yield self._chunk({"content": spoken.text})
        yield self._chunk({}, finish_reason(result), artifacts=artifacts_of(result))
        if self._with_usage:
            yield _data(self._opening | {"choices": [], "usage": usage(result.usage)})
        yield DONE

    def fail(self, problem: Problem, request_id: str) -> bytes:
        return _data(said(problem, "openai", request_id).body)

    def _chunk(self, delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _data(self._opening | {"choices": [choice]} | more | ({"usage": None} if self._with_usage else {}))
