"""Workers as processes of their own, stopped and killed. JOBS_CHAOS=500 makes the chaos as long as the bench's."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bench.jobs import Stage, chaos, counted, over, staged, states_of, submit
from claude_contract import ledger
from claude_invoker.audit import person
from claude_invoker.jobs.queue import Queues, open_queues
from claude_invoker.jobs.record import Job
from claude_invoker.jobs.store import Store, connect
from tests.jobs.conftest import until
from tests.support.waiting import HANG_S

CHAOS = int(os.environ.get("JOBS_CHAOS", "24"))
pytestmark = pytest.mark.timeout(120 + 2 * CHAOS)


class Scene:
    """A stage, its store, and jobs on it."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.store: Store = Store(connect(stage.redis_url))
        self.queues: Queues = open_queues(stage.redis_url)

    async def submit(self, prompt: str, subject: str = "subject-0") -> Job:
        return await submit(self.store, self.queues, subject, f"{prompt} log={self.stage.log}")

    async def state(self, job: Job) -> str:
        return (await states_of(self.store, [job]))[job.id]

    async def begun(self, name: str) -> int:
        return self.stage.log.read_text().split("\n").count(f"begin {name}")

    async def ended(self, job: Job, within_s: float = 45) -> Job:
        await over(self.store, [job], within_s)
        found = await self.store.get(job.id)
        assert found is not None
        return found

    async def usage(self, subject: str = "subject-0") -> ledger.Usage:
        asked = ledger.Peek(ledger.NAMESPACE, ledger.subject_key("subject", subject))
        return await ledger.AsyncLedger(self.store.redis).peek(asked)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    folder = tempfile.mkdtemp(prefix="jobs-workers-")
    stage = staged(folder)
    made = Scene(stage)
    yield made
    await made.queues.close()
    await made.store.redis.aclose()
    stage.close()
    shutil.rmtree(folder)


async def running(scene: Scene, prompt: str, **settings: Any) -> tuple[Job, subprocess.Popen[bytes]]:
    """A job, in the middle of its run, and its worker."""
    worker = scene.stage.worker(**settings)
    job = await scene.submit(prompt)
    name = prompt.split()[0].removeprefix("job=")

    async def known() -> bool:
        found = await scene.store.get(job.id)
        return await scene.begun(name) == 1 and found is not None and bool(found.work)

    await until(known, "the run's beginning")
    return job, worker


def kill(worker: subprocess.Popen[bytes]) -> None:
    worker.kill()
    worker.wait(HANG_S)


async def test_a_killed_workers_job_fails_with_what_it_has_left(scene: Scene) -> None:
    job, worker = await running(scene, "job=cut write=half.txt sleep=30")
    kill(worker)
    assert await scene.state(job) == "running"
    scene.stage.worker()  # on the same machine: it sees at once that the run's engine is dead
    found = await scene.ended(job)
    assert found.state == "failed"
    assert found.error is not None
    assert found.error["type"].endswith(":worker-lost")
    assert [artifact["path"] for artifact in found.error["artifacts"]] == ["half.txt"]
    kept = scene.stage.folder / "state" / "artifacts" / job.id / "half.txt"
    assert kept.read_text() == "cut\n"
    assert await scene.begun("cut") == 1
    assert found.cost_usd == 0.01

    async def booked() -> bool:
        usage = await scene.usage()
        return (usage.running, usage.reserved_micro_usd, usage.spent_day_micro_usd) == (0, 0, 10_000)

    await until(booked, "the booking of what it had spent")


@pytest.mark.slow
async def test_elsewhere_a_killed_worker_is_found_by_its_silence(scene: Scene) -> None:
    job, worker = await running(scene, "job=cut sleep=30")
    kill(worker)
    scene.stage.worker(state_dir=scene.stage.folder / "another-machine")
    await scene.store.update(job, held=False, work="/nowhere/trees/engines/x/y/work")  # what it cannot see
    found = await scene.ended(job)
    assert (found.state, (found.error or {})["artifacts"]) == ("failed", [])


async def test_with_retry_it_runs_again(scene: Scene) -> None:
    job, worker = await running(scene, "job=again write=twice.txt sleep=1", on_worker_loss="retry")
    before = (await scene.store.get(job.id) or job).caller.lease
    # As if it had died between keeping its files and saying so.
    kept = scene.stage.folder / "state" / "artifacts" / job.id
    kept.mkdir(parents=True)
    (kept / "twice.txt").write_text("old")
    kill(worker)
    scene.stage.worker(on_worker_loss="retry")
    found = await scene.ended(job)
    assert (found.state, found.attempt) == ("done", 2), found.error
    assert (kept / "twice.txt").read_text() == "again\n"
    assert await scene.begun("again") == 2
    assert found.caller.lease != before
    names = [name for _, name, _ in await scene.store.transcript(job.id)]
    assert names.count("job.requeued") == names.count("job.done") == names.count("run.finished") == 1
    usage = await scene.usage()
    assert (usage.running, usage.reserved_micro_usd, usage.spent_day_micro_usd) == (0, 0, 20_000), "both attempts"


