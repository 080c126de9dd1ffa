from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kong_driver import Driver, plugin_server

PLUGINS = Path(__file__).parents[2] / "plugins" / "kong_claude" / "kong_plugins"


@pytest.fixture(scope="session")
def kong() -> Iterator[Driver]:
    with plugin_server(PLUGINS) as server, server.driver() as driver:
        yield driver
