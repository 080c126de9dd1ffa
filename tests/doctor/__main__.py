"""The long form: `python -m tests.doctor --files 1000`, with KONG=… on a real Kong. Exit code 1 where anything parts."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.doctor.cases import cases
from tests.doctor.gateways import pair, upstream


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.doctor", description=__doc__)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    forms: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    wrong = 0
    with upstream() as port, pair() as gateways, tempfile.TemporaryDirectory() as directory:
        for case in cases(options.files, port, options.seed):
            found = case.differences(Path(directory)) + gateways.differences(case)
            for line in found:
                print(f"file {case.number}: {line}", flush=True)
            if found:
                print(case.written.text)
            wrong += bool(found)
            forms.update(case.forms)
            counts.update(files=1, open=bool(case.opens), paths=len(case.paths), open_paths=len(case.opens))
            counts.update(findings=len(case.found), missed=sum(line.startswith("missed") for line in found))
            counts.update(false=sum(line.startswith("false") for line in found))
    for form, count in sorted(forms.items()):
        print(f"{count:6} {form}")
    gateway = os.environ.get("KONG") or "minikong"
    print(f"{gateway}, seed {options.seed}: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
