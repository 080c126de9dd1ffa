"""The plugin server as a process: ours, and kong-pdk's own in both of its modes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.kong_driver import Server, plugin_server

PLUGINS = Path(__file__).parent / "plugins"


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    """Starts servers over the test plugins; each ends with the test."""
    with ExitStack() as stack:

        def run(*flags: str, stock: bool = False, env: dict[str, str] | None = None, plugins: Path = PLUGINS) -> Server:
            return stack.enter_context(plugin_server(plugins, *flags, stock=stock, env=env))

        yield run


@pytest.fixture(scope="module")
def ours() -> Iterator[Server]:
    """One server of ours for the tests of a module that leave it as it was."""
    with plugin_server(PLUGINS, "--no-lua-style") as server:
        yield server
