"""A run's events as a reader wants them: the answer's text, and a line for each thing that happened. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from claude_invoker.dashboard.plain import plain
from claude_invoker.jobs.recording import text_of

MAX_LINE = 400  # characters


def line_of(name: str, document: dict[str, Any]) -> str | None:
    """One line of the log, or None for what is not worth one."""
    match name:
        case "run.started":
            return f"started with {document.get('model')}"
        case "tool" if document.get("state") == "started":
            return _short(f"{document.get('name')} {json.dumps(document.get('input'), ensure_ascii=False)}")
        case "tool":
            return _short(f"{'failed: ' if document.get('is_error') else '→ '}{document.get('content')}")
        case "permission.requested":
            return _short(f"asks: {document.get('tool')} {json.dumps(document.get('input'), ensure_ascii=False)}")
        case "question.asked":
            return _short(f"asks: {json.dumps(document.get('input'), ensure_ascii=False)}")
        case "permission.decided" if answers := document.get("answers"):
            return _short(f"answered by {document.get('by')}: {json.dumps(answers, ensure_ascii=False)}")
        case "permission.decided":
            done = "allowed" if document.get("decision") == "allow" else "denied"
            return _short(f"{done} by {document.get('by') or document.get('reason')}: {document.get('tool')}")
        case "message":
            return _short(f"{document.get('state')}: {document.get('message')}")
        case "artifact":
            return _short(f"left {document.get('path')}")
        case "check" if document.get("state") == "started":
            return _short(f"check: {document.get('command')}")
        case "check":
            how = "passed" if document.get("passed") else f"failed ({document.get('exit_code')})"
            return _short(f"check {how}: {document.get('output')}")
        case "repair":
            return f"repair {document.get('number')} of {document.get('of')}"
        case "run.finished":
            return f"finished, turns: {document.get('num_turns')}"
        case "error":
            return _short(f"{document.get('title')}. {document.get('detail') or ''}")
        case _ if name.startswith("job."):
            return name.removeprefix("job.")
    return None


def read(events: Iterable[tuple[str, str, str]]) -> tuple[str, list[str], str]:
    """The text, the lines, and the id of the last event."""
    text: list[str] = []
    lines: list[str] = []
    last = "0-0"
    for event_id, name, data in events:
        last = event_id
        document = json.loads(data)
        if name == "content_block_delta":
            text.append(text_of(document))
        elif name == "content_block_start" and text and (document.get("content_block") or {}).get("type") == "text":
            text.append("\n\n")
        elif line := line_of(name, document):
            lines.append(line)
    return "".join(text), lines, last


def _short(text: str) -> str:
    return plain(text if len(text) <= MAX_LINE else text[: MAX_LINE - 1] + "…")
