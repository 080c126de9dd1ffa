"""Which way of counting a sliding window: what each lets through in the worst window, and what it refuses in vain.

    python -m bench.windows

No Redis: the algorithms alone, against traffic that bursts. `over_*` is the most that any sliding window saw, as a
multiple of the limit (1.0 keeps the promise). `vain_*` is the share of requests that an exact log would have admitted
of those that each refused. Contenders: weighted two-bucket counters (Cloudflare, `limits`), GCRA with the limit as its
burst, buckets counted until their end has left (ours, for several numbers of buckets).
"""

from __future__ import annotations

import json
import random
import sys
from bisect import bisect_right
from collections.abc import Callable
from functools import partial

from bench.machine import machine

WINDOW = 60.0
Admit = Callable[[float], bool]


def two_buckets(limit: int) -> Admit:
    counts: dict[int, int] = {}

    def admit(now: float) -> bool:
        current = int(now // WINDOW)
        weight = 1 - (now % WINDOW) / WINDOW
        if int(counts.get(current - 1, 0) * weight) + counts.get(current, 0) >= limit:
            return False
        counts[current] = counts.get(current, 0) + 1
        return True

    return admit


def gcra(limit: int) -> Admit:
    step, empty = WINDOW / limit, 0.0

    def admit(now: float) -> bool:
        nonlocal empty
        if max(empty, now) - now > WINDOW - step:
            return False
        empty = max(empty, now) + step
        return True

    return admit


def buckets(limit: int, number: int) -> Admit:
    width = 0.001 if limit <= number else WINDOW / number
    held: list[list[float]] = []  # end, count

    def admit(now: float) -> bool:
        while held and held[0][0] + WINDOW <= now:
            held.pop(0)
        if sum(count for _, count in held) >= limit:
            return False
        end = (now // width + 1) * width
        if held and held[-1][0] >= end:
            held[-1][1] += 1
        else:
            held.append([end, 1])
        return True

    return admit


def traffic(limit: int, seed: int) -> list[float]:
    """Ten windows of bursts and lulls, three times what is allowed."""
    chance = random.Random(seed)
    times: list[float] = []
    while len(times) < 30 * limit:
        at = chance.uniform(0, 10 * WINDOW)
        spread = chance.choice([0.1, 1.0, 10.0])
        times += [at + chance.uniform(0, spread) for _ in range(chance.randint(1, limit))]
    return sorted(times)


def judge(make: Callable[[], Admit], limit: int) -> tuple[float, float]:
    most, refused, vain = 0, 0, 0
    for seed in range(10):
        admit = make()
        admitted: list[float] = []
        for now in traffic(limit, seed):
            within = len(admitted) - bisect_right(admitted, now - WINDOW)
            if admit(now):
                admitted.append(now)
                most = max(most, within + 1)
            else:
                refused += 1
                vain += within < limit
    return most / limit, vain / max(refused, 1)


def main() -> None:
    result: dict[str, float | str] = {}
    for limit in (60, 500):
        ways: dict[str, Callable[[], Admit]] = {
            "two_buckets": partial(two_buckets, limit),
            "gcra": partial(gcra, limit),
            **{f"buckets_{n}": partial(buckets, limit, n) for n in (10, 20, 64)},
        }
        for name, make in ways.items():
            over, vain = judge(make, limit)
            result[f"over_{name}_{limit}"], result[f"vain_{name}_{limit}"] = round(over, 3), round(vain, 4)
            print(
                f"limit {limit}, {name}: worst window {over:.2f} x limit, {vain:.2%} refused in vain", file=sys.stderr
            )
    print(json.dumps({**result, "machine": machine()}))


if __name__ == "__main__":
    main()
