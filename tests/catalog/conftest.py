"""Invokers as in `tests/invoker`."""

from __future__ import annotations

from tests.invoker.conftest import invoker_processes as invoker_processes
from tests.invoker.conftest import invokers_end_with_their_test as invokers_end_with_their_test
from tests.invoker.conftest import stand_in as stand_in
from tests.invoker.conftest import start_invoker as start_invoker
