"""What the CLI's result message means: pure. Judged by `is_error`, `api_error_status`, `terminal_reason`,
never by `subtype` alone, since API failures come as `subtype: "success"`."""

from __future__ import annotations

from typing import Any

from claude_invoker.model import PermissionDenial, Usage
from claude_invoker.problem import Problem

_STOPPED = {
    "error_max_turns": "max_turns",
    "error_max_budget_usd": "max_budget",
    "error_max_structured_output_retries": "output_schema",
}
_TOO_LONG = ("prompt is too long", "prompt too long", "request_too_large")


def failure(result: dict[str, Any], api_status: int | None, retry_after: str | None) -> Problem | None:
    """The problem a result message stands for, or None where it is a result to answer with 200.

    `api_status` is what the API itself said last (None: it did not answer, or all was well).
    """
    if not result.get("is_error") or result.get("subtype") in _STOPPED or _is_refusal(result):
        return None
    status = result.get("api_error_status")
    status = status if isinstance(status, int) else api_status
    text = str(result.get("result") or "; ".join(map(str, result.get("errors") or [])))[:500]
    if status in (401, 403):
        return Problem(502, "api-auth", "the model API does not accept the invoker's key", api_status=status)
    if status in (429, 529):
        return Problem(
            503,
            "api-overloaded",
            headers={"Retry-After": retry_after if retry_after and retry_after.isdigit() else "5"},
            api_status=status,
        )
    if status in (400, 413, 422) or any(mark in text.lower() for mark in _TOO_LONG):
        return Problem(422, "prompt-rejected", text, api_status=status)
    if status is not None:
        return Problem(502, "api-error", text, api_status=status)
    if result.get("subtype") == "success":
        return Problem(504, "api-unreachable", text)
    return Problem(502, "cli-failed", text)


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
