"""Lines of the Claude CLI's output, as those who drive it have met them.

`becomes` is what the invoker takes a line for, `answer` status and type of the problem that a result stands for (None: an
answer with 200). `refused` says why a line that a real CLI writes ends the run, on purpose. `was`: what 0.1.0 made of it.
`source` and `reported`: see the README.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from claude_invoker.cli.messages import Heard, Message, Result, Said, ToolResult


@dataclass(frozen=True)
class Line:
    what: str
    text: bytes
    becomes: Message | type[Result] | None = None
    answer: tuple[int, str] | None = None
    refused: str = ""
    was: str = "good"
    source: str = ""
    reported: bool = False

    def __str__(self) -> str:
        return self.what


def of(**members: Any) -> bytes:
    return json.dumps(members).encode()


def result(**members: Any) -> bytes:
    return of(**{"type": "result", "subtype": "success", "is_error": False, "result": "", "num_turns": 1, **members})


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 3_000_000}}
LINES = (
    Line("a word on the account's limits", of(type="rate_limit_event", rate_limit_info={"status": "allowed", "resetsAt": 1771606800, "rateLimitType": "five_hour"}), source="anthropics/claude-agent-sdk-python#599, #603, anthropics/claude-code#26498, severity1/claude-agent-sdk-go#126"),
    Line("how long a tool has been at it", of(type="tool_progress", tool_use_id="t", tool_name="Bash", elapsed_time_seconds=3.2), source="guess/claude_code#12"),
    Line("a system message of a later kind", of(type="system", subtype="status", status="compacting")),
    Line("an image of 3 MB that a tool has read", of(type="user", message={"content": [{"type": "tool_result", "tool_use_id": "t", "content": [IMAGE]}]}), Heard((ToolResult("t", False, ""),)), source="anthropics/claude-agent-sdk-python#98, anthropics/claude-code#72226"),
    Line("the API's error as words of a model", of(type="assistant", message={"model": "<synthetic>", "content": [{"type": "text", "text": "Your organization has disabled access"}]}, error="oauth_org_not_allowed"), Said(()), source="anthropics/claude-code#79500"),
    Line("half of an emoji in a tool's output", b'{"type":"user","message":{"content":[{"type":"tool_result","tool_use_id":"t","content":"\\ud83d"}]}}', Heard((ToolResult("t", False, "\ufffd"),)), was="502, and no cost", reported=True),
    Line("the API's 403 as a success", result(is_error=True, api_error_status=403, terminal_reason="api_error"), Result, (502, "api-auth"), source="anthropics/claude-code#79500"),
    Line("the API's 429 as a success", result(is_error=True, api_error_status=429, result="Claude AI usage limit reached"), Result, (503, "api-overloaded"), source="anthropics/claude-code#79500"),
    Line("an error without a status, told by is_error alone", result(subtype="error_during_execution", is_error=True, result=None, errors=["x"]), Result, (502, "cli-failed"), source="majiayu000/harness#1783"),
    Line("a success without words", result(), Result, source="anthropics/claude-code#8126"),
    Line("a structure, and nothing in result", result(result=None, structured_output={"a": 1}, stop_reason="tool_use"), Result, source="Intense-Visions/harness-engineering#287"),
    Line("a line of a log among the messages", b"[log_71a72b] sending request {", refused="who can write there can write a result as well: whatever is no message ends the run", source="anthropics/claude-agent-sdk-python#148, #156, anthropics/claude-agent-sdk-typescript#157"),
    Line("two messages on one line", of(type="ping") + of(type="ping"), refused="as a line of a log", source="anthropics/claude-agent-sdk-python#5"),
    Line("all messages as one list", b'[{"type": "result", "subtype": "success"}]', refused="it is another format of the CLI, which is not asked for", source="vikasprogrammer/walkie#13"),
)  # fmt: skip
