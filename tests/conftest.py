"""Hypothesis draws the same examples every time in `make test`; EXPLORE=1 lets it look for new ones. However busy the
machine is, its slowness is no failure. Mutants ask whether an example fails, not which is the least (`first`)."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.support import certificates

if TYPE_CHECKING:
    from tests.rate_tiers.servers import RedisProcess

settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("first", settings.get_profile("same"), phases=set(Phase) - {Phase.shrink, Phase.explain})
settings.load_profile("explore" if os.environ.get("EXPLORE") == "1" else "same")
certificates.read_once()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """8,000 tests are collected in each process and stay: nothing of them is garbage, neither meanwhile nor later, when each
    full collection would walk through all of them."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Half a surrogate pair in a failed example would end the whole run: xdist sends reports as UTF-8."""
    report = yield
    report.sections = [(sayable(name), sayable(text)) for name, text in report.sections]
    if report.longrepr is not None and sayable(str(report.longrepr)) != str(report.longrepr):
        report.longrepr = sayable(str(report.longrepr))
    return report


@pytest.fixture
def own_redis() -> Iterator[RedisProcess]:
    """A Redis that the test may kill."""
    from tests.interop.deployments import started

    server = started()
    yield server
    server.close()


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisProcess]:
    """Of invokers that live until the end, and write into it while other tests run."""
    from tests.interop.deployments import started

    server = started()
    yield server
    server.close()


@pytest.fixture(scope="session")
def emptied_redis() -> Iterator[RedisProcess]:
    from tests.interop.deployments import started

    server = started()
    yield server
    server.close()


@pytest.fixture
def redis_server(emptied_redis: RedisProcess) -> RedisProcess:
    """One for all tests that leave it alive, with nothing in it."""
    emptied_redis.client().flushall()
    return emptied_redis


def sayable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


LONGEST_ID = 200


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Of a long value its length: each process and each report would have all of it, many times over."""
    return f"{argname}-of-{len(val)}" if isinstance(val, str | bytes) and len(val) > LONGEST_ID else None
