"""What the CLI may say: each line of its output becomes one of these values, within bounds, or is refused.

The CLI's output is not to be trusted more than the run: a tool has the CLI's user and can take its descriptor. So only
known kinds pass, with known types; a number is finite and not negative; what is handed on to callers is JSON that can
be written again. Unknown kinds and members are passed over, since a newer CLI may say more.

Facts about the messages were measured on CLI 2.1.330; docs/invoker.md lists them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from claude_contract.nesting import too_deep

MAX_LINE = 64 * 1024 * 1024
MAX_VALUES = 200_000
"""Of one line. It is the number of values that makes parsing slow and large: 64 MB of `[]` are seconds in which nothing
else is served, and gigabytes."""
_MAX_REPAIRED = 4 * 1024 * 1024
MODEL_EVENTS = frozenset(
    ("message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta",
     "message_stop", "ping")
)  # fmt: skip
"""Names of the Messages API's stream events. Ours (`run.finished`, `tool`, `error` …) are never taken from a run."""

Name = Annotated[str, Field(max_length=256)]
Tokens = Annotated[int, Field(ge=0, le=10**12)]
Usd = Annotated[float, Field(ge=0, le=10**6, allow_inf_nan=False)]


class Malformed(Exception):
    """A line that is not the CLI's protocol, or that leaves its bounds."""


@dataclass(frozen=True)
class Started:
    """The run begins: `model` is the name that the API knows it by."""

    model: str
    tools: tuple[str, ...]
    servers: tuple[str, ...] = ()
    """Of MCP, those that the CLI has reached."""


@dataclass(frozen=True)
class ModelEvent:
    """An event of the model's stream, as JSON text."""

    name: str
    data: bytes
    of_subagent: bool


@dataclass(frozen=True)
class ToolCall:
    id: str
    name: str
    input: dict[str, Any]


@dataclass(frozen=True)
class Said:
    """What the model has said, as far as it is of interest: its calls of tools."""

    calls: tuple[ToolCall, ...]


@dataclass(frozen=True)
class ToolResult:
    id: str
    is_error: bool
    text: str


@dataclass(frozen=True)
class Heard:
    """What the model is told: the results of tools."""

    results: tuple[ToolResult, ...]


@dataclass(frozen=True)
class HookCall:
    """The CLI asks before it runs a tool, and waits: `call` is the id of the tool's call, `agent` the kind of subagent
    that calls it."""

    request_id: str
    tool: str
    input: dict[str, Any]
    call: str
    agent: str | None


@dataclass(frozen=True)
class ServerCall:
    """The CLI speaks to an MCP server that we are to it, and waits: `message` is one of JSON-RPC."""

    request_id: str
    server: str
    message: dict[str, Any]


@dataclass(frozen=True)
class CallOver:
    """The CLI waits no more for the answer to a `HookCall` or `ServerCall`."""

    request_id: str


@dataclass(frozen=True)
class Lifecycle:
    """What has become of a message that was sent while the model was at work: `queued`, `started`, `completed`,
    `cancelled` and others."""

    message: str
    state: str


@dataclass(frozen=True)
class AgentStarted:
    """A subagent begins: `call` is the id of the tool's call that has begun it, `task` what the CLI calls it."""

    task: str
    call: str


@dataclass(frozen=True)
class AgentEnded:
    """By itself, or since it was ended. (Also said of other tasks, which nobody has heard begin.)"""

    task: str


@dataclass(frozen=True)
class ControlAnswer:
    """The answer to a control request; `error` is None where it was obeyed."""

    request_id: str
    error: str | None
    error_code: str | None
    model: str | None
    unreached: tuple[str, ...] = ()
    """MCP servers that were to be started, and do not answer."""
    reached: tuple[str, ...] = ()
    """Of MCP, those that the CLI has reached, where that was asked."""


class _Loose(BaseModel):
    """Values are not converted: a number in quotes is not a number."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class ModelUsage(_Loose):
    """What one model was used for, by the CLI's own count; money in US dollars."""

    inputTokens: Tokens = 0
    outputTokens: Tokens = 0
    cacheReadInputTokens: Tokens = 0
    cacheCreationInputTokens: Tokens = 0
    costUSD: Usd = 0.0


class Denial(_Loose):
    """A call of a tool that the permissions did not allow."""

    tool_name: Name = ""
    tool_input: dict[str, Any] = {}


