"""The faults. Each is injected once per call and has undone itself when it returns."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable

from tests.chaos.stack import ADDRESS, STALE, TERMINATORS, Stack

Fault = Callable[[Stack], Awaitable[None]]


async def server_killed(stack: Stack) -> None:
    (await stack.living()).kill()


async def server_stopped(stack: Stack) -> None:
    server = await stack.living()
    server.suspend()
    await asyncio.sleep(1.5)
    server.resume()


async def _commanded(stack: Stack, how: str, seconds: float = 0.3) -> None:
    stack.set_fault(how)
    await asyncio.sleep(seconds)
    stack.set_fault(None)


async def exception_first(stack: Stack) -> None:
    await _commanded(stack, "first")


async def exception_between_calls(stack: Stack) -> None:
    await _commanded(stack, "between")


async def stale_instance(stack: Stack) -> None:
    await _commanded(stack, "stale")


async def exception_in_init(stack: Stack) -> None:
    stack.set_fault("init")
    await stack.reload()
    await asyncio.sleep(0.3)
    stack.set_fault(None)


async def hang(stack: Stack) -> None:
    await _commanded(stack, "hang", 0.1)


async def reply_cut(stack: Stack) -> None:
    await _tampered(stack, "cut")


async def reply_garbage(stack: Stack) -> None:
    await _tampered(stack, "garbage")


async def reply_held(stack: Stack) -> None:
    await _tampered(stack, "hold")


async def _tampered(stack: Stack, mode: str) -> None:
    stack.relay.mode = mode
    await asyncio.sleep(0.3)
    stack.relay.mode = "pass"


async def socket_removed(stack: Stack) -> None:
    """And the connections that there are end: as long as they live nobody misses it."""
    stack.relay.target.unlink(missing_ok=True)
    stack.relay.drop()


async def redis_killed(stack: Stack) -> None:
    stack.signal_redis(signal.SIGKILL)


async def redis_stopped(stack: Stack) -> None:
    stack.signal_redis(signal.SIGSTOP)
    await asyncio.sleep(1)
    stack.signal_redis(signal.SIGCONT)


async def jwks_down(stack: Stack) -> None:
    await stack.stop_jwks()
    await asyncio.sleep(random.uniform(0.5, 3))
    await stack.start_jwks()


async def config_reloaded(stack: Stack) -> None:
    await stack.reload()


async def upstream_restarted(stack: Stack) -> None:
    await stack.upstream.stop()
    await asyncio.sleep(0.3)
    await stack.upstream.start(ADDRESS, stack.upstream_port)


# What ends with the plugin not having run, or with another's configuration: the guard alone is between a request and its
# answer then.
SILENCING: dict[str, Fault] = {
    "server_stopped": server_stopped,
    "server_killed": server_killed,
    "exception_first": exception_first,
    "reply_cut": reply_cut,
    "reply_held": reply_held,
}
GUARDED: dict[str, tuple[Fault, ...]] = {
    **{name: tuple(SILENCING.values()) for name in TERMINATORS},
    STALE: (stale_instance,),
}
FAULTS: dict[str, Fault] = {
    "server_killed": server_killed,
    "server_stopped": server_stopped,
    "exception_first": exception_first,
    "exception_between_calls": exception_between_calls,
    "exception_in_init": exception_in_init,
    "hang": hang,
    "reply_cut": reply_cut,
    "reply_garbage": reply_garbage,
    "reply_held": reply_held,
    "socket_removed": socket_removed,
    "redis_killed": redis_killed,
    "redis_stopped": redis_stopped,
    "jwks_down": jwks_down,
    "config_reloaded": config_reloaded,
    "upstream_restarted": upstream_restarted,
}
