"""A real invoker with repositories, and the collector that it tells."""

from __future__ import annotations

from tests.invoker.conftest import (  # noqa: F401 invokers and their stand-in, as there
    invoker_processes,
    invokers_end_with_their_test,
    stand_in,
    start_invoker,
)
