"""`python -m tests.conformance [DATA]`: replays recorded cases of a real Kong against minikong.

Prints passed and failed cases per file and category and writes build/conformance.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from tests.conformance import schema_cases

HERE = Path(__file__).parent
FILES = ("schema-validation", "pdk-phase-matrix", "pdk-calls", "http-behaviour", "lifecycle")


def _cases(path: Path, prefixes: list[str]) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines() if line]
    return [row for row in rows if not prefixes or any(row["id"].startswith(p) for p in prefixes)]


def _replayer(name: str) -> Any:
    if name == "schema-validation":
        return schema_cases.replay
    return None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("data", nargs="?", type=Path, default=HERE / "data")
    parser.add_argument("--file", action="append", default=[], choices=FILES, help="only this file")
    parser.add_argument("--only", action="append", default=[], metavar="PREFIX", help="only ids with this prefix")
    parser.add_argument("-v", "--verbose", action="store_true", help="print what differs")
    parser.add_argument("--out", type=Path, default=HERE.parents[1] / "build" / "conformance.json")
    options = parser.parse_args(argv)
    summary: dict[str, Any] = {}
    for name in options.file or FILES:
        path = options.data / f"{name}.jsonl"
        replay = _replayer(name)
        if not path.exists() or replay is None:
            continue
        started = time.monotonic()
        passed: Counter[str] = Counter()
        total: Counter[str] = Counter()
        failed: list[str] = []
        for case in _cases(path, options.only):
            category = case["id"].partition("/")[0]
            total[category] += 1
            try:
                problem = replay(case, options.data)
            except Exception:
                problem = traceback.format_exc()
            if problem is None:
                passed[category] += 1
            else:
                failed.append(case["id"])
                if options.verbose:
                    print(f"FAILED {name} {case['id']}\n    {problem}", flush=True)
        print(f"{name}: {passed.total()}/{total.total()} in {time.monotonic() - started:.1f} s")
        for category in total:
            print(f"    {category}: {passed[category]}/{total[category]}")
        summary[f"{name}.jsonl"] = {
            "passed": passed.total(),
            "total": total.total(),
            "failed_ids": failed,
        }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(summary, indent=1) + "\n")
    return 1 if any(s["failed_ids"] for s in summary.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
