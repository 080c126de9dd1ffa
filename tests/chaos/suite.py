"""Runs faults under load and counts: who got in, whom it hurt, how long, and what was left behind."""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import redis.asyncio

from tests.chaos.faults import FAULTS, GUARDED
from tests.chaos.load import Load, Outcome
from tests.chaos.stack import CHATTING, LEASE_TTL, STALE, Stack

SETTLE = 1.0  # seconds without a refused valid request: recovered
GIVE_UP = 30.0
LEAST = 50  # requests of one fault: a busy machine needs longer for them


def requests_for(stack: Stack) -> Any:
    """(good) → path, headers and body. Bad ones: none, garbage, expired, another tenant's, a forged attestation."""
    subjects = [f"s{n}" for n in range(20)]
    tokens = {(t, s): stack.token(t, s) for t in "ab" for s in subjects}
    other = {"a": "b", "b": "a"}

    def make(good: bool) -> tuple[str, Mapping[str, str], bytes]:
        tenant, subject = random.choice("ab"), random.choice(subjects)
        headers = {"Content-Type": "application/json", "X-Chaos": f"{tenant}:{'good' if good else 'bad'}:{subject}"}
        if good:
            headers["Authorization"] = f"Bearer {tokens[tenant, subject]}"
            return f"/{tenant}", headers, b'{"prompt": "hi"}'
        bad = [
            None,
            "Bearer garbage",
            f"Bearer {stack.token(tenant, subject, expired=True)}",
            f"Bearer {tokens[other[tenant], subject]}",
            f"Bearer {stack.token(tenant, subject, signed_by=other[tenant])}",
        ]
        if (token := random.choice(bad)) is not None:
            headers["Authorization"] = token
        if random.random() < 0.3:
            headers["X-Claude-Attestation"] = tokens[tenant, subject]
        return f"/{tenant}", headers, b'{"prompt": "hi"}'

    return make


def served(outcome: Outcome) -> bool:
    """By the upstream or by a plugin of Kong's: a redirect is an answer too."""
    return 200 <= outcome.status < 400


async def recovered(load: Load, since: float, works: Callable[[Outcome], bool] = served) -> float:
    """Seconds from `since` to the last refused valid request, once valid ones succeed again for SETTLE seconds."""
    while time.monotonic() - since < GIVE_UP:
        await asyncio.sleep(0.1)
        good = [o for o in load.outcomes if o.good and o.at > since]
        refused = [o.at for o in good if not works(o)]
        last = max(refused, default=since)
        if time.monotonic() - last > SETTLE and any(works(o) and o.at > last for o in good):
            return last - since
    return GIVE_UP


async def enough(load: Load) -> None:
    """Waits for LEAST requests; for ever does a test's own bound not."""
    while len(load.outcomes) <= LEAST:
        await asyncio.sleep(0.1)


async def run_fault(stack: Stack, name: str, rounds: int) -> dict[str, float]:
    """One fault, `rounds` times at random moments under load."""
    seen = stack.upstream.seen = type(stack.upstream.seen)()
    load, until = Load(stack.url, requests_for(stack)), asyncio.Event()
    running = asyncio.create_task(load.run(until))
    await asyncio.sleep(0.5)
    before = rss(stack)
    times = []
    for _ in range(rounds):
        await asyncio.sleep(random.uniform(0.05, 0.3))
        started = time.monotonic()
        await FAULTS[name](stack)
        times.append(await recovered(load, started))
    await enough(load)
    until.set()
    await running
    return {
        **counts(load.outcomes),
        "unauthenticated_passes": len(seen.unauthenticated) + passed(load.outcomes),
        "wrong_tenant": len(seen.wrong_tenant),
        "unattested_at_upstream": len(seen.unattested),
        "recover_p50_s": round(statistics.median(times), 3),
        "recover_max_s": round(max(times), 3),
        "rss_drift_mb": round(rss(stack) - before, 1),
    }