class Result(_Loose):
    """The last message of a run."""

    subtype: Name
    is_error: bool = False
    result: str | None = None
    errors: list[Any] | None = None
    structured_output: Any = None
    stop_reason: Name | None = None
    api_error_status: int | None = None
    num_turns: Annotated[int, Field(ge=0, le=10**6)] = 0
    total_cost_usd: Usd = 0.0
    permission_denials: Annotated[list[Denial], Field(max_length=10_000)] = []
    model_usage_since_last_result: dict[Name, ModelUsage] | None = None

    @property
    def is_deferred(self) -> bool:
        """Whether it has ended because a call of a tool is to be decided later. (It says so, which proves nothing.)"""
        return self.stop_reason == "tool_deferred" and not self.is_error

    @property
    def used(self) -> ModelUsage:
        """What this run has used, subagents included. `total_cost_usd` and `usage` say less or more: a session's have
        all its earlier runs in them, and `usage` leaves out subagents and what a budget cut off."""
        if self.model_usage_since_last_result is None:
            return ModelUsage(costUSD=self.total_cost_usd)
        parts = list(self.model_usage_since_last_result.values())
        return ModelUsage(
            inputTokens=sum(part.inputTokens for part in parts),
            outputTokens=sum(part.outputTokens for part in parts),
            cacheReadInputTokens=sum(part.cacheReadInputTokens for part in parts),
            cacheCreationInputTokens=sum(part.cacheCreationInputTokens for part in parts),
            costUSD=sum((part.costUSD for part in parts), 0.0),
        )


Message = (
    Started
    | ModelEvent
    | Said
    | Heard
    | HookCall
    | ServerCall
    | CallOver
    | Lifecycle
    | AgentStarted
    | AgentEnded
    | ControlAnswer
    | Result
)


class _Reached(_Loose):
    name: Name
    status: Name


class _Servers(_Loose):
    mcpServers: Annotated[list[_Reached], Field(max_length=1000)] = []


class _Init(_Loose):
    model: Name
    tools: Annotated[list[Name], Field(max_length=1000)] = []
    mcp_servers: Annotated[list[_Reached], Field(max_length=1000)] = []


class _Call(_Loose):
    id: Name
    name: Name
    input: dict[str, Any]


class _Answer(_Loose):
    tool_use_id: Name
    is_error: bool | None = None
    content: str | list[Any] | None = None


class _Cancelled(_Loose):
    request_id: Name


class _Lifecycle(_Loose):
    command_uuid: Name
    state: Name


class _Task(_Loose):
    task_id: Name = ""
    task_type: Name | None = None
    tool_use_id: Name | None = None


class _HookInput(_Loose):
    tool_name: Name
    tool_input: dict[str, Any]
    tool_use_id: Name = ""
    agent_type: Name | None = None


class _HookRequest(_Loose):
    request_id: Name
    input: _HookInput


class _ServerRequest(_Loose):
    request_id: Name
    server_name: Name
    message: dict[str, Any]


class _ControlBody(_Loose):
    subtype: Name
    request_id: Name
    error: str | None = None
    error_code: Name | None = None
    response: dict[str, Any] | None = None


def parse(line: bytes) -> Message | None:
    """One line of the CLI's output; None for what is of no interest. Raises Malformed."""
    document = _json(line)
    if not isinstance(document, dict):
        raise Malformed("a line of the CLI is not an object")
    kind = document.get("type")
    try:
        if kind == "stream_event":
            return _model_event(document)
        if kind == "assistant":
            return _said(document)
        if kind == "user":
            return Heard(tuple(_tool_result(block) for block in _blocks(document, "tool_result")))
        if kind == "result":
            return _result(document)
        if kind == "control_response":
            return _control(document.get("response"))
        if kind == "control_request":
            return _asked(document)
        if kind == "control_cancel_request":
            return CallOver(_Cancelled.model_validate(document).request_id)
        if kind == "command_lifecycle":
            life = _Lifecycle.model_validate(document)
            return Lifecycle(life.command_uuid, life.state)
        if kind == "system":
            return _of_system(document)
    except ValidationError as error:
        # Only the names of our own models: deeper ones are the run's text, and this is for the log.
        places = sorted({str(item["loc"][0]) if item["loc"] else "body" for item in error.errors(include_input=False)})
        raise Malformed(f"a message of type {kind} has no valid {', '.join(places)}") from None
    return None


