from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from kong_claude import PLUGINS
from tests.support.kong_driver import Driver, Event, Request, plugin_server

Send = Callable[..., tuple[Event, Request]]


@pytest.fixture(scope="session")
def kong() -> Iterator[Driver]:
    with plugin_server(PLUGINS) as server, server.driver() as driver:
        yield driver


@pytest.fixture
def send(kong: Driver) -> Send:
    """Plays one request through a fresh instance of the plugin."""

    def play(config: Mapping[str, Any], request: Request) -> tuple[Event, Request]:
        instance = kong.start_instance("claude-prompt-context", {"mark": "m", **config})
        return kong.handle(instance, "access", request), request

    return play


def post(body: bytes | str, headers: Mapping[str, Any] | None = None, **more: Any) -> Request:
    """A JSON POST as Kong shows it; a header given as None is left out."""
    raw = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
    sent = {
        "content-type": "application/json",
        "content-length": str(len(raw)),
        "x-request-id": "r-1",
        **(headers or {}),
    }
    return Request(headers={n: v for n, v in sent.items() if v is not None}, body=raw, **more)
