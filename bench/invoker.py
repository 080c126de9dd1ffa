"""The invoker beside a cold CLI and the SDK: `python -m bench.invoker [--rounds N] [--cancels N] [--runs N]`.

All of them ask the same stand-in of the Messages API on loopback, in turns, so that a busy machine is busy for
each. `ttft` is the time from asking to the first piece of text.

| key | meaning |
|---|---|
| `ttft_ms_p50` | over HTTP from a warm process |
| `ttft_cold_cli_ms_p50`, `ttft_sdk_query_ms_p50` | the same from `claude -p` and from the SDK's `query()` |
| `ttft_vs_cold_cli`, `ttft_vs_sdk_query` | ratios of those medians |
| `ttft_vs_lean_cold_cli` | against a `claude -p` with the invoker's own flags, which start faster |
| `overhead_ms_p50` | HTTP and parsing: against the same warm process and metering proxy spoken to directly |
| `cancel_p50_s`, `cancel_p99_s`, `cancel_tool_p99_s` | DELETE until no process of the run is left |
| `session_followup_vs_cold` | a session's second turn in the process of the first, against one that resumes it cold |
| `session_followup_ms_p50`, `session_cold_ms_p50` | those two |
| `ttft_asking_vs_not` | a run some of whose tools are asked about against the same without, from warm processes |
| `approval_to_tool_ms_p50` | from sending that a command is allowed to its start, while the run waits for that |
| `approval_to_first_tool_ms_p50` | the same of a run's first command, before which the CLI looks at its shell |
| `redis_record_added_ms_p50` | what an answer waits for both records of its run, at a real Redis |
| `left_processes`, `left_dirs`, `left_fds`, `rss_growth_mb` | after `--runs` mixed runs |
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import psutil

from bench.machine import machine
from claude_contract.claims import Clamp
from claude_invoker.cli.binary import find_cli
from claude_invoker.cli.child import Limits
from claude_invoker.cli.command import Deadlines, Shape, command
from claude_invoker.cli.kill import Killer
from claude_invoker.cli.messages import ModelEvent, Result
from claude_invoker.cli.process import CliProcess
from claude_invoker.cli.tree import Tree
from claude_invoker.cli.users import Users
from claude_invoker.cli.walk import delete
from claude_invoker.isolation.strength import Boundary, Strength
from claude_invoker.metering.control import Metering, Settings, Terms
from claude_invoker.metering.figures import Figures
from claude_invoker.model import InvokeRequest, RunResult
from claude_invoker.plan import plan
from claude_invoker.replicas.register import Register
from claude_invoker.runs.run import Run, new_id
from claude_invoker.settings import Settings as InvokerSettings
from kong_claude_local.standin import StandIn
from tests.rate_tiers.servers import RedisProcess

PROMPT = "Say hello."
TOOLS = ("Read", "Write", "Edit", "Glob", "Grep")
KEY = "sk-ant-dummy-key-of-the-bench"
UID_BASE = 270_000  # not the default: no invoker of this machine shall meet that of the bench


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def environment(home: Path, base_url: str) -> dict[str, str]:
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(home),
        "CLAUDE_CONFIG_DIR": str(home / "config"),
        "ANTHROPIC_BASE_URL": base_url,
        "ANTHROPIC_API_KEY": KEY,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_TELEMETRY": "1",
        "DISABLE_ERROR_REPORTING": "1",
        "IS_SANDBOX": "1",
    }


async def cold_cli(cli: Path, home: Path, base_url: str, *, lean: bool) -> float:
    """A cold `claude -p` from its start to its first text; with `lean`, started with our own flags."""
    arguments = [str(cli), "-p", "--output-format=stream-json", "--verbose", "--include-partial-messages"]
    if lean:
        arguments = [w for w in command(cli, Shape(TOOLS, 25, 5.0)) if w != "--input-format=stream-json"]
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *arguments, PROMPT, env=environment(home, base_url), cwd=home, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    first = None
    async for line in process.stdout:
        if first is None and b'"text_delta"' in line:
            first = time.perf_counter() - began
    await process.wait()
    assert first is not None, "the CLI gave no text"
    return first


async def sdk_query(home: Path) -> float:
    from claude_agent_sdk import ClaudeAgentOptions, query

    options = ClaudeAgentOptions(
        tools=list(TOOLS), allowed_tools=list(TOOLS), cwd=home, include_partial_messages=True, setting_sources=[]
    )
    began, first = time.perf_counter(), None
    async for message in query(prompt=PROMPT, options=options):
        event = getattr(message, "event", None)
        if first is None and isinstance(event, dict) and event.get("type") == "content_block_delta":
            first = time.perf_counter() - began
    assert first is not None, "the SDK gave no text"
    return first


async def over_http(client: httpx.AsyncClient, **body: Any) -> float:
    began = time.perf_counter()
    headers = {"Accept": "text/event-stream"}
    first = None
    async with client.stream("POST", "/invoke", json={"prompt": PROMPT} | body, headers=headers) as answer:
        async for chunk in answer.aiter_bytes():
            if first is None and b"text_delta" in chunk:
                first = time.perf_counter() - began
    assert first is not None, "the invoker gave no text"
    return first


async def bare_process(cli: Path, folder: Path, users: Users, base_url: str) -> float:
    """A warm process of the pool's own making, spoken to without HTTP or engine."""
    tree, uid = Tree(folder / os.urandom(6).hex()), users.take()
    killer = Killer(users.killer) if users.isolated else None
    tree.create(uid)
    key = os.memfd_create("key")
    os.write(key, KEY.encode())
    uid_of_proxy = users.meter if users.isolated else None
    proxy = Metering(Settings((base_url,)), folder / f"{tree.root.name}.journal", uid_of_proxy, key)
    await proxy.start(folder / f"{tree.root.name}.sock")
    token = proxy.issue()
    await proxy.open("bench", token, Terms(None, Decimal(5), None, 10), Figures())
    process = await CliProcess.spawn(
        cli,
        Shape(TOOLS, 25, 5.0),
        tree,
        name="bench",
        uid=uid,
        api=proxy.socket,
        key=token,
        deadlines=Deadlines(60, 2),
        limits=Limits(),
        killer=killer,
        box=None,
    )
    try:
        await process.ready()
        await asyncio.sleep(1.0)
        began, first = time.perf_counter(), None
        await process.begin("sonnet", None, None, ({"type": "text", "text": PROMPT},))
        async for message in process.messages():
            if first is None and isinstance(message, ModelEvent) and message.name == "content_block_delta":
                first = time.perf_counter() - began
            if isinstance(message, Result):
                break
        assert first is not None, "the process gave no text"
        return first
    finally:
        await process.end()
        await proxy.stop()
        delete(tree.root)
        users.give_back(uid)
        if killer is not None:
            await killer.stop()


