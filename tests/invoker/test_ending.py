"""Runs that are cancelled, abandoned, killed or too slow: nothing is left, and the answer says what happened."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from claude_invoker import ending
from claude_invoker.cli import launcher
from claude_invoker.cli.pool import Pool
from claude_invoker.cli.tree import Tree
from claude_invoker.plan import Plan
from claude_invoker.runs.run import Run
from tests.invoker.conftest import Invoker, as_root, defended_and_without, tool, wait_for
from tests.support.processes import command_line, gone
from tests.support.waiting import HANG_S

PLAN = Plan((), None, "sonnet", None, (), 1, 1.0, None, None, 60.0)
LONG = bool(os.environ.get("INVOKER_LONG"))
# Durations that tell the processes of these tests from those of other workers.
ESCAPED, WAITING = (str(10_000_000 + 10 * os.getpid() + number) for number in (0, 1))
SLEEPER = tool("Bash", command=f"echo partial > partial.txt; setsid -f sleep {ESCAPED}; sleep {WAITING}")


def sleepers() -> list[int]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if process.info["cmdline"] in (["sleep", ESCAPED], ["sleep", WAITING]):
            found.append(process.pid)
    return found


def begin(invoker: Invoker, prompt: str, **body: object) -> tuple[str, httpx.Client, httpx.Response]:
    """A run that has started: its id, and the open stream."""
    client = invoker.client()
    request = client.build_request(
        "POST", "/invoke", json={"prompt": prompt, **body}, headers={"Accept": "text/event-stream"}
    )
    answer = client.send(request, stream=True)
    return answer.headers["x-claude-run"], client, answer


def test_cancel_ends_the_process_and_its_tools(invoker: Invoker, api: httpx.Client) -> None:
    run, client, stream = begin(invoker, tool("Read", file_path="x") + SLEEPER, tools=["Bash", "Read"])
    wait_for(lambda: len(sleepers()) == 2, what="the tool's processes")
    cancelled = api.delete(f"/runs/{run}")
    assert cancelled.status_code == 202
    wait_for(lambda: api.get(f"/runs/{run}").json()["state"] == "cancelled", what="cancellation")
    assert sleepers() == []
    view = api.get(f"/runs/{run}").json()
    assert view["error"]["status"] == 499
    assert view["cost_usd"] > 0, "the first turn was paid for"
    assert [artifact["path"] for artifact in view["artifacts"]] == ["partial.txt"]
    assert "event: error" in stream.read().decode()
    client.close()
    assert api.delete(f"/runs/{run}").json()["state"] == "cancelled"


def test_a_client_that_leaves_its_stream(invoker: Invoker) -> None:
    _, client, stream = begin(invoker, SLEEPER, tools=["Bash"])
    wait_for(lambda: len(sleepers()) == 2, what="the tool's processes")
    stream.close()
    client.close()
    wait_for(lambda: sleepers() == [], what="the end of the tools")


def test_a_client_that_does_not_wait_for_its_answer(invoker: Invoker) -> None:
    with invoker.client() as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/invoke", json={"prompt": SLEEPER, "tools": ["Bash"]}, timeout=2)
    wait_for(lambda: sleepers() == [], what="the end of the tools")


def test_a_client_may_come_back(start_invoker: Callable[..., Invoker]) -> None:
    invoker = start_invoker(detach_grace_s=20)
    run, client, stream = begin(invoker, "[[delay 150]] [[say one two three four five six seven eight]]")
    lines = stream.iter_lines()
    seen = 0
    while seen < 5:
        line = next(lines)
        if line.startswith("id: "):
            seen = int(line[4:])
    stream.close()
    client.close()
    with invoker.client() as again:
        rest = again.get(f"/runs/{run}/events", headers={"Last-Event-ID": str(seen)}).text
    assert rest.removeprefix("retry: 1000\n").startswith(f"id: {seen + 1}\n")
    assert "event: run.finished" in rest


def test_deadline_of_the_run(api: httpx.Client) -> None:
    answer = api.post("/invoke", json={"prompt": "[[delay 400]] [[say a b c d e f g h i j]]", "timeout_s": 1})
    assert answer.status_code == 504
    assert answer.json()["deadline"] == "total"


def test_a_killed_cli_is_an_error(invoker: Invoker, api: httpx.Client) -> None:
    run, client, stream = begin(invoker, SLEEPER, tools=["Bash"])
    wait_for(lambda: len(sleepers()) == 2, what="the tool's processes")
    for process in invoker.children():
        if "Bash" in command_line(process):
            process.kill()
    assert "cli-failed" in stream.read().decode()
    client.close()
    assert api.get(f"/runs/{run}").json()["state"] == "failed"
    assert sleepers() == []


def test_busy_is_said_with_a_time_to_come_back(start_invoker: Callable[..., Invoker]) -> None:
    invoker = start_invoker(max_runs=1, queue_wait_s=0.2)
    run, client, stream = begin(invoker, "[[delay 300]] [[say a b c d e f g h i j k l]]")
    with invoker.client() as api:
        wait_for(lambda: api.get(f"/runs/{run}").json()["state"] == "running", what="the first run")
        busy = api.post("/invoke", json={"prompt": "x"})
        assert busy.status_code == 503
        assert int(busy.headers["retry-after"]) > 0
        stream.read()
        client.close()
        assert api.post("/invoke", json={"prompt": "x"}).status_code == 200


def test_stopping_leaves_nothing(start_invoker: Callable[..., Invoker]) -> None:
    invoker = start_invoker()
    _, client, stream = begin(invoker, SLEEPER, tools=["Bash"])
    wait_for(lambda: len(sleepers()) == 2, what="the tool's processes")
    children = invoker.children()
    assert children
    os.kill(invoker.pid, signal.SIGTERM)
    with pytest.raises(httpx.TransportError):
        while True:
            httpx.get(f"{invoker.url}/healthz")
            time.sleep(0.05)
    wait_for(lambda: not any(child.is_running() for child in children), what="the end of the processes")
    wait_for(lambda: sleepers() == [], what="the end of the tools")
    wait_for(lambda: invoker.trees() == [], what="the trees' removal")
    stream.close()
    client.close()


def test_stopping_an_idle_invoker_without_grace_is_no_error(start_invoker: Callable[..., Invoker]) -> None:
    invoker = start_invoker(stop_grace_s=0)
    invoker.stop()
    assert "shutdown exceeded" not in invoker.log.read_text()


def test_who_is_to_stop_lets_runs_end_and_begins_none(start_invoker: Callable[..., Invoker]) -> None:
    """It is not ready from that moment on, yet answers for the runs it has; what has not ended in time is told so."""
    invoker = start_invoker(stop_grace_s=30)
    words = "[[delay 1000]] [[say one two three four five six]]"
    short, client, stream = begin(invoker, words)
    os.kill(invoker.pid, signal.SIGTERM)
    wait_for(lambda: not invoker.ready(), what="that it is not ready")
    with invoker.client() as api:
        assert api.get("/readyz").json()["obstacle"] == "the invoker is stopping"
        refused = api.post("/invoke", json={"prompt": "hi"})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert api.get(f"/runs/{short}").json()["state"] == "running"
    assert "event: run.finished" in stream.read().decode()
    client.close()
    wait_for(lambda: gone(invoker.pid), what="end")


def test_what_does_not_end_in_time_when_it_is_to_stop_is_told(start_invoker: Callable[..., Invoker]) -> None:
    invoker = start_invoker(stop_grace_s=1)
    _, client, stream = begin(invoker, SLEEPER, tools=["Bash"])
    wait_for(lambda: len(sleepers()) == 2, what="the tool's processes")
    os.kill(invoker.pid, signal.SIGTERM)
    told = stream.read().decode()
    assert "event: error" in told and "the invoker is stopping" in told
    client.close()
    wait_for(lambda: sleepers() == [], what="the end of the tools")


def test_a_killed_invoker_is_cleaned_up_after_by_the_next(start_invoker: Callable[..., Invoker]) -> None:
    first = start_invoker(pool_size=1)
    wait_for(lambda: len(first.trees()) >= 1, what="a warm tree")
    os.kill(first.pid, signal.SIGKILL)
    wait_for(lambda: gone(first.pid), what="its end")
    assert first.trees()
    second = start_invoker(state_dir=first.state, pool_size=1)
    alive = {path.parent.name for path in second.trees()}
    assert len(alive) == 1, "the dead engine's trees are still there"


def test_mixed_runs_leave_nothing(start_invoker: Callable[..., Invoker]) -> None:
    """ok, error, cancel, disconnect and crash at random; with INVOKER_LONG=1, 200 of them."""
    invoker = start_invoker(max_runs=3, queue_wait_s=120, pool_size=1, pool_max=2, first_output_s=60, idle_s=60)
    process = psutil.Process(invoker.pid)
    chance = random.Random(7)

    def one(kind: str) -> None:
        with invoker.client() as api:
            if kind == "ok":
                assert api.post("/invoke", json={"prompt": "x"}).status_code == 200
            elif kind == "error":
                assert api.post("/invoke", json={"prompt": "[[status 401]]"}).status_code == 502
            elif kind == "disconnect":
                with httpx.Client(base_url=invoker.url, timeout=chance.uniform(0.05, 1.5)) as hasty:
                    try:
                        hasty.post("/invoke", json={"prompt": "[[delay 300]] [[say a b c d e f g h i j k]]"})
                    except httpx.TimeoutException:
                        pass
            elif kind == "cancel":
                run, client, stream = begin(invoker, "[[delay 300]] [[say a b c d e f g h]]")
                time.sleep(chance.uniform(0, 0.8))
                assert api.delete(f"/runs/{run}").status_code == 202
                stream.read()
                client.close()
            elif kind == "crash":
                for child in invoker.children():
                    try:
                        child.kill()
                    except psutil.NoSuchProcess:
                        pass

    def batch(count: int) -> None:
        kinds = [("ok", "error", "disconnect", "cancel", "ok", "cancel", "crash")[n % 7] for n in range(count)]
        calm = [kind for kind in kinds if kind != "crash"]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(one, calm))
        one("crash")

    def settled() -> bool:
        # The killer, the metering proxy, and a warm process with the two that hold its namespaces.
        return len(invoker.trees()) <= 2 and len(invoker.children()) <= 5 and invoker.ready()

    batch(7)
    wait_for(settled, what="a quiet invoker")
    files, memory = process.num_fds(), process.memory_info().rss
    batch(193 if LONG else 14)
    wait_for(settled, what="a quiet invoker")
    with invoker.client() as api:
        metrics = api.get("/metrics").text
    assert "claude_invoker_running 0.0" in metrics and "claude_invoker_waiting 0.0" in metrics
    # One for each run would be 14. Those of a client that has left are closed when its connection is looked at.
    wait_for(lambda: process.num_fds() <= files + 8, what="the end of what was open for runs")
    assert process.memory_info().rss <= memory + 30_000_000
    os.kill(invoker.pid, signal.SIGTERM)
    wait_for(lambda: invoker.trees() == [], what="the trees' removal")
    assert not list(Path(invoker.state / "artifacts").glob("*"))


@as_root
@pytest.mark.parametrize("without", defended_and_without("ends_that_are_broken_off"))
def test_cancelling_a_run_that_already_ends_loses_nothing(
    start_invoker: Callable[..., Invoker], without: tuple[str, ...]
) -> None:
    """Past its deadline the run is being ended, which takes its time, since its CLI has been stopped."""
    invoker = start_invoker(without=without, pool_size=0, idle_s=60)
    with invoker.client() as api:
        command = tool("Bash", command="echo x > partial.txt; sleep 60")
        for timeout_s in (5, 20, 80):  # on a busy machine a short one is over before the command has begun
            run, client, stream = begin(invoker, command, tools=["Bash"], timeout_s=timeout_s)
            if _made_before_its_end(invoker, api, run):
                break
            client.close()
        (stopped,) = invoker.clis()
        stopped.suspend()
        # SIGTERM waits for the stopped CLI: it is being ended.
        wait_for(lambda: _pending(stopped.pid, signal.SIGTERM), what="its end")
        api.delete(f"/runs/{run}")
        wait_for(lambda: api.get(f"/runs/{run}").json()["state"] == "cancelled", what="cancellation")
        kept = [artifact["path"] for artifact in api.get(f"/runs/{run}").json()["artifacts"]]
        assert kept == ([] if without else ["partial.txt"])
        stream.read()
        client.close()


def _made_before_its_end(invoker: Invoker, api: httpx.Client, run: str) -> bool:
    """Whether the run has made its file, once it has, or is over without."""

    def made() -> list[Path]:
        return list(invoker.state.glob("trees/engines/*/*/work/partial.txt"))

    wait_for(lambda: made() or api.get(f"/runs/{run}").json()["state"] not in ("waiting", "running"), what="the file")
    return bool(made())


def _status(pid: int) -> bytes:
    return Path(f"/proc/{pid}/status").read_bytes()


def _pending(pid: int, number: signal.Signals) -> bool:
    mask = int(_status(pid).split(b"\nShdPnd:\t", 1)[1].split(None, 1)[0], 16)
    return bool(mask >> (number - 1) & 1)


@pytest.mark.parametrize("waits", [True, False])
async def test_a_session_is_free_when_nothing_of_a_cancelled_start_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, waits: bool
) -> None:
    """Else two runs, of two users, are in its directory, and the end of one takes it from the other (seen as 502)."""
    if not waits:

        async def at_once(work: Coroutine[Any, Any, None]) -> None:
            work.close()

        monkeypatch.setattr(launcher, "unbroken", at_once)
    started, goes_on, gone = asyncio.Event(), asyncio.Event(), asyncio.Event()
    ready: Any = object()

    class Slow(launcher.Launcher):
        def __init__(self) -> None:
            self.starting = set()
            self.ending = {}

        async def _launch(self, shape: Any, tree: Any) -> launcher.Ready:
            started.set()
            await goes_on.wait()
            found: launcher.Ready = ready
            return found

        async def dispose(self, ready: launcher.Ready) -> None:
            gone.set()

    shape: Any = None
    start = asyncio.create_task(Slow().launch(shape, Tree(tmp_path)))
    await started.wait()
    start.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    assert start.done() != waits
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert gone.is_set() == waits


@pytest.mark.parametrize("steps", range(6))
async def test_stopping_ends_a_pool_that_has_just_been_woken(steps: int) -> None:
    """At each step on its way: Python 3.11's `wait_for` loses a cancellation that comes with what it waits for, and the
    invoker then waited for its pool for ever (seen when it was stopped just after a run that could not start)."""

    class Nothing(launcher.Launcher):
        def __init__(self) -> None:
            self.starting = set()
            self.ending = {}

    shape: Any = None
    warm = Pool(Nothing(), minimum=0, maximum=0, starts=1)
    await warm.start(shape, rehearsed=True)
    for _ in range(10):
        await asyncio.sleep(0)
    warm._wake.set()
    for _ in range(steps):
        await asyncio.sleep(0)
    async with asyncio.timeout(HANG_S):
        await warm.stop()


async def test_who_loses_a_cancellation_is_ended_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As redis-py may in Python 3.11. The control: cancelled once, it goes on."""
    monkeypatch.setattr(ending, "_AGAIN_S", 0.05)
    going_on = asyncio.Event()

    async def deaf_once() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            going_on.set()
        await asyncio.Event().wait()

    async def fails() -> None:
        raise ValueError("at once")

    control = asyncio.create_task(deaf_once())
    await asyncio.sleep(0)
    control.cancel()
    await going_on.wait()
    assert not (await asyncio.wait({control}, timeout=0.2))[0]
    others = [asyncio.create_task(work()) for work in (deaf_once, fails)]
    await asyncio.sleep(0)
    async with asyncio.timeout(HANG_S):
        await ending.ended(control, *others)
    assert [task.done() for task in (control, *others)] == [True, True, True]


async def test_a_run_that_is_cancelled_before_its_first_step_ends() -> None:
    """As where a worker stops in the moment in which it begins a job: it waited 15 s for a run that was never over."""

    def at_once(run: Run, reason: str) -> None:
        assert run.task is not None
        run.task.cancel(reason)

    for cancelled, is_over in ((Run.cancel, True), (at_once, False)):
        run = Run("run_1", "alice", PLAN, Path("/nonexistent"), 60.0)

        async def work(run: Run = run) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                run.done.set()

        run.task = asyncio.create_task(work())
        cancelled(run, "the worker stops")
        with pytest.raises(asyncio.CancelledError):
            await run.task
        assert run.done.is_set() is is_over