class Unusable(Exception):
    """A plugin of Kong's that answers nobody, whatever is before it."""


async def run_guarded(stack: Stack, name: str, rounds: int, place: str = "guarded") -> dict[str, float]:
    """Load on a route where the guard alone holds, while the plugins before it are silenced again and again.

    Raises Unusable.
    """
    path, token = f"/{name}/{place}", stack.token("b", "s0", "strict")
    stack.upstream.seen = type(stack.upstream.seen)()
    if (status := await stack.served(path)) >= 400:
        raise Unusable(f"{name} does not work on this Kong, which answers {status}")
    if name == STALE:
        await stack.served(f"/{STALE}/lax")  # starts the service's own instance

    def make(good: bool) -> tuple[str, Mapping[str, str], bytes]:
        headers = {"X-Chaos": f"b:{'good' if good else 'bad'}:s0", "Content-Type": "application/json"}
        bad = [None, "Bearer garbage", f"Bearer {stack.token('b', 's0', 'strict', expired=True)}"]
        if name == STALE:
            bad.append(f"Bearer {stack.token('b', 's0')}")  # good for the service as a whole, not for the route
        wrong = random.choice(bad)
        if good or wrong:
            headers["Authorization"] = f"Bearer {token}" if good else str(wrong)
        return path, headers, CHATTING

    load, until = Load(stack.url, make), asyncio.Event()
    running = asyncio.create_task(load.run(until))
    times = []
    for turn in range(rounds):
        await asyncio.sleep(random.uniform(0.05, 0.3))
        started = time.monotonic()
        await GUARDED[name][turn % len(GUARDED[name])](stack)
        times.append(await recovered(load, started))
    await enough(load)
    until.set()
    await running
    return {
        **counts(load.outcomes),
        "unauthenticated_passes": passed(load.outcomes) + len(stack.upstream.seen.unauthenticated),
        "recover_p50_s": round(statistics.median(times), 3),
        "recover_max_s": round(max(times), 3),
    }


def counts(outcomes: list[Outcome], works: Callable[[Outcome], bool] = served) -> dict[str, int]:
    return {
        "requests": len(outcomes),
        "valid_refused": sum(o.good and not works(o) for o in outcomes),
        "unanswered": sum(o.status == 0 for o in outcomes),
    }


def passed(outcomes: list[Outcome]) -> int:
    """Invalid requests that were served."""
    return sum(not o.good and served(o) for o in outcomes)


async def leaked(stack: Stack) -> int:
    """Leases and reservations left when every lost run's lease must have lapsed."""
    await asyncio.sleep(LEASE_TTL + 0.5)
    client = redis.asyncio.from_url(stack.layout.redis)
    left = 0
    try:
        seconds, micro = await client.time()
        now_ms = seconds * 1000 + micro // 1000
        async for key in client.scan_iter("claude:*:leases"):
            left += await client.zcount(key, now_ms, "+inf")
    finally:
        await client.aclose()
    return left


def rss(stack: Stack) -> float:
    server = stack.server()
    return server.memory_info().rss / 1e6 if server else 0.0


async def run(names: list[str], rounds: int, pair: bool = False) -> dict[str, dict[str, float]]:
    """All faults in turn on one stack. Keys: the fault's name, with `pair` behind it where that is on."""
    stack = Stack(pair)
    report: dict[str, dict[str, float]] = {}
    try:
        await stack.start()
        for name in names:
            report[name] = await run_fault(stack, name, rounds) | {"leaked": await leaked(stack)}
            print(f"{name:24} {report[name]}", file=sys.stderr, flush=True)
        for name in GUARDED:
            try:
                report[name] = await run_guarded(stack, name, rounds)
            except Unusable as error:
                print(f"{name:24} {error}", file=sys.stderr, flush=True)
                continue
            print(f"{name:24} {report[name]}", file=sys.stderr, flush=True)
    finally:
        await stack.stop()
    return {f"{name} pair" if pair else name: figures for name, figures in report.items()}
