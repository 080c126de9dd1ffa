"""`python -m tests.conformance [DATA]`: replays recorded cases of a real Kong against minikong.

Prints passed and failed cases per file and category and writes build/conformance.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from tests.conformance import netns, schema_cases

HERE = Path(__file__).parent
FILES = ("schema-validation", "pdk-phase-matrix", "pdk-calls", "http-behaviour", "lifecycle")


def _cases(path: Path, prefixes: list[str]) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines() if line]
    return [row for row in rows if not prefixes or any(row["id"].startswith(p) for p in prefixes)]


async def _run(name: str, cases: list[dict[str, Any]], report: Callable[[str, str | None], None]) -> None:
    if name == "schema-validation":
        for case in cases:
            report(case["id"], _guarded(partial(schema_cases.replay, case)))
        return
    from tests.conformance import http_cases, lifecycle_cases, pdk_cases
    from tests.conformance.stage import Stage

    replays = {
        "http-behaviour": http_cases.replay,
        "pdk-calls": pdk_cases.replay,
        "pdk-phase-matrix": pdk_cases.replay_matrix,
        "lifecycle": lifecycle_cases.replay,
    }
    async with Stage() as stage:
        for case in cases:
            try:
                async with asyncio.timeout(60):
                    problem = await replays[name](case, stage)
            except Exception:
                problem = traceback.format_exc()
                await stage.close_gateway()
            report(case["id"], problem)


def _guarded(replay: Callable[[], str | None]) -> str | None:
    try:
        return replay()
    except Exception:
        return traceback.format_exc()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("data", nargs="?", type=Path, default=HERE / "data")
    parser.add_argument("--file", action="append", default=[], choices=FILES, help="only this file")
    parser.add_argument("--only", action="append", default=[], metavar="PREFIX", help="only ids with this prefix")
    parser.add_argument("-v", "--verbose", action="store_true", help="print what differs")
    parser.add_argument("--out", type=Path, default=HERE.parents[1] / "build" / "conformance.json")
    options = parser.parse_args(argv)
    if not netns.isolate():
        print("no network namespace of our own: ports 8000, 8443, 9000 and 9001 must be free", file=sys.stderr)
    logging.getLogger("minikong").setLevel(logging.CRITICAL)
    summary: dict[str, Any] = {}
    for name in options.file or FILES:
        path = options.data / f"{name}.jsonl"
        if path.exists():
            summary[f"{name}.jsonl"] = _file(name, _cases(path, options.only), options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(summary, indent=1) + "\n")
    return 1 if any(s["failed_ids"] for s in summary.values()) else 0


def _file(name: str, cases: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    started = time.monotonic()
    passed: Counter[str] = Counter()
    total: Counter[str] = Counter()
    failed: list[str] = []

    def report(case_id: str, problem: str | None) -> None:
        category = case_id.partition("/")[0]
        total[category] += 1
        if problem is None:
            passed[category] += 1
            return
        failed.append(case_id)
        if options.verbose:
            print(f"FAILED {name} {case_id}\n    {problem}", flush=True)

    uvloop.run(_run(name, cases, report))  # as the minikong command does
    print(f"{name}: {passed.total()}/{total.total()} in {time.monotonic() - started:.1f} s")
    for category in total:
        print(f"    {category}: {passed[category]}/{total[category]}")
    return {"passed": passed.total(), "total": total.total(), "failed_ids": failed}


if __name__ == "__main__":
    sys.exit(main())
