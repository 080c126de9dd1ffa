"""The egress filter with a test's names and addresses: `python -I names.py MODE UID DESCRIPTOR`, in place of the real one.

127.0.0.77 is a host on the internet here, and each other loopback address what it is. A MODE other than `strict` takes one
of the filter's defences out.
"""

from __future__ import annotations

import asyncio
import ipaddress
import sys
import time
from typing import Any

from claude_invoker.egress import addresses, filter

OUTSIDE, INSIDE = "127.0.0.77", "127.0.0.1"
NAMES = {
    "site.example.test": [OUTSIDE],
    "other.example.test": [OUTSIDE],
    "elsewhere.test": [OUTSIDE],
    "inside.example.test": [INSIDE],
    "both.example.test": [OUTSIDE, INSIDE],
    "mapped.example.test": [f"::ffff:{INSIDE}"],
}
"""`flips.example.test` is outside when it is asked for first, and inside from then on."""
asked: list[str] = []


async def resolve(host: str, port: int) -> list[str]:
    asked.append(host)
    if host == "flips.example.test":
        return [OUTSIDE if asked.count(host) == 1 else INSIDE]
    if host not in NAMES:
        raise OSError("no such name")
    return NAMES[host]


def public(found: list[str]) -> bool:
    return all(address == OUTSIDE or addresses.all_public([address]) for address in found)


def put(owner: object, name: str, value: object) -> None:
    setattr(owner, name, value)


def any_host() -> None:
    put(filter.Passage, "hosts", property(lambda self: [Anything()], lambda self, value: None))


class Anything:
    def covers(self, other: Any) -> bool:
        return True


def any_address() -> None:
    globals()["public"] = lambda found: True


def asks_twice() -> None:
    """The name is looked up for the check, and again for the connection."""
    connect = asyncio.open_connection

    async def again(address: str, port: int, **more: Any) -> Any:
        (address, *_) = await resolve(asked[-1], port)
        return await connect(address, port, **more)

    put(asyncio, "open_connection", again)


def slow_names() -> None:
    """Names below `stuck.example.test` take half a minute, each in a thread, as all do that are really looked up."""
    at_once = resolve

    async def slowly(host: str, port: int) -> list[str]:
        seconds = 30.0 if host.endswith(".stuck.example.test") else 0.0
        await asyncio.get_running_loop().run_in_executor(None, time.sleep, seconds)
        return await at_once(host, port)

    globals()["resolve"] = slowly
    put(filter, "RESOLVE_S", 3.0)


def slow_names_at_will() -> None:
    """A run may look up as many at once as it wants."""
    slow_names()
    put(filter, "MAX_LOOKED_UP", 1000)


FEW = 100


def few_connections() -> None:
    """As the real bound, and sooner."""
    put(filter, "MAX_ASKED", FEW)


def without_bounds() -> None:
    """A run may ask as often as it wants, have as many connections as it wants, and take its time."""
    for name in ("MAX_OPEN", "MAX_ASKED", "HEAD_S"):
        put(filter, name, 1_000_000)


MODES = {
    "strict": lambda: None,
    "any_host": any_host,
    "any_address": any_address,
    "asks_twice": asks_twice,
    "slow_names": slow_names,
    "slow_names_at_will": slow_names_at_will,
    "few_connections": few_connections,
    "without_bounds": without_bounds,
}

if __name__ == "__main__":
    MODES[sys.argv.pop(1)]()
    assert ipaddress.ip_address(OUTSIDE).is_loopback  # no test leaves the machine
    filter.main(resolve, public)
