from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.rate_tiers.servers import RedisProcess


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisProcess]:
    """One Redis for all tests that leave it alive; each flushes it first."""
    server = RedisProcess()
    yield server
    server.close()


@pytest.fixture
def redis_server(shared_redis: RedisProcess) -> RedisProcess:
    shared_redis.client().flushall()
    return shared_redis


@pytest.fixture
def own_redis() -> Iterator[RedisProcess]:
    """A Redis that the test may kill."""
    server = RedisProcess()
    yield server
    server.close()
