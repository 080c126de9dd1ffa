"""The gateway's ledger from the invoker's side: the lease lives as long as the run, then its cost is booked."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from enum import Enum

from redis.exceptions import RedisError

from claude_contract.ledger import (
    Admission,
    AsyncLedger,
    BudgetWarning,
    Draw,
    Drawn,
    Lease,
    LedgerUnavailable,
    Peek,
    Renewal,
    Slot,
    Standing,
    UnreadableLedger,
    Usage,
)
from claude_contract.ledger.calls import to_acquire
from claude_contract.ledger.figures import PoolsSeen
from claude_contract.ledger.live import BLOCKED
from claude_contract.ledger.warnings import Known, warnings_in, warnings_of
from claude_invoker import redis_clients
from claude_invoker.caller import Caller
from claude_invoker.draws import Draws
from claude_invoker.ending import ended
from claude_invoker.metering.drawn import blocked, pool_of
from claude_invoker.problem import Problem

_log = logging.getLogger(__name__)
_TRIES = 5
_WATCH_S = 1.0
_FIRST_S = 1.0
"""Less than the gateway waits for a lease to be confirmed."""


class Booking(Enum):
    """What the ledger says of a cost."""

    NOW = "booked now"
    BEFORE = "it had it already"


class Ledger:
    """Does nothing for callers without a lease, so that one object serves every caller."""

    def __init__(self, redis_url: str) -> None:
        self._redis = redis_clients.client(redis_url, socket_timeout=2.0)
        self._store = AsyncLedger(self._redis)
        self.draws = Draws(self._store, self._short)
        self._known = Known()
        self._pools = PoolsSeen()
        self.on_warning: Callable[[BudgetWarning], None] = lambda warning: None
        """Called for each that this process is the first to tell."""

    async def confirm(self, caller: Caller) -> None:
        """The run of a request that has come is about to start: keeps the lease that the gateway has taken for some
        seconds, or takes it again. Raises Problem 429, or 403 for who is blocked, where that is not possible any more.

        Where Redis is away the lease stays as it is; the heartbeat takes it when Redis is back.
        """
        if caller.lease is None:
            return
        lease = Lease.parse(caller.lease)
        try:
            admission = await self._acquire(lease, caller)
        except LedgerUnavailable as error:
            _log.error("limits of %s cannot be checked: %s", caller.subject, error)
            if caller.queued or isinstance(error, UnreadableLedger):
                raise Problem(503, "busy", "limits cannot be checked now", {"Retry-After": "1"}) from error
            return
        if not admission.admitted:
            raise _refused(admission, lease)

    @asynccontextmanager
    async def held(self, caller: Caller) -> AsyncIterator[None]:
        """While a body comes that may take longer than those seconds: its sender keeps his place, and whoever sends
        slowly has no more of them than anybody else. Raises Problem 403, 429."""
        await self.confirm(caller)
        keeper = asyncio.create_task(self.hold(caller))
        try:
            yield
        finally:
            await ended(keeper)

    async def acquire(self, caller: Caller) -> Admission | None:
        """Takes the lease of a run that the gateway let in to be queued. None: there is nothing to take.

        Raises Problem 503 where the ledger cannot be asked.
        """
        if not caller.queued or caller.lease is None:
            return None
        try:
            admission = await self._acquire(Lease.parse(caller.lease), caller)
        except UnreadableLedger as error:
            _log.error("limits of %s cannot be checked: %s", caller.subject, error)
            raise Problem(503, "busy", "limits cannot be checked now", {"Retry-After": "1"}) from error
        except LedgerUnavailable as error:
            raise Problem(503, "busy", "limits cannot be checked now", {"Retry-After": "1"}) from error
        return admission

    async def hold(self, caller: Caller) -> None:
        """Renews the lease until cancelled; soon for the first time, since nobody confirms that of a message."""
        if caller.lease is None:
            return
        lease, ttl_ms = Lease.parse(caller.lease), slot_of(caller).ttl_ms
        pause_s = min(_FIRST_S, ttl_ms / 4000)
        while True:
            await asyncio.sleep(pause_s)
            pause_s = ttl_ms / 4000
            try:
                if await self._store.renew(lease, ttl_ms) is Renewal.LAPSED:
                    self.draws.again(caller.lease)
            except LedgerUnavailable as error:
                _log.warning("a lease of %s could not be renewed: %s", caller.subject, error)

    async def usages(self, holders: Iterable[tuple[Lease, Slot, str]]) -> list[Usage | LedgerUnavailable]:
        """What each holder of a lease, with its slot and tier, uses of its limits now, those of its pools too: in one
        round trip. Never raises."""
        return await self._store.peek_all([_peek(*each) for each in holders])

    def note(self, caller: Caller) -> None:
        """A run of this caller's is here: `pools` tells of his pools from now on."""
        if caller.lease is not None and caller.slot is not None:
            lease = Lease.parse(caller.lease)
            self._pools.note(lease.namespace, lease.shared, caller.slot.pools)

    async def pools(self) -> list[tuple[str, str, Standing]]:
        """Tag and key of the pools of runs that were here lately, and what they use now, in one round trip. Raises
        LedgerUnavailable."""
        asked = self._pools.peeks()
        found = []
        for (_, tag, key), usage in zip(asked, await self._store.peek_all(list(asked.values())), strict=True):
            if isinstance(usage, LedgerUnavailable):
                raise usage
            found.append((tag, key, usage.pools[0]))
        return found

    async def book(
        self, lease: str, micro_usd: int, *, final: bool = True, slot: Slot | None = None, tier: str = ""
    ) -> Booking | None:
        """Books a cost and ends the lease, once however often it is called. Never raises: None where Redis does not
        take it after some tries, and the lease lapses by itself.

        A cost that is not `final` is what is known so far: the final one, whoever books it, then adds the difference.
        With the lease's `slot` and `tier` it is told now where a budget is nearly used up by that, else by the next one
        who sees it.
        """
        self.draws.forget(lease)
        is_new = await self._end(lease, lambda parsed: self._store.settle(parsed, micro_usd, final=final))
        if is_new is None:
            return None
        if slot is not None and slot.has_budget:
            await self._look(_peek(Lease.parse(lease), slot, tier))
        return Booking.NOW if is_new else Booking.BEFORE

    async def _acquire(self, lease: Lease, caller: Caller) -> Admission:
        """Raises LedgerUnavailable."""
        wanted = to_acquire(lease, slot_of(caller), caller.tier or "")
        admission = await self._store.admit(wanted)
        await self._tell(warnings_of(wanted, admission))
        return admission

    async def _short(self, lease: str, slot: Slot, asked: Draw, drawn: Drawn) -> None:
        """A request did not get all that it asked for of one budget."""
        if not drawn.budget.startswith("usd_"):  # blocked, or ended by others
            return
        parsed = Lease.parse(lease)
        pool = f"{pool_of(parsed, drawn.at)}." if drawn.at else ""
        missing = asked.most_micro_usd - drawn.micro_usd
        await self._look(_peek(parsed, slot, asked.tier), missing, pool + drawn.budget)

    async def _look(self, peek: Peek, wanted: int = 0, name: str = "") -> None:
        """Tells where a budget is nearly used up now. `wanted`: micro-USD that were asked for of the budget of that
        `name`, and not given."""
        try:
            usage = await self._store.peek(peek)
            seen = warnings_in(peek, (usage.own, *usage.pools), wanted)
            await self._tell([warning for warning in seen if name in ("", warning.name)])
        except LedgerUnavailable as error:
            _log.warning("whether a budget is nearly used up is not known now: %s", error)

    async def _tell(self, seen: Iterable[BudgetWarning]) -> None:
        """Where the store cannot be asked, the next one who sees it tells it."""
        now_ms = time.time_ns() // 1_000_000
        for warning in self._known.untold(seen, now_ms):
            try:
                first = await self._store.tell(warning)
            except LedgerUnavailable as error:
                _log.warning("that a budget is nearly used up is not told yet: %s", error)
                return
            self._known.told(warning, now_ms)
            if first:
                _log.warning("budget: %s", warning)
                self.on_warning(warning)

    async def watch(self, grace_s: float, tell: Callable[[str | None], None]) -> None:
        """Tells, until cancelled, why what runs cost cannot be booked: Redis has not answered for `grace_s`. None: it
        does."""
        answered = time.monotonic()
        while True:
            try:
                async with asyncio.timeout(2 * _WATCH_S):
                    await self._redis.execute_command("PING")
            except (RedisError, OSError):
                if time.monotonic() - answered >= grace_s:
                    tell(
                        "what this run costs cannot be booked: Redis with the limits has been away for longer than "
                        f"INVOKER_LEDGER_GRACE ({grace_s:g} s)"
                    )
            else:
                answered = time.monotonic()
                tell(None)
            await asyncio.sleep(_WATCH_S)

    async def release(self, caller: Caller) -> None:
        """Nothing ran."""
        if caller.lease is not None:
            await self._end(caller.lease, self._store.release)

    async def close(self) -> None:
        await self._redis.aclose()

    async def _end(self, lease: str, verb: Callable[[Lease], Awaitable[bool]]) -> bool | None:
        """What the verb says; None where it cannot be asked."""
        parsed = Lease.parse(lease)
        for attempt in range(_TRIES):
            try:
                return await verb(parsed)
            except UnreadableLedger as error:
                _log.error("a lease of %s cannot be ended: %s", parsed.subject_key, error)
                break
            except (LedgerUnavailable, RedisError, OSError) as error:
                _log.warning("Redis with the limits does not answer (%s), try %d of %d", error, attempt + 1, _TRIES)
                await asyncio.sleep(0.1 * 2**attempt)
        _log.error("a lease of %s could not be ended; it lapses by itself", parsed.subject_key)
        return None


def _refused(admission: Admission, lease: Lease) -> Problem:
    """Of a run that was let in, and cannot begin any more."""
    pool = pool_of(lease, admission.at)
    if admission.exceeded == BLOCKED:
        until = time.time() + admission.wait_ms / 1000
        return Problem(403, "limited", blocked(pool, until, of_tier=admission.of_tier))
    whose = f" of the pool {pool}" if pool else ""
    wait_s = -(-admission.wait_ms // 1000) or 5
    detail = f"the gateway's limit {admission.exceeded}{whose} is reached"
    return Problem(429, "limited", detail, {"Retry-After": str(wait_s)})


def _peek(lease: Lease, slot: Slot | None, tier: str) -> Peek:
    return Peek(lease.namespace, lease.subject_key, slot=slot or Slot(), shared=lease.shared, tier=tier)


def slot_of(caller: Caller) -> Slot:
    """What the caller's lease stands for."""
    return caller.slot or Slot()
