"""How soon a run has its repository: `python -m bench.workspace [--rounds N] [--files N] [--bytes N]`, with git.

A repository of 10,000 files and 100 MB at git's own http-backend, an engine with the real CLI, nothing of a model. In
each round one after the other, so that a busy machine is busy for each. With `TMPDIR` on a tmpfs no disk is measured.

| key | meaning |
|---|---|
| `ready_ms_p50_spare` | from the request to a process in its checkout, where one is kept ready |
| `ready_vs_clone` | a checkout from the commit's store, no tree ready, against `git clone` of a mirror |
| `first_vs_clone` | the same for a commit that nobody has asked for: store, check of its content, checkout |
| `clone_ms_p50`, `checkout_ms_p50` | the two that `ready_vs_clone` compares |
| `fetches_for_50_concurrent` | how often 50 requests at once ask the server |
| `leaked_credentials` | places where the token is found (below) |

The token is looked for in trees, in what git keeps, in the log, and in environment, command line and memory of the CLI.
Before, one is planted in a file, in a process and in the log, and must be found.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from bench.machine import machine
from claude_contract.claims import Repository
from claude_invoker.cli.command import Shape
from claude_invoker.cli.launcher import Ready
from claude_invoker.cli.tree import Checkout, Tree
from claude_invoker.cli.walk import delete
from claude_invoker.runs.engine import Engine
from claude_invoker.settings import Settings
from claude_invoker.workspace.repository import Wanted
from tests.support.git_server import ENVIRONMENT, GitServer, git, serving

TOKEN = "ghs_planted_token_of_the_bench"
NAME = "org/app"


def fill(server: GitServer, files: int, size: int) -> None:
    """A repository with so many files, which cannot be compressed much."""
    bare = server.create(NAME)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for number in range(files):
            path = work / f"d{number // 100:03}" / f"f{number % 100:02}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(os.urandom(size // files))
        git(work, "init", "--quiet", "--initial-branch=main")
        git(work, "add", ".")
        git(work, "commit", "--quiet", "-m", "x")
        git(work, "push", "--quiet", str(bare), "main")


def clone(mirror: Path, into: Path) -> float:
    """Milliseconds of the plainest way."""
    began = time.perf_counter()
    subprocess.run(
        ["git", "-c", "safe.directory=*", "clone", "--quiet", str(mirror), str(into)], env=ENVIRONMENT, check=True
    )
    return (time.perf_counter() - began) * 1000


def found_in_files(*folders: Path) -> int:
    command = ["grep", "-rlaF", TOKEN, *map(str, folders)]
    return len(subprocess.run(command, capture_output=True, text=True).stdout.splitlines())


def found_in_process(pid: int) -> int:
    """In environment, command line and memory."""
    base = Path(f"/proc/{pid}")
    needle, count = TOKEN.encode(), 0
    count += sum(needle in (base / name).read_bytes() for name in ("environ", "cmdline"))
    with (base / "mem").open("rb", 0) as memory:
        for line in (base / "maps").read_text().splitlines():
            span, mode = line.split()[:2]
            start, end = (int(part, 16) for part in span.split("-"))
            if "r" not in mode or end > 1 << 62:
                continue
            for at in range(start, end, 1 << 24):
                try:
                    memory.seek(at)
                    count += needle in memory.read(min(end - at, (1 << 24) + len(needle)))
                except (OSError, ValueError, OverflowError):
                    break
    return count


def planted(folder: Path, log: io.StringIO) -> bool:
    """Whether the search finds what is there."""
    file = folder / "planted"
    file.write_text(f"x{TOKEN}x")
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; kept = sys.stdin.read(); print(flush=True); time.sleep(60)",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(TOKEN)
        process.stdin.close()
        process.stdout.readline()
        in_process = found_in_process(process.pid)
        process.kill()
    in_files = found_in_files(folder)
    file.unlink()
    log.write(TOKEN)
    in_log = TOKEN in log.getvalue()
    log.truncate(0)
    return bool(in_process and in_files == 1 and in_log)


async def taken(engine: Engine, wanted: Wanted) -> tuple[Ready, float]:
    began = time.perf_counter()
    assert engine.workspaces is not None
    checkout = await engine.workspaces.ready(wanted)
    ready = await engine.pool.take(Shape(("Read",), 3, 1.0, checkout=checkout))
    return ready, (time.perf_counter() - began) * 1000


async def without_spare(engine: Engine, checkout: Checkout, folder: Path) -> float:
    """Milliseconds of a checkout, as the user and in the boundary that a run has."""
    assert engine.workspaces is not None
    uid = engine.users.take()
    tree = Tree(folder / os.urandom(6).hex())
    await asyncio.to_thread(tree.create, uid)
    began = time.perf_counter()
    await engine.workspaces.furnish(tree, uid, checkout)
    took = (time.perf_counter() - began) * 1000
    await asyncio.to_thread(delete, tree.root)
    engine.users.give_back(uid)
    return took


async def measure(folder: Path, server: GitServer, rounds: int, log: io.StringIO) -> dict[str, float]:
    token = folder / "token"
    token.write_text(TOKEN)
    token.chmod(0o400)
    file = folder / "repositories.yaml"
    file.write_text(f"org/*: {{url: '{server.url}/{{repository}}.git', token_file: {token}, refresh_s: 3600}}\n")
    state = folder / "state"
    settings = Settings(
        state_dir=state, repositories=file, isolation="user", pool_size=1, pool_max=1, trust="open", uid_base=9_400_000
    )
    async with Engine(settings) as engine:
        spaces = engine.workspaces
        assert spaces is not None
        wanted = spaces.known.find(Repository(NAME, "main"))
        found = await asyncio.gather(*(spaces.ready(wanted) for _ in range(50)))
        fetches, checkout = spaces.fetches, found[0]
        mirror = server.root / f"{NAME}.git"  # as ours, and of a user whose git may clone it
        spare, clones, checkouts, firsts = [], [], [], []
        leaked = 0
        work = folder / "trees"
        work.mkdir(mode=0o711)
        work.chmod(0o711)
        for number in range(rounds):
            clones.append(clone(mirror, work / "clone"))
            delete(work / "clone")
            checkouts.append(await without_spare(engine, checkout, work))
            delete(checkout.store)
            began = time.perf_counter()
            checkout = await spaces.ready(wanted)
            made = (time.perf_counter() - began) * 1000
            firsts.append(made + await without_spare(engine, checkout, work))
            print(
                f"round {number}: clone {clones[-1]:.0f} checkout {checkouts[-1]:.0f} first {firsts[-1]:.0f} ms",
                file=sys.stderr,
            )
        ready, _ = await taken(engine, wanted)  # so that one is kept
        assert planted(folder / "served", log), "the search does not find what is there"
        for path in (state, ready.process.tree.root):
            leaked += found_in_files(path)
        started = psutil.Process(ready.process.pid)
        leaked += sum(found_in_process(one.pid) for one in [started, *started.children(recursive=True)])
        await engine._launcher.dispose(ready)
        for _ in range(rounds):
            while not engine.pool.warm:
                await asyncio.sleep(0.05)
            hits = engine.pool.hits
            ready, took = await taken(engine, wanted)
            if engine.pool.hits > hits:
                spare.append(took)
            await engine._launcher.dispose(ready)
    leaked += TOKEN in log.getvalue()
    ratio = statistics.median(one / other for one, other in zip(checkouts, clones, strict=True))
    first = statistics.median(one / other for one, other in zip(firsts, clones, strict=True))
    return {
        "ready_ms_p50_spare": round(statistics.median(spare), 1),
        "ready_vs_clone": round(ratio, 2),
        "first_vs_clone": round(first, 2),
        "clone_ms_p50": round(statistics.median(clones), 1),
        "checkout_ms_p50": round(statistics.median(checkouts), 1),
        "fetches_for_50_concurrent": fetches,
        "leaked_credentials": leaked,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--bytes", type=int, default=100_000_000)
    arguments = parser.parse_args()
    log = io.StringIO()
    logging.basicConfig(stream=log, level=logging.DEBUG)
    with tempfile.TemporaryDirectory(prefix="bench-workspace-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        with serving(folder / "served", TOKEN) as server:
            fill(server, arguments.files, arguments.bytes)
            figures = asyncio.run(measure(folder, server, arguments.rounds, log))
    print(json.dumps(figures | {"machine": machine()}))


if __name__ == "__main__":
    main()
