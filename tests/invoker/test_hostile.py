"""Hostile runs, one after the other and side by side, the invoker killed in between: nothing stays. The long form has all
kinds of them; with INVOKER_LONG=1 there are 200."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import random
import signal
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from claude_contract.attestation import HEADER
from claude_invoker.cli.users import MACHINE_LOCKS
from claude_invoker.jobs.store import RUNNING, WAITING
from tests.invoker.conftest import Invoker, as_root, program, tool, wait_for
from tests.invoker.test_attack_endings import DEEP, FREEZER, of_runs
from tests.invoker.test_messages import FORGED, FORGER
from tests.jobs.conftest import SECRET, attestation, lease, slot
from tests.rate_tiers.servers import RedisProcess

LONG = bool(os.environ.get("INVOKER_LONG"))
LENGTHS = [(4, 1), pytest.param(*((200, 8) if LONG else (14, 1)), marks=pytest.mark.slow)]
BOMB = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
CLOSED = "import os\nfor n in range(50): os.makedirs(f'{n}/x'); os.chmod(f'{n}/x', 0); os.chmod(f'{n}', 0)"
LOUD = "import sys\nfor _ in range(300): print('x' * 100_000)"
KINDS: dict[str, str] = {
    "stops its killer": program(FREEZER, "3") + "; sleep 30",
    "forks without end": "ulimit -u 60; " + program(BOMB),
    "leaves a deep tree": program(DEEP.format(2000)),
    "leaves closed directories": program(CLOSED),
    "forges its end": program(FORGER, f"<<'SAID'\n{FORGED}\nSAID"),
    "forges a cost": program(FORGER, "<<'SAID'\n" + FORGED.replace('usd": 0', 'usd": -400') + "\nSAID"),
    "kills its CLI": "kill -9 $CLAUDE_PID; sleep 30",
    "stops its CLI": "kill -STOP $CLAUDE_PID; sleep 30",
    "leaves children": "for i in $(seq 20); do setsid -f sleep 600; done; (trap '' TERM INT HUP; setsid -f nohup sleep 600)",
    "says too much": program(LOUD),
}


def one(invoker: Invoker, number: int, chance: random.Random) -> None:
    """A run of some kind, by a tenant of its own, sometimes in a session, sometimes cancelled. However it ends."""
    kind = list(KINDS)[number % len(KINDS)]
    subject = f"tenant-{number}"
    body = {"prompt": tool("Bash", command=KINDS[kind]), "tools": ["Bash"], "timeout_s": 8}
    if chance.random() < 0.3:
        body["session"] = "new"
    data = json.dumps(body).encode()
    # Every second one is a job, which takes a lease when its turn has come.
    claims = {"lease": lease(subject), **slot()} if number % 4 < 2 else {}
    headers = {HEADER: attestation("POST", "/invoke", subject, data, **claims), "Content-Type": "application/json"}
    patience = chance.uniform(0.3, 2) if chance.random() < 0.2 else 60
    with contextlib.suppress(httpx.TransportError):
        answer = httpx.post(f"{invoker.url}/invoke", content=data, headers=headers, timeout=patience)
        assert answer.status_code in (200, 202, 502, 503, 504), f"{kind}: {answer.text}"


def locked(directory: Path, uids: Iterable[int]) -> list[int]:
    """Which of these user ids somebody holds."""
    found = []
    for uid in uids:
        with contextlib.suppress(FileNotFoundError), (directory / str(uid)).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                found.append(uid)
    return found


def opened(invoker: Invoker, redis: Any) -> int:
    """Open files without the connections to Redis, of which a busy moment leaves more."""
    return psutil.Process(invoker.pid).num_fds() - len(redis.client_list())


def most(runs: list[Future[None]]) -> bool:
    return sum(run.done() for run in runs) > len(runs) // 2


@as_root
@pytest.mark.parametrize(("count", "kills"), LENGTHS)
def test_hostile_runs_leave_nothing(start_invoker: Callable[..., Invoker], count: int, kills: int) -> None:
    chance = random.Random(4)
    redis = RedisProcess()
    settings = {
        "trust": "attested",
        "attestation_key": SECRET,
        "redis_url": redis.url,
        "worker": "embedded",
        "worker_concurrency": 2,
        "pool_size": 0,
        "max_runs": 4,
        "queue_wait_s": 60,
        "session_ttl_s": 1,
        "first_output_s": 60,
        "api_timeout_s": 30,
    }
    jobs: Any = redis.client()
    try:
        invoker = start_invoker(**settings)
        share = count // (kills + 1)
        for round_ in range(kills + 1):
            numbers = range(round_ * share, (round_ + 1) * share)
            with ThreadPoolExecutor(3) as threads:
                runs = [threads.submit(one, invoker, number, chance) for number in numbers]
                if round_ < kills:
                    wait_for(functools.partial(most, runs), 300, "most of the runs")
                    os.kill(invoker.pid, signal.SIGKILL)
                for run in runs:
                    run.result()
            if round_ < kills:
                invoker = start_invoker(after=invoker, **settings)
                if round_ == 0:
                    before = opened(invoker, jobs)
        mine = invoker.uids
        wait_for(lambda: not jobs.zcard(RUNNING) and not sum(map(int, jobs.hvals(WAITING))), 300, "the end of all jobs")
        wait_for(lambda: not of_runs(mine), what="no process being left")
        wait_for(lambda: not invoker.trees(), what="no tree being left")
        # Sessions whose time is over go with the sweep.
        wait_for(lambda: not list(invoker.state.glob("trees/[sd]*/*")), what="no session being left")
        wait_for(lambda: not any(jobs.zcard(key) for key in jobs.keys("*:leases")), what="no lease being left")
        git, proxy = mine[0], mine[0] - 1  # held for as long as the invoker lives
        for locks in (invoker.state / "locks" / "users", MACHINE_LOCKS):
            wait_for(lambda locks=locks: not locked(locks, mine[1:]), what=f"no user being held in {locks}")  # type: ignore[misc]
            assert locked(locks, (proxy, git)) == [proxy, git], "the control"
        wait_for(lambda: opened(invoker, jobs) <= before + 8, what="the end of what was open for runs")
        wait_for(
            lambda: httpx.get(f"{invoker.url}/readyz").json()["checks"]["lost_users"] == 0, what="no user being lost"
        )
        assert invoker.ready()
        os.kill(invoker.pid, signal.SIGTERM)
        wait_for(lambda: not (invoker.state / "trees").exists(), what="its end")
        again = start_invoker(after=invoker, **settings)
        assert again.ready()
    finally:
        redis.close()
