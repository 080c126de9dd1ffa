"""The ledger in this process: what the Lua scripts do, in Python, for one node without Redis.

The scripts' comments say what each part means. Values here need no version: they end with the process.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, floor
from typing import Any

from claude_contract.ledger import (
    Admission,
    Admit,
    Budget,
    Draw,
    Drawn,
    Lease,
    Ledger,
    Peek,
    Quota,
    Renewal,
    Slot,
    Spent,
    Standing,
    Terms,
    Usage,
    Verdict,
    Window,
    Windows,
    heads,
)
from claude_contract.ledger.calls import booked_key, known_to_all, limits_of, to_acquire
from claude_contract.ledger.model import REST_MS, SETTLED_MS, is_message, reserved_by
from claude_contract.ledger.periods import ROLLING_MS
from claude_contract.ledger.warnings import BudgetWarning

QUARTER_MS = 15 * 60_000
_DRAWN = "drawn:"
BOOK_MS = 33 * 24 * 3_600_000  # longer than any period
SWEEP_AT_LEAST = 1024  # keys

Buckets = list[tuple[int, int]]  # the bucket's end (ms), count; oldest first


@dataclass(slots=True)
class _Account:
    """One of a request's, at this moment."""

    head: str  # of its keys
    limits: Windows
    terms: Terms
    kind: str  # of what its windows are kept, "" or "m"
    windows: dict[str, Any]  # as they are kept, by kind and length
    states: list[Any]  # those of `limits`
    running: int = 0
    reserved: int = 0
    drawn: int = 0
    held: bool = False
    spent: tuple[Spent, ...] = ()


