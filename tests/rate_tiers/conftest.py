from __future__ import annotations

from collections.abc import Iterator

import pytest

from kong_claude.rate_tiers import redis_ledger
from tests.rate_tiers.servers import RedisProcess, free_port, wait_for


@pytest.fixture(params=["pool", "pipe"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection for each caller, as in threads, and one for all, as in the plugin server."""
    monkeypatch.setattr(redis_ledger, "in_greenlets", lambda: request.param == "pipe")


@pytest.fixture(scope="session")
def cluster() -> Iterator[list[RedisProcess]]:
    """Three masters on loopback."""
    nodes = []
    try:
        for _ in range(3):
            while (port := free_port()) > 55_000:
                pass
            nodes.append(RedisProcess("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", port=port))
        for number, node in enumerate(nodes):
            client = node.client()
            first, last = 16384 * number // 3, 16384 * (number + 1) // 3
            client.execute_command("CLUSTER", "ADDSLOTS", *range(first, last))
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in nodes[1:]:
            nodes[0].client().execute_command("CLUSTER", "MEET", "127.0.0.1", node.port)
        for node in nodes:
            wait_for(lambda node=node: node.client().cluster("info")["cluster_state"] == "ok")
        yield nodes
    finally:
        for node in nodes:
            node.close()