async def test_a_cancelled_job_of_a_dead_worker_is_cancelled(scene: Scene) -> None:
    job, worker = await running(scene, "job=unwanted sleep=30", on_worker_loss="retry")
    kill(worker)
    assert await scene.store.cancel(job, 60) is False
    scene.stage.worker(on_worker_loss="retry")
    assert (await scene.ended(job)).state == "cancelled"


async def test_a_worker_that_shall_stop_lets_its_runs_end_and_takes_no_more(scene: Scene) -> None:
    health = scene.stage.folder / "health"
    job, worker = await running(scene, "job=last sleep=2", worker_concurrency=1, health_path=health)
    assert health.is_file()
    waiting = await scene.submit("job=next")
    worker.send_signal(signal.SIGTERM)
    assert (await scene.ended(job)).state == "done"
    assert await asyncio.to_thread(worker.wait, 20) == 0
    assert list(scene.stage.folder.glob("health*")) == []
    assert await scene.state(waiting) == "queued"
    scene.stage.worker()
    assert (await scene.ended(waiting)).state == "done"


@pytest.mark.parametrize(("policy", "state", "attempt"), [("fail", "failed", 1), ("retry", "queued", 1)])
async def test_what_is_not_over_by_then_counts_as_lost(scene: Scene, policy: str, state: str, attempt: int) -> None:
    settings = {"on_worker_loss": policy, "worker_drain_s": 0.5}
    job, worker = await running(scene, "job=long write=half.txt sleep=60", **settings)
    worker.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(worker.wait, 30) == 0
    found = await scene.store.get(job.id)
    assert found is not None
    assert (found.state, found.attempt) == (state, attempt)
    lines = person.export(scene.stage.folder / "state" / "audit", job.subject)
    (end,) = [line["details"] for line in lines if line["kind"] == "run.end"]
    assert (end["end"], end["cancelled_by"], end["reason"]) == ("cancelled", None, "the worker is stopping")
    if policy == "fail":
        assert found.error is not None
        assert [artifact["path"] for artifact in found.error["artifacts"]] == ["half.txt"]
    usage = await scene.usage()
    assert (usage.running, usage.reserved_micro_usd) == (0, 0)


async def test_redis_may_go_and_come_back_while_a_job_runs(scene: Scene) -> None:
    job, _ = await running(scene, "job=patient sleep=2")
    assert scene.stage.redis is not None
    scene.stage.redis.kill()
    scene.stage.redis.wait()
    stage = scene.stage

    async def ended() -> bool:
        return "end patient" in stage.log.read_text()

    await until(ended, "the end of the run")
    await asyncio.sleep(0.5)  # the worker is told of it, and cannot write it down
    scene.stage.start_redis()
    found = await scene.ended(job)
    assert found.state == "done"
    names = [name for _, name, _ in await scene.store.transcript(job.id)]
    assert names.count("content_block_delta") == 2
    assert names[-1] == "job.done"


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["fail", "retry"])
async def test_chaos(scene: Scene, policy: str) -> None:
    figures = await chaos(
        scene.stage, scene.store, scene.queues, jobs=CHAOS, workers=2, policy=policy, kills=CHAOS // 10, run_s=0.3
    )
    for name in ("lost", "doubled", "leaked_leases", "leaked_usd", "left_waiting", "left_running", "left_tickets"):
        assert figures[name] == 0, (name, figures)
    assert figures["kills"] >= 2
    assert figures["redis_restarts"] == 1
    assert figures["done"] + figures["failed"] == CHAOS
    if policy == "retry":
        assert figures["failed"] == 0


async def test_what_is_counted_can_be_seen(scene: Scene) -> None:
    """The chaos' own measure: a job that nobody takes is lost, one that began twice is doubled."""
    never, twice = await scene.submit("job=never"), await scene.submit("job=twice")
    scene.stage.log.write_text("begin twice\nbegin twice\n")
    await ledger.AsyncLedger(scene.store.redis).acquire(ledger.Lease.parse(never.caller.lease or ""), ledger.Slot())
    states = await states_of(scene.store, [never, twice])
    figures = await counted(scene.stage, scene.store, [never, twice], states, "fail", patience_s=0)
    assert (figures["lost"], figures["doubled"], figures["leaked_leases"]) == (2, 1, 1)
    assert figures["leaked_usd"] == 0.25
    assert figures["left_waiting"] == 2


def test_the_fast_cli_is_a_program() -> None:
    path = Path(__file__).parents[2] / "bench" / "fast_cli.sh"
    assert subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout.startswith("0.0.0")
