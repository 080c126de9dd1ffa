"""A chat completion as what is to be run, and a run's result as a completion: pure.

https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from claude_invoker.api.fields import CANNOT, OURS, artifacts_of, ours, refused
from claude_invoker.api.models import of_run
from claude_invoker.api.problems import Place, wrong
from claude_invoker.model import RunResult, Usage

HONOURED = (
    "model", "messages", "stream", "stream_options", "response_format",
    "metadata", "user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options",
    *OURS,
)  # fmt: skip
"""Those of the second line change no answer."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "temperature": (1,),
    "top_p": (1,),
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (),
    "max_tokens": (),
    "max_completion_tokens": (),
    "stop": ([],),
    "seed": (),
    "store": (False,),
    "tools": ([],),
    "tool_choice": ("auto", "none"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("auto", "none"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": ("medium",),
    "service_tier": ("auto", "default"),
    "web_search_options": (),
    "moderation": (),
}
STOPPED = {"max_tokens": "length", "max_turns": "length", "max_budget": "length", "refusal": "content_filter"}
_SYSTEM = ("system", "developer")
_OF_MESSAGES: dict[str, tuple[Any, ...]] = {
    "name": (),
    "refusal": (),
    "audio": (),
    "tool_calls": ([],),
    "function_call": (),
}
_DATA = re.compile(r"data:([a-z]+/[a-z0-9.+-]+);base64,(.*)", re.DOTALL)


@dataclass(frozen=True)
class Wanted:
    """`invocation`: in the fields of `POST /invoke`, not validated yet; it lacks the first `instructions` messages,
    which are its system prompt."""

    model: str
    stream: bool
    with_usage: bool
    instructions: int
    invocation: dict[str, Any]

    def place(self, at: Place) -> Place:
        """Where the caller has what is said of a run's field."""
        if at[:1] == ("output_schema",):
            return ("response_format", "json_schema", "schema", *at[1:])
        if at[:1] == ("messages",) and len(at) > 1 and isinstance(at[1], int):
            return ("messages", at[1] + self.instructions, *at[2:])
        return at


def wanted(document: Mapping[str, Any]) -> Wanted:
    """Raises Problem 422 with the places of the fields that a run cannot honour."""
    errors = refused(document, HONOURED, NEUTRAL)
    stream = document.get("stream")
    if stream is not None and not isinstance(stream, bool):
        errors.append({"at": "stream", "error": "must be true or false"})
    with_usage = _with_usage(document.get("stream_options"), errors)
    schema = _schema(document.get("response_format"), errors)
    messages = document.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        errors.append({"at": "messages", "error": "must be a list of messages"})
        raise wrong(errors)
    instructions = next((n for n, message in enumerate(messages) if message.get("role") not in _SYSTEM), len(messages))
    said = [_message(message, f"messages[{n}]", n < instructions, errors) for n, message in enumerate(messages)]
    if errors:
        raise wrong(errors)
    model = of_run(document.get("model"))
    invocation: dict[str, Any] = {"messages": said[instructions:]} | ours(document)
    if instructions:
        texts = (_text(message["content"], n) for n, message in enumerate(said[:instructions]))
        invocation["system"] = "\n\n".join(texts)
    if model is not None:
        invocation["model"] = model
    if schema is not None:
        invocation["output_schema"] = schema
    return Wanted(str(document["model"]), bool(stream), with_usage, instructions, invocation)


def _with_usage(options: Any, errors: list[dict[str, str]]) -> bool:
    if options is None:
        return False
    if not isinstance(options, dict):
        errors.append({"at": "stream_options", "error": "must be an object"})
        return False
    errors += refused(options, ("include_usage",), {"include_obfuscation": (True, False)}, "stream_options")
    return options.get("include_usage") is True


def _schema(given: Any, errors: list[dict[str, str]]) -> Any:
    if given is None or given == {"type": "text"}:
        return None
    described = given.get("json_schema") if isinstance(given, dict) and given.get("type") == "json_schema" else None
    if isinstance(described, dict) and isinstance(described.get("schema"), dict):
        return described["schema"]
    errors.append({"at": "response_format", "error": "must be text, or json_schema with a schema"})
    return None


def _message(message: Mapping[str, Any], at: str, leads: bool, errors: list[dict[str, str]]) -> dict[str, Any]:
    role = message.get("role")
    if role in _SYSTEM and not leads:
        errors.append({"at": f"{at}.role", "error": "must not come after other messages: a run has one system prompt"})
    elif role in ("tool", "function"):
        errors.append({"at": f"{at}.role", "error": "cannot be honoured by a run: it calls its tools itself"})
    errors += refused(message, ("role", "content"), _OF_MESSAGES, at)
    content = message.get("content")
    if isinstance(content, list):
        content = [_part(part, f"{at}.content[{n}]", role == "user", errors) for n, part in enumerate(content)]
    return {"role": role, "content": content}


def _part(part: Any, at: str, of_user: bool, errors: list[dict[str, str]]) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind == "image_url" and of_user:
        source = _data(part.get("image_url"), "url", ("auto", "low", "high"), f"{at}.image_url", errors)
        return {"type": "image", "source": source}
    if kind == "file" and of_user:
        source = _data(part.get("file"), "file_data", (), f"{at}.file", errors)
        title = part["file"].get("filename") if isinstance(part.get("file"), dict) else None
        return {"type": "document", "source": source} | ({"title": title} if title is not None else {})
    errors.append({"at": at, "error": "must be text" if not of_user else "must be text, an image_url or a file"})
    return {}


def _data(
    given: Any, member: str, details: tuple[str, ...], at: str, errors: list[dict[str, str]]
) -> dict[str, Any] | None:
    url = given.get(member) if isinstance(given, dict) else None
    found = _DATA.fullmatch(url) if isinstance(url, str) else None
    if found is None:
        errors.append({"at": f"{at}.{member}", "error": "must be the data itself: data:MEDIA/TYPE;base64,…"})
        return None
    for name in set(given) - {member, "filename"}:
        if given[name] is not None and given[name] not in details:
            errors.append({"at": f"{at}.{name}", "error": CANNOT})
    return {"type": "base64", "media_type": found[1], "data": found[2]}


def _text(content: Any, number: int) -> str:
    if isinstance(content, list):
        return "\n\n".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise wrong([{"at": f"messages[{number}].content", "error": "must be text"}])
    return content


def completion(wanted: Wanted, run_id: str, created: float, answer: str, result: RunResult) -> dict[str, Any]:
    """`created`: Unix seconds; `answer`: the run's last."""
    message = {"role": "assistant", "content": answer, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason(result)}
    return {
        **opening(wanted, run_id, created, "chat.completion"),
        "choices": [choice],
        "usage": usage(result.usage),
        "artifacts": artifacts_of(result),
    }


def opening(wanted: Wanted, run_id: str, created: float, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{run_id.removeprefix('run_')}",
        "object": kind,
        "created": int(created),
        "model": wanted.model,
    }


def finish_reason(result: RunResult) -> str:
    return STOPPED.get(result.stop_reason, "stop")


def usage(used: Usage) -> dict[str, Any]:
    prompt = used.input_tokens + used.cache_creation_input_tokens + used.cache_read_input_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": used.output_tokens,
        "total_tokens": prompt + used.output_tokens,
        "prompt_tokens_details": {"cached_tokens": used.cache_read_input_tokens},
    }
