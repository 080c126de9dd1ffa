"""What runs draw on their budgets, on its way to the ledger: in the order in which it is said, and all that has come
meanwhile in one round trip."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from msgspec.structs import replace

from claude_contract.ledger import AsyncLedger, Draw, Drawn, Lease, LedgerUnavailable, Slot, UnreadableLedger, Verdict

_log = logging.getLogger(__name__)
_AWAY_S = 1.0
"""Where the ledger does not answer nobody waits for it for so long."""

_AMOUNTS = ("under_way_micro_usd", "least_micro_usd", "most_micro_usd")

Answer = Callable[[Drawn | LedgerUnavailable], None]
OnShort = Callable[[str, Slot, Draw, Drawn], Awaitable[None]]
"""Called where a request was refused, or is shorter than it could be: a budget has no more left."""


@dataclass(frozen=True)
class _Said:
    lease: str
    slot: Slot
    draw: Draw
    answer: Answer

    @property
    def asks(self) -> bool:
        """Whether somebody waits for the answer."""
        return self.draw.most_micro_usd > self.draw.under_way_micro_usd


class Draws:
    def __init__(self, store: AsyncLedger, on_short: OnShort) -> None:
        """`on_short` must not raise."""
        self._store = store
        self._on_short = on_short
        self._waiting: list[_Said] = []
        self._last: dict[str, _Said] = {}
        """Of each lease, as the ledger has taken it."""
        self._lapsed: set[str] = set()
        self._ended: set[str] = set()
        """Leases whose runs have ended while something of theirs may be on its way."""
        self._sending: asyncio.Task[None] | None = None
        self._away_until = 0.0

    def put(self, lease: str, slot: Slot, draw: Draw, answer: Answer) -> None:
        """`answer` is called once, later; never, where nobody waits for it and the run says something new meanwhile."""
        self._waiting.append(_Said(lease, slot, draw, answer))
        self._start()

    def again(self, lease: str) -> None:
        """The lease has lapsed meanwhile: what its run draws is said once more."""
        self._lapsed.add(lease)
        self._start()

    def forget(self, lease: str) -> None:
        """Its run has ended."""
        self._last.pop(lease, None)
        if self._sending is not None:
            self._ended.add(lease)

    def _start(self) -> None:
        if self._sending is None:
            self._sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        try:
            while self._waiting or self._lapsed:
                said, self._waiting = _without_superseded(self._waiting + self._once_more()), []
                short = []
                for each, drawn in zip(said, await self._ask(said), strict=True):
                    if isinstance(drawn, Drawn) and drawn.verdict is not Verdict.SETTLED:
                        draw = replace(each.draw, **dict.fromkeys(_AMOUNTS, drawn.micro_usd))
                        self._last[each.lease] = _Said(each.lease, each.slot, draw, _nobody)
                        if each.asks and drawn.micro_usd < each.draw.most_micro_usd:
                            short.append((each.lease, each.slot, each.draw, drawn))
                    each.answer(drawn)
                for one in short:
                    await self._on_short(*one)
        finally:
            self._sending = None
            for lease in self._ended:
                self._last.pop(lease, None)
            self._ended.clear()

    def _once_more(self) -> list[_Said]:
        """What leases that have lapsed had drawn. Found out only when it is sent, and not where their runs say
        something new: what is said last holds."""
        anew = self._lapsed - {each.lease for each in self._waiting}
        self._lapsed.clear()
        return [self._last[lease] for lease in sorted(anew & self._last.keys())]

    async def _ask(self, said: list[_Said]) -> list[Drawn | LedgerUnavailable]:
        loop = asyncio.get_running_loop()
        if loop.time() < self._away_until:
            return [LedgerUnavailable("Redis with the limits does not answer")] * len(said)
        draws = [(Lease.parse(each.lease), each.slot, each.draw) for each in said]
        found = await self._store.draw_all(draws)
        if any(map(_is_away, found)):
            # One late answer, be it that this process has had no time to hear it, is no Redis that is away: without the
            # ledger nothing keeps these requests from going beyond a pool. Said twice it changes nothing.
            found = await self._store.draw_all(draws)
        for drawn in found:
            if isinstance(drawn, UnreadableLedger):
                _log.error("what a run may draw cannot be checked: %s", drawn)
            elif _is_away(drawn):
                _log.warning("what runs draw cannot be checked, their own budgets hold: %s", drawn)
                self._away_until = loop.time() + _AWAY_S
                break
        return found


def _nobody(drawn: Drawn | LedgerUnavailable) -> None:
    """Waits for the answer."""


def _is_away(drawn: Drawn | LedgerUnavailable) -> bool:
    return isinstance(drawn, LedgerUnavailable) and not isinstance(drawn, UnreadableLedger)


def _without_superseded(said: list[_Said]) -> list[_Said]:
    """Without what nobody waits for and is said anew behind it."""
    found: list[_Said] = []
    later: set[str] = set()
    for each in reversed(said):
        if each.asks or each.lease not in later:
            found.append(each)
        later.add(each.lease)
    return found[::-1]
