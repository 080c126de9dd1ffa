"""What claude-metrics costs a request: nearly nothing on its way, some CPU after the answer.

`python -m bench.metrics [seconds]`: one client over one connection, two routes of the same gateway that differ by the
plugin alone, interleaved. Every answer is waited for, and the log phase of one request is let finish before the next,
so `added_ms_*` is what a client waits longer. `rps_*` back to back shows what the log phase costs the machine instead.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from bench.chain import Counts, Service, ask, kong, load, percentile, process, request
from bench.machine import machine
from kong_claude import PLUGINS
from kong_claude.in_flight import Attested
from kong_claude.metrics.entry import entry, render

SAMPLES = 1500
PLUGIN = "claude-metrics"


def kong_yml(port: int, log: Path) -> dict[str, Any]:
    plugins: dict[str, list[dict[str, Any]]] = {
        "plain": [],
        "metrics": [{"name": PLUGIN}],
        "logged": [{"name": PLUGIN, "config": {"access_log": {"file": str(log)}}}],
    }
    routes = [{"name": n, "paths": [f"/{n}"], "strip_path": False, "plugins": p} for n, p in plugins.items()]
    service = {"name": "bench", "url": f"http://127.0.0.1:{port}", "routes": routes}
    return {"_format_version": "3.0", "services": [service]}


async def waits(port: int, messages: dict[str, bytes]) -> dict[str, list[float]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    times: dict[str, list[float]] = {name: [] for name in messages}
    for turn in range(SAMPLES + 50):
        for name in random.sample(sorted(messages), len(messages)):
            began = time.perf_counter()
            await ask(reader, writer, messages[name])
            if turn >= 50:
                times[name].append((time.perf_counter() - began) * 1000)
            await asyncio.sleep(0.002)
    writer.close()
    return times


async def measure(seconds: float) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="kc-") as name:
        folder = Path(name)
        service = await loop.create_server(Service, "127.0.0.1", 0)
        config = kong_yml(service.sockets[0].getsockname()[1], folder / "access.jsonl")
        (folder / "kong.json").write_text(json.dumps(config))
        messages = {name: request(name, "none") for name in ("plain", "metrics", "logged")}
        server = [
            sys.executable,
            "-m",
            "kong_claude.server",
            "-d",
            str(PLUGINS),
            "-p",
            name,
        ]
        server += ["--socket-name", "plugins.sock"]
        counts = Counts()
        relay = await counts.serve(str(folder / "counted.sock"), str(folder / "plugins.sock"))
        async with process(*server, ready=folder / "plugins.sock"):
            command, environment, port = kong(folder, "counting", [PLUGIN], folder / "counted.sock")
            async with process(*command, ready=f"127.0.0.1:{port}", **environment):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                await ask(reader, writer, messages["metrics"])
                await asyncio.sleep(0.5)
                counts.reset()
                for _ in range(50):
                    await ask(reader, writer, messages["metrics"])
                await asyncio.sleep(0.5)
                writer.close()
                figures["pdk_calls_access"] = counts.calls["access"] / 50
                figures["pdk_calls_log"] = counts.calls["log"] / 50
            command, environment, port = kong(folder, "timing", [PLUGIN], folder / "plugins.sock")
            async with process(*command, ready=f"127.0.0.1:{port}", **environment):
                times = await waits(port, messages)
                for name, message in messages.items():
                    figures[f"rps_{name}"] = round(await load(port, message, seconds), 1)
        relay.close()
        service.close()
    plain = times.pop("plain")
    figures["plain_ms_p50"] = round(statistics.median(plain), 3)
    for name, taken in times.items():
        figures[f"added_ms_p50_{name}"] = round(statistics.median(taken) - statistics.median(plain), 3)
        figures[f"added_ms_p99_{name}"] = round(percentile(taken, 99) - percentile(plain, 99), 3)
        print(f"{name}: +{figures[f'added_ms_p50_{name}']} ms", file=sys.stderr)
    figures["line_us"] = line_us()
    return figures


def line_us() -> float:
    """Microseconds from a serialized request to its access log line."""
    table = {
        "request": {"method": "POST", "uri": "/claude/invoke", "id": "0" * 32, "headers": {"user-agent": "curl/8"}},
        "response": {"status": 200, "size": 900, "headers": {"x-claude-model": "haiku", "x-claude-cost-usd": "0.1"}},
        "latencies": {"request": 12, "proxy": 10},
        "source": "upstream",
        "route": {"name": "claude-invoke"},
        "started_at": 1_700_000_000_000,
        "client_ip": "10.0.0.1",
    }
    who, text = Attested(0.0, "ada", "pro", ""), json.dumps(table)
    began = time.perf_counter()
    for _ in range(5000):
        render(entry(json.loads(text), who).line)
    return round((time.perf_counter() - began) / 5000 * 1e6, 1)


def main() -> None:
    figures = uvloop.run(measure(float(sys.argv[1]) if len(sys.argv) > 1 else 2.0))
    print(json.dumps({**figures, "machine": machine()}))


if __name__ == "__main__":
    main()
