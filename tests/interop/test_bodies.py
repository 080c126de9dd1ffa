"""Each body of the table (`bodies.py`), at the gateway's plugin and at the invoker, each by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kong_claude import PLUGINS
from tests.interop.bodies import BODIES, Body
from tests.jobs.conftest import serving, state  # noqa: F401 -- a fixture
from tests.rate_tiers.servers import RedisProcess
from tests.support.kong_driver import Driver, Request, plugin_server

CONFIG: dict[str, Any] = {"mark": "m", "prepend": "Be kind.\n", "apply": "body"}


@pytest.fixture(scope="module")
def kong() -> Iterator[Driver]:
    with plugin_server(PLUGINS) as server, server.driver() as driver:
        yield driver


def headers_of(body: Body) -> dict[str, str]:
    given = {"content-type": "application/json", "content-length": str(len(body.content)), **body.headers}
    return {name: value for name, value in given.items() if value is not None}


@pytest.mark.parametrize("body", BODIES, ids=str)
def test_at_the_gateway(body: Body, kong: Driver) -> None:
    instance = kong.start_instance("claude-prompt-context", CONFIG)
    request = Request(headers={**headers_of(body), "x-request-id": "r"}, body=body.content)
    event = kong.handle(instance, "access", request)
    if body.gateway is None:
        assert event.exit is None
        assert (request.upstream_body is not None) == bool(body.content), "control: it was read"
    else:
        assert event.exit is not None
        assert event.exit.status == body.gateway
        assert body.says in str(event.exit), event.exit


async def test_at_the_invoker(redis_server: RedisProcess, state: Path) -> None:  # noqa: F811
    """All asked of one, which has no gateway before it that would refuse any."""
    asked = [body for body in BODIES if body.invoker is not None]
    async with serving(redis_server, state) as gateway:
        for body in asked:
            length = {"content-length", "transfer-encoding"}
            headers = {name: value for name, value in headers_of(body).items() if name not in length}
            answer = await gateway.ask("POST", "/claude/jobs", content=body.content, headers=headers)
            assert answer.status_code == body.invoker, (str(body), answer.text)
            if body.invoker != 202:
                assert body.says in answer.json()["detail"], (str(body), answer.text)
                assert "ü" not in answer.text, "nothing of it is quoted"


def test_what_is_refused_says_why_and_what_is_not_does_not() -> None:
    for body in BODIES:
        passes = body.gateway is None and body.invoker == 202
        assert passes == (not body.refused) == (not body.says), str(body)
    assert len(set(map(str, BODIES))) == len(BODIES)
