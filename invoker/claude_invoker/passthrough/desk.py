"""Opens an account at the metering proxy for each request to a model itself, hands the request to it, books the cost.

The proxy is the only one that has the API's key; it reads, bounds, prices and writes down such a request as a run's.
An account is one request's: it has the bounds of the caller's tier, and draws on his budgets and his pools'.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from decimal import Decimal

from claude_contract.claims import SEARCH
from claude_contract.features import FEATURES
from claude_invoker.caller import Caller
from claude_invoker.ending import ended
from claude_invoker.ledger import Booking
from claude_invoker.metering.control import NoProxy, Terms
from claude_invoker.metering.handing import Lost, Request
from claude_invoker.metering.models import permits
from claude_invoker.metering.wire import Answered, End
from claude_invoker.passthrough.heads import Session
from claude_invoker.passthrough.message import Message
from claude_invoker.plan import allowed_models, features_of
from claude_invoker.problem import Problem
from claude_invoker.runs.engine import Engine

_log = logging.getLogger(__name__)
_LAST_WORD_S = 65.0
"""How long the API may take to say what a request has cost whose client has left (`metering.proxy`)."""
_AGAIN_S = 2.0
COUNTING = Terms(None, Decimal(0), None, 1, FEATURES, is_new=True)
"""Counting tokens costs nothing, and runs nothing."""


class Desk:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.on_end: Callable[[Message], None] = lambda message: None
        """Told of each message when its cost is known."""
        self._under_way: dict[Message, asyncio.Task[None] | None] = {}
        """Whose answers are not over, and what keeps their leases."""

    @property
    def under_way(self) -> int:
        """How many answers are not over."""
        return len(self._under_way)

    def terms(self, caller: Caller, model: str) -> Terms:
        """What a message of this caller's may have. Raises Problem 403, 503."""
        settings, clamp = self._engine.settings, caller.clamp
        if self._engine.draining:
            raise Problem(503, "busy", "the invoker is stopping", {"Retry-After": "1"})
        models = allowed_models(settings.models or None, clamp.models)
        if clamp.model is not None:  # the gateway has decided: a budget is used up
            models = allowed_models(models, (clamp.model,))
        if not permits(models, model):
            raise Problem(
                403, "forbidden", f"model {model[:200]} is not allowed here; allowed: {', '.join(models or ())}"
            )
        bounds = [bound for bound in (clamp.max_usd, settings.max_budget_usd) if bound is not None]
        features = features_of(clamp, searches=SEARCH in settings.tools_allowed)
        lease = caller.lease if self._engine.ledger is not None else None
        slot = caller.slot if lease is not None else None
        return Terms(lease, Decimal(str(min(bounds))), models, 1, features, slot, caller.tier or "", True)

    def begin(self, caller: Caller, model: str, session: Session, terms: Terms, traceparent: str = "") -> Message:
        """Keeps its lease. To be finished."""
        key, token = f"msg_{secrets.token_hex(12)}", self._engine.metering.issue()
        message = Message(key, caller, model, session, terms, token, traceparent)
        ledger, keeper = self._engine.ledger, None
        if ledger is not None and terms.lease is not None:
            keeper = asyncio.create_task(ledger.hold(caller))
        self._under_way[message] = keeper
        return message

    async def hand(self, message: Message, asked: Request) -> None:
        """To the metering proxy, which answers it. Raises Problem 503."""
        metering = self._engine.metering
        try:
            message.answered = await metering.hand(message.key, message.token, message.terms, message.figures, asked)
        except NoProxy as error:
            raise self._abandoned(message, str(error)) from error

    async def answer(self, message: Message) -> None:
        """Returns when its answer is over, whether or not it has its end. Raises Problem 503 where there is none, and
        the connection is as before."""
        assert message.answered is not None
        try:
            answered = await asyncio.shield(message.answered)
        except Lost:
            _log.warning("message %s: the metering proxy has ended before its answer", message.key)
            return
        if answered.refused is not None:
            self._engine.metering.forget(message.key, message.token)
            raise self._abandoned(message, answered.refused)

    def unlent(self, message: Message) -> Problem:
        """The problem of a request whose connection cannot be lent: as many are open as may be, or it is no more."""
        return self._abandoned(message, "too many requests are under way")

    def _abandoned(self, message: Message, reason: str) -> Problem:
        """Nobody was asked for it."""
        keeper, ledger = self._under_way.pop(message), self._engine.ledger
        if keeper is not None and ledger is not None:
            keeper.cancel()
            self._engine.go_on(ledger.release(message.caller))
        return Problem(503, "busy", reason, {"Retry-After": "5"})

    def finish(self, message: Message) -> None:
        """Its answer is over, or its client has left. Does not wait: what it has cost is booked when it is known."""
        if message not in self._under_way:
            return
        message.seconds = time.monotonic() - message.began
        self._engine.go_on(self._settle(message, self._under_way.pop(message)))

    async def over(self) -> None:
        """Waits until those are finished that the server has broken off, since it stops: then their costs can be waited
        for."""
        until = time.monotonic() + _AGAIN_S
        while self._under_way and time.monotonic() < until:
            await asyncio.sleep(0.01)

    async def _settle(self, message: Message, keeper: asyncio.Task[None] | None) -> None:
        try:
            if message.answered is not None and not message.answered.done():
                await self._engine.metering.left(message.key)
            final = await self._closed(message)
            message.end = await _end(message.answered)
        finally:
            if keeper is not None:
                await ended(keeper)
        await self._book(message, final)
        if message.terms is not COUNTING:
            try:
                self.on_end(message)
            except Exception:
                _log.exception("message %s: its end was not recorded", message.key)

    async def _closed(self, message: Message) -> bool:
        """Whether its cost is final. What a client has left under way goes on until the API has said what it costs."""
        until = time.monotonic() + _LAST_WORD_S
        while not await self._engine.metering.close(message.key, _AGAIN_S):
            if self._engine.draining or self._engine.metering.obstacle or time.monotonic() > until:
                return False
        return True

    async def _book(self, message: Message, final: bool) -> None:
        """What is not final is booked when it is, from the proxy's journal."""
        lease, ledger, figures = message.terms.lease, self._engine.ledger, message.figures
        if lease is None or ledger is None:
            return
        booking = await ledger.book(
            lease, figures.micro_usd, final=final, slot=message.terms.slot, tier=message.terms.tier
        )
        if booking is not None and final:
            self._engine.metering.booked(message.key, booking is Booking.NOW)


async def _end(answered: asyncio.Future[Answered] | None) -> End:
    """As the proxy says it: a client may leave when it has read all, before we know that this was all."""
    if answered is None:
        return "left"
    await asyncio.wait((answered,), timeout=_AGAIN_S)
    if not answered.done():
        return "left"
    return "broken" if answered.exception() else answered.result().end
