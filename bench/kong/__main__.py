"""The chain on a real Kong, against Kong's own plugins: `KONG=/usr/local/bin/kong python -m bench.kong [row ...]`.

    [--seconds 2.0] [--rounds 5]      of one measurement; `--seconds 0.3 --rounds 1` for a look in between

Kong (one worker), Redis and the plugin server are started in a directory of their own and ended again. Without KONG,
one line and exit status 3. A row is a route with its plugins; all rows are measured in turn within each round, by 16
clients that send a POST of 60 bytes each and wait for its answer. Clients and upstream are one epoll loop in a process
of its own. Figures are medians over the rounds; ratios are made within a round.

`rps_<row>`, `p99_ms_<row>`     requests per second, 99th percentile of their time
`kong_us_<row>`, `server_us_<row>`, `redis_us_<row>`
                                CPU of Kong's worker, of the plugin server and of Redis per request, from /proc: less
                                at the mercy of what else the machine does than requests per second are, not free of
                                it (caches)
`x_trio_gateway`                rps of claude-gateway over that of Kong's jwt, rate-limiting (Redis, minute and hour)
                                and request-transformer
`x_trio_gateway_body`           the same where both change the body
`x_trio_apart`                  our three plugins apart over the trio
`x_trio_shipped`                kong.yml's route claude-invoke with its global plugins and guard, for 1,000 callers and
                                with leases taken, over the trio
`p99_vs_trio`                   p99 of claude-gateway over that of the trio
`…_pair`                        the same in a Kong that has the Lua half of our plugins (kong-claude guard --pair)

Rows: plain; jwt; trio; trio_body; claims (claude-jwt-claims alone); gateway; gateway_ed25519 (signed with a private
key); gateway_quiet (no rate limit headers for the client); gateway_body; apart; nothing (a plugin that makes
claude-gateway's calls and does nothing else); shipped.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.kong.load import Load
from bench.kong.processes import cpu_seconds, kong, plugin_server, redis
from bench.kong.rows import CALLERS, NOTHING, PAIR, kong_yml, names, request
from bench.machine import machine
from kong_claude import PLUGINS
from kong_claude.guard import LUA_PATH, PAIR_PATH


def measure(program: str, only: list[str], rounds: int, seconds: float) -> dict[str, Any]:
    if unknown := set(only) - set(names()):
        raise SystemExit(f"no row {', '.join(sorted(unknown))}: there are {', '.join(names())}")
    chosen = only or names()
    samples: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kc-")))
        load = Load()
        stack.callback(load.close)
        (folder / "plugins").mkdir()
        (folder / "plugins/bench-nothing.py").write_text(NOTHING)
        redis_port, redis_pid = stack.enter_context(redis(folder))
        (folder / "kong.json").write_text(json.dumps(kong_yml(load.port, redis_port)))
        ours, nothing = folder / "claude.sock", folder / "nothing.sock"
        ours_pid = stack.enter_context(plugin_server(folder, ours, PLUGINS))
        nothing_pid = stack.enter_context(plugin_server(folder, nothing, folder / "plugins"))
        servers = {path.stem: (ours, PLUGINS) for path in sorted(PLUGINS.glob("claude-*.py"))}
        servers["bench-nothing"] = (nothing, folder / "plugins")
        paths = {"": f"{LUA_PATH};;", PAIR: f"{PAIR_PATH};{LUA_PATH};;"}
        kongs = {
            kind: stack.enter_context(kong(program, folder, f"kong{kind}", servers, path))
            for kind, path in paths.items()
            if any(row.endswith(PAIR) == bool(kind) for row in chosen)
        }
        messages: dict[str, list[bytes]] = {}
        for row in chosen:
            base = row.removesuffix(PAIR)
            messages[row] = [request(base, caller) for caller in range(CALLERS if base == "shipped" else 1)]
            # Instances, connections, compiled code.
            load.run(kongs[PAIR if row.endswith(PAIR) else ""][0], messages[row], 0.3)
        for number in range(rounds):
            for row, sent in messages.items():
                port, worker = kongs[PAIR if row.endswith(PAIR) else ""]
                pids = {"kong": worker, "server": nothing_pid if row == "nothing" else ours_pid, "redis": redis_pid}
                load.run(port, sent, seconds / 5)
                before = {part: cpu_seconds(pid) for part, pid in pids.items()}
                rate, times = load.run(port, sent, seconds)
                time.sleep(0.02)  # the last log phases
                figures = {
                    f"{part}_us": (cpu_seconds(pid) - before[part]) / len(times) * 1e6 for part, pid in pids.items()
                }
                figures |= {"rps": rate, "p99_ms": times[len(times) * 99 // 100] * 1e3}
                for name, value in figures.items():
                    samples.setdefault(row, {}).setdefault(name, []).append(value)
                shown = ", ".join(f"{name} {value:,.1f}" for name, value in figures.items())
                print(f"round {number + 1}, {row}: {shown}", file=sys.stderr, flush=True)
    return summary(samples)


def summary(samples: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Medians, and ratios of one round each."""
    found: dict[str, Any] = {}
    for kind in ("", PAIR):
        ratios = {
            f"x_trio_gateway{kind}": (f"gateway{kind}", "trio", "rps"),
            f"x_trio_gateway_body{kind}": (f"gateway_body{kind}", "trio_body", "rps"),
            f"x_trio_apart{kind}": (f"apart{kind}", "trio", "rps"),
            f"x_trio_shipped{kind}": (f"shipped{kind}", "trio", "rps"),
            f"p99_vs_trio{kind}": (f"gateway{kind}", "trio", "p99_ms"),
        }
        for key, (ours, peer, figure) in ratios.items():
            if ours in samples and peer in samples:
                pairs = zip(samples[ours][figure], samples[peer][figure], strict=True)
                found[key] = round(statistics.median(one / other for one, other in pairs), 2)
    for row, figures in samples.items():
        found |= {f"{name}_{row}": round(statistics.median(values), 2) for name, values in figures.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help="only these")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    program = shutil.which(os.environ.get("KONG", ""))
    if program is None:
        print("bench.kong needs a real Kong 3.9: set KONG to the path of its program", file=sys.stderr)
        sys.exit(3)
    figures = measure(program, options.rows, options.rounds, options.seconds)
    print(json.dumps({**figures, "machine": machine()}))


if __name__ == "__main__":
    main()
