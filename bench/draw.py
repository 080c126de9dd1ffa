"""What it adds to a request of a run that the ledger is asked first: `python -m bench.draw [--seconds 5]`.

The parts are those between the metering proxy's purse and Redis: the run's own budget, the invoker's queue, one script
for a request (two pools, a budget each, a hundred other runs, a month of bookings). Only the socket pair between proxy
and invoker is left out. Redis is a server of its own behind a unix socket.

| key | meaning |
|---|---|
| `draw_ms_p50`, `draw_ms_p99` | from a request that has been read to its reservation, one at a time |
| `draw_ms_64_p50`, `draw_ms_64_p99` | the same of 64 runs that ask at once, in one round trip |
| `us_draw_in_redis` | what the script takes of Redis's time, a mean |
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import struct
import time
from decimal import Decimal

import redis.asyncio

from bench.machine import machine
from bench.rate import QUARTERS, RUNNING, redis_server
from claude_contract.ledger import (
    DEPLOYMENT,
    NAMESPACE,
    AsyncLedger,
    Budget,
    Draw,
    Drawn,
    Lease,
    LedgerUnavailable,
    Shared,
    Slot,
    Terms,
    calls,
    pool_key,
)
from claude_invoker.draws import Draws
from claude_invoker.metering import request, wire
from claude_invoker.metering.account import Account
from claude_invoker.metering.bill import Bill
from claude_invoker.metering.drawn import answered
from claude_invoker.metering.prices import Prices
from claude_invoker.metering.purse import Purse

MODEL = "claude-haiku-4-5"
MUCH = 10**12  # micro-USD
SHARED = Shared(DEPLOYMENT, (pool_key("team", "claim", "x"), pool_key("all")))
SLOT = Slot(None, 1_000_000, ttl_ms=3_600_000, pools=(Terms(None, (Budget(MUCH, "month"),)),) * 2)
AT_ONCE = 64


class Wire:
    """The socket pair's place."""

    def __init__(self, store: AsyncLedger) -> None:
        self.draws = Draws(store, self._short)

    async def _short(self, *_: object) -> None:
        raise AssertionError("there is more than enough")

    async def ask(self, run: str, cost: int, under_way: int, least: int, most: int) -> wire.Drawn:
        message = wire.Draw(1, run, cost, under_way, least, most)
        answer: asyncio.Future[wire.Drawn] = asyncio.get_running_loop().create_future()

        def hear(drawn: Drawn | LedgerUnavailable) -> None:
            answer.set_result(answered(message, drawn, run))

        self.draws.put(run, SLOT, Draw(cost, under_way, least, most), hear)
        return await answer

    def say(self, run: str, cost: int, under_way: int) -> None:
        self.draws.put(run, SLOT, Draw(cost, under_way, under_way, under_way), lambda drawn: None)


async def measure(path: str, seconds: float) -> dict[str, float]:
    client = redis.asyncio.Redis(unix_socket_path=path)
    store, prices = AsyncLedger(client), Prices({}, "refuse")
    newest = int(time.time()) // 900
    book = b"".join([struct.pack("<IdB", newest - QUARTERS + n, n + 1.0, 1) for n in range(QUARTERS)])
    leases = [Lease.new(NAMESPACE, f"user{n}", 1_000_000, SHARED) for n in range(AT_ONCE + RUNNING)]
    for key in calls.settle(leases[0], 0).keys:
        if key.endswith(":spent"):
            await client.set(key, book)
    for lease in leases:
        assert (await store.acquire(lease, SLOT)).admitted
    teller, price = Wire(store), prices.price(MODEL)
    asked = request.read(json.dumps({"model": MODEL, "max_tokens": 1000, "messages": []}).encode())
    accounts = [Account(prices, Decimal(1_000_000)) for _ in range(AT_ONCE)]
    purses = [Purse(str(lease), account, teller) for lease, account in zip(leases, accounts, strict=False)]

    async def once(number: int) -> float:
        began = time.perf_counter()
        reservation = await purses[number].reserve(asked, price, 1000)
        took = time.perf_counter() - began
        accounts[number].settle(reservation, Bill(Decimal("0.001"), Decimal("0.001")))
        return took

    async def said() -> None:
        for purse in purses:
            await purse.settled()
        while teller.draws._sending is not None:
            await asyncio.sleep(0)

    alone, together = [], []
    for number in range(AT_ONCE):
        await once(number)
    await client.config_resetstat()
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for number in range(AT_ONCE):
            alone.append(await once(number))
        await said()
        together += await asyncio.gather(*[once(number) for number in range(AT_ONCE)])
        await said()
    spent = (await client.info("commandstats"))["cmdstat_evalsha"]
    await client.aclose()
    figures = {"draw_ms": alone, f"draw_ms_{AT_ONCE}": together}
    return {
        **{f"{name}_p50": round(statistics.median(took) * 1000, 3) for name, took in figures.items()},
        **{f"{name}_p99": round(statistics.quantiles(took, n=100)[98] * 1000, 3) for name, took in figures.items()},
        "us_draw_in_redis": float(spent["usec_per_call"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    with redis_server() as path:
        figures = asyncio.run(measure(path, options.seconds))
    print(json.dumps(figures | {"machine": machine()}))


if __name__ == "__main__":
    main()