def _of_system(document: dict[str, Any]) -> Started | AgentStarted | AgentEnded | None:
    match document.get("subtype"):
        case "init":
            init = _Init.model_validate(document)
            return Started(init.model, tuple(init.tools), _connected(init.mcp_servers))
        case "task_started":
            task = _Task.model_validate(document)
            is_agent = task.task_type == "local_agent" and task.tool_use_id is not None
            return AgentStarted(task.task_id, task.tool_use_id or "") if is_agent else None
        case "task_notification":
            return AgentEnded(_Task.model_validate(document).task_id)
    return None


def _connected(servers: list[_Reached]) -> tuple[str, ...]:
    return tuple(server.name for server in servers if server.status == "connected")


def _json(line: bytes) -> Any:
    # Those in strings count too: what the CLI says has its texts cut off long before.
    if line.count(b",") + line.count(b"[") + line.count(b"{") > MAX_VALUES:
        raise Malformed(f"a line of the CLI has more than {MAX_VALUES:,} values")
    try:
        return orjson.loads(line)
    except ValueError:
        pass
    if len(line) > _MAX_REPAIRED:
        raise Malformed("a line of the CLI is not JSON")
    # A preview that was cut in the middle of an emoji has half a surrogate pair in it, which orjson refuses.
    try:
        text = json.dumps(json.loads(line), ensure_ascii=False)
        return orjson.loads(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))
    except (ValueError, RecursionError) as error:
        raise Malformed("a line of the CLI is not JSON") from error


def _written(value: Any) -> bytes:
    """Raises Malformed for what cannot be written again, or is nested deeper than all readers bear: what is kept of a
    job is read by another parser than ours."""
    try:
        if not too_deep(value):
            return orjson.dumps(value)
    except (TypeError, ValueError):
        pass
    raise Malformed("a message is nested too deep")


def _model_event(document: dict[str, Any]) -> ModelEvent | None:
    event = document.get("event")
    name = event.get("type") if isinstance(event, dict) else None
    if not isinstance(name, str) or name not in MODEL_EVENTS:
        return None
    return ModelEvent(name, _written(event), document.get("parent_tool_use_id") is not None)


def _blocks(document: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    message = document.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list):
        return []
    return [block for block in content if isinstance(block, dict) and block.get("type") == kind]


def _said(document: dict[str, Any]) -> Said:
    return Said(tuple(_call(block) for block in _blocks(document, "tool_use")))


def _call(block: dict[str, Any]) -> ToolCall:
    call = _Call.model_validate(block)
    _written(call.input)
    return ToolCall(call.id, call.name, call.input)


def _tool_result(block: dict[str, Any]) -> ToolResult:
    answer = _Answer.model_validate(block)
    if isinstance(answer.content, list):
        texts = (part.get("text") for part in answer.content if isinstance(part, dict))
        text = "\n".join(part if isinstance(part, str) else "" for part in texts)
    else:
        text = answer.content or ""
    return ToolResult(answer.tool_use_id, bool(answer.is_error), text)


def _result(document: dict[str, Any]) -> Result:
    result = Result.model_validate(document)
    _written(result.structured_output)
    _written(result.errors)
    for denial in result.permission_denials:
        _written(denial.tool_input)
    return result


def _asked(document: dict[str, Any]) -> HookCall | ServerCall | None:
    request = document.get("request")
    if not isinstance(request, dict):
        return None
    given = {**request, "request_id": document.get("request_id")}
    if request.get("subtype") == "mcp_message":
        asked = _ServerRequest.model_validate(given)
        _written(asked.message)
        return ServerCall(asked.request_id, asked.server_name, asked.message)
    if request.get("subtype") != "hook_callback":
        return None
    found = _HookRequest.model_validate(given)
    called = found.input
    _written(called.tool_input)
    return HookCall(found.request_id, called.tool_name, called.tool_input, called.tool_use_id, called.agent_type)


def _control(response: Any) -> ControlAnswer:
    body = _ControlBody.model_validate(response)
    model = (body.response or {}).get("model")
    errors = (body.response or {}).get("errors")
    failed = body.subtype != "success"
    return ControlAnswer(
        body.request_id,
        (body.error or "refused") if failed else None,
        body.error_code if failed else None,
        model if isinstance(model, str) else None,
        tuple(errors) if isinstance(errors, dict) else (),
        _connected(_Servers.model_validate(body.response or {}).mcpServers),
    )