async def turn(client: httpx.AsyncClient, session: str) -> tuple[float, str]:
    """Seconds to the first piece of text of a session's turn, and the session's id."""
    began, first, found = time.perf_counter(), None, ""
    body = {"prompt": PROMPT, "session": session}
    async with client.stream("POST", "/invoke", json=body, headers={"Accept": "text/event-stream"}) as answer:
        async for line in answer.aiter_lines():
            if first is None and "text_delta" in line:
                first = time.perf_counter() - began
            if '"session":"' in line:
                found = line.split('"session":"', 1)[1].split('"', 1)[0]
    assert first is not None, "the invoker gave no text"
    return first, found


async def sessions(folder: Path, base_url: str, rounds: int) -> dict[str, float]:
    """Of two invokers, in turns: one keeps a session's process, the other resumes each turn cold."""
    kept = Invoker(folder / "kept", base_url, UID_BASE + 2 * 4096, SESSION_IDLE_S="600", RETENTION_S="600")
    cold = Invoker(folder / "resumed", base_url, UID_BASE + 3 * 4096, SESSION_IDLE_S="0", RETENTION_S="600")
    times: dict[str, list[float]] = {"kept": [], "cold": []}
    try:
        for invoker in (kept, cold):
            await invoker.warm()
        ids = {name: (await turn(invoker.client, "new"))[1] for name, invoker in (("kept", kept), ("cold", cold))}
        for number in range(rounds + 1):
            for name, invoker in (("kept", kept), ("cold", cold)):
                await asyncio.sleep(0.5)
                seconds, _ = await turn(invoker.client, ids[name])
                if number:
                    times[name].append(seconds)
    finally:
        for invoker in (kept, cold):
            await invoker.stop()
    middle = {name: statistics.median(found) * 1000 for name, found in times.items()}
    return {
        "session_followup_vs_cold": middle["kept"] / middle["cold"],
        "session_followup_ms_p50": middle["kept"],
        "session_cold_ms_p50": middle["cold"],
    }


