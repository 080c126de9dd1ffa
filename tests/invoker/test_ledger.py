"""The invoker's side of the ledger: what a run has cost is booked once, however late all of it is known."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from claude_contract.ledger import Lease, Shared
from claude_invoker.ledger import Ledger
from tests.rate_tiers.servers import RedisProcess

LEASES = {
    "alone": Lease.new("claude", "alice", 5_000_000),
    "with pools": Lease.new("claude", "alice", 5_000_000, Shared("claim:acme", ("pool.eng:claim:red",))),
}


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisProcess]:
    server = RedisProcess()
    yield server
    server.close()


@pytest.fixture
async def ledger(redis_server: RedisProcess) -> AsyncIterator[Ledger]:
    redis_server.client().flushall()
    found = Ledger(redis_server.url)
    yield found
    await found.close()


async def spent(ledger: Ledger, lease: Lease) -> int:
    return (await ledger.usage(str(lease))).spent_day_micro_usd


@pytest.mark.parametrize("lease", LEASES.values(), ids=list(LEASES))
async def test_what_is_known_later_adds_the_difference_once(ledger: Ledger, lease: Lease) -> None:
    """A worker died: what was known is booked, and its journal turns up, more than once."""
    assert await ledger.book(str(lease), 100, final=False)
    assert await spent(ledger, lease) == 100
    assert await ledger.book(str(lease), 100, final=False)
    assert await spent(ledger, lease) == 100
    for _ in range(3):
        assert await ledger.book(str(lease), 250)
        assert await spent(ledger, lease) == 250


@pytest.mark.parametrize("lease", LEASES.values(), ids=list(LEASES))
async def test_what_was_final_is_not_booked_again(ledger: Ledger, lease: Lease) -> None:
    assert await ledger.book(str(lease), 250)
    assert await ledger.book(str(lease), 400)
    assert await ledger.book(str(lease), 400, final=False)
    assert await spent(ledger, lease) == 250


async def test_less_than_was_known_takes_nothing_back(ledger: Ledger) -> None:
    lease = LEASES["alone"]
    assert await ledger.book(str(lease), 250, final=False)
    assert await ledger.book(str(lease), 100)
    assert await spent(ledger, lease) == 250
