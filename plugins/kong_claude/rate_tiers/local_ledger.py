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

from claude_contract.ledger import Call, unpack_rules

DAY = timedelta(days=1)
SWEEP_AT_LEAST = 1024  # keys

Buckets = list[tuple[int, int]]  # the bucket's end (ms), count; oldest first


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
        lease, ttl_ms, concurrent, budget_day, budget_month, busy, packed = args
        amount = _amount(lease)
        running, reserved, held = self._leases(keys[0], lease) if lease else (0, 0, False)
        today, month = self._periods()
        spent_day, spent_month = (self._spent(keys[2], today), self._spent(keys[3], month)) if lease else (0, 0)
        culprit, wait = 0, 0.0

        def blame(who: int, us: float) -> None:
            nonlocal culprit, wait
            if culprit == 0 or us > wait:
                culprit, wait = who, us

        windows: dict[int, Any] = self._values.get(keys[1], {})
        rules = unpack_rules(packed)
        states: list[Any] = []
        for number, (length, limit, _, burst) in enumerate(rules, start=1):
            state = self._state(windows, length, burst)
            states.append(state)
            if burst >= 0:
                over = state - self._now - burst * (length * 1_000_000 / limit)
                if over > 0:
                    blame(number, over)
            elif sum(count for _, count in state) >= limit:
                blame(number, self._window_wait(state, limit, length))

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
        else:
            for n, (length, limit, width, burst) in enumerate(rules):
                if burst >= 0:
                    windows[-length] = states[n] = ceil(states[n] + length * 1_000_000 / limit)
                else:
                    windows[length] = self._count_one(states[n], width)
            if rules:
                self._write_windows(keys[1], windows)
            if lease and verdict == 1:
                self._write_lease(keys[0], lease, ttl_ms)
                running, reserved = running + 1, reserved + amount
        quotas = [n for rule, state in zip(rules, states, strict=True) for n in self._quota(rule, state)]
        return [verdict, culprit, _ms(wait), running, reserved, spent_day, spent_month, *quotas]

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
        reply = [running, reserved, self._spent(keys[2], today), self._spent(keys[3], month), *map(_ms, self._left())]
        for rule in unpack_rules(args[0]):
            reply += self._quota(rule, self._state(self._values.get(keys[1], {}), rule[0], rule[3]))
        return reply

    def _state(self, windows: dict[int, Any], length: int, burst: int) -> Any:
        """A paced window's time of being empty, or a sliding one's live buckets."""
        if burst >= 0:
            return max(windows.get(-length, 0), self._now)
        return [b for b in windows.get(length, ()) if (b[0] + length * 1000) * 1000 > self._now]

    def _count_one(self, buckets: Buckets, width_ms: int) -> Buckets:
        """The same list, with one more."""
        end = (self._now // 1000 // width_ms + 1) * width_ms
        if buckets and buckets[-1][0] >= end:
            buckets[-1] = (buckets[-1][0], buckets[-1][1] + 1)
        else:
            buckets.append((end, 1))
        return buckets

    def _window_wait(self, buckets: Buckets, limit: int, length: int) -> int:
        used = sum(count for _, count in buckets)
        for end, count in buckets:
            used -= count
            if used < limit:
                return (end + length * 1000) * 1000 - self._now
        return 0

    def _quota(self, rule: Sequence[int], state: Any) -> tuple[int, int]:
        length, limit, _, burst = rule
        if burst >= 0:
            step, backlog = length * 1_000_000 / limit, state - self._now
            remaining = max(floor(burst + 1 - backlog / step), 0)
            return remaining, _ms(min(backlog, step) if remaining else backlog - burst * step)
        if not state:
            return limit, 0
        return max(limit - sum(count for _, count in state), 0), _ms((state[0][0] + length * 1000) * 1000 - self._now)

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
