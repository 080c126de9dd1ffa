from __future__ import annotations

from collections.abc import Iterator

import pytest

from kong_claude.rate_tiers import redis_ledger
from tests.interop.deployments import cluster_of_three
from tests.rate_tiers.servers import RedisProcess


@pytest.fixture(params=["pool", "pipe"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection for each caller, as in threads, and one for all, as in the plugin server."""
    monkeypatch.setattr(redis_ledger, "in_greenlets", lambda: request.param == "pipe")


@pytest.fixture(scope="session")
def cluster() -> Iterator[list[RedisProcess]]:
    """Three masters on loopback."""
    nodes = cluster_of_three()
    yield nodes
    for node in nodes:
        node.close()
