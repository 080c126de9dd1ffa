"""What the boundary around a run costs: `python -m bench.isolation [--rounds N]`, as root.

One after the other in each round, so that a busy machine is busy for each.

| key | meaning |
|---|---|
| `strength` | the strongest here: 0 none, 1 user, 2 landlock |
| `start_ms_p50_0`, `_1`, `_2` | until a started CLI is ready: with our user, with its own, and in the box |
| `start_overhead_ms_p50_1`, `_2` | against `_0` |
| `start_landlock_vs_user` | `_2` against `_1` |
| `start_ms_p50_egress` | in the box and in a network of its own (0 where there is none) |
| `start_egress_vs_landlock` | that against `_2` |
| `command_ms_p50_1`, `_2` | `bash -c :` as a run of that strength starts it |
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
from pathlib import Path

from bench.machine import machine
from claude_invoker.cli.binary import find_cli
from claude_invoker.cli.child import Limits
from claude_invoker.cli.command import Deadlines, Shape
from claude_invoker.cli.kill import Killer
from claude_invoker.cli.process import CliProcess
from claude_invoker.cli.tree import Tree
from claude_invoker.cli.walk import delete
from claude_invoker.isolation import box, shell
from claude_invoker.isolation.box import Box
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
        api=folder / "nobody.sock",
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
    with contextlib.nullcontext() if boxed is None else boxed.around(tree.root, boxed.closed) as enter:
        program = "/bin/bash" if boxed is None else str(boxed.closed.shell)
        began = time.perf_counter()
        subprocess.run(
            [program, "-c", ":"],
            env={shell.TREE: str(tree.root)},
            cwd=tree.work,
            preexec_fn=enter,
            check=True,
            **shell.as_user(uid),
        )
        milliseconds = (time.perf_counter() - began) * 1000
    delete(tree.root)
    return milliseconds


async def measure(rounds: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="bench-isolation-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        cli = folder / "claude"
        shutil.copyfile(find_cli(None), cli)
        cli.chmod(0o711)
        boxed, properties = await asyncio.to_thread(box.make, folder, cli, UID)
        strength = computed([box.own_users(UID), *properties])
        strengths = [found for found in Strength if found <= strength]
        way = None if boxed is None else box.network_of_its_own(boxed, UID)[0]
        starts: dict[Strength, list[float]] = {found: [] for found in strengths}
        reaching: list[float] = []
        commands: dict[Strength, list[float]] = {found: [] for found in strengths if found}
        for number in range(rounds + 1):
            for found in strengths:
                ours = boxed if found == Strength.LANDLOCK else None
                took = await start(cli, folder, UID + 1 if found else None, ours)
                if number:  # the first fills the page cache
                    starts[found].append(took)
                if found:
                    commands[found] += [await asyncio.to_thread(command, folder, UID + 1, ours) for _ in range(3)]
            if way is not None:
                took = await start(cli, folder, UID + 1, boxed, way)
                reaching += [took] if number else []
            print(f"round {number}: {[round(t[-1]) for t in starts.values() if t]} ms", file=sys.stderr, flush=True)
    figures: dict[str, float] = {"strength": int(strength)}
    start_ms = {found: statistics.median(values) for found, values in starts.items()}
    command_ms = {found: statistics.median(values) for found, values in commands.items()}
    for found in strengths:
        figures[f"start_ms_p50_{int(found)}"] = round(start_ms[found], 1)
        if found:
            figures[f"start_overhead_ms_p50_{int(found)}"] = round(start_ms[found] - start_ms[Strength.NONE], 1)
            figures[f"command_ms_p50_{int(found)}"] = round(command_ms[found], 2)
    figures["start_ms_p50_egress"] = round(statistics.median(reaching), 1) if reaching else 0.0
    if reaching:
        pairs = zip(reaching, starts[Strength.LANDLOCK], strict=True)
        figures["start_egress_vs_landlock"] = round(statistics.median(one / other for one, other in pairs), 3)
    if strength == Strength.LANDLOCK:
        figures["start_landlock_vs_user"] = round(start_ms[Strength.LANDLOCK] / start_ms[Strength.USER], 3)
        overhead = command_ms[Strength.LANDLOCK] - command_ms[Strength.USER]
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
