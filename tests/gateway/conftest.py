from __future__ import annotations

from collections.abc import Iterator

import pytest

from kong_claude import PLUGINS
from tests.support.kong_driver import Driver, plugin_server


@pytest.fixture(scope="session")
def kong() -> Iterator[Driver]:
    with plugin_server(PLUGINS) as server, server.driver() as driver:
        yield driver
