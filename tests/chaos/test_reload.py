"""`kong reload` under load, on a real Kong: no valid request is refused, and none is missing in the metrics."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kong_claude import PLUGINS
from kong_claude.report.read import parse
from kong_claude_local import stack as parts
from tests.chaos.load import Load
from tests.chaos.stack import PLUGIN, Stack
from tests.chaos.suite import passed, requests_for
from tests.e2e.conftest import ROOT

KONG = os.environ.get("KONG")
RELOADS = 20
pytestmark = [
    pytest.mark.skipif(not KONG, reason="needs a real Kong: KONG=/path/to/kong make test-kong"),
    pytest.mark.timeout(900),
]


class Counting(Stack):
    """With claude-metrics, and the plugin server's own socket: without the relay a connection is Kong's and its."""

    def __init__(self) -> None:
        super().__init__()
        shutil.copy(PLUGINS / "claude-metrics.py", self.plugins)
        self.environment: Mapping[str, str] = {}
        self.access_log = self.directory / "access.log"

    def config(self) -> dict[str, Any]:
        config = super().config()
        config["plugins"].append({"name": "claude-metrics"})
        config["plugins"][0]["config"]["echo_downstream"] = True
        return config

    def gateway(self) -> Any:
        part = super().gateway()
        whole = parts.gateway(self.layout).environment
        socket = "KONG_PLUGINSERVER_CLAUDE_GATEWAY_SOCKET"
        changed = {n: v for n, v in whole.items() if n.startswith("KONG_PLUGINSERVER_CLAUDE_METRICS_")}
        changed |= {
            socket: whole[socket],
            "KONG_PLUGINSERVER_NAMES": f"{PLUGIN},claude-metrics",
            "KONG_PLUGINS": part.environment["KONG_PLUGINS"] + ",claude-metrics",
            "KONG_NGINX_HTTP_LOG_FORMAT": shipped_log_format(),
            "KONG_PROXY_ACCESS_LOG": f"{self.access_log} claude",
        }
        self.environment = {**part.environment, **changed}
        return replace(part, environment=self.environment)

    async def kong_reload(self) -> None:
        assert KONG
        process = await asyncio.create_subprocess_exec(
            KONG, "reload", env=dict(self.environment), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        said, _ = await process.communicate()
        assert process.returncode == 0, said.decode()

    async def counted(self) -> Counter[str]:
        """claude_requests_total by status."""
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{self.layout.metrics_port}/metrics") as answer:
                text = await answer.text()
        found: Counter[str] = Counter()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == "claude_requests_total":
                    found[sample.labels["status"]] += int(sample.value)
        return found


def shipped_log_format() -> str:
    shell = f'. {ROOT / "deploy" / "kong" / "access-log.env"}; printf %s "$KONG_NGINX_HTTP_LOG_FORMAT"'
    return subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True).stdout


async def one_id(stack: Counting) -> None:
    """What a refusal names is in Kong's access log, too."""
    async with aiohttp.ClientSession() as session:
        async with session.post(stack.url + "/a", headers={"X-Chaos": "a:bad:x"}) as answer:
            told = (await answer.json())["request_id"]
    for _ in range(100):
        lines = [parse(line) for line in stack.access_log.read_bytes().splitlines()]
        found = [line for line in lines if line and line["request_id"] == told]
        if found:
            break
        await asyncio.sleep(0.1)
    assert [(line["status"], line["refusal"]) for line in found] == [("401", "jwt-claims/no_token")]


async def reloads(stack: Counting) -> None:
    await stack.start()
    load = Load(stack.url, requests_for(stack), clients=8, keep_alive=False)
    until = asyncio.Event()
    running = asyncio.create_task(load.run(until))
    for _ in range(RELOADS):
        await asyncio.sleep(random.uniform(0.5, 3))
        await stack.kong_reload()
    await asyncio.sleep(3)
    until.set()
    await running
    statuses = Counter(str(o.status) for o in load.outcomes)
    print(f"{RELOADS} reloads: {statuses}")
    assert passed(load.outcomes) == 0
    assert not stack.upstream.seen.unauthenticated
    assert len(load.outcomes) > 1000
    assert {o.status for o in load.outcomes if o.good} == {200}, statuses
    for _ in range(100):  # the log phases of the last ones
        counted = await stack.counted()
        if counted.total() == statuses.total():
            break
        await asyncio.sleep(0.1)
    assert counted == statuses
    await one_id(stack)


def test_no_valid_request_is_refused_and_none_is_missing_in_the_metrics() -> None:
    async def go() -> None:
        stack = Counting()
        try:
            await reloads(stack)
        finally:
            await stack.stop()

    asyncio.run(go())
