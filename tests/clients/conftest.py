"""Tests of the vendors' clients use the invoker's fixtures, too."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.invoker.conftest import (  # noqa: F401
    Invoker,
    invoker_processes,
    invokers_end_with_their_test,
    stand_in,
    start_invoker,
)


@pytest.fixture(scope="session")
def invoker(start_invoker: Callable[..., Invoker]) -> Invoker:  # noqa: F811
    """One for all. Within its heartbeat a run may fail before its stream begins: long enough for the CLI to try again."""
    return start_invoker(heartbeat_s=10, api_timeout_s=5, idle_s=5)
