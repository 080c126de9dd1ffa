"""The ledger in this process: what the Lua scripts do, in Python, for one node without Redis.

Takes the same calls and gives the same replies; the scripts' comments say what each part means.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from math import ceil, floor, inf
from typing import Any

from kong_claude.trust.ledger import Call

DAY = timedelta(days=1)
SWEEP_AT_LEAST = 1024  # keys

Buckets = list[tuple[int, int]]  # bucket number, count; oldest first


class LocalLedger:
    """`clock`: microseconds since the epoch."""

    def __init__(self, clock: Callable[[], int] = lambda: time.time_ns() // 1000) -> None:
        self.clock = clock
        self._lock = threading.Lock()
        self._values: dict[str, Any] = {}
        self._lapse: dict[str, float] = {}  # key → microsecond after which it says nothing any more
        self._sweep_at = SWEEP_AT_LEAST
        self._now = 0

    def run(self, call: Call) -> Any:
        with self._lock:
            self._now = self.clock()
            if len(self._values) >= self._sweep_at:
                self._sweep()
            return getattr(self, f"_{call.script.name}")(call.keys, call.args)

    def _sweep(self) -> None:
        """Forgets what has lapsed. Done when the number of keys has doubled, so its share of each call is constant."""
        for key in [key for key, lapse in self._lapse.items() if lapse < self._now]:
            del self._values[key], self._lapse[key]
        self._sweep_at = max(2 * len(self._values), SWEEP_AT_LEAST)

    def _set(self, key: str, value: Any, lives: float) -> None:
        self._values[key] = value
        self._lapse[key] = max(self._now + lives, self._lapse.get(key, 0))

    def _admit(self, keys: Sequence[str], args: Sequence[Any]) -> list[int]:
        lease, ttl_ms, concurrent, budget_day, budget_month, busy, *rest = args
        amount = _amount(lease)
        running, reserved, held = self._leases(keys[0], lease) if lease else (0, 0, False)
        today, month = self._periods()
        spent_day, spent_month = self._spent(keys[1], today), self._spent(keys[2], month)
        culprit, wait = 0, 0.0

        def blame(who: int, us: float) -> None:
            nonlocal culprit, wait
            if culprit == 0 or us > wait:
                culprit, wait = who, us

        states: list[tuple[int, float]] = []  # remaining, microseconds until a place comes back
        taken: dict[str, tuple[Any, float]] = {}
        for number, key in enumerate(keys[3:], start=1):
            length, limit, width, burst = rest[4 * number - 4 : 4 * number]
            if burst >= 0:
                step = length / limit
                empty = self._pace(key)
                over = empty - self._now - burst * step
                if over > 0:
                    blame(number, over)
                    states.append((0, over))
                else:
                    remaining = floor(-over / step)
                    states.append((remaining, step if remaining else over + step))
                    taken[key] = (ceil(empty + step), empty + step - self._now)
            else:
                buckets = self._window(key, length, width)
                used = sum(count for _, count in buckets)
                if used >= limit:
                    reset = self._window_wait(buckets, used, limit, length, width)
                    blame(number, reset)
                    states.append((0, reset))
                else:
                    last, count = buckets[-1] if buckets else (0, 0)
                    bucket = max(self._now // width, last)
                    new = [*buckets[:-1], (last, count + 1)] if buckets and bucket == last else [*buckets, (bucket, 1)]
                    states.append((limit - used - 1, (new[0][0] + 1) * width + length - self._now))
                    taken[key] = (new, length + width)

        verdict = 1
        if lease and not held:
            day_left, month_left = self._left()
            if budget_day >= 0 and spent_day + reserved + amount > budget_day:
                blame(-2, day_left if spent_day + amount > budget_day else 0)
            if budget_month >= 0 and spent_month + reserved + amount > budget_month:
                blame(-3, month_left if spent_month + amount > budget_month else 0)
            if busy == "later":
                verdict = 2
            elif 0 <= concurrent <= running:
                if busy == "queue":
                    verdict = 2
                else:
                    blame(-1, 0)
        if culprit:
            verdict = 0
            states = [(r + (key in taken), reset) for key, (r, reset) in zip(keys[3:], states, strict=True)]
        else:
            for key, (value, lives) in taken.items():
                self._lapse.pop(key, None)
                self._set(key, value, lives)
            if lease and verdict == 1:
                self._write_lease(keys[0], lease, ttl_ms)
                running, reserved = running + 1, reserved + amount
        numbers = [n for remaining, reset in states for n in (remaining, _ms(reset))]
        return [verdict, culprit, _ms(wait), running, reserved, spent_day, spent_month, *numbers]

    def _settle(self, keys: Sequence[str], args: Sequence[Any]) -> int:
        lease, cost, repeat_ms = args
        self._values.get(keys[0], {}).pop(lease, None)
        settled = {m: until for m, until in self._values.get(keys[3], {}).items() if until > self._now // 1000}
        if lease in settled:
            return 0
        settled[lease] = self._now // 1000 + repeat_ms
        self._set(keys[3], settled, repeat_ms * 1000)
        if cost > 0:
            for key, period, days in zip(keys[1:3], self._periods(), (2, 32), strict=True):
                self._set(key, (period, self._spent(key, period) + cost), days * 86400e6)
        return 1

    def _renew(self, keys: Sequence[str], args: Sequence[Any]) -> int:
        lease, ttl_ms = args
        if self._values.get(keys[1], {}).get(lease, 0):
            return 0
        lives = self._values.get(keys[0], {}).get(lease, 0) > self._now // 1000
        self._write_lease(keys[0], lease, ttl_ms)
        return 1 if lives else 2

    def _release(self, keys: Sequence[str], args: Sequence[Any]) -> int:
        return 1 if self._values.get(keys[0], {}).pop(args[0], None) else 0

    def _peek(self, keys: Sequence[str], args: Sequence[Any]) -> list[int]:
        running, reserved, _ = self._leases(keys[0], "")
        today, month = self._periods()
        reply = [running, reserved, self._spent(keys[1], today), self._spent(keys[2], month), *map(_ms, self._left())]
        for number, key in enumerate(keys[3:]):
            length, limit, width, burst = args[4 * number : 4 * number + 4]
            if burst >= 0:
                step, backlog = length / limit, self._pace(key) - self._now
                remaining = max(floor(burst + 1 - backlog / step), 0)
                reset = min(backlog, step) if remaining else backlog - burst * step
            else:
                buckets = self._window(key, length, width)
                remaining = max(limit - sum(count for _, count in buckets), 0)
                reset = (buckets[0][0] + 1) * width + length - self._now if buckets else 0
            reply += (remaining, _ms(reset))
        return reply

    def _window(self, key: str, length: int, width: int) -> Buckets:
        return [b for b in self._values.get(key, ()) if (b[0] + 1) * width + length > self._now]

    def _window_wait(self, buckets: Buckets, used: int, below: int, length: int, width: int) -> float:
        for bucket, count in buckets:
            used -= count
            if used < below:
                return (bucket + 1) * width + length - self._now
        return 0

    def _pace(self, key: str) -> float:
        return float(max(self._values.get(key, 0), self._now))

    def _periods(self) -> tuple[int, int]:
        """The UTC day since the epoch, and year * 100 + month."""
        now = datetime.fromtimestamp(self._now // 1_000_000, UTC)
        return self._now // 86_400_000_000, now.year * 100 + now.month

    def _left(self) -> tuple[float, float]:
        """Microseconds left of the day and of the month."""
        midnight = datetime.fromtimestamp(self._now // 1_000_000, UTC).replace(hour=0, minute=0, second=0)
        next_month = (midnight.replace(day=1) + 32 * DAY).replace(day=1)
        return (midnight + DAY).timestamp() * 1e6 - self._now, next_month.timestamp() * 1e6 - self._now

    def _spent(self, key: str, period: int) -> int:
        of, spent = self._values.get(key, (None, 0))
        return spent if of == period else 0

    def _leases(self, key: str, own: str) -> tuple[int, int, bool]:
        live = [m for m, until in self._values.get(key, {}).items() if until > self._now // 1000]
        others = [m for m in live if m != own]
        return len(others), sum(map(_amount, others)), len(others) < len(live)

    def _write_lease(self, key: str, lease: str, ttl_ms: int) -> None:
        live = {m: until for m, until in self._values.get(key, {}).items() if until > self._now // 1000}
        live[lease] = self._now // 1000 + ttl_ms
        self._set(key, live, ttl_ms * 1000)


def _amount(lease: str) -> int:
    return int(lease.rpartition(":")[2]) if lease else 0


def _ms(us: float) -> int:
    return 0 if us in (0, inf) else ceil(us / 1000)


_shared: dict[str, LocalLedger] = {}


def shared(namespace: str) -> LocalLedger:
    """One per namespace and process: counts outlive a change of configuration."""
    return _shared.setdefault(namespace, LocalLedger())