async def allowed(client: httpx.AsyncClient) -> tuple[float, float]:
    """Seconds from sending that a command is allowed to its start, by its own clock: of the run's first and second."""
    command = '[[tool Bash {"command": "date +%s.%N"}]]'
    body = {"prompt": command + command, "tools": ["Bash"], "ask": ["Bash"]}
    sent, said, event = [], "", ""
    async with client.stream("POST", "/invoke", json=body, headers={"Accept": "text/event-stream"}) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                event = line.removeprefix("event: ")
            elif line.startswith("data: ") and event == "permission.requested":
                asked = json.loads(line.removeprefix("data: "))
                sent.append(time.time())
                path = f"{answer.headers['location']}/permissions/{asked['id']}"
                (await client.post(path, json={"decision": "allow"})).raise_for_status()
            elif line.startswith("data: ") and event == "run.finished":
                said = json.loads(line.removeprefix("data: "))["result"]
    started = [float(word) for word in said.split() if word.replace(".", "").isdigit()]
    first, second = (start - allowing for start, allowing in zip(started, sent, strict=True))
    return first, second


async def asking(folder: Path, base_url: str, rounds: int) -> dict[str, float]:
    """Of two invokers, in turns, whose warm processes are of the one kind and of the other."""
    plain = Invoker(folder / "plain", base_url, UID_BASE + 4 * 4096)
    asks = Invoker(folder / "asks", base_url, UID_BASE + 5 * 4096)
    times: dict[str, list[float]] = {"plain": [], "asks": [], "first": [], "second": []}
    try:
        for number in range(rounds + 1):
            for name, invoker, body in (("plain", plain, {}), ("asks", asks, {"ask": ["Write", "Edit"]})):
                await invoker.warm()
                await asyncio.sleep(1.0)
                seconds = await over_http(invoker.client, **body)
                if number:  # the first finds a process of the other kind
                    times[name].append(seconds)
        for _ in range(rounds):
            for name, seconds in zip(("first", "second"), await allowed(plain.client), strict=True):
                times[name].append(seconds)
    finally:
        for invoker in (plain, asks):
            await invoker.stop()
    middle = {name: statistics.median(found) for name, found in times.items()}
    return {
        "ttft_asking_vs_not": middle["asks"] / middle["plain"],
        "approval_to_tool_ms_p50": middle["second"] * 1000,
        "approval_to_first_tool_ms_p50": middle["first"] * 1000,
    }


async def _recorded(register: Register, run: Run) -> float:
    began = time.perf_counter()
    register.began(run)
    spent = time.perf_counter() - began
    for number in range(50):
        run.events.append("content_block_delta", {"index": 0, "delta": {"text": f"some words {number} "}})
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    run.state = "succeeded"
    run.result = RunResult(id=run.id, result="x" * 1000, model="m", stop_reason="end_turn", cost_usd=0.01)
    run.events.close()
    began = time.perf_counter()
    await register.finished(run)
    return spent + time.perf_counter() - began


async def records(folder: Path, runs: int) -> float:
    """Milliseconds that an answer waits for its run's records: one at the start, which nobody waits for, and one at its
    end, of some 50 events."""
    decided = plan(InvokeRequest(prompt=PROMPT), Clamp(), InvokerSettings(trust="open"), Boundary(Strength.NONE))
    times = []
    redis = RedisProcess(port=_free_port())
    try:
        async with Register(redis.url, "http://127.0.0.1:1") as register:
            for _ in range(runs):
                times.append(await _recorded(register, Run(new_id(), "bench", decided, folder, 60)))
    finally:
        redis.close()
    return statistics.median(times) * 1000


