"""Whether what runs are charged is what is booked, whoever is killed, and whether a pool is a wall:
`python -m bench.money [--runs N] [--pool-runs N] [--seed N]`. Ctrl-C: no more of them, and those are judged.

Mixed runs of the real CLI in a real invoker, each with a subject and a lease of its own in a real Redis, against the
stand-in of the Messages API, which writes down what it would charge; its prices stand in `tests/invoker/money.py` as
literals. Meanwhile CLIs, metering proxies and invokers are killed by SIGKILL, and Redis, which then has lost all that
it was told in the last second.

Before that `--pool-runs` runs are let in by a pool that has $100 left, of which then $99 are spent by others: each
would spend $0.90.

| key | meaning |
|---|---|
| `booked_over_charged` | over all runs whose answers were complete: 1, to the micro-dollar |
| `cut_booked_over_charged` | over all others: by an estimate that is rather too high (docs/invoker.md, "Money") |
| `overshoot_max_usd` | the most that a run was booked above what it was charged |
| `pool_wrong` | of these the runs of which something else was booked than charged |
| `lost`, `doubled` | runs booked below what they were charged, or above the bound |
| `held`, `held_usd` | runs whose proxy was killed after a request's last byte, before any answer: the most is billed |
| `runs`, `cut_runs`, `cli_kills`, `proxy_kills`, `invoker_kills`, `redis_kills` | how many there were |
| `pool_runs`, `pool_booked_usd` | those of the pool, and what all of them have cost |
| `pool_overshoot_usd` | how much of that is above the dollar that was left |
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

from bench.machine import machine
from claude_contract import ledger
from tests.invoker.conftest import Invoker, clean_environment, closed_cli, free_port
from tests.invoker.money import SONNET, Billed, Charges, Till, charging, clis_of, price, proxy_of
from tests.rate_tiers.servers import RedisProcess, wait_for

UID_BASE = 290_000  # not the default: no invoker of this machine shall meet that of the bench
AT_ONCE = 3
SETTLE_S = 120.0
SLOW = "[[delay 150]] [[say one two three four five six seven eight nine ten eleven twelve]]"
USAGE = {
    "input_tokens": 900,
    "output_tokens": 70,
    "cache_read_input_tokens": 5_000,
    "cache_creation_input_tokens": 3_000,
    "cache_creation": {"ephemeral_5m_input_tokens": 2_000, "ephemeral_1h_input_tokens": 1_000},
    "server_tool_use": {"web_search_requests": 2},
}
ABROAD = {"input_tokens": 900, "output_tokens": 70, "cache_read_input_tokens": 5_000, "inference_geo": "us"}
LONG = {"input_tokens": 150_000, "cache_read_input_tokens": 60_000, "output_tokens": 200}
READ = '[[tool Read {"file_path": "x"}]] [[tool Read {"file_path": "y"}]]'
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("[[say hello there]]", {}),
    "tools": (READ, {"tools": ["Read"]}),
    "subagent": ("", {"tools": ["Task"]}),
    "session": ("[[say remembered]]", {"session": "new"}),
    "caches": (f"[[usage {json.dumps(USAGE)}]] [[say x]]", {}),
    "long-context": (f"[[usage {json.dumps(LONG)}]] [[say x]]", {"model": SONNET}),
    "abroad": (f"[[usage {json.dumps(ABROAD)}]] [[say x]]", {}),
    "breaks-off": ("[[reset 3]] [[say one two three four five six]]", {}),
    "overloaded": ("[[status 529]]", {}),
    "client-gone": (SLOW, {}),
    "cli-killed": (SLOW, {}),
    "proxy-killed": (SLOW, {}),
    "invoker-killed": (SLOW, {}),
    "redis-killed": (SLOW, {}),
}
LEFT = 1_000_000  # micro-USD
POOL = 100 * LEFT
TEAM = ledger.Shared(ledger.DEPLOYMENT, (ledger.pool_key("team", "claim", "x"),))
POOLED = ledger.Slot(run_micro_usd=LEFT, ttl_ms=600_000, pools=(ledger.Terms(None, (ledger.Budget(POOL, "month"),)),))
TURN = {"input_tokens": 5_000, "output_tokens": 6_500}  # 15 cents by the list; a token of input is a byte at least


LEFT_S = 90.0
"""For so long a run may go on whose client has left."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Stage:
    """An invoker that is started again whenever it was killed."""

    def __init__(self, till: Till, folder: Path) -> None:
        self.till = till
        self.folder = folder
        self.cli = closed_cli(folder)
        self.lock = threading.Lock()
        self.process, self.invoker = self._start()
        self.kills = {"cli": 0, "proxy": 0, "invoker": 0, "redis": 0}
        self.proxies_killed: list[float] = []
        """When; a proxy ends with its invoker."""

    def _start(self) -> tuple[subprocess.Popen[bytes], Invoker]:
        port, state, log = free_port(), self.folder / "state", self.folder / "log"
        settings = self.till.settings | {
            "isolation": "none", "cli_path": self.cli, "port": port, "state_dir": state, "uid_base": UID_BASE,
            "pool_size": 1, "pool_max": 2, "max_runs": AT_ONCE, "queue_wait_s": 1200, "api_retries": 2,
            "tools_allowed": "Read,Task", "model": "claude-opus-5-5",
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-m", "claude_invoker"],
            env=clean_environment() | {f"INVOKER_{name.upper()}": str(value) for name, value in settings.items()},
            stdout=log.open("ab"),
            stderr=subprocess.STDOUT,
        )
        invoker = Invoker(f"http://127.0.0.1:{port}", process.pid, state, log, UID_BASE)
        until = time.monotonic() + 60
        while not invoker.ready():
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the invoker does not start: {log.read_text()[-2000:]}")
            time.sleep(0.1)
        return process, invoker

    def kill(self, what: str) -> None:
        with self.lock:
            self.kills[what] += 1
            if what in ("proxy", "invoker"):
                self.proxies_killed.append(time.monotonic())
            if what == "invoker":
                self.process.kill()
                self.process.wait()
                self.process, self.invoker = self._start()
                return
            if what == "redis":
                forget_the_last_second(self.till.redis)
                return
            found = clis_of(self.invoker) if what == "cli" else [self._proxy()]
            for process in found:
                process.kill()

    def _proxy(self) -> psutil.Process:
        """Also one that is just being started again."""
        until = time.monotonic() + 30
        while True:
            try:
                return proxy_of(self.invoker)
            except IndexError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)

    def struck(self, run: Billed) -> bool:
        """Whether a proxy was killed while the run, or what its client has left of it, went on."""
        until = float("inf") if run.ended is None else run.ended + LEFT_S
        return any(run.began <= at <= until for at in self.proxies_killed)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def forget_the_last_second(redis: RedisProcess) -> None:
    """As a machine does that breaks down: what was written and is not on the disk is gone."""
    log = Path(redis.directory, "appendonly.aof")
    safe = log.stat().st_size
    time.sleep(1)
    redis.kill()
    os.truncate(log, safe)
    redis.start()
    wait_for(redis.client().ping)  # it has read its log


