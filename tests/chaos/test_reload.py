"""`kong reload` under load, on a real Kong: no valid request is refused, and none is missing in the metrics."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import aiohttp
import pytest

from kong_claude.report.read import parse
from tests.chaos.reload import Counting, run_reloads
from tests.support.waiting import until

RELOADS = 20
pytestmark = [
    pytest.mark.skipif(not os.environ.get("KONG"), reason="needs a real Kong: KONG=/path/to/kong make test-kong"),
    pytest.mark.timeout(900),
]


async def one_id(stack: Counting) -> None:
    """What a refusal names is in Kong's access log, too."""
    async with aiohttp.ClientSession() as session:
        async with session.post(stack.url + "/a", headers={"X-Chaos": "a:bad:x"}) as answer:
            told = (await answer.json())["request_id"]

    async def logged() -> list[dict[str, Any]]:
        lines = [parse(line) for line in stack.access_log.read_bytes().splitlines()]
        return [line for line in lines if line and line["request_id"] == told]

    found = await until(logged, "its line in the access log")
    assert [(line["status"], line["refusal"]) for line in found] == [("401", "jwt-claims/no_token")]


def test_no_valid_request_is_refused_and_none_is_missing_in_the_metrics() -> None:
    async def go() -> None:
        stack = Counting()
        try:
            row = await run_reloads(stack, RELOADS)
            print(row)
            assert row["requests"] > 1000
            assert {name: figure for name, figure in row.items() if name != "requests" and figure} == {}
            await one_id(stack)
        finally:
            await stack.stop()

    asyncio.run(go())
