"""How many tokens a prompt has, by the API's own count, which costs nothing. No run begins."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import httpx
import orjson

from claude_invoker.cli.outcome import overloaded
from claude_invoker.metering.control import Metering, NoProxy, Terms
from claude_invoker.metering.figures import Figures
from claude_invoker.metering.prices import full_name
from claude_invoker.metering.request import MAX_COUNTED
from claude_invoker.problem import Problem

_WITHIN_S = 30.0
_URL = "http://api/v1/messages/count_tokens"
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
        async with asyncio.timeout(_WITHIN_S), httpx.AsyncClient(transport=transport, timeout=_WITHIN_S) as client:
            headers = {"x-api-key": token, "anthropic-version": _VERSION}
            async with client.stream("POST", _URL, json=body, headers=headers) as answer:
                said = await _short(answer)
    except (httpx.HTTPError, TimeoutError) as error:
        raise Problem(502, "api-error", "the tokens were not counted: no answer") from error
    finally:
        await metering.close(key, 0)
    return _counted(answer.status_code, said, figures)


async def _short(answer: httpx.Response) -> bytes:
    """As much of it as a number takes."""
    said = bytearray()
    async for piece in answer.aiter_raw():
        said += piece
        if len(said) > MAX_COUNTED:
            break
    return bytes(said[:MAX_COUNTED])


def _counted(status: int, said: bytes, figures: Figures) -> int:
    if figures.refused:
        raise Problem(403, "forbidden", figures.refused)
    if status in (429, 529):
        raise overloaded(figures, status)
    if status in (400, 404, 413):
        raise Problem(422, "prompt-rejected", "the model API does not count it", api_status=status)
    try:
        tokens = orjson.loads(said)["input_tokens"]
    except (ValueError, KeyError, TypeError):
        tokens = None
    if status != 200 or not isinstance(tokens, int):
        raise Problem(502, "api-error", f"the model API answered {status}", api_status=status)
    return tokens
