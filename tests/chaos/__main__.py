"""`make chaos`: the suite at full length, figures into build/chaos.json. On a real Kong (KONG=/path/to/kong) its reloads, too,
and at the end the table of docs/fail-closed.md.

With --base-url: load against a running gateway; a valid token for it comes from the environment variable TOKEN (several,
separated by spaces, where one would meet its own limits), a command that breaks something from FAULT_COMMAND.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.chaos.faults import FAULTS
from tests.chaos.load import Load, Outcome
from tests.chaos.reload import Counting, run_reloads
from tests.chaos.suite import GIVE_UP, counts, passed, recovered, run, served
from tests.chaos.table import markdown

RELOADS = 20


def against(
    url: str, path: str, tokens: Sequence[str], command: str | None, rounds: int
) -> dict[str, dict[str, float]]:
    """Load on a running gateway while `command` (if any) breaks something at random moments.

    A 429 is an answer of a gateway that works: a token's own limit.
    """

    def make(good: bool) -> tuple[str, Mapping[str, str], bytes]:
        token = random.choice(tokens)
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
            times.append(await recovered(load, started, works))
        until.set()
        await running
        return {
            **counts(load.outcomes, works),
            "limited": sum(o.status == 429 for o in load.outcomes),
            "unauthenticated_passes": passed(load.outcomes),
            "recover_p50_s": sorted(times)[len(times) // 2],
            "recover_max_s": max(times),
        }

    return {"command" if command else "load": asyncio.run(go())}


async def reloaded() -> dict[str, float]:
    stack = Counting()
    try:
        return await run_reloads(stack, RELOADS)
    finally:
        await stack.stop()


def works(outcome: Outcome) -> bool:
    return served(outcome) or outcome.status == 429


def failed(row: Mapping[str, float]) -> bool:
    """Somebody got in, something was left behind, or it did not come back."""
    bad = ("unauthenticated_passes", "wrong_tenant", "unattested_at_upstream", "leaked", "missing_in_metrics")
    return any(row.get(name) for name in bad) or row["recover_max_s"] >= GIVE_UP


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("faults", nargs="*", default=list(FAULTS), help="faults to inject (default: all)")
    parser.add_argument("--rounds", type=int, default=20, help="injections per fault (default: 20)")
    parser.add_argument("--base-url", help="a running gateway, such as a real Kong")
    parser.add_argument("--path", default="/claude/invoke", help="its guarded path (default: %(default)s)")
    parser.add_argument(
        "--fault-command",
        default=os.environ.get("FAULT_COMMAND") or None,
        help="shell command that breaks something in it, run at random moments",
    )
    options = parser.parse_args()
    if unknown := set(options.faults) - set(FAULTS):
        parser.error(f"unknown faults {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}")
    if options.base_url:
        tokens = os.environ.get("TOKEN", "").split()
        if not tokens:
            parser.error("which token is valid there? TOKEN=… (kong-claude token --sub chaos --tier team)")
        report = against(options.base_url, options.path, tokens, options.fault_command, options.rounds)
    else:
        report = asyncio.run(run(options.faults, options.rounds)) | asyncio.run(
            run(options.faults, options.rounds, pair=True)
        )
        if os.environ.get("KONG"):
            report[f"kong reload, {RELOADS} times"] = asyncio.run(reloaded())
    build = Path("build")
    build.mkdir(exist_ok=True)
    (build / "chaos.json").write_text(json.dumps(report, indent=1))
    print(json.dumps(report))
    if os.environ.get("KONG") and not options.base_url:
        print(markdown(report))
    for name, row in report.items():
        if row["recover_max_s"] >= GIVE_UP:
            print(f"{name}: valid requests were still refused after {GIVE_UP:g} s", file=sys.stderr)
    return int(any(map(failed, report.values())))


if __name__ == "__main__":
    sys.exit(main())
