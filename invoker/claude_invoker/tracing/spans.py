"""What a trace says of a run, and of a request to a model itself: pure.

All of it is what the invoker and its metering proxy have seen themselves; the CLI's own OpenTelemetry is not used:
by whatever way that came out of a run, what the run makes up would come too (docs/tracing.md). Names are those of the
semantic conventions for generative AI (https://opentelemetry.io/docs/specs/semconv/gen-ai/); `claude.*` where these
have none. No prompt, no answer, and nothing of what tools were given or have said, unless the operator wants it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from claude_invoker.metering.usage import Used
from claude_invoker.metering.wire import Metered
from claude_invoker.passthrough.message import Message
from claude_invoker.runs.run import Called, Run, Step

_LONGEST_NAME, _LONGEST_TEXT = 134, 16384  # characters
_SHORTEST_STEP_S = 0.001

Value = str | int | float | bool


@dataclass(frozen=True)
class Tells:
    """What the operator wants: `subject` in plain, or as a digest; `content`: also what was asked and said."""

    subject: Literal["hash", "plain"] = "hash"
    content: bool = False


@dataclass(frozen=True)
class Span:
    """Times are seconds since 1970. `error`: what kind of it, where it has failed."""

    name: str
    kind: Literal["internal", "client", "consumer"]
    began: float
    ended: float
    attributes: Mapping[str, Value]
    error: str | None = None
    children: Sequence[Span] = field(default=())


def of_run(run: Run, tells: Tells) -> Span:
    """A run that is over, with what it has waited for, its requests to the API and its calls of tools."""
    stamp = _stamp(run, tells)
    ended = run.finished_at or run.created_at
    said = _said(run) if tells.content else {}
    children = [
        *(_of_step(step, stamp) for step in run.steps if step.ended - step.began >= _SHORTEST_STEP_S),
        *(_of_request(request, stamp) for request in run.account.requests),
        *(_of_call(call, stamp, ended, said.get(call.id, {})) for call in run.calls),
    ]
    return Span(
        "invoke_agent claude",
        "consumer" if run.is_job else "internal",
        run.created_at,
        ended,
        stamp | _of_all(run) | (_asked_and_answered(run) if tells.content else {}),
        None if run.problem is None or run.problem.kind == "cancelled" else run.problem.kind,
        sorted(children, key=lambda each: each.began),
    )


def of_message(message: Message, tells: Tells) -> list[Span]:
    """A request to a model itself that is over: each that was sent to the API for it."""
    caller = message.caller
    stamp = _who(caller.subject, caller.owner, tells) | {"claude.tier": caller.tier or ""}
    return [_of_request(each, stamp) for each in message.figures.requests]


def _who(subject: str, digest: str, tells: Tells) -> dict[str, Value]:
    return {"user.id": subject} if tells.subject == "plain" else {"user.hash": digest}


def _stamp(run: Run, tells: Tells) -> dict[str, Value]:
    """What each span of a run says, whatever the run is or does."""
    found = _who(run.subject, run.owner, tells) | {"claude.tier": run.tier, "claude.run.id": run.id}
    if run.plan.repository is not None:
        found["vcs.repository.name"] = run.plan.repository.name
    return found


def _of_all(run: Run) -> dict[str, Value]:
    found: dict[str, Value] = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.agent.name": "claude",
        "gen_ai.request.model": run.plan.model,
        "claude.cost_usd": run.cost_usd,
        "claude.isolation": run.isolation,
        "claude.end": run.problem.kind if run.problem else "deferred" if run.deferral else "succeeded",
        "claude.api.requests": run.account.requests_in_all,
        "claude.tool.calls": run.calls_in_all,
    }
    if run.model:
        found["gen_ai.response.model"] = run.model
    if run.session:
        found["gen_ai.conversation.id"] = run.session
    if run.account.used:
        found |= _tokens(run.account.total)
    if run.first_token_s is not None:
        found["gen_ai.response.time_to_first_chunk"] = round(run.first_token_s, 6)
    if run.checkout is not None:
        found["vcs.ref.head.revision"] = run.checkout.commit
    return found


def _of_step(step: Step, stamp: dict[str, Value]) -> Span:
    return Span(step.name, "internal", step.began, step.ended, stamp)


def _of_request(request: Metered, stamp: dict[str, Value]) -> Span:
    model = _plain(request.model)
    found: dict[str, Value] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.request.model": model,
        "claude.cost_usd": float(request.usd),
    }
    if request.answered_by:
        found["gen_ai.response.model"] = _plain(request.answered_by)
    if request.used != Used():
        found |= _tokens(request.used)
    if request.first_s is not None:
        found["gen_ai.response.time_to_first_chunk"] = round(request.first_s, 6)
    if request.request_id:
        found["claude.api.request_id"] = request.request_id
    if request.status is not None:
        found["http.response.status_code"] = request.status
    error = str(request.status) if request.status not in (None, 200) else request.end
    return Span(
        f"chat {model}",
        "client",
        request.began,
        request.began + request.seconds,
        stamp | found,
        None if error == "complete" else error,
    )


def _of_call(call: Called, stamp: dict[str, Value], end: float, said: Mapping[str, str]) -> Span:
    """One that has no result was under way when the run ended."""
    name = _plain(call.tool)
    found: dict[str, Value] = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": name,
        "gen_ai.tool.call.id": _plain(call.id),
        **said,
    }
    error = "unanswered" if call.ended is None else "tool_error" if call.is_error else None
    return Span(f"execute_tool {name}", "internal", call.began, call.ended or end, stamp | found, error)


def _tokens(used: Used) -> dict[str, Value]:
    """`input_tokens` has the cached ones in it, as the conventions have it."""
    return {
        "gen_ai.usage.input_tokens": used.all_input,
        "gen_ai.usage.output_tokens": used.output,
        "gen_ai.usage.cache_read.input_tokens": used.cache_read,
        "gen_ai.usage.cache_creation.input_tokens": used.cache_write,
    }


def _plain(name: str) -> str:
    """A name that a run has said, by its CLI or in a request."""
    return name.encode("ascii", "replace").decode()[:_LONGEST_NAME]


# What is told only where the operator wants it


def _said(run: Run) -> dict[str, dict[str, str]]:
    """What each tool was given and has said, by its call, as far as the run's events are kept."""
    found: dict[str, dict[str, str]] = {}
    for event in run.events.whole():
        if event.name != "tool":
            continue
        told = event.document
        of_call = found.setdefault(told["id"], {})
        if told["state"] == "started":
            of_call["gen_ai.tool.call.arguments"] = orjson.dumps(told["input"]).decode()[:_LONGEST_TEXT]
        else:
            of_call["gen_ai.tool.call.result"] = told["content"][:_LONGEST_TEXT]
    return found


def _asked_and_answered(run: Run) -> dict[str, Value]:
    found: dict[str, Value] = {"gen_ai.input.messages": _messages("user", _texts(run.plan.content))}
    if run.plan.system:
        found["gen_ai.system_instructions"] = orjson.dumps(_parts([run.plan.system])).decode()
    if run.result is not None:
        found["gen_ai.output.messages"] = _messages("assistant", [run.result.result])
    return found


def _texts(content: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    return (str(block["text"]) for block in content if block.get("type") == "text")


def _messages(role: str, texts: Iterable[str]) -> str:
    return orjson.dumps([{"role": role, "parts": _parts(texts)}]).decode()


def _parts(texts: Iterable[str]) -> list[dict[str, str]]:
    """The first `_LONGEST_TEXT` characters of all together."""
    found, left = [], _LONGEST_TEXT
    for text in texts:
        if left <= 0:
            break
        found.append({"type": "text", "content": text[:left]})
        left -= max(1, len(text))
    return found
