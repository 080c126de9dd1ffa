"""The ledger in this process: what the Lua scripts do, in Python, for one node without Redis.

The scripts' comments say what each part means. Values here need no version: they end with the process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from math import ceil, floor
from typing import Any

from claude_contract.ledger import Admission, Admit, Lease, Ledger, Peek, Quota, Renewal, Slot, Usage, Window, key
from claude_contract.ledger.model import SETTLED_MS, reserved_by

DAY = timedelta(days=1)
SWEEP_AT_LEAST = 1024  # keys

Buckets = list[tuple[int, int]]  # the bucket's end (ms), count; oldest first


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

    def acquire(self, lease: Lease, slot: Slot) -> Admission:
        return self.admit(Admit(lease.namespace, lease.subject_key, lease=lease, slot=slot))

    def _admit(self, request: Admit) -> Admission:
        namespace, subject_key, lease, slot = request.namespace, request.subject_key, request.lease, request.slot
        leases, own = key(namespace, subject_key, "leases"), lease.member if lease is not None else ""
        running, reserved, held, spent_day, spent_month = 0, 0, False, 0, 0
        if lease is not None:
            running, reserved, held = self._leases(leases, own)
            spent_day, spent_month = self._spent(namespace, subject_key)
        exceeded, wait = "", 0.0

        def refuse_for(limit: str, us: float) -> None:
            nonlocal exceeded, wait
            if not exceeded or us > wait:
                exceeded, wait = limit, us

        windows: dict[int, Any] = self._values.get(key(namespace, subject_key, "w"), {})
        states = [self._state(windows, w) for w in request.windows.each]
        for w, state in zip(request.windows.each, states, strict=True):
            if w.burst >= 0:
                over = state - self._now - w.burst * (w.seconds * 1_000_000 / w.limit)
                if over > 0:
                    refuse_for(w.name, over)
            elif sum(count for _, count in state) >= w.limit:
                refuse_for(w.name, self._window_wait(state, w))

        queued = False
        if lease is not None and not held:
            day_left, month_left = self._left()
            for name, budget, spent, left in (
                ("usd_per_day", slot.day_micro_usd, spent_day, day_left),
                ("usd_per_month", slot.month_micro_usd, spent_month, month_left),
            ):
                if budget is not None and spent + reserved + lease.micro_usd > budget:
                    refuse_for(name, left if spent + lease.micro_usd > budget else 0)
            if request.busy == "later":
                queued = True
            elif slot.concurrent is not None and running >= slot.concurrent:
                if request.busy == "queue":
                    queued = True
                else:
                    refuse_for("concurrent", 0)
        if not exceeded:
            for n, w in enumerate(request.windows.each):
                if w.burst >= 0:
                    windows[-w.seconds] = states[n] = ceil(states[n] + w.seconds * 1_000_000 / w.limit)
                else:
                    windows[w.seconds] = self._count_one(states[n], w)
            if states:
                self._write_windows(key(namespace, subject_key, "w"), windows)
            if lease is not None and not queued:
                self._write_lease(leases, own, slot.ttl_ms)
                running, reserved = running + 1, reserved + lease.micro_usd
        quotas = tuple(self._quota(w, state) for w, state in zip(request.windows.each, states, strict=True))
        return Admission(
            not exceeded,
            queued and not exceeded,
            exceeded,
            _ms(wait),
            running,
            reserved,
            spent_day,
            spent_month,
            quotas,
        )

    def renew(self, lease: Lease, ttl_ms: int) -> Renewal:
        with self._moment():
            if lease.member in self._values.get(_of(lease, "settled"), {}):
                return Renewal.SETTLED
            leases = _of(lease, "leases")
            lives = self._values.get(leases, {}).get(lease.member, 0) > self._now // 1000
            self._write_lease(leases, lease.member, ttl_ms)
            return Renewal.EXTENDED if lives else Renewal.LAPSED

    def settle(self, lease: Lease, cost_micro_usd: int) -> bool:
        with self._moment():
            self._values.get(_of(lease, "leases"), {}).pop(lease.member, None)
            known: dict[str, int] = self._values.get(_of(lease, "settled"), {})
            settled = {member: until for member, until in known.items() if until > self._now // 1000}
            if lease.member in settled:
                return False
            settled[lease.member] = self._now // 1000 + SETTLED_MS
            self._set(_of(lease, "settled"), settled, SETTLED_MS * 1000)
            if cost_micro_usd > 0:
                spent = self._spent(lease.namespace, lease.subject_key)
                for suffix, period, before, days in zip(
                    ("usd:day", "usd:month"), self._periods(), spent, (2, 32), strict=True
                ):
                    self._set(_of(lease, suffix), (period, before + cost_micro_usd), days * 86400e6)
            return True

    def release(self, lease: Lease) -> bool:
        with self._moment():
            return self._values.get(_of(lease, "leases"), {}).pop(lease.member, None) is not None

    def peek(self, request: Peek) -> Usage:
        with self._moment():
            running, reserved, _ = self._leases(key(request.namespace, request.subject_key, "leases"), "")
            spent_day, spent_month = self._spent(request.namespace, request.subject_key)
            day_left, month_left = self._left()
            windows = self._values.get(key(request.namespace, request.subject_key, "w"), {})
            quotas = tuple(self._quota(w, self._state(windows, w)) for w in request.windows.each)
            return Usage(running, reserved, spent_day, spent_month, _ms(day_left), _ms(month_left), quotas)

    def _state(self, windows: dict[int, Any], window: Window) -> Any:
        """A paced window's time of being empty, or a sliding one's live buckets."""
        if window.burst >= 0:
            return max(windows.get(-window.seconds, 0), self._now)
        length_ms = window.seconds * 1000
        return [b for b in windows.get(window.seconds, ()) if (b[0] + length_ms) * 1000 > self._now]

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
            remaining = max(floor(burst + 1 - backlog / step), 0)
            return Quota(window, remaining, _ms(min(backlog, step) if remaining else backlog - burst * step))
        if not state:
            return Quota(window, limit, 0)
        used = sum(count for _, count in state)
        return Quota(window, max(limit - used, 0), _ms((state[0][0] + length * 1000) * 1000 - self._now))

    def _write_windows(self, key: str, windows: dict[int, Any]) -> None:
        def ends(length: int, state: Any) -> int:
            return int(state if length < 0 else (state[-1][0] + length * 1000) * 1000)

        live = {length: state for length, state in windows.items() if ends(length, state) > self._now}
        self._values[key] = live
        self._lapse[key] = max(ends(length, state) for length, state in live.items())

    def _periods(self) -> tuple[int, int]:
        """The UTC day since the epoch, and year * 100 + month."""
        now = datetime.fromtimestamp(self._now // 1_000_000, UTC)
        return self._now // 86_400_000_000, now.year * 100 + now.month

    def _left(self) -> tuple[float, float]:
        """Microseconds left of the day and of the month."""
        midnight = datetime.fromtimestamp(self._now // 1_000_000, UTC).replace(hour=0, minute=0, second=0)
        next_month = (midnight.replace(day=1) + 32 * DAY).replace(day=1)
        return (midnight + DAY).timestamp() * 1e6 - self._now, next_month.timestamp() * 1e6 - self._now

    def _spent(self, namespace: str, subject_key: str) -> tuple[int, int]:
        """The micro-USD booked today and this month."""
        today, month = self._periods()
        return self._booked(key(namespace, subject_key, "usd:day"), today), self._booked(
            key(namespace, subject_key, "usd:month"), month
        )

    def _booked(self, key: str, period: int) -> int:
        of, spent = self._values.get(key, (None, 0))
        return spent if of == period else 0

    def _leases(self, key: str, own: str) -> tuple[int, int, bool]:
        live = [m for m, until in self._values.get(key, {}).items() if until > self._now // 1000]
        others = [m for m in live if m != own]
        return len(others), sum(map(reserved_by, others)), len(others) < len(live)

    def _write_lease(self, key: str, lease: str, ttl_ms: int) -> None:
        live = {m: until for m, until in self._values.get(key, {}).items() if until > self._now // 1000}
        live[lease] = self._now // 1000 + ttl_ms
        self._set(key, live, ttl_ms * 1000)


def _of(lease: Lease, suffix: str) -> str:
    return key(lease.namespace, lease.subject_key, suffix)


def _ms(us: float) -> int:
    return ceil(us / 1000)


_shared: dict[str, LocalLedger] = {}


def shared(namespace: str) -> LocalLedger:
    """One per namespace and process: counts outlive a change of configuration."""
    return _shared.setdefault(namespace, LocalLedger())
