"""What a store of the ledger does, whatever keeps it: one verb a method."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from redis.exceptions import NoScriptError, RedisError

from claude_contract.ledger import calls
from claude_contract.ledger.calls import Call, OutOfPeriod
from claude_contract.ledger.limits import Slot
from claude_contract.ledger.model import Admission, Admit, Draw, Drawn, Lease, LedgerUnavailable, Peek, Renewal, Usage
from claude_contract.ledger.warnings import BudgetWarning

R = TypeVar("R")


class Ledger(Protocol):
    """Each verb is one decision of one moment. All of them raise LedgerUnavailable."""

    def admit(self, request: Admit) -> Admission:
        """Checks and takes everything, or nothing."""

    def acquire(self, lease: Lease, slot: Slot, tier: str = "") -> Admission:
        """Takes the lease of a run of that tier that is about to start: of one that was queued, or that nobody has
        confirmed in time. One that is held is confirmed by it."""

    def renew(self, lease: Lease, ttl_ms: int) -> Renewal:
        """Keeps the lease of a run for so long from now. At least every third of that is well."""

    def draw(self, lease: Lease, slot: Slot, draw: Draw) -> Drawn:
        """Books what a run has cost so far, and takes of every budget what its requests may cost that are under way: of
        all, or of none."""

    def settle(self, lease: Lease, cost_micro_usd: int, *, final: bool = True) -> bool:
        """The run has ended, however, and cost this much in all. True: ended or booked now; False: it was before.

        A cost that is not `final` is what is known so far: the final one, whoever says it, adds the difference, and
        until then, `REST_MS` at most, what the run has drawn stays drawn."""

    def release(self, lease: Lease) -> bool:
        """The run never started, or has to wait: gives back place and reservation. False: there was none."""

    def peek(self, request: Peek) -> Usage:
        """What is used; changes nothing."""

    def tell(self, warning: BudgetWarning) -> bool:
        """A budget is nearly used up. True for the first who tells it, over all that share the store."""


class AsyncLedger:
    """The same verbs through a `redis.asyncio` client (Redis or RedisCluster): a round trip each, two for a new script.

    Raises LedgerUnavailable, as every `Ledger`.
    """

    def __init__(self, redis: Any) -> None:
        from redis.asyncio.cluster import RedisCluster  # asyncio: not for the gateway

        self.redis = redis
        self._one_node = not isinstance(redis, RedisCluster)

    async def admit(self, request: Admit) -> Admission:
        try:
            return await self._ask(calls.admit(request, one_node=self._one_node))
        except OutOfPeriod as error:
            return await self._ask(calls.admit(request, error.now_ms, one_node=self._one_node))

    async def acquire(self, lease: Lease, slot: Slot, tier: str = "") -> Admission:
        return await self.admit(calls.to_acquire(lease, slot, tier))

    async def renew(self, lease: Lease, ttl_ms: int) -> Renewal:
        return await self._ask(calls.renew(lease, ttl_ms))

    async def draw(self, lease: Lease, slot: Slot, draw: Draw) -> Drawn:
        try:
            return await self._ask(calls.draw(lease, slot, draw, one_node=self._one_node))
        except OutOfPeriod as error:
            return await self._ask(calls.draw(lease, slot, draw, error.now_ms, one_node=self._one_node))

    async def draw_all(self, draws: Sequence[tuple[Lease, Slot, Draw]]) -> list[Drawn | LedgerUnavailable]:
        """Many runs' at once, in this order, in one round trip; of a Cluster each has its own. Never raises."""
        if not self._one_node or len(draws) == 1:
            return [await self._drawn_alone(*each) for each in draws]
        asked = [calls.draw(*each) for each in draws]
        try:
            replies = await self._piped(asked)
        except LedgerUnavailable as error:
            return [error] * len(asked)
        return [await self._drawn(*each) for each in zip(draws, asked, replies, strict=True)]

    async def _drawn_alone(self, lease: Lease, slot: Slot, draw: Draw) -> Drawn | LedgerUnavailable:
        try:
            return await self.draw(lease, slot, draw)
        except LedgerUnavailable as error:
            return error

    async def _drawn(self, of: tuple[Lease, Slot, Draw], call: Call[Drawn], reply: Any) -> Drawn | LedgerUnavailable:
        return await self._said(call, reply, partial(self.draw, *of))

    async def settle(self, lease: Lease, cost_micro_usd: int, *, final: bool = True) -> bool:
        return await self._ask(calls.settle(lease, cost_micro_usd, final=final))

    async def release(self, lease: Lease) -> bool:
        return await self._ask(calls.release(lease))

    async def peek(self, request: Peek) -> Usage:
        try:
            return await self._ask(calls.peek(request, one_node=self._one_node))
        except OutOfPeriod as error:
            return await self._ask(calls.peek(request, error.now_ms, one_node=self._one_node))

    async def peek_all(self, requests: Sequence[Peek]) -> list[Usage | LedgerUnavailable]:
        """As `draw_all`."""
        if not self._one_node:
            return [await self._peeked_alone(each) for each in requests]
        asked = [calls.peek(each) for each in requests]
        try:
            replies = await self._piped(asked)
        except LedgerUnavailable as error:
            return [error] * len(asked)
        found: list[Usage | LedgerUnavailable] = []
        for each, call, reply in zip(requests, asked, replies, strict=True):
            usage = await self._said(call, reply, partial(self.peek, each))
            found.append(usage)
        return found

    async def _peeked_alone(self, request: Peek) -> Usage | LedgerUnavailable:
        try:
            return await self.peek(request)
        except LedgerUnavailable as error:
            return error

    async def _piped(self, asked: Sequence[Call[R]]) -> list[Any]:
        """The reply to each, which may be a RedisError, in one round trip. Raises LedgerUnavailable."""
        pipe = self.redis.pipeline(transaction=False)
        for call in asked:
            pipe.evalsha(call.script.sha, len(call.keys), *call.keys, *call.args)
        try:
            return list(await pipe.execute(raise_on_error=False))
        except (RedisError, OSError) as error:
            raise LedgerUnavailable(f"{type(error).__name__}: {error}") from error

    async def _said(self, call: Call[R], reply: Any, again: Callable[[], Awaitable[R]]) -> R | LedgerUnavailable:
        """What a reply of several says; `again` asks for it alone. Never raises."""
        try:
            if isinstance(reply, NoScriptError):
                return await again()
            if isinstance(reply, RedisError):
                raise calls.unreadable(reply, call) or LedgerUnavailable(f"{type(reply).__name__}: {reply}")
            return call.parse(reply)
        except OutOfPeriod:
            try:
                return await again()
            except LedgerUnavailable as error:
                return error
        except LedgerUnavailable as error:
            return error

    async def tell(self, warning: BudgetWarning) -> bool:
        return await self._ask(calls.tell(warning))

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
