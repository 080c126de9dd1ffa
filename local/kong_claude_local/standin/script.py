"""What the stand-in answers: a pure function from a Messages API request body to a `Reply`.

Directives in the newest prompt, anywhere in its text:

| directive | effect |
|---|---|
| `[[say TEXT]]` | the final answer is TEXT |
| `[[tool NAME {json}]]` | a turn that calls tool NAME with that input; several run one after the other |
| `[[beside NAME {json}]]` | the same, called in one message with the tool before it |
| `[[skill NAME]]` | a turn that calls the skill NAME of the catalog, then one for each `bash` or `mcp` block of it |
| `[[step]]` | the next of these blocks comes here, before what follows in the prompt |
| `[[large N]]` | the final answer is N characters long |
| `[[delay MS]]` | pause between two chunks of a stream, or before an answer in one piece |
| `[[status CODE]]` | an API error of that status (401, 429, 500, 529, …) |
| `[[hang]]` | the request is taken and never answered |
| `[[stall N]]` | the stream stops for ever after N text chunks |
| `[[reset N]]` | the connection is reset after N text chunks (0: before the headers) |
| `[[stop REASON]]` | `stop_reason` of the answer, e.g. `refusal` or `max_tokens` |
| `[[usage {json}]]` | these members of the answer's `usage`, such as `{"cache_read_input_tokens": 900}` |

A model whose name ends in `-status-CODE` is answered with that status.
A prompt that begins with `slow:` is answered as with `[[delay 60]]`. After tool turns, an answer without
`[[say …]]` repeats what the tools returned, so that a test sees it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

_OPEN = re.compile(r"\[\[(say|tool|beside|skill|step|large|delay|status|hang|stall|reset|stop|usage)\b ?")
_STATUS_BY_MODEL = re.compile(r"-status-([45]\d\d)$")
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}


@dataclass(frozen=True)
class Reply:
    """One answer: either an error status, or a text or calls of tools and the ways its stream may break."""

    text: str = ""
    tools: tuple[tuple[str, dict[str, Any]], ...] = ()
    status: int = 200
    stop_reason: str = "end_turn"
    delay_ms: float | None = None
    hang: bool = False
    stall_after: int | None = None
    reset_after: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    usage: dict[str, Any] = field(default_factory=dict)

    @property
    def error_type(self) -> str:
        return _ERROR_TYPES.get(self.status, "api_error")


@dataclass
class _Directives:
    say: str | None = None
    turns: list[list[tuple[str, dict[str, Any]]]] = field(default_factory=list)
    """The tools that each calls; none: a step of a skill."""
    usage: dict[str, Any] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    follows: bool = False
    """Whether what a skill says is done."""


def _directives(text: str) -> _Directives:
    found = _Directives()
    decoder = json.JSONDecoder()
    for match in _OPEN.finditer(text):
        verb, start = match.group(1), match.end()
        if verb in ("tool", "beside", "usage"):
            name = "" if verb == "usage" else text[start:].partition(" ")[0]
            at = start + (0 if verb == "usage" else len(name) + 1)
            try:
                arguments, _ = decoder.raw_decode(text, at)
            except ValueError:
                continue
            if not isinstance(arguments, dict):
                continue
            if verb == "usage":
                found.usage |= arguments
            elif verb == "beside" and found.turns:
                found.turns[-1].append((name, arguments))
            else:
                found.turns.append([(name, arguments)])
            continue
        end = text.find("]]", start)
        argument = text[start : end if end >= 0 else len(text)]
        if verb == "say":
            found.say = argument
        elif verb == "skill":
            found.turns.append([("Skill", {"skill": f"catalog:{argument.strip()}"})])
            found.follows = True
        elif verb == "step":
            found.turns.append([])
        else:
            found.values[verb] = argument.strip()
    return found


# What the CLI says to the model by itself, for the model to go on: still the same prompt.
_CONTINUATIONS = ("Your response above was stopped", "Output token limit hit.")


def _texts(content: Any) -> list[str]:
    """Text blocks of a message that a caller wrote (the CLI adds reminders of its own)."""
    if isinstance(content, str):
        return [content]
    blocks = content if isinstance(content, list) else []
    return [
        str(block.get("text", ""))
        for block in blocks
        if isinstance(block, dict)
        and block.get("type") == "text"
        and not str(block.get("text", "")).startswith("<system-reminder>")
    ]


def _tool_results(content: Any) -> list[str]:
    results = []
    for block in content if isinstance(content, list) else []:
        if isinstance(block, dict) and block.get("type") == "tool_result":
            inner = block.get("content")
            results.append(inner if isinstance(inner, str) else "\n".join(_texts(inner)))
    return results


_SKILL = "Base directory for this skill: "
_COMMANDS = re.compile(r"^```(bash|mcp)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def _commands(content: Any) -> list[tuple[str, dict[str, Any]]]:
    """What the skills whose text is in a message say that is to be called."""
    texts = [text for text in _texts(content) if text.startswith(_SKILL)]
    return [_called(*found) for text in texts for found in _COMMANDS.findall(text)]


def _called(kind: str, text: str) -> tuple[str, dict[str, Any]]:
    """A broken example calls a tool that nobody has."""
    if kind == "bash":
        return "Bash", {"command": text}
    name, _, given = text.strip().partition(" ")
    try:
        found = json.loads(given)
    except ValueError:
        found = None
    return (name, found) if isinstance(found, dict) else ("", {})


def _planned(found: _Directives, commands: list[tuple[str, dict[str, Any]]]) -> list[list[tuple[str, dict[str, Any]]]]:
    """A step that no skill has is a tool that nobody has, too."""
    steps = iter(commands)
    planned = [turn or [next(steps, ("", {}))] for turn in found.turns]
    return [*planned, *([command] for command in steps)] if found.follows else planned


def _next(turns: list[list[tuple[str, dict[str, Any]]]], answered: int) -> list[tuple[str, dict[str, Any]]]:
    """What the first of the turns calls whose calls have no results; nothing: all have."""
    for turn in turns:
        if answered <= 0:
            return turn
        answered -= len(turn)
    return []


def reply_to(body: dict[str, Any]) -> Reply:
    """The scripted answer to a request body; never raises for a body that is a JSON object."""
    prompt, results = "", []
    commands: list[tuple[str, dict[str, Any]]] = []
    for message in body.get("messages") or []:
        if not isinstance(message, dict) or message.get("role") != "user":
            continue
        content = message.get("content")
        answered = _tool_results(content)
        if answered:
            results += answered
            commands += _commands(content)
        elif (texts := _texts(content)) and not texts[0].startswith(_CONTINUATIONS):
            prompt, results, commands = "\n".join(texts), [], []
    found = _directives(prompt)
    turns = _planned(found, commands)
    values = found.values
    if named := _STATUS_BY_MODEL.search(str(body.get("model"))):
        return Reply(f"stand-in: the model is answered with {named[1]}", status=int(named[1]))

    def number(verb: str) -> int | None:
        value = values.get(verb)
        return None if value is None else int(value) if value.isdigit() else 0

    broken = {
        "delay_ms": 60 if prompt.startswith("slow:") else number("delay"),
        "hang": "hang" in values,
        "stall_after": number("stall"),
        "reset_after": number("reset"),
        "usage": found.usage,
    }
    if (status := number("status")) is not None and 400 <= status <= 599:
        wait = (("retry-after", "1"),) if status in (429, 529) else ()
        return Reply(f"stand-in: {status} as asked", status=status, headers=wait)
    if calls := _next(turns, len(results)):
        return Reply(tools=tuple(calls), stop_reason="tool_use", **broken)  # type: ignore[arg-type]
    if (length := number("large")) is not None:
        text = ("All work and no play makes a canned answer. " * (length // 44 + 1))[:length]
    elif found.say is not None:
        text = found.say
    elif results:
        text = "Tool results:\n" + "\n---\n".join(results)
    else:
        text = f"This is a canned answer of the stand-in; no model was asked. The prompt was: {prompt[:500]}"
    return Reply(text, stop_reason=values.get("stop", "end_turn"), **broken)  # type: ignore[arg-type]
