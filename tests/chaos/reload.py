"""`kong reload` under load, on a real Kong: whom it refuses, and what is missing in the metrics."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import shutil
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from kong_claude import PLUGINS
from kong_claude_local import stack as parts
from tests.chaos.load import Load
from tests.chaos.stack import PLUGIN, Stack
from tests.chaos.suite import counts, passed, requests_for, served
from tests.e2e.conftest import ROOT
from tests.support.waiting import HANG_S

KONG = os.environ.get("KONG")


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


async def run_reloads(stack: Counting, times: int) -> dict[str, float]:
    """A row of the report: whom `times` reloads have hurt, `missing_in_metrics` among it."""
    await stack.start()
    load = Load(stack.url, requests_for(stack), clients=8, keep_alive=False)
    until = asyncio.Event()
    running = asyncio.create_task(load.run(until))
    recoveries = []
    for _ in range(times):
        await asyncio.sleep(random.uniform(0.5, 3))
        started = time.monotonic()
        await stack.kong_reload()
        recoveries.append(started)
    await asyncio.sleep(3)
    until.set()
    await running
    statuses = Counter(str(o.status) for o in load.outcomes)
    deadline = time.monotonic() + HANG_S
    while (counted := await stack.counted()).total() != statuses.total() and time.monotonic() < deadline:
        await asyncio.sleep(0.1)  # the log phases of the last ones
    refused = [o.at for o in load.outcomes if o.good and not served(o)]
    lasted = [_lasted(began, ends, refused) for began, ends in itertools.pairwise([*recoveries, time.monotonic()])]
    return {
        **counts(load.outcomes),
        "unauthenticated_passes": passed(load.outcomes) + len(stack.upstream.seen.unauthenticated),
        "wrong_tenant": len(stack.upstream.seen.wrong_tenant),
        "unattested_at_upstream": len(stack.upstream.seen.unattested),
        "missing_in_metrics": (statuses - counted).total(),
        "too_many_in_metrics": (counted - statuses).total(),
        "recover_p50_s": round(statistics.median(lasted), 3),
        "recover_max_s": round(max(lasted), 3),
    }


def _lasted(began: float, ends: float, refused: Sequence[float]) -> float:
    """Seconds from one reload to the last request that was refused before the next one."""
    return max((at - began for at in refused if began <= at < ends), default=0.0)