def pool_lowered(stage: Stage, count: int) -> dict[str, Any]:
    """Runs that were let in stop where the pool is used up."""
    till = stage.till
    prompt = "".join(f'[[tool Read {{"file_path": "{turn}"}}]]' for turn in range(5)) + f"[[usage {json.dumps(TURN)}]]"
    marks = [f"pool-{number}-" for number in range(count)]
    leases = {mark: till.let_in(mark, POOLED, TEAM) for mark in marks}
    assert till.store.settle(ledger.Lease.new(ledger.NAMESPACE, "others", LEFT, TEAM), POOL - LEFT)
    runs = [
        till.begin(stage.invoker, mark, prompt, patience_s=1200, slot=POOLED, lease=lease, tools=["Read"])
        for mark, lease in leases.items()
    ]
    for run in runs:
        run.thread.join(1200)
    asked = ledger.Peek(ledger.NAMESPACE, "nobody", slot=POOLED, shared=TEAM)
    until = time.monotonic() + SETTLE_S
    while (pool := till.store.peek(asked).pools[0]).running and time.monotonic() < until:
        time.sleep(0.5)
    booked = pool.spent[0].micro_usd - (POOL - LEFT)
    wrong = [found for run in runs if (found := till.wrong(run))]
    for found in wrong:
        say(found)
    return {
        "pool_runs": count,
        "pool_booked_usd": booked / 1_000_000,
        "pool_overshoot_usd": max(0, booked - LEFT) / 1_000_000,
        "pool_wrong": len(wrong),
    }


