"""What a store of the ledger does, whatever keeps it: one verb a method."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from redis.exceptions import NoScriptError, RedisError

from claude_contract.ledger import calls
from claude_contract.ledger.calls import Call, OutOfPeriod
from claude_contract.ledger.limits import Slot
from claude_contract.ledger.model import Admission, Admit, Lease, LedgerUnavailable, Peek, Renewal, Usage

R = TypeVar("R")


class Ledger(Protocol):
    """Each verb is one decision of one moment. All of them raise LedgerUnavailable."""

    def admit(self, request: Admit) -> Admission:
        """Checks and takes everything, or nothing."""

    def acquire(self, lease: Lease, slot: Slot) -> Admission:
        """Takes the lease of a queued run that is about to start; harmless where it is held."""

    def renew(self, lease: Lease, ttl_ms: int) -> Renewal:
        """Keeps the lease of a run for so long from now. At least every third of that is well."""

    def settle(self, lease: Lease, cost_micro_usd: int) -> bool:
        """The run has ended, however, and cost this much. True: booked now; False: it was settled before."""

    def release(self, lease: Lease) -> bool:
        """The run never started, or has to wait: gives back place and reservation. False: there was none."""

    def peek(self, request: Peek) -> Usage:
        """What is used; changes nothing."""


class AsyncLedger:
    """The same verbs through a `redis.asyncio` client (Redis or RedisCluster): a round trip each, two for a new script.

    Raises LedgerUnavailable, as every `Ledger`.
    """

    def __init__(self, redis: Any) -> None:
        self.redis = redis

    async def admit(self, request: Admit) -> Admission:
        try:
            return await self._ask(calls.admit(request))
        except OutOfPeriod as error:
            return await self._ask(calls.admit(request, error.now_ms))

    async def acquire(self, lease: Lease, slot: Slot) -> Admission:
        return await self.admit(calls.to_acquire(lease, slot))

    async def renew(self, lease: Lease, ttl_ms: int) -> Renewal:
        return await self._ask(calls.renew(lease, ttl_ms))

    async def settle(self, lease: Lease, cost_micro_usd: int) -> bool:
        return await self._ask(calls.settle(lease, cost_micro_usd))

    async def release(self, lease: Lease) -> bool:
        return await self._ask(calls.release(lease))

    async def peek(self, request: Peek) -> Usage:
        try:
            return await self._ask(calls.peek(request))
        except OutOfPeriod as error:
            return await self._ask(calls.peek(request, error.now_ms))

    async def _ask(self, call: Call[R]) -> R:
        script, keys, args = call.script, call.keys, call.args
        try:
            try:
                reply = await self.redis.evalsha(script.sha, len(keys), *keys, *args)
            except NoScriptError:
                reply = await self.redis.eval(script.source, len(keys), *keys, *args)
        except (RedisError, OSError) as error:
            raise calls.unreadable(error, call) or LedgerUnavailable(f"{type(error).__name__}: {error}") from error
        return call.parse(reply)
