"""What the CLI's result message means: pure. Judged by `is_error`, `api_error_status`, `terminal_reason`,
never by `subtype` alone, since API failures come as `subtype: "success"`."""

from __future__ import annotations

from typing import Any

from claude_invoker.cli.keyproxy import Grant
from claude_invoker.model import PermissionDenial, Usage
from claude_invoker.problem import Problem

_STOPPED = {
    "error_max_turns": "max_turns",
    "error_max_budget_usd": "max_budget",
    "error_max_structured_output_retries": "output_schema",
}
_TOO_LONG = ("prompt is too long", "prompt too long", "request_too_large")


def failure(result: dict[str, Any], grant: Grant) -> Problem | None:
    """The problem a result message stands for, or None where it is a result to answer with 200.

    `grant`: what the key proxy saw of the API. The CLI's own texts are for its user at a terminal and name
    internal addresses; only what says why a prompt was rejected is passed on.
    """
    if not result.get("is_error") or str(result.get("subtype")) in _STOPPED or _is_refusal(result):
        return None
    if grant.refused:
        return Problem(403, "forbidden", grant.refused)
    reported = result.get("api_error_status")
    status = reported if isinstance(reported, int) and not grant.unreachable else None
    text = str(result.get("result") or "; ".join(map(str, result.get("errors") or [])))[:500]
    if status in (401, 403):
        return Problem(502, "api-auth", api_status=status)
    if status in (429, 529):
        wait = grant.retry_after if grant.retry_after and grant.retry_after.isdigit() else "5"
        return Problem(503, "api-overloaded", headers={"Retry-After": wait}, api_status=status)
    if status in (400, 404, 413, 422) or any(mark in text.lower() for mark in _TOO_LONG):
        return Problem(422, "prompt-rejected", text, api_status=status)
    if status is not None:
        return Problem(502, "api-error", f"the model API answered {status}", api_status=status)
    if grant.unreachable or result.get("subtype") == "success":
        return Problem(504, "api-unreachable", "no answer, or a connection that broke off")
    return Problem(502, "cli-failed", "the Claude CLI reported an error")


def stop_reason(result: dict[str, Any]) -> str:
    """`end_turn`, `max_turns`, `max_budget`, `refusal`, … of a result that is answered with 200."""
    if reason := _STOPPED.get(str(result.get("subtype"))):
        return reason
    return str(result.get("stop_reason") or "end_turn")


def usage(result: dict[str, Any]) -> Usage:
    found = result.get("usage")
    if not isinstance(found, dict):
        return Usage()
    return Usage(**{name: int(found.get(name) or 0) for name in Usage.model_fields})


def cost_usd(result: dict[str, Any]) -> float:
    cost = result.get("total_cost_usd")
    return float(cost) if isinstance(cost, int | float) else 0.0


def denials(result: dict[str, Any]) -> list[PermissionDenial]:
    found = result.get("permission_denials")
    return [
        PermissionDenial(
            tool=str(denial.get("tool_name", "")),
            input=denial["tool_input"] if isinstance(denial.get("tool_input"), dict) else {},
        )
        for denial in (found if isinstance(found, list) else [])
        if isinstance(denial, dict)
    ]


def _is_refusal(result: dict[str, Any]) -> bool:
    return result.get("stop_reason") == "refusal"
