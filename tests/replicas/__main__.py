"""Whether several invokers and workers lose, mix up or pay twice for anything while each of them is killed again and again:
`python -m tests.replicas [--runs 1000] [--kills 10] [--seed N] [--real]`. One JSON object on the last line; 1 where it is not all 0.

Callers send runs, streams that they leave and come back to, jobs and sessions through the gateway, which asks one invoker
after the other. Meanwhile one process after the other is killed by SIGKILL and started again with what it has on its disk:
invokers, workers, their metering proxies, the plugin server, both Redis. `bench/fast_cli.sh` stands for the CLI, and a
directory is the store; with `--real` it is the real CLI within its boundary, and an S3 server.

| key | meaning |
|---|---|
| `lost` | runs that have ended, and whose answer is not what it was, or not to be had |
| `wrong_owner` | answers that were another's run, or of another's run |
| `doubled`, `unpaid` | subjects that were booked more than the API has charged, or less |
| `ran_twice` | runs that were begun twice |
| `unclear` | broken runs that did not end with an error which says so, or did not end |
| `out_of_order` | streams and sessions in which something was missing, doubled or in another order |
| `leases` | places and reservations that were held when all was over |
| `succeeded`, `broken_<kind>`, `kills_<part>`, `seconds` | how it went |
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys

from bench.machine import machine
from tests.replicas.chaos import ZERO, chaos
from tests.replicas.stage import staged


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=10, help="of each process, at least")
    parser.add_argument("--seed", type=int, default=21)
    parser.add_argument("--real", action="store_true", help="with the real CLI, and an S3 server")
    options = parser.parse_args()
    with staged(is_real=options.real) as stage:
        figures, faults = asyncio.run(chaos(stage, options.runs, options.kills, options.seed))
        for text in stage.tracebacks() if faults else ():
            print(text, file=sys.stderr)
    for fault in faults:
        print(fault, file=sys.stderr)
    print(json.dumps(figures | {"machine": machine()}))
    return int(any(figures[name] for name in ZERO))


if __name__ == "__main__":
    sys.exit(main())
