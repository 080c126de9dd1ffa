"""A run's events as a reader wants them: turns of the model with what it said, called and used, and between them
whatever else happened. Pure. What is said there is a run's, and so an enemy's: all of it is bounded."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from claude_invoker.dashboard.plain import plain
from claude_invoker.jobs.recording import text_of
from claude_invoker.metering.usage import Used

MAX_LINE = 400
"""Characters of a line, and of a turn's words."""
_MOST_WORDS = 4000
"""Characters of what a call was given, and of what came back."""
MOST_ENTRIES = 200
MOST_CALLS = 30
"""Of a turn."""
MOST_DETAILS = 200
"""Calls of which it is shown what they were given and what came back."""
MOST_TEXT = 200_000
"""Characters of the answer that a page has: its end."""
_BRIEF = 200
_MOST_MODELS = 10
_MOST_TOKENS = 1_000_000_000

Price = Callable[[str, Used], Decimal]
"""US dollars for what a model has used."""


@dataclass
class Call:
    """A call of a tool. `brief` is the beginning of what it was given, on one line; `given` and `said` of older ones
    are not kept."""

    tool: str
    brief: str
    given: str
    state: Literal["running", "done", "failed"] = "running"
    said: str = ""


@dataclass
class Turn:
    """One answer of the model. `cost_usd` is by the price list, `so_far_usd` with that of the turns before."""

    number: int
    model: str = ""
    text: str = ""
    calls: list[Call] = field(default_factory=list)
    calls_left_out: int = 0
    used: Used = field(default_factory=Used)
    cost_usd: Decimal = Decimal(0)
    so_far_usd: Decimal = Decimal(0)


@dataclass
class Timeline:
    """`text` is the whole answer. Of `entries` the last `MOST_ENTRIES` are kept."""

    price: Price
    text: str = ""
    entries: deque[Turn | str] = field(default_factory=lambda: deque(maxlen=MOST_ENTRIES))
    left_out: int = 0
    turns: int = 0
    used: Used = field(default_factory=Used)
    cost_usd: Decimal = Decimal(0)
    _turn: Turn | None = None
    _before: tuple[Used, Decimal] = (Used(), Decimal(0))
    """What the turns before this one have used and cost."""
    _calls: dict[str, Call] = field(default_factory=dict)
    """Those without a result yet."""
    _detailed: deque[Call] = field(default_factory=deque)
    _models: set[str] = field(default_factory=set)

    @property
    def end_of_text(self) -> str:
        left_out = len(self.text) - MOST_TEXT
        return self.text if left_out <= 0 else f"[{left_out:,} letters before these]\n{self.text[left_out:]}"

    def take(self, name: str, data: str | bytes) -> str:
        """One event. The text that it adds to the answer."""
        document = json.loads(data)
        if not isinstance(document, dict):
            return ""
        if name == "message_start":
            message = _object(document.get("message"))
            self._begin(message.get("model"))
            self._count(message.get("usage"))
        elif name == "message_delta":
            self._count(document.get("usage"))
        more = ""
        if name == "content_block_delta":
            more = text_of(document)
        elif (
            name == "content_block_start" and self.text and _object(document.get("content_block")).get("type") == "text"
        ):
            more = "\n\n"
        elif name == "tool" and document.get("state") == "started":
            self._call(document)
        elif name == "tool":
            self._result(document)
        elif line := line_of(name, document):
            self._add(line)
        if more:
            self.text += more
            turn = self._of_model()
            turn.text = (turn.text + more).lstrip()[:MAX_LINE]
        return more

    def _begin(self, model: object) -> None:
        self._before = self.used, self.cost_usd
        self.turns += 1
        self._turn = Turn(self.turns, short(str(model or "")), so_far_usd=self.cost_usd)
        self._add(self._turn)

    def _of_model(self) -> Turn:
        """The turn that goes on; one of its own where its beginning is not kept any more."""
        if self._turn is None:
            self._begin("")
        assert self._turn is not None
        return self._turn

    def _count(self, usage: object) -> None:
        turn = self._of_model()
        turn.used = used_in(_object(usage), turn.used)
        self._models.add(turn.model)
        if len(self._models) <= _MOST_MODELS:
            turn.cost_usd = self.price(turn.model, turn.used)
        used, cost = self._before
        self.used, self.cost_usd = used + turn.used, cost + turn.cost_usd
        turn.so_far_usd = self.cost_usd

    def _call(self, document: dict[str, Any]) -> None:
        turn, given = self._of_model(), document.get("input")
        if len(turn.calls) >= MOST_CALLS:
            turn.calls_left_out += 1
            return
        on_one_line, written = (json.dumps(given, indent=indent, ensure_ascii=False) for indent in (None, 2))
        call = Call(short(str(document.get("name")), _BRIEF), short(on_one_line, _BRIEF), short(written, _MOST_WORDS))
        turn.calls.append(call)
        self._calls[str(document.get("id"))] = call
        self._detailed.append(call)
        if len(self._detailed) > MOST_DETAILS:
            oldest = self._detailed.popleft()
            oldest.given = oldest.said = ""

    def _result(self, document: dict[str, Any]) -> None:
        call = self._calls.pop(str(document.get("id")), None)
        if call is None:
            return
        call.state = "failed" if document.get("is_error") else "done"
        if call.given:
            call.said = short(str(document.get("content")), _MOST_WORDS)

    def _add(self, entry: Turn | str) -> None:
        self.left_out += len(self.entries) == MOST_ENTRIES
        self.entries.append(entry)