class LocalLedger(Ledger):
    """`clock`: microseconds since the epoch. Never unavailable."""

    def __init__(self, clock: Callable[[], int] = lambda: time.time_ns() // 1000) -> None:
        self.clock = clock
        self._lock = threading.Lock()
        self._values: dict[str, Any] = {}
        self._lapse: dict[str, float] = {}  # key → microsecond after which it says nothing any more
        self._sweep_at = SWEEP_AT_LEAST
        self._now = 0

    @contextmanager
    def _moment(self) -> Iterator[None]:
        """One verb's: nobody else's comes between, and its time stands still."""
        with self._lock:
            self._now = self.clock()
            if len(self._values) >= self._sweep_at:
                self._sweep()
            yield

    def _sweep(self) -> None:
        """Forgets what has lapsed. Done when the number of keys has doubled, so its share of each call is constant."""
        for lapsed in [known for known, lapse in self._lapse.items() if lapse < self._now]:
            del self._values[lapsed], self._lapse[lapsed]
        self._sweep_at = max(2 * len(self._values), SWEEP_AT_LEAST)

    def _set(self, key: str, value: Any, lives: float) -> None:
        self._values[key] = value
        self._lapse[key] = max(self._now + lives, self._lapse.get(key, 0))

    def admit(self, request: Admit) -> Admission:
        with self._moment():
            return self._admit(request)

    def acquire(self, lease: Lease, slot: Slot, tier: str = "") -> Admission:
        return self.admit(to_acquire(lease, slot, tier))

    def _admit(self, request: Admit) -> Admission:
        lease, slot = request.lease, request.slot
        own = lease.member if lease is not None else ""
        accounts = self._accounts(request, slot.bound, own)
        held = lease is not None and all(account.held for account in accounts)
        exceeded, at, wait, queued = "", 0, 0.0, False

        def refuse_for(account: int, limit: str, us: float) -> None:
            nonlocal exceeded, at, wait
            if not exceeded or us > wait:
                exceeded, at, wait = limit, account, us

        for n, a in enumerate(accounts):
            for w, state in zip(a.limits.each, a.states, strict=True):
                if w.burst >= 0:
                    over = state - self._now - w.burst * (w.seconds * 1_000_000 / w.limit)
                    if over > 0:
                        refuse_for(n, w.name, over)
                elif sum(count for _, count in state) >= w.limit:
                    refuse_for(n, w.name, self._window_wait(state, w))
            if lease is None or held:
                continue
            for spent in a.spent:
                need = spent.micro_usd + lease.micro_usd
                if need + a.reserved > spent.budget.micro_usd:
                    late = need > spent.budget.micro_usd
                    refuse_for(n, spent.budget.name, self._budget_wait(a, spent, lease.micro_usd) if late else 0)
            if request.busy == "later":
                queued = True
            elif a.terms.concurrent is not None and a.running >= a.terms.concurrent:
                if request.busy == "queue":
                    queued = True
                else:
                    refuse_for(n, "concurrent", 0)
        if not exceeded:
            for a in accounts:
                for n, w in enumerate(a.limits.each):
                    if w.burst >= 0:
                        a.windows[_kept_as(w, a.kind)] = a.states[n] = ceil(
                            a.states[n] + w.seconds * 1_000_000 / w.limit
                        )
                    else:
                        a.windows[_kept_as(w, a.kind)] = self._count_one(a.states[n], w)
                if a.states:
                    self._write_windows(a.head + "w", a.windows)
                if lease is not None and not queued:
                    self._write_lease(a.head, own, request.ttl_ms)
                    a.running, a.reserved = a.running + 1, a.reserved + self._amounts(own)[0]
        first, *pools = [self._standing(a) for a in accounts]
        return Admission(not exceeded, queued and not exceeded, exceeded, at, _ms(wait), first, tuple(pools))

    def renew(self, lease: Lease, ttl_ms: int) -> Renewal:
        with self._moment():
            own, *pools = _heads(lease)
            if lease.member in self._values.get(own + "settled", {}):
                return Renewal.SETTLED
            lives = self._lives(own, lease.member)
            for head in (own, *pools):
                self._write_lease(head, lease.member, ttl_ms)
            return Renewal.EXTENDED if lives else Renewal.LAPSED

    def draw(self, lease: Lease, slot: Slot, draw: Draw) -> Drawn:
        with self._moment():
            key, heads = booked_key(lease), _heads(lease)
            booked: int | None = self._values.get(key)
            settled = self._values.get(heads[0] + "settled", {}).get(lease.member, 0) > self._now // 1000
            if settled and booked is None:
                return Drawn(Verdict.SETTLED, 0)
            more = max(draw.cost_micro_usd - (booked or 0), 0)
            room, room_alone, at, narrowest = math.inf, math.inf, 0, None
            of_message = lease.is_message
            for n, a in enumerate(self._accounts(to_acquire(lease, slot), slot.own, lease.member)):
                for spent in a.spent:
                    left = spent.budget.micro_usd - spent.micro_usd - more - (a.reserved if of_message else a.drawn)
                    room_alone = min(room_alone, left + a.drawn)
                    if left < room:
                        room, at, narrowest = left, n, spent
            verdict, drawn = Verdict.DRAWN, int(min(draw.most_micro_usd, room))
            is_more = draw.most_micro_usd > draw.under_way_micro_usd
            if not is_more or drawn < draw.least_micro_usd:
                verdict = Verdict.REFUSED if is_more else Verdict.DRAWN
                drawn = draw.under_way_micro_usd
            if settled:
                verdict, drawn = Verdict.SETTLED, 0
            else:
                holds = max(lease.micro_usd - (booked or 0) - more, drawn)
                for head in heads:
                    self._write_lease(head, lease.member, slot.ttl_ms)
                self._set(_DRAWN + lease.member, (holds, drawn), slot.ttl_ms * 1000)
            if more or booked is None:
                self._set(key, (booked or 0) + more, BOOK_MS * 1000)
            self._book(heads, more)
            if narrowest is None:
                return Drawn(verdict, drawn)
            fleeting = verdict is Verdict.REFUSED and room_alone >= draw.least_micro_usd
            return Drawn(verdict, drawn, narrowest.budget.name, at, narrowest.reset_ms, fleeting)

    def settle(self, lease: Lease, cost_micro_usd: int, *, final: bool = True) -> bool:
        with self._moment():
            own, *_ = heads = _heads(lease)
            rest = lease.rest.member
            left = self._amounts(lease.member)[1] if self._lives(own, lease.member) else 0
            self._forget(heads, lease.member)
            if final:
                self._forget(heads, rest)
            elif left:
                for head in heads:
                    self._write_lease(head, rest, REST_MS)
                self._set(_DRAWN + rest, (left, left), REST_MS * 1000)
            key = booked_key(lease)
            booked: int | None = self._values.get(key)
            known: dict[str, int] = self._values.get(own + "settled", {})
            settled = {member: until for member, until in known.items() if until > self._now // 1000}
            first = lease.member not in settled
            if not first and booked is None:
                return False
            settled.setdefault(lease.member, self._now // 1000 + SETTLED_MS)
            self._set(own + "settled", settled, SETTLED_MS * 1000)
            more = max(cost_micro_usd - (booked or 0), 0)
            if not final:
                self._set(key, (booked or 0) + more, BOOK_MS * 1000)
            elif booked is not None:
                del self._values[key], self._lapse[key]
            self._book(heads, more)
            return first or more > 0

    def _forget(self, heads: tuple[str, ...], member: str) -> list[Any]:
        self._values.pop(_DRAWN + member, None)
        self._lapse.pop(_DRAWN + member, None)
        return [self._values.get(head + "leases", {}).pop(member, None) for head in heads]

    def release(self, lease: Lease) -> bool:
        with self._moment():
            return any(until is not None for until in self._forget(_heads(lease), lease.member))

    def peek(self, request: Peek) -> Usage:
        with self._moment():
            first, *pools = [self._standing(a) for a in self._accounts(request, known_to_all(request.slot.own), "")]
            return Usage(first, tuple(pools))

    def tell(self, warning: BudgetWarning) -> bool:
        with self._moment():
            key = f"told:{warning.key}"
            if self._lapse.get(key, 0) > self._now:
                return False
            self._set(key, 1, warning.lives_ms * 1000)
            return True

    def _accounts(self, request: Admit | Peek, own: Terms, lease: str) -> list[_Account]:
        """Each with its state. Without a lease to be taken nothing is asked about runs and money."""
        asked = isinstance(request, Peek) or request.lease is not None
        kind = "m" if request.message else ""
        found = []
        for head, (limits, terms) in zip(_heads(request), limits_of(request, own), strict=True):
            windows = self._values.get(head + "w", {})
            a = _Account(head, limits, terms, kind, windows, [self._state(windows, w, kind) for w in limits.each])
            if asked:
                self._read_leases(a, lease, request.message)
                a.spent = tuple([self._spent(head + "spent", budget) for budget in terms.budgets])
            found.append(a)
        return found

    def _standing(self, a: _Account) -> Standing:
        quotas = tuple([self._quota(w, state) for w, state in zip(a.limits.each, a.states, strict=True)])
        return Standing(a.running, a.reserved, a.spent, quotas)

    def _state(self, windows: dict[str, Any], window: Window, kind: str) -> Any:
        """A paced window's time of being empty, or a sliding one's live buckets."""
        if window.burst >= 0:
            return max(windows.get(_kept_as(window, kind), 0), self._now)
        length_ms = window.seconds * 1000
        return [b for b in windows.get(_kept_as(window, kind), ()) if (b[0] + length_ms) * 1000 > self._now]

    def _count_one(self, buckets: Buckets, window: Window) -> Buckets:
        """The same list, with one more."""
        end = (self._now // 1000 // window.width_ms + 1) * window.width_ms
        if buckets and buckets[-1][0] >= end:
            buckets[-1] = (buckets[-1][0], buckets[-1][1] + 1)
        else:
            buckets.append((end, 1))
        return buckets

    def _window_wait(self, buckets: Buckets, window: Window) -> int:
        used = sum(count for _, count in buckets)
        for end, count in buckets:
            used -= count
            if used < window.limit:
                return (end + window.seconds * 1000) * 1000 - self._now
        return 0

    def _quota(self, window: Window, state: Any) -> Quota:
        length, limit, burst = window.seconds, window.limit, window.burst
        if burst >= 0:
            step, backlog = length * 1_000_000 / limit, state - self._now
            left = floor(burst + 1 - backlog / step)
            reset = _ms(min(backlog, step) if left > 0 else backlog - burst * step)
            return Quota(window, max(left, 0), reset, max(-left, 0))
        if not state:
            return Quota(window, limit, 0)
        used = sum(count for _, count in state)
        reset = _ms((state[0][0] + length * 1000) * 1000 - self._now)
        return Quota(window, max(limit - used, 0), reset, max(used - limit, 0))

    def _write_windows(self, key: str, windows: dict[str, Any]) -> None:
        def ends(kept_as: str, state: Any) -> int:
            length = int(kept_as.removeprefix("m"))
            return int(state if length < 0 else (state[-1][0] + length * 1000) * 1000)

        live = {kept_as: state for kept_as, state in windows.items() if ends(kept_as, state) > self._now}
        self._values[key] = live
        self._lapse[key] = max(ends(kept_as, state) for kept_as, state in live.items())

    def _spent(self, key: str, budget: Budget) -> Spent:
        now, book = self._now // 1000, self._values.get(key, ())
        start, end = budget.span(now)
        counted = [(ends, cost) for ends, cost in book if ends > start]
        reset = counted[0][0] - start if budget.rolling and counted else max(end - now, 0)
        return Spent(budget, sum(cost for _, cost in counted), reset, start, end)

    def _budget_wait(self, a: _Account, spent: Spent, amount: int) -> float:
        """Microseconds until that much would fit, if nothing runs."""
        if not spent.budget.rolling:
            return spent.reset_ms * 1000
        start = self._now // 1000 - ROLLING_MS[spent.budget.per]
        left = spent.micro_usd
        for ends, cost in self._values.get(a.head + "spent", ()):
            if ends > start:
                left -= cost
                if left <= spent.budget.micro_usd - amount:
                    return float((ends - start) * 1000)
        return 0.0

    def _book(self, heads: tuple[str, ...], cost: int) -> None:
        now = self._now // 1000
        for head in heads if cost else ():
            book = [(ends, spent) for ends, spent in self._values.get(head + "spent", ()) if ends > now - BOOK_MS]
            ends = (now // QUARTER_MS + 1) * QUARTER_MS
            if book and book[-1][0] >= ends:
                book[-1] = (book[-1][0], book[-1][1] + cost)
            else:
                book.append((ends, cost))
            self._set(head + "spent", book, BOOK_MS * 1000)

    def _lives(self, head: str, member: str) -> bool:
        return bool(self._values.get(head + "leases", {}).get(member, 0) > self._now // 1000)

    def _amounts(self, member: str) -> tuple[int, int]:
        """What a lease that is alive holds, and has drawn."""
        found: tuple[int, int] = self._values.get(_DRAWN + member, (reserved_by(member), 0))
        return found

    def _read_leases(self, a: _Account, own: str, of_messages: bool) -> None:
        for member, until in self._values.get(a.head + "leases", {}).items():
            if until <= self._now // 1000:
                continue
            if member == own:
                a.held = True
                continue
            holds, drawn = self._amounts(member)
            a.running += is_message(member) == of_messages
            a.reserved, a.drawn = a.reserved + holds, a.drawn + drawn

    def _write_lease(self, head: str, lease: str, ttl_ms: int) -> None:
        """Also of one that has lapsed: then it holds what stands in it, and has drawn nothing."""
        known, now = self._values.get(head + "leases", {}), self._now // 1000
        for lapsed in [member for member, until in known.items() if until <= now]:
            del known[lapsed]
            self._values.pop(_DRAWN + lapsed, None)
            self._lapse.pop(_DRAWN + lapsed, None)
        self._set(head + "leases", {**known, lease: now + ttl_ms}, ttl_ms * 1000)
        if _DRAWN + lease in self._values:
            self._set(_DRAWN + lease, self._values[_DRAWN + lease], ttl_ms * 1000)


def _heads(of: Admit | Peek | Lease) -> tuple[str, ...]:
    return heads(of.namespace, of.subject_key, of.shared)


def _kept_as(window: Window, kind: str) -> str:
    return f"{kind}{window.seconds if window.burst < 0 else -window.seconds}"


def _ms(us: float) -> int:
    return ceil(us / 1000)


_shared: dict[str, LocalLedger] = {}


def shared(namespace: str) -> LocalLedger:
    """One per namespace and process: counts outlive a change of configuration."""
    return _shared.setdefault(namespace, LocalLedger())