def one(stage: Stage, kind: str, number: int, chance: random.Random) -> Billed:
    mark = f"{kind}-{number}-"
    prompt, body = KINDS[kind]
    if kind == "subagent":
        task = {"description": "x", "subagent_type": "general-purpose", "prompt": f"[[say from below]] ({mark})"}
        prompt = f"[[tool Task {json.dumps(task)}]] [[say above]]"
    patience_s = chance.uniform(1, 2.5) if kind == "client-gone" else 120.0
    with stage.lock:  # who is started again is waited for
        run = stage.till.begin(stage.invoker, mark, prompt, patience_s=patience_s, **body)
    if kind.endswith("-killed"):
        until = time.monotonic() + 20
        while run.thread.is_alive() and time.monotonic() < until:
            if re.search(r"^claude_invoker_api_requests [1-9]", metrics(stage), re.MULTILINE):
                break
            time.sleep(0.05)
        time.sleep(chance.uniform(0.1, 1.0))
        stage.kill(kind.partition("-")[0])
    run.thread.join(120)
    return run


def metrics(stage: Stage) -> str:
    try:
        return httpx.get(f"{stage.invoker.url}/metrics", timeout=10).text
    except httpx.HTTPError:
        return ""


def measure(options: argparse.Namespace, folder: Path, redis: RedisProcess, charges: Charges) -> dict[str, Any]:
    stage = Stage(Till(redis, charges), folder)
    kinds = [list(KINDS)[number % len(KINDS)] for number in range(options.runs)]
    chance = random.Random(options.seed)
    chance.shuffle(kinds)
    runs: list[Billed] = []
    waiting = list(enumerate(kinds))
    signal.signal(signal.SIGINT, lambda *_: waiting.clear())

    def work() -> None:
        while True:
            try:
                number, kind = waiting.pop(0)
            except IndexError:
                return
            try:
                runs.append(one(stage, kind, number, chance))
            except (httpx.HTTPError, IndexError) as error:
                say(f"{kind}-{number}: {error!r}")
            say(f"{len(runs)} of {options.runs}: {kind}")

    try:
        pool = pool_lowered(stage, options.pool_runs) if options.pool_runs else {}
        say(str(pool))
        threads = [threading.Thread(target=work) for _ in range(AT_ONCE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        until = time.monotonic() + SETTLE_S
        while time.monotonic() < until and any(stage.till.wrong(run) for run in runs):
            time.sleep(1)
    finally:
        stage.stop()
    return judged(stage, runs) | pool


def judged(stage: Stage, runs: list[Billed]) -> dict[str, Any]:
    till, charges = stage.till, stage.till.charges
    sums = {True: [0, 0], False: [0, 0]}
    lost = doubled = cut = held = held_micro = 0
    overshoot = 0
    for run in runs:
        found = charges.of(run.mark)
        struck = stage.struck(run)
        booked, (least, most) = max(0, till.spent(run)), charges.bounds(run.mark, run.model, struck=struck)
        charged = sum(
            (price(each["model"], each["usage"], each["usage"]["output_tokens"]) for each in found),
            charges.asked_first(run.model),
        )
        # Who was killed before it asked anything else may have asked about its model, or not.
        charged_micro = int(charged * 1_000_000) if found else min(booked, most)
        is_complete = all(each["complete"] for each in found)
        if struck and booked > most:
            held, held_micro = held + 1, held_micro + booked - charged_micro
            most = booked
        if struck and booked != charged_micro:
            is_complete = False
        cut += not is_complete
        sums[is_complete][0] += booked
        sums[is_complete][1] += charged_micro
        overshoot = max(overshoot, booked - charged_micro)
        lost += booked < least
        doubled += booked > most
        answer = f"{run.answer[0].status_code} {run.answer[0].text[:150]}" if run.answer else "gone"
        say(
            f"{run.mark} ({answer}) {len(found)} answers, complete: {is_complete}, booked {booked} of {least} to {most}"
        )
    ratios = {name: booked / charged if charged else 1.0 for name, (booked, charged) in sums.items()}
    return {
        "booked_over_charged": ratios[True],
        "cut_booked_over_charged": ratios[False],
        "overshoot_max_usd": overshoot / 1_000_000,
        "lost": lost,
        "doubled": doubled,
        "runs": len(runs),
        "held": held,
        "held_usd": held_micro / 1_000_000,
        "cut_runs": cut,
        **{f"{name}_kills": count for name, count in stage.kills.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--pool-runs", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="money-bench-"))
    folder.chmod(0o711)
    redis = RedisProcess("--appendonly", "yes")
    try:
        with charging(folder) as charges:
            figures = measure(options, folder, redis, charges)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        redis.close()
    print(json.dumps(figures | {"machine": machine()}))


if __name__ == "__main__":
    if os.geteuid() != 0:
        say("not started as root: all runs share one user, and tools that run commands are left out")
    main()
