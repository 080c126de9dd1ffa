"""One plugin server for the folder; an instance per configuration."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tests.jwt_claims.support as s
from kong_claude import PLUGINS
from tests.support.kong_driver import Driver, Event, Request, Server, plugin_server

Send = Callable[..., tuple[Event, Request]]


@pytest.fixture(scope="session")
def plugins_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugins")
    shutil.copy(PLUGINS / "claude-jwt-claims.py", folder)
    return folder


@pytest.fixture(scope="session")
def server(plugins_dir: Path) -> Iterator[Server]:
    with plugin_server(plugins_dir) as running:
        yield running


@pytest.fixture(scope="session")
def kong(server: Server) -> Iterator[Driver]:
    with server.driver() as driver:
        yield driver


@pytest.fixture(scope="session")
def send(kong: Driver) -> Send:
    """send(config, headers, **request) → (event, request), through the socket."""
    instances: dict[str, Any] = {}

    def go(config: dict[str, Any] | None = None, headers: dict[str, Any] | None = None, **more: Any) -> Any:
        config = config or s.config()
        key = json.dumps(config, sort_keys=True)
        if key not in instances:
            instances[key] = kong.start_instance("claude-jwt-claims", config)
        request = Request(headers=headers or {}, **more)
        return kong.handle(instances[key], "access", request), request

    return go
