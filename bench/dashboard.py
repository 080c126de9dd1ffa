"""The dashboard at 10,000 jobs: how long its pages take.

    python -m bench.dashboard [--jobs 10000] [--requests 200]

An invoker and a Redis are processes of their own; whoever asks is an admin, who sees everybody's jobs.

| key | meaning |
|---|---|
| `overview_ms_p50`, `…_p99` | the first page |
| `jobs_ms_…` | the newest jobs |
| `found_ms_…` | jobs by a word that few have, a tier and a part of the repository's name |
| `none_ms_…` | jobs by a word that none has: as many are looked at as ever are |
| `callers_ms_…` | one caller's |
| `older_ms_…` | pages of the list by their cursors, one after the other |
| `charts_ms_…` | charts of the last hour |
| `limits_ms_…`, `catalog_ms_…`, `approvals_ms_…` | those pages |
| `job_ms_…` | the page of a job with 100 turns (2,500 events) |
| `worst_ms_p99` | the largest of them |
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import html
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import httpx
from msgspec.structs import replace

from bench.jobs import Stage, caller, say, staged
from bench.machine import machine
from claude_contract.claims import Repository
from claude_contract.graphql import LIMITS_HEADER
from claude_contract.ledger import Lease, Shared, Slot, Terms
from claude_invoker.caller import Caller
from claude_invoker.jobs.record import Job, JobRequest
from claude_invoker.jobs.store import Store, connect

_OLDER = re.compile(r'id="older" rel="next" href="([^"]+)"')
_TURNS = 100
_WINDOWS = [{"name": name, "limit": 60, "remaining": 59, "reset_s": 31} for name in ("minute", "hour")]
_TOLD = {
    "tier": "pro",
    "windows": _WINDOWS,
    "concurrent": {"limit": 4, "running": 1},
    "usd": {per: {"limit": None, "spent": 1.5, "reset_s": 9} for per in ("day", "month")} | {"reserved": 0.5},
    "messages": {"windows": _WINDOWS, "concurrent": {"limit": 4, "running": 1}},
}
"""As the gateway tells it."""


def whose(n: int) -> Caller:
    """A hundred callers, of two tiers and ten teams, on ten repositories; each with his own place in the ledger."""
    known = caller(f"somebody-{n % 100}")
    tier = "team" if n % 3 else "pro"
    lease = replace(Lease.parse(known.lease or ""), shared=Shared("*", (f"pool.team:claim:t{n % 10}", "pool.site:*")))
    slot = dataclasses.replace(known.slot or Slot(), pools=(Terms(), Terms()))
    return Caller(known.subject, tier=tier, lease=str(lease), slot=slot, queued=True, repository=_of(n))


def _of(n: int) -> Repository:
    return Repository(f"org/app-{n % 10}")


async def fill(store: Store, count: int) -> str:
    """A third of them is cancelled, the others wait. The id of one that runs, and has said much."""
    now = time.time()
    for n in range(count):
        word = "rare" if n % 97 == 0 else "usual"
        job = Job.new(JobRequest(prompt=f"{word} words of prompt {n} {'x' * 200}"), whose(n), now - 3000 + n * 0.25)
        await store.add(job)
        if n % 3 == 0:
            await store.cancel(job, 3600)
    found = await store.claim("ticket", "worker")
    assert found is not None
    job = found[0]
    events: list[tuple[str, dict[str, Any]]] = []
    for _ in range(_TURNS):
        usage = {"input_tokens": 5000, "output_tokens": 1}
        events += [("message_start", {"message": {"model": "claude-haiku-4-5", "usage": usage}})]
        events += [("content_block_delta", {"delta": {"text": "some words "}})] * 21
        events += [("message_delta", {"usage": {"output_tokens": 300}})]
        events += [("tool", {"id": "t", "name": "Read", "state": "started", "input": {"file_path": "a.py"}})]
        events += [("tool", {"id": "t", "state": "finished", "is_error": False, "content": "line\n" * 200})]
    await store.append(job, [(n + 1, name, json.dumps(said).encode()) for n, (name, said) in enumerate(events)])
    return job.id


async def measure(stage: Stage, store: Store, count: int, requests: int) -> dict[str, float]:
    talkative = await fill(store, count)
    say(f"{count} jobs are there")
    process, url = stage.serve()
    figures: dict[str, float] = {}
    older = "jobs"
    async with httpx.AsyncClient(base_url=f"{url}/dashboard/", timeout=30) as client:

        async def timed(name: str, path_of: Callable[[], str], then: Callable[[str], None] = lambda page: None) -> None:
            times = []
            for _ in range(requests + 20):
                path = path_of()
                began = time.perf_counter()
                answer = await client.get(path)
                times.append((time.perf_counter() - began) * 1000)
                assert answer.status_code == 200, answer.text
                then(answer.text)
            times = sorted(times[20:])
            figures[f"{name}_ms_p50"] = round(statistics.median(times), 1)
            figures[f"{name}_ms_p99"] = round(times[int(len(times) * 0.99)], 1)
            say(f"{name}: p50 {figures[f'{name}_ms_p50']}, p99 {figures[f'{name}_ms_p99']}")

        def turn_the_page(page: str) -> None:
            nonlocal older
            following = _OLDER.search(page)
            older = html.unescape(following[1]).rpartition("/")[2] if following else "jobs"

        await timed("overview", lambda: "../dashboard")
        await timed("jobs", lambda: "jobs")
        await timed("found", lambda: "jobs?text=RARE&tier=team&repository=app-1")
        await timed("none", lambda: "jobs?text=nobody+has+said+this")
        await timed("callers", lambda: "jobs?caller=somebody-7")
        await timed("older", lambda: older, turn_the_page)
        await timed("charts", lambda: "charts?span=1h")
        client.headers[LIMITS_HEADER] = json.dumps(_TOLD)
        await timed("limits", lambda: "limits")
        await timed("catalog", lambda: "catalog")
        await timed("approvals", lambda: "approvals")
        await timed("job", lambda: f"jobs/{talkative}")
    process.terminate()
    process.wait(30)
    return figures | {"worst_ms_p99": max(value for key, value in figures.items() if key.endswith("p99"))}


async def main(count: int, requests: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="bench-dashboard-") as folder:
        stage = staged(folder)
        redis = connect(stage.redis_url)
        try:
            return await measure(stage, Store(redis, ("pro", "team")), count, requests)
        finally:
            await redis.aclose()
            stage.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=200)
    options = parser.parse_args()
    found = asyncio.run(main(options.jobs, options.requests))
    print(json.dumps({"jobs": options.jobs} | found | {"machine": machine()}))
