from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.invoker.conftest import (  # noqa: F401 invokers and their stand-in, as there
    Invoker,
    invoker_processes,
    invokers_end_with_their_test,
    stand_in,
    start_invoker,
)
from tests.jobs.conftest import SECRET as ATTESTATION
from tests.rate_tiers.servers import RedisProcess
from tests.support.s3 import ID, S3, SECRET


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    server = S3()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def prefix() -> str:
    return f"replicas-{secrets.token_hex(4)}"


@pytest.fixture(scope="module")
def start(
    start_invoker: Callable[..., Invoker],  # noqa: F811 the fixture
    shared_redis: RedisProcess,
    s3: S3,
    prefix: str,
) -> Callable[..., Invoker]:
    """Starts an invoker that shares its Redis and a bucket with the others."""

    def started(**more: Any) -> Invoker:
        url = shared_redis.url
        shared = {"redis_url": url, "runs_redis_url": url, "attestation_key": ATTESTATION, "trust": "attested"}
        kept = {"store": s3.url(prefix), "store_key": f"{ID}:{SECRET}"}
        return start_invoker(pool_size=0, idle_s=60, **(shared | kept | more))

    return started
