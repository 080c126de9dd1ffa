"""`make chaos`: the suite at full length, figures into build/chaos.json.

With --base-url: load against a running gateway; a valid token for it comes from the environment variable TOKEN.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.chaos.faults import FAULTS
from tests.chaos.load import Load
from tests.chaos.suite import counts, passed, recovered, run


def against(url: str, path: str, token: str, command: str | None, rounds: int) -> dict[str, dict[str, float]]:
    """Load on a running gateway while `command` (if any) breaks something at random moments."""

    def make(good: bool) -> tuple[str, Mapping[str, str], bytes]:
        headers = {"Content-Type": "application/json", "X-Chaos": "x:good:x" if good else "x:bad:x"}
        bad = random.choice([None, "Bearer garbage", f"Bearer {token[:-4]}AAAA"])
        if good or bad:
            headers["Authorization"] = f"Bearer {token}" if good else str(bad)
        return path, headers, b'{"prompt": "hi"}'

    async def go() -> dict[str, float]:
        load, until = Load(url.rstrip("/"), make), asyncio.Event()
        running = asyncio.create_task(load.run(until))
        times = []
        for _ in range(rounds):
            await asyncio.sleep(random.uniform(0.5, 1.5))
            started = time.monotonic()
            if command:
                await (await asyncio.create_subprocess_shell(command)).wait()
            times.append(await recovered(load, started))
        until.set()
        await running
        return {
            **counts(load.outcomes),
            "unauthenticated_passes": passed(load.outcomes),
            "recover_p50_s": sorted(times)[len(times) // 2],
            "recover_max_s": max(times),
        }

    return {"command" if command else "load": asyncio.run(go())}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("faults", nargs="*", default=list(FAULTS), help="faults to inject (default: all)")
    parser.add_argument("--rounds", type=int, default=20, help="injections per fault (default: 20)")
    parser.add_argument("--base-url", help="a running gateway, such as a real Kong")
    parser.add_argument("--path", default="/claude/invoke", help="its guarded path (default: %(default)s)")
    parser.add_argument("--fault-command", help="shell command that breaks something in it, run at random moments")
    options = parser.parse_args()
    if unknown := set(options.faults) - set(FAULTS):
        parser.error(f"unknown faults {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}")
    if options.base_url:
        report = against(
            options.base_url, options.path, os.environ.get("TOKEN", ""), options.fault_command, options.rounds
        )
    else:
        report = asyncio.run(run(options.faults, options.rounds)) | asyncio.run(
            run(options.faults, options.rounds, pair=True)
        )
    build = Path("build")
    build.mkdir(exist_ok=True)
    (build / "chaos.json").write_text(json.dumps(report, indent=1))
    print(json.dumps(report))
    return int(any(r["unauthenticated_passes"] or r.get("wrong_tenant") or r.get("leaked") for r in report.values()))


if __name__ == "__main__":
    sys.exit(main())
