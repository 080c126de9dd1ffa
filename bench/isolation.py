"""What the boundary around a run costs: `python -m bench.isolation [--rounds N]`, as root.

One after the other in each round, so that a busy machine is busy for each.

| key | meaning |
|---|---|
| `strength` | the strongest here: 0 none, 1 user, 2 landlock, 3 namespaces |
| `start_ms_p50_0` … `_3` | until a started CLI is ready: with our user; with its own, and in the box of that strength |
| `start_ms_p50_2_shared`, `_3_shared` | in that box with our user, as where the invoker is not root's |
| `start_ms_p50_3_container` | in that box as a container permits it |
| `start_overhead_ms_p50_1` … | against `_0` |
| `start_landlock_vs_user`, `start_namespaces_vs_user` | `_2` and `_3` against `_1`: median of the rounds' ratios |
| `start_container_vs_user` | `_3_container` against `_1`: likewise |
| `start_ms_p50_egress` | in the strongest box and in a network of its own (0 where there is none) |
| `start_egress_vs_closed` | that against the same box without: likewise |
| `command_ms_p50_1`, `_2` | `bash -c :` as a run of that strength starts it; `_3` has the wrapper of `_2` |
| `command_overhead_ms_p50_2` | against `_1`: the wrapper |
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
from dataclasses import replace
from pathlib import Path

from bench.machine import machine
from claude_invoker.cli.binary import find_cli
from claude_invoker.cli.child import Limits
from claude_invoker.cli.command import Deadlines, Shape
from claude_invoker.cli.kill import Killer
from claude_invoker.cli.process import CliProcess
from claude_invoker.cli.tree import Tree
from claude_invoker.cli.walk import delete
from claude_invoker.isolation import shell, trial
from claude_invoker.isolation.box import Box, Entry
from claude_invoker.isolation.namespaces import Namespaces
from claude_invoker.isolation.network import Way
from claude_invoker.isolation.strength import Strength, computed

UID = 274_000  # the killer's; runs have the next one. No invoker of this machine shall have them


async def start(cli: Path, folder: Path, uid: int | None, boxed: Box | None, network: Way | None = None) -> float:
    """Milliseconds until a CLI is ready."""
    tree = Tree(folder / os.urandom(6).hex())
    tree.create(uid)
    killer = Killer(UID)
    began = time.perf_counter()
    process = await CliProcess.spawn(
        cli,
        Shape(("Bash",), 25, 5.0),
        tree,
        name=tree.root.name,
        uid=uid,
        api=folder / "api" / "nobody",
        key="none",
        deadlines=Deadlines(60, 2),
        limits=Limits(),
        killer=killer if uid else None,
        box=boxed,
        network=network,
    )
    try:
        await process.ready()
        return (time.perf_counter() - began) * 1000
    finally:
        await process.end()
        await killer.stop()
        delete(tree.root)


def command(folder: Path, uid: int, boxed: Box | None) -> float:
    """Milliseconds of an empty command."""
    tree = Tree(folder / os.urandom(6).hex())
    tree.create(uid)
    with contextlib.ExitStack() as held:
        entry = Entry() if boxed is None else held.enter_context(boxed.around(tree.root, boxed.closed, folder))
        program = "/bin/bash" if boxed is None else str(boxed.closed.shell)
        began = time.perf_counter()
        subprocess.run(
            [program, "-c", ":"],
            env={shell.TREE: str(tree.root)},
            cwd=tree.work,
            preexec_fn=entry.enter,
            check=True,
            **shell.as_user(uid),
        )
        milliseconds = (time.perf_counter() - began) * 1000
    delete(tree.root)
    return milliseconds


Way_in = tuple[str, int | None, Box | None, Way | None]
"""What a start is measured as: the end of its figure's name, the user, the box, the network."""


async def ways_in(folder: Path, cli: Path) -> tuple[Strength, list[Way_in]]:
    """All that this machine offers."""
    found: list[Way_in] = [("0", None, None, None), ("1", UID + 1, None, None)]
    boxes, properties = await asyncio.to_thread(trial.boxes, folder, cli, UID)
    for box in boxes:
        found.append((f"{box.strength:d}", UID + 1, box, None))
        if isinstance(box, Namespaces):
            confined = next(folder.glob("cli-*"))  # which the trial has written
            found.append((f"{box.strength:d}_container", UID + 1, replace(box, confined=confined), None))
    for box in (await asyncio.to_thread(trial.boxes, folder, cli, None))[0]:
        found.append((f"{box.strength:d}_shared", None, box, None))
    if boxes and (way := trial.network_of_its_own(boxes[0], UID)[0]) is not None:
        found.append(("egress", UID + 1, boxes[0], way))
    return computed([trial.own_users(UID), *properties]), found


def ratio(one: list[float], other: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(one, other, strict=True)), 3)


async def measure(rounds: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="bench-isolation-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        (folder / "api").mkdir()
        cli = folder / "claude"
        shutil.copyfile(find_cli(None), cli)
        cli.chmod(0o711)
        strength, found = await ways_in(folder, cli)
        starts: dict[str, list[float]] = {name: [] for name, *_ in found}
        commands: dict[str, list[float]] = {"1": [], "2": []}
        for number in range(rounds + 1):
            for name, uid, box, way in found:
                took = await start(cli, folder, uid, box, way)
                if number:  # the first fills the page cache
                    starts[name].append(took)
                if name in commands and uid is not None:
                    commands[name] += [await asyncio.to_thread(command, folder, uid, box) for _ in range(3)]
            print(
                f"round {number}: { {n: round(t[-1]) for n, t in starts.items() if t} } ms", file=sys.stderr, flush=True
            )
    figures: dict[str, float] = {"strength": int(strength), "start_ms_p50_egress": 0.0}
    for name, values in starts.items():
        figures[f"start_ms_p50_{name}"] = round(statistics.median(values), 1)
        if name not in ("0", "egress"):
            over = statistics.median(values) - statistics.median(starts["0"])
            figures[f"start_overhead_ms_p50_{name}"] = round(over, 1)
    for name, of in (("landlock", "2"), ("namespaces", "3"), ("container", "3_container")):
        if of in starts:
            figures[f"start_{name}_vs_user"] = ratio(starts[of], starts["1"])
    if "egress" in starts:
        figures["start_egress_vs_closed"] = ratio(starts["egress"], starts[f"{strength:d}"])
    for name, values in commands.items():
        if values:
            figures[f"command_ms_p50_{name}"] = round(statistics.median(values), 2)
    if commands["2"]:
        overhead = statistics.median(commands["2"]) - statistics.median(commands["1"])
        figures["command_overhead_ms_p50_2"] = round(overhead, 2)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    if os.geteuid() != 0:
        print("a user id for each run needs root", file=sys.stderr)
        return 3
    print(json.dumps(asyncio.run(measure(rounds)) | {"machine": machine()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
