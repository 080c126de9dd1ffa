"""A request for a message as what is to be run, and a run's result as a message: pure.

https://platform.claude.com/docs/en/api/messages
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from claude_invoker.api.fields import OURS, answer_of, artifacts_of, ours, refused
from claude_invoker.api.models import of_run
from claude_invoker.api.problems import Place, wrong
from claude_invoker.model import RunResult, Usage

HONOURED = ("model", "messages", "system", "stream", "max_tokens", "metadata", "output_config", "cache_control", *OURS)
"""`max_tokens` must be there for the API; what bounds a run are its turns and its money. `metadata` and `cache_control`
change no answer."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "temperature": (1,),
    "top_p": (1,),
    "top_k": (),
    "stop_sequences": ([],),
    "tools": ([],),
    "tool_choice": ({"type": "auto"}, {"type": "none"}),
    "thinking": (),
    "service_tier": ("auto", "standard_only"),
    "speed": ("standard",),
    "inference_geo": (),
    "container": (),
    "diagnostics": (),
    "mcp_servers": ([],),
    "context_management": (),
    "output_format": (),
    "betas": ([],),
}
STOPPED = {"max_turns": "max_tokens", "max_budget": "max_tokens"}
"""Reasons that only a run can have to stop, as the nearest that clients know: the answer is cut off."""


@dataclass(frozen=True)
class Wanted:
    """`invocation`: in the fields of `POST /invoke`, not validated yet."""

    model: str
    stream: bool
    invocation: dict[str, Any]


def place(at: Place) -> Place:
    """Where the caller has what is said of a run's field."""
    return ("output_config", "format", "schema", *at[1:]) if at[:1] == ("output_schema",) else at


def wanted(document: Mapping[str, Any]) -> Wanted:
    """Raises Problem 422 with the places of the fields that a run cannot honour."""
    errors = refused(document, HONOURED, NEUTRAL)
    stream = document.get("stream")
    if stream is not None and not isinstance(stream, bool):
        errors.append({"at": "stream", "error": "must be true or false"})
    most = document.get("max_tokens")
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
        errors.append({"at": "max_tokens", "error": "must be a whole number above 0"})
    schema = _schema(document.get("output_config"), errors)
    if errors:
        raise wrong(errors)
    model = of_run(document.get("model"))
    invocation: dict[str, Any] = {"messages": _messages(document.get("messages"))} | ours(document)
    for name, value in (("model", model), ("system", _system(document.get("system"))), ("output_schema", schema)):
        if value is not None:
            invocation[name] = value
    return Wanted(str(document["model"]), bool(stream), invocation)


def _schema(config: Any, errors: list[dict[str, str]]) -> Any:
    if config is None:
        return None
    if not isinstance(config, dict):
        errors.append({"at": "output_config", "error": "must be an object"})
        return None
    errors += refused(config, ("format",), {"effort": (), "task_budget": ()}, "output_config")
    given = config.get("format")
    if given is None:
        return None
    if not isinstance(given, dict) or given.get("type") != "json_schema" or not isinstance(given.get("schema"), dict):
        errors.append({"at": "output_config.format", "error": "must have the type json_schema and a schema"})
        return None
    return given["schema"]


def _messages(messages: Any) -> Any:
    if not isinstance(messages, list):
        return messages
    return [
        {**message, "content": _blocks(message["content"])}
        if isinstance(message, dict) and "content" in message
        else message
        for message in messages
    ]


def _blocks(content: Any) -> Any:
    """Without what changes no answer."""
    if not isinstance(content, list):
        return content
    return [
        {name: value for name, value in block.items() if name != "cache_control" and value is not None}
        if isinstance(block, dict)
        else block
        for block in content
    ]


def _system(system: Any) -> Any:
    """A run has one text."""
    blocks = _blocks(system)
    if not isinstance(blocks, list):
        return system
    texts = [block.get("text") if isinstance(block, dict) and block.get("type") == "text" else None for block in blocks]
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise wrong([{"at": f"system[{number}]", "error": "must be a block of text"}])
    return "\n\n".join(map(str, texts))


def message(wanted: Wanted, result: RunResult) -> dict[str, Any]:
    """The run's last answer, and what it has left."""
    text = answer_of(result, by_schema="output_schema" in wanted.invocation)
    return {
        **opening(wanted, result.id),
        "content": [{"type": "text", "text": text}] if text else [],
        "stop_reason": STOPPED.get(result.stop_reason, result.stop_reason),
        "usage": usage(result.usage),
        "artifacts": artifacts_of(result),
    }


def opening(wanted: Wanted, run_id: str) -> dict[str, Any]:
    """A message before there is anything of it."""
    return {
        "id": f"msg_{run_id.removeprefix('run_')}",
        "type": "message",
        "role": "assistant",
        "model": wanted.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage(Usage()),
    }


def usage(used: Usage) -> dict[str, Any]:
    return used.model_dump()
