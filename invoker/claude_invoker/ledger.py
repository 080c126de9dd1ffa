"""The gateway's ledger from the invoker's side: the lease lives as long as the run, then its cost is booked."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from claude_contract import ledger
from claude_invoker.problem import Problem
from claude_invoker.trust import Caller

_log = logging.getLogger(__name__)
_TRIES = 5


class Ledger:
    """Does nothing for callers without a lease, so that one object serves every caller."""

    def __init__(self, redis_url: str) -> None:
        self._redis: Any = Redis.from_url(redis_url, socket_timeout=2.0, socket_connect_timeout=2.0)

    async def acquire(self, caller: Caller) -> bool:
        """Takes the lease of a run that the gateway let in to be queued. False while there is no place.

        Raises Problem 503 where the ledger cannot be asked.
        """
        if not caller.queued or caller.lease is None:
            return True
        slot = caller.slot or ledger.Slot()
        try:
            reply = await ledger.run(self._redis, ledger.acquire(ledger.Lease.parse(caller.lease), slot))
        except (RedisError, OSError) as error:
            raise Problem(503, "busy", "limits cannot be checked now", {"Retry-After": "1"}) from error
        return ledger.parse_admission(reply, ()).admitted

    async def hold(self, caller: Caller) -> None:
        """Renews the lease until cancelled."""
        if caller.lease is None:
            return
        lease, ttl_s = ledger.Lease.parse(caller.lease), (caller.slot or ledger.Slot()).ttl_ms / 1000
        while True:
            await asyncio.sleep(ttl_s / 4)
            try:
                await ledger.run(self._redis, ledger.renew(lease, ttl_s))
            except (RedisError, OSError) as error:
                _log.warning("lease not renewed: %s", type(error).__name__)

    async def usage(self, lease: str) -> ledger.Usage:
        """What the holder of a lease uses of its limits now. Raises RedisError, OSError."""
        parsed = ledger.Lease.parse(lease)
        return ledger.parse_usage(await ledger.run(self._redis, ledger.peek(parsed.namespace, parsed.tag, ())), ())

    async def settle(self, caller: Caller, usd: float) -> None:
        """Books the cost and ends the lease, once however often it is called. Never raises: what Redis does
        not take after some tries lapses with the lease."""
        await self._end(caller, lambda lease: ledger.settle(lease, usd))

    async def release(self, caller: Caller) -> None:
        """Nothing ran."""
        await self._end(caller, ledger.release)

    async def close(self) -> None:
        await self._redis.aclose()

    async def _end(self, caller: Caller, verb: Any) -> None:
        if caller.lease is None:
            return
        call = verb(ledger.Lease.parse(caller.lease))
        for attempt in range(_TRIES):
            try:
                await ledger.run(self._redis, call)
                return
            except (RedisError, OSError) as error:
                _log.warning("ledger not reached (%s), try %d", type(error).__name__, attempt + 1)
                await asyncio.sleep(0.1 * 2**attempt)
        _log.error("a lease of %s could not be ended; it lapses by itself", caller.subject)
