"""A Redis that fails over behind its name, as managed ones do: who is connected stays with the old master."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ReadOnlyError

from claude_contract.ledger import Lease, Slot
from claude_invoker.jobs.store import Store, connect
from claude_invoker.ledger import Booking, Ledger
from claude_invoker.replay import SeenOnce
from kong_claude.rate_tiers import redis_ledger
from kong_claude.rate_tiers.redis_ledger import RedisLedger, Settings
from tests.jobs.conftest import job
from tests.rate_tiers.servers import RedisProcess, free_port
from tests.support.waiting import HANG_S


class Name:
    """What a name of DNS is: it leads new connections elsewhere, and leaves the old ones alone."""

    def __init__(self, target: RedisProcess) -> None:
        self.target = target
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Name]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self.target.port)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            try:
                while data := await source.read(65536):
                    sink.write(data)
            except OSError:
                pass
            finally:
                sink.close()

        for pair in ((reader, to_writer), (to_reader, writer)):
            task = asyncio.create_task(pump(*pair))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


LEASES = [Lease.new("claude", "alice", 1_000_000) for _ in range(3)]


@pytest.mark.parametrize("stale", ["yes", "no"], ids=["READONLY", "MASTERDOWN"])
@pytest.mark.parametrize("shared", [False, True], ids=["pool", "pipe"])
async def test_nobody_stays_with_what_was_the_master(stale: str, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """ElastiCache, Azure: READONLY until who is connected connects anew."""
    monkeypatch.setattr(redis_ledger, "in_greenlets", lambda: shared)
    old, new = (RedisProcess("--replica-serve-stale-data", stale, port=free_port()) for _ in range(2))
    try:
        async with Name(old).open() as name:
            gateway = RedisLedger(Settings(name.url, timeout=HANG_S))
            invoker, seen, store = Ledger(name.url), SeenOnce(name.url), Store(connect(name.url))
            naive: Any = Redis.from_url(name.url)
            await naive.set("k", 1)
            slot = Slot(concurrent=9, run_micro_usd=1_000_000, day_micro_usd=10**9, ttl_ms=60_000)
            assert (await asyncio.to_thread(gateway.acquire, LEASES[0], slot)).admitted
            assert await invoker.book(str(LEASES[0]), 5, slot=slot) is Booking.NOW
            assert await seen.first("one", 60)
            assert (await store.add(job()))[0] == "accepted"

            dead = free_port()  # a replica whose master does not answer: with "no" it serves nobody
            old.client().replicaof("127.0.0.1", new.port if stale == "yes" else dead)
            name.target = new

            refused = "READONLY|MASTERDOWN|read only replica|MASTER is down"
            for _ in range(3):
                with pytest.raises((ReadOnlyError, Exception), match=refused):
                    await naive.set("k", 1)
            assert (await asyncio.to_thread(gateway.acquire, LEASES[1], slot)).admitted
            assert await invoker.book(str(LEASES[1]), 5, slot=slot) is Booking.NOW
            for attempt in range(2):
                try:
                    assert await seen.first("two", 60)
                    break
                except Exception:
                    assert attempt == 0, "once, for the connection that is closed by it"
            assert (await store.add(job()))[0] == "accepted"
            for part in (invoker, seen, store):
                await part.close()
            await naive.aclose()
            gateway.close()
    finally:
        old.close()
        new.close()
