"""What the CLI's result message means: pure. Judged by `is_error`, `api_error_status`, `terminal_reason`,
never by `subtype` alone, since API failures come as `subtype: "success"`."""

from __future__ import annotations

from claude_invoker.cli.messages import Result
from claude_invoker.cli.process import Disobeyed
from claude_invoker.metering.figures import Figures
from claude_invoker.metering.usage import Used
from claude_invoker.model import PermissionDenial, Usage
from claude_invoker.problem import Problem

_STOPPED = {
    "error_max_turns": "max_turns",
    "error_max_budget_usd": "max_budget",
}
_UNMET = "error_max_structured_output_retries"
_TOO_LONG = ("prompt is too long", "prompt too long", "request_too_large")


def failure(result: Result, account: Figures, *, goes_on: bool = False) -> Problem | None:
    """The problem a result message stands for, or None where it is a result to answer with 200.

    `account`: what the metering proxy saw of the API; `goes_on`: the run has been before, and was put away. The CLI's
    own texts are for its user at a terminal and name internal addresses; only what says why a prompt was rejected is
    passed on.
    """
    if not result.is_error or result.subtype in (*_STOPPED, _UNMET) or result.stop_reason == "refusal":
        return None
    if is_cut_off(result, account):
        return None if goes_on else _not_begun(account)
    if problem := _not_forwarded(account):
        return problem
    status = None if account.unreachable else result.api_error_status
    text = str(result.result or "; ".join(map(str, result.errors or [])))[:500]
    if status in (401, 403):
        return Problem(502, "api-auth", api_status=status)
    if status in (429, 529):
        return overloaded(account, status)
    if status in (400, 404, 413, 422) or any(mark in text.lower() for mark in _TOO_LONG):
        return Problem(422, "prompt-rejected", text, api_status=status)
    if status is not None:
        return Problem(502, "api-error", f"the model API answered {status}", api_status=status)
    if account.unreachable or result.subtype == "success":
        return Problem(504, "api-unreachable", "no answer, or a connection that broke off")
    return Problem(502, "cli-failed", "the Claude CLI reported an error")


def unmet_schema(result: Result, account: Figures) -> Problem | None:
    """The problem of a run that has come to its end without the structure it was asked for; None where it has it, or
    was stopped before."""
    if result.structured_output is not None or is_cut_off(result, account):
        return None
    if result.subtype in _STOPPED or result.stop_reason == "refusal":
        return None
    extra = {"stop_reason": "output_schema"} | ({"result": result.result} if result.result else {})
    return Problem(422, "unmet-schema", "no answer of the model follows output_schema", extra=extra)


_UNASKED = ("check_unreachable", "check_failed", "verdict_pending", "internal_error")
"""What the CLI (2.1.330) says of a model of which nobody could tell it whether there is one: another try may pass. Its
proxy may be gone, so that the account knows nothing of it."""


def disobeyed(model: str, error: Disobeyed, account: Figures) -> Problem:
    """The problem of a run that has not begun, since the CLI does not take its model or its system prompt. For a model
    that it does not know by name the CLI asks the API."""
    if problem := _not_forwarded(account):
        return problem
    if account.exhausted:
        return _not_begun(account) or Problem(422, "invalid", "the budget does not suffice for one request")
    if error.code in ("auth_failed", "oauth_org_not_allowed"):
        return Problem(502, "api-auth", api_status=account.api_status)
    if error.code == "credits_required":
        return Problem(502, "api-error", "the model API wants credits for this model", api_status=account.api_status)
    if error.code in ("rate_limit", "check_server_error"):
        return overloaded(account, account.api_status)
    if error.code in ("not_found", "check_rejected"):
        return Problem(422, "invalid", f"the model API does not know the model {model}", api_status=account.api_status)
    if account.unreachable or error.code in _UNASKED:
        return Problem(504, "api-unreachable", "no answer, or a connection that broke off")
    return Problem(422, "invalid", "the Claude CLI does not accept the model or the system prompt")


def _not_forwarded(account: Figures) -> Problem | None:
    """Why the metering proxy sent no request of the run's, where it did not."""
    if account.held:
        return Problem(503, "not-bookable", account.held, {"Retry-After": "10"})
    return Problem(403, "forbidden", account.refused) if account.refused else None


def _not_begun(account: Figures) -> Problem | None:
    """Of a run that budgets of others, or an admin, have cut off before the API has answered it anything: it has done
    nothing. None where it has, or was cut off by its own budget, which its caller has chosen."""
    if account.used or not account.budget:
        return None
    return Problem(403 if account.blocked else 429, "limited", account.budget)


def overloaded(account: Figures, status: int | None) -> Problem:
    return Problem(503, "api-overloaded", headers={"Retry-After": account.retry_after or "5"}, api_status=status)


def is_cut_off(result: Result, account: Figures) -> bool:
    """Whether the run ended since the proxy sent no more requests for its budget; the text is the CLI's error then."""
    return result.is_error and account.exhausted and result.subtype not in _STOPPED


def stop_reason(result: Result, account: Figures) -> str:
    """`end_turn`, `max_turns`, `max_budget`, `refusal`, … of a result that is answered with 200."""
    if is_cut_off(result, account):
        return "max_budget"
    if result.structured_output is not None and result.stop_reason == "tool_use":
        return "end_turn"  # the CLI takes the structure by a tool of its own
    return _STOPPED.get(result.subtype) or result.stop_reason or "end_turn"


def usage(used: Used) -> Usage:
    return Usage(
        input_tokens=used.input,
        output_tokens=used.output,
        cache_creation_input_tokens=used.cache_write,
        cache_read_input_tokens=used.cache_read,
    )


def denials(result: Result) -> list[PermissionDenial]:
    return [PermissionDenial(tool=denial.tool_name, input=denial.tool_input) for denial in result.permission_denials]