class Invoker:
    def __init__(self, folder: Path, base_url: str, uid_base: int = UID_BASE, **more: str) -> None:
        folder.mkdir(mode=0o711, exist_ok=True)
        self.state = folder / "state"
        self.port = _free_port()
        settings = {
            "TRUST": "open",
            "ISOLATION": "none",
            "PORT": str(self.port),
            "STATE_DIR": str(self.state),
            "ANTHROPIC_BASE_URL": base_url,
            "ANTHROPIC_API_KEY": KEY,
            "POOL_SIZE": "1",
            "POOL_MAX": "1",
            "MAX_RUNS": "4",
            "QUEUE_WAIT_S": "120",
            "DETACH_GRACE_S": "0",
            "RETENTION_S": "5",
            "UID_BASE": str(uid_base),
        } | more
        self.process = subprocess.Popen(
            [sys.executable, "-m", "claude_invoker"],
            env={"PATH": os.environ["PATH"], "HOME": str(folder)} | {f"INVOKER_{k}": v for k, v in settings.items()},
            stderr=subprocess.DEVNULL,
        )
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=180)

    async def warm(self) -> None:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if (await self.client.get("/readyz")).json()["checks"]["warm"]:
                    return
            assert self.process.poll() is None, "the invoker ended"
            await asyncio.sleep(0.05)

    async def settled(self) -> None:
        await self.warm()
        for _ in range(600):
            if len(self.trees()) <= 1 and len({_uid(process) for process in self.clis()}) <= 1:
                return
            await asyncio.sleep(0.05)

    def clis(self) -> list[psutil.Process]:
        """Its runs' processes: those with a user of their own. The killer is root's, or has the first of those ids, the
        metering proxy the second."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [process for process in children if _uid(process) not in (0, UID_BASE, UID_BASE + 1)]

    def trees(self) -> list[Path]:
        """Its runs' directories. `api` is the way to the metering proxy, which all share."""
        return [path for path in self.state.glob("trees/engines/*/*") if path.is_dir() and path.name != "api"]

    async def stop(self) -> None:
        await self.client.aclose()
        self.process.terminate()
        await asyncio.to_thread(self.process.wait, 30)


@contextlib.asynccontextmanager
async def started(client: httpx.AsyncClient, prompt: str, mark: str, **body: Any) -> AsyncIterator[str]:
    """A run whose stream has shown `mark`; its id."""
    request = {"prompt": prompt, **body}
    async with client.stream("POST", "/invoke", json=request, headers={"Accept": "text/event-stream"}) as answer:
        chunks = answer.aiter_text()
        async for chunk in chunks:
            if mark in chunk:
                break
        yield answer.headers["x-claude-run"]
        async for _ in chunks:
            pass


async def cancel(invoker: Invoker, *, tool: bool) -> float:
    """Seconds from DELETE until no process that ran for it is left."""
    await invoker.settled()
    mine = {process.pid for process in invoker.clis()}
    if tool:
        prompt, mark = '[[tool Bash {"command": "tail -f /dev/null"}]]', '"state":"started"'
        body: dict[str, Any] = {"tools": ["Bash"]}
    else:
        prompt, mark, body = "[[delay 200]] " + "word " * 60, "text_delta", {}
    async with started(invoker.client, prompt, mark, **body) as run:
        if tool:
            await asyncio.sleep(0.3)
            uid = max(process.uids().real for process in invoker.clis() if "--tools=Bash" in process.cmdline())
            mine = {process.pid for process in psutil.process_iter() if _uid(process) == uid}
        began = time.perf_counter()
        await invoker.client.delete(f"/runs/{run}")
        while any(map(_alive, mine)):
            await asyncio.sleep(0.002)
        return time.perf_counter() - began


async def mixed(invoker: Invoker, number: int) -> None:
    kind = ("ok", "error", "cancel", "disconnect", "crash")[number % 5]
    with contextlib.suppress(httpx.HTTPError):
        if kind == "ok":
            await invoker.client.post("/invoke", json={"prompt": PROMPT})
        elif kind == "error":
            await invoker.client.post("/invoke", json={"prompt": "[[status 401]]"})
        elif kind == "disconnect":
            await invoker.client.post("/invoke", json={"prompt": "[[delay 200]] a b c d e f g h i j"}, timeout=0.8)
        elif kind == "cancel":
            async with started(invoker.client, "[[delay 200]] a b c d e f g h", "run.started") as run:
                await invoker.client.delete(f"/runs/{run}")
        else:
            async with started(
                invoker.client, '[[tool Bash {"command": "tail -f /dev/null"}]]', "tool_use", tools=["Bash"]
            ):
                for process in invoker.clis():
                    with contextlib.suppress(psutil.Error):
                        if "--tools=Bash" in process.cmdline():
                            process.kill()


