"""How many tokens a prompt has, by the API's own count, which costs nothing. No run begins."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import httpx

from claude_invoker.cli.outcome import overloaded
from claude_invoker.metering.control import Metering, NoProxy, Terms
from claude_invoker.metering.figures import Figures
from claude_invoker.metering.prices import full_name
from claude_invoker.problem import Problem

_WITHIN_S = 30.0
_VERSION = "2023-06-01"


async def count(metering: Metering, model: str, system: str | None, content: Sequence[dict[str, Any]]) -> int:
    """Input tokens of one user message with that system prompt. What the CLI itself says to a model comes on top.

    Raises Problem 403, 422, 502, 503."""
    body: dict[str, Any] = {"model": full_name(model), "messages": [{"role": "user", "content": list(content)}]}
    if system:
        body["system"] = system
    key, token, figures = f"count:{secrets.token_hex(8)}", metering.issue(), Figures()
    try:
        # By the way that runs have, since the key is nowhere else; for nobody's money, and one request.
        await metering.open(key, token, Terms(None, Decimal(0), None, 1), figures)
    except NoProxy as error:
        raise Problem(503, "busy", str(error), {"Retry-After": "5"}) from error
    try:
        transport = httpx.AsyncHTTPTransport(uds=str(metering.socket))
        async with httpx.AsyncClient(transport=transport, timeout=_WITHIN_S) as client:
            answer = await client.post(
                "http://api/v1/messages/count_tokens",
                json=body,
                headers={"x-api-key": token, "anthropic-version": _VERSION},
            )
    except httpx.HTTPError as error:
        raise Problem(502, "api-error", "the tokens were not counted: no answer") from error
    finally:
        await metering.close(key, 0)
    return _counted(answer, figures)


def _counted(answer: httpx.Response, figures: Figures) -> int:
    status = answer.status_code
    if figures.refused:
        raise Problem(403, "forbidden", figures.refused)
    if status in (429, 529):
        raise overloaded(figures, status)
    if status in (400, 404, 413):
        raise Problem(422, "prompt-rejected", "the model API does not count it", api_status=status)
    try:
        tokens = answer.json()["input_tokens"]
    except (ValueError, KeyError, TypeError):
        tokens = None
    if status != 200 or not isinstance(tokens, int):
        raise Problem(502, "api-error", f"the model API answered {status}", api_status=status)
    return tokens
