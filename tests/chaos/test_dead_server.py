"""What a dead plugin server costs the log of a real Kong: what is ours in it is said once a second and worker."""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import psutil
import pytest

from kong_claude import guard
from tests.chaos.load import Load, Outcome
from tests.chaos.stack import ADDRESS, LATE_GUARD, PLUGIN, Stack
from tests.chaos.suite import requests_for
from tests.support.processes import command_line

pytestmark = [
    pytest.mark.skipif(not os.environ.get("KONG"), reason="needs a real Kong: KONG=/path/to/kong make test-kong"),
    pytest.mark.timeout(300),
]
SECONDS = 6
WORKERS = 2  # of nginx, each with a second of its own
LINE = re.compile(r" (?P<second>\d\d:\d\d:\d\d) \[\w+\] \d+#\d+: (?P<said>.*)")
# The file of Lua that wrote it, for which plugin; a post-function of the guard; what the plugin server prints
# Kong wraps under its name. All else is Kong's and nginx's.
BY = re.compile(r"\[kong\] (?P<file>[\w.-]+):\d+ \[claude-|(?P<own>\[post-function\] guard: |\[claude-[\w-]+:\d+\])")
OURS = {path.name for root in (guard.LUA, guard.PAIR) for path in root.rglob("*.lua")}
SPOKEN = "/spoken"


class Mortal(Stack):
    """Its plugin server stays dead while the file `dead` is there. No relay, which would take connections in its place.

    One route has the guard as a post-function, which says every refusal.
    """

    def gateway(self) -> Any:
        part = super().gateway()
        socket, start = (
            f"KONG_PLUGINSERVER_{PLUGIN.upper().replace('-', '_')}_{name}" for name in ("SOCKET", "START_CMD")
        )
        script = self.directory / "start"
        script.write_text(f"#!/bin/sh\ntest ! -e {self.directory}/dead || exit 1\nexec {part.environment[start]}\n")
        script.chmod(0o755)
        return replace(part, environment={**part.environment, socket: str(self.relay.target), start: str(script)})

    def config(self) -> dict[str, Any]:
        config = super().config()
        plugins = [self.claims({"algorithms": ["HS256"], "secret": "x" * 32}), LATE_GUARD]
        route = {"name": "spoken", "paths": [SPOKEN], "plugins": plugins}
        config["services"].append(
            {"name": "spoken", "url": f"http://{ADDRESS}:{self.upstream_port}", "routes": [route]}
        )
        return config

    def all_of_it(self) -> list[psutil.Process]:
        """The plugin server and its keeper."""
        (gateway,) = [process for part, process in self.supervisor.running if part.name == "gateway"]
        started = psutil.Process(gateway.pid).children(recursive=True)
        return [process for process in started if "claude.sock" in command_line(process)]


def written(lines: Iterable[str]) -> tuple[Counter[str], int]:
    """How many of these lines are ours, by the second; and how many are not."""
    ours: Counter[str] = Counter()
    others = 0
    for line in lines:
        if found := LINE.search(line):
            if (by := BY.search(found["said"])) and (by["own"] or by["file"] in OURS):
                ours[found["second"]] += 1
            else:
                others += 1
    return ours, others


async def logged(stack: Mortal, make: Any) -> tuple[list[Outcome], Counter[str], int]:
    """Some seconds of load, and what of it is in the log."""
    log = stack.directory / "log"
    begin = log.stat().st_size
    load, until = Load(stack.url, make), asyncio.Event()
    running = asyncio.create_task(load.run(until))
    await asyncio.sleep(SECONDS)
    until.set()
    await running
    return load.outcomes, *written(log.read_bytes()[begin:].decode(errors="replace").splitlines())


async def check(stack: Mortal) -> None:
    await stack.start()
    assert await stack.served("/request-termination/guarded") == 200

    def spoken(good: bool) -> tuple[str, Mapping[str, str], bytes]:
        return SPOKEN, {"X-Chaos": "b:bad:s0"}, b"{}"

    async def cost(how: str, make: Any) -> tuple[Counter[str], Counter[int]]:
        await logged(stack, make)  # what was under way
        outcomes, ours, others = await logged(stack, make)
        statuses = Counter(o.status for o in outcomes)
        print(f"{how}, pair {stack.pair}: {statuses}, {ours.total()} lines of ours, {others} others")
        assert statuses.keys() <= {500, 503}  # Kong's own where nobody listens
        assert outcomes
        assert others >= len(outcomes), "Kong itself says each: else these are not its lines"
        return ours, statuses

    for make in (requests_for(stack), spoken):
        await logged(stack, make)  # a configuration that was never used is Kong's 500, which no plugin sees
    for process in stack.all_of_it():
        process.suspend()
    ours, _ = await cost("stopped", requests_for(stack))
    assert 1 <= max(ours.values()) <= WORKERS, ours
    ours, statuses = await cost("stopped, guard as post-function", spoken)
    assert ours.total() >= statuses[503] > 0, "control: what says each is counted"
    (stack.directory / "dead").touch()
    for process in stack.all_of_it():
        process.kill()
    ours, _ = await cost("gone", requests_for(stack))
    assert max(ours.values(), default=0) <= WORKERS, ours


@pytest.mark.parametrize("pair", [False, True], ids=["single", "pair"])
def test_what_is_ours_in_the_log_is_said_once_a_second_and_worker(pair: bool) -> None:
    async def go() -> None:
        stack = Mortal(pair)
        try:
            await check(stack)
        finally:
            await stack.stop()

    asyncio.run(go())