async def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    cli, users = find_cli(None), Users(260_000, folder / "users")
    users.open()
    homes = {name: folder / name for name in ("cold", "sdk", "bare")}
    for home in homes.values():
        home.mkdir()
        home.chmod(0o711)
    async with StandIn().running() as stand_in:
        # The SDK gives the CLI the whole of its own environment.
        for name in [name for name in os.environ if name.startswith(("CLAUDE", "ANTHROPIC_"))]:
            del os.environ[name]
        os.environ.update(environment(homes["sdk"], stand_in.url))
        invoker = Invoker(folder, stand_in.url)
        try:
            ways: dict[str, Callable[[], Awaitable[float]]] = {
                "http": lambda: over_http(invoker.client),
                "bare": lambda: bare_process(cli, homes["bare"], users, stand_in.url),
                "cold": lambda: cold_cli(cli, homes["cold"], stand_in.url, lean=False),
                "lean": lambda: cold_cli(cli, homes["cold"], stand_in.url, lean=True),
                "sdk": lambda: sdk_query(homes["sdk"]),
            }
            times: dict[str, list[float]] = {name: [] for name in ways}
            for number in range(options.rounds + 1):
                for name, way in ways.items():
                    await invoker.warm()
                    await asyncio.sleep(0.5)
                    seconds = await way()
                    if number:  # the first round fills the page cache
                        times[name].append(seconds)
                say(f"round {number}: " + ", ".join(f"{n} {t[-1] * 1000:.0f} ms" for n, t in times.items() if t))
            plain = [await cancel(invoker, tool=False) for _ in range(options.cancels)]
            tools = [await cancel(invoker, tool=True) for _ in range(max(1, options.cancels // 2))]
            say(f"cancel: {[round(t, 3) for t in plain]}, with a tool: {[round(t, 3) for t in tools]}")
            followed = await sessions(folder, stand_in.url, options.rounds)
            followed["redis_record_added_ms_p50"] = await records(folder, 200)
            followed |= await asking(folder, stand_in.url, options.rounds)
            say(f"sessions, records and asking: {followed}")
            left = await leftovers(invoker, options.runs)
        finally:
            await invoker.stop()
        left["left_dirs"] = len(invoker.trees())
    middle = {name: statistics.median(found) * 1000 for name, found in times.items()}
    return {
        "ttft_vs_cold_cli": middle["http"] / middle["cold"],
        "ttft_vs_lean_cold_cli": middle["http"] / middle["lean"],
        "ttft_vs_sdk_query": middle["http"] / middle["sdk"],
        "overhead_ms_p50": middle["http"] - middle["bare"],
        "ttft_ms_p50": middle["http"],
        "ttft_bare_ms_p50": middle["bare"],
        "ttft_cold_cli_ms_p50": middle["cold"],
        "ttft_sdk_query_ms_p50": middle["sdk"],
        "cancel_p50_s": statistics.median(plain),
        "cancel_p99_s": _p99(plain),
        "cancel_tool_p99_s": _p99(tools),
        **followed,
        **left,
    }


async def leftovers(invoker: Invoker, runs: int) -> dict[str, float]:
    process = psutil.Process(invoker.process.pid)
    before: tuple[int, int] | None = None
    gate = asyncio.Semaphore(3)

    async def one(number: int) -> None:
        async with gate:
            await mixed(invoker, number)

    for start, stop in ((0, runs // 4), (runs // 4, runs)):
        await asyncio.gather(*(one(number) for number in range(start, stop)))
        await invoker.settled()
        say(f"{stop} mixed runs")
        if before is None:
            before = process.num_fds(), process.memory_info().rss
    assert before is not None
    await asyncio.sleep(1)
    users = [_uid(process) for process in invoker.clis()]
    processes = len(users) - max((users.count(uid) for uid in users), default=0)  # those of the warm one are no rest
    return {
        "mixed_runs": runs,
        "left_processes": processes,
        "left_fds": process.num_fds() - before[0],
        "rss_growth_mb": (process.memory_info().rss - before[1]) / 1e6,
    }


def _uid(process: psutil.Process) -> int:
    try:
        return int(process.uids().real)
    except psutil.Error:
        return -1


def _alive(pid: int) -> bool:
    """Not a zombie either: those of a tool wait for init, which may take its time."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def _p99(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * 0.99))]


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--cancels", type=int, default=20)
    parser.add_argument("--runs", type=int, default=200)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="invoker-bench-"))
    folder.chmod(0o711)
    try:
        figures = asyncio.run(measure(options, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(
        json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()} | {"machine": machine()})
    )


if __name__ == "__main__":
    main()