def told(timeline: Timeline, events: Iterable[tuple[str, str | bytes]]) -> None:
    """All of them, as (name, data): of a long run some tenths of a second."""
    for name, data in events:
        timeline.take(name, data)


def used_in(usage: dict[str, Any], before: Used) -> Used:
    """The totals of an answer so far (https://platform.claude.com/docs/en/api/messages, `usage`), of which an event may
    leave out what has not changed. What is no number counts as nothing here: what is billed is read elsewhere."""

    def number(values: dict[str, Any], name: str) -> int:
        value = values.get(name)
        return value if type(value) is int and 0 <= value <= _MOST_TOKENS else 0

    parts, tools = usage.get("cache_creation"), _object(usage.get("server_tool_use"))
    long = number(parts, "ephemeral_1h_input_tokens") if isinstance(parts, dict) else before.cache_write_1h
    return before | Used(
        number(usage, "input_tokens"),
        number(usage, "output_tokens"),
        number(usage, "cache_read_input_tokens"),
        max(0, number(usage, "cache_creation_input_tokens") - long),
        long,
        number(tools, "web_search_requests"),
    )


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def line_of(name: str, document: dict[str, Any]) -> str | None:
    """One line, or None for what is not worth one."""
    match name:
        case "run.started":
            return short(f"started with {document.get('model')}")
        case "permission.requested":
            return short(f"asks: {document.get('tool')} {json.dumps(document.get('input'), ensure_ascii=False)}")
        case "question.asked":
            return short(f"asks: {json.dumps(document.get('input'), ensure_ascii=False)}")
        case "permission.decided" if answers := document.get("answers"):
            return short(f"answered by {document.get('by')}: {json.dumps(answers, ensure_ascii=False)}")
        case "permission.decided":
            done = "allowed" if document.get("decision") == "allow" else "denied"
            why = f" ({document['message']})" if document.get("message") else ""
            return short(f"{done} by {document.get('by') or document.get('reason')}: {document.get('tool')}{why}")
        case "message":
            return short(f"{document.get('state')}: {document.get('message')}")
        case "artifact":
            return short(f"left {document.get('path')}")
        case "check" if document.get("state") == "started":
            return short(f"check: {document.get('command')}")
        case "check":
            how = "passed" if document.get("passed") else f"failed ({document.get('exit_code')})"
            return short(f"check {how}: {document.get('output')}")
        case "repair":
            return short(f"repair {document.get('number')} of {document.get('of')}")
        case "run.finished":
            return short(f"finished, turns: {document.get('num_turns')}")
        case "error":
            return short(f"{document.get('title')}. {document.get('detail') or ''}")
        case _ if name.startswith("job."):
            return short(name.removeprefix("job."))
    return None


def short(text: str, most: int = MAX_LINE) -> str:
    return plain(text if len(text) <= most else f"{text[: most - 1]}…")
