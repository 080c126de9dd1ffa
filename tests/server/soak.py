"""`python -m tests.server.soak [--events 100000]`: a long mixed load, and what is left after it.

Writes build/soak.json and prints it. Exits with 1 when the server's memory grew by more than 2 MB after the warm-up,
or when an event, a thread, a greenlet, a connection or a descriptor is left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import sys
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from tests.server.conftest import PLUGINS
from tests.support.kong_driver import Driver, Request, Server, plugin_server
from tests.support.waiting import HANG_S

# How often, of 1000. Abandoned and timed-out events live for the event timeout.
KINDS = {
    "normal": 550,
    "exit later": 150,
    "exit first": 100,
    "exception": 60,
    "exception first": 60,
    "body": 20,
    "large body back": 5,
    "abandoned": 30,
    "disconnected": 15,
    "timeout": 10,
}
WORKERS = 8
EVENT_TIMEOUT = 1.5  # a busy machine is too slow for less


def one_event(kong: Driver, instance: int, kind: str) -> None:
    """Plays one event of a kind and checks how it ended. Raises AssertionError."""
    if kind in ("exit first", "exception first"):
        event = kong.handle(instance, "log" if kind == "exit first" else "rewrite")
        assert event.exit is not None and event.exit.status == (200 if kind == "exit first" else 503)
        return
    if kind in ("abandoned", "disconnected"):
        arg = {"InstanceId": instance, "EventName": "access"}
        first = kong.call("plugin.HandleEvent", arg)
        kong.call("plugin.Step", {"EventId": first["EventId"], "Data": "abandoned"})
        if kind == "disconnected":
            kong.close()
        return
    body = bytes(1 << 20) if kind == "body" else b""
    event = kong.handle(instance, "access", Request(headers={"X-Kind": kind, "Host": "h"}, body=body))
    status = {"exit later": 403, "exception": 503, "timeout": 503}.get(kind)
    assert (event.exit.status if event.exit else None) == status, (kind, event)


def load(server: Server, instance: int, events: int, seed: int) -> Counter[str]:
    """Plays `events` mixed events over a few connections at once."""
    done: Counter[str] = Counter()
    failures: list[BaseException] = []
    lock = threading.Lock()

    def worker(number: int) -> None:
        chosen = random.Random(f"{seed}.{number}")
        kinds = chosen.choices(list(KINDS), list(KINDS.values()), k=events // WORKERS)
        try:
            with server.driver() as kong:
                for kind in kinds:
                    one_event(kong, instance, kind)
            with lock:
                done.update(kinds)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=worker, args=(n,)) for n in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return done


def left(server: Server, port: int) -> dict[str, float]:
    """What the server holds, at rest: its own view and the kernel's."""
    time.sleep(EVENT_TIMEOUT + 1)
    pid = server.process.pid
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=HANG_S).read().decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    time.sleep(0.2)
    return {
        "rss": int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE"),
        "threads": len(os.listdir(f"/proc/{pid}/task")),
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "events": float(values["pluginserver_events_in_flight"]),
        "connections": float(values["pluginserver_connections"]),
        "greenlets": float(values["pluginserver_busy_greenlets"]),
    }


def soak(events: int, warm_up: int) -> dict[str, Any]:
    """The figures of build/soak.json."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = ("--event-timeout", str(EVENT_TIMEOUT), "--metrics-listen", f"127.0.0.1:{port}", "--no-lua-style")
    with plugin_server(PLUGINS, *flags) as server:
        with server.driver() as kong:
            instance = kong.start_instance("soak")
        load(server, instance, warm_up, seed=0)
        before = left(server, port)
        begin = time.monotonic()
        done = load(server, instance, events, seed=1)
        seconds = time.monotonic() - begin
        after = left(server, port)
    return {
        "events": done.total(),
        "seconds": round(seconds, 1),
        "rss_growth_bytes": after["rss"] - before["rss"],
        **{f"left_{key}": after[key] - before[key] for key in after if key != "rss"},
        **{f"kind_{key.replace(' ', '_')}": value for key, value in sorted(done.items())},
    }


def clean(result: dict[str, Any]) -> bool:
    return result["rss_growth_bytes"] <= 2 << 20 and all(
        value <= 0 for key, value in result.items() if key.startswith("left_")
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--warm-up", type=int, default=20_000)
    args = parser.parse_args()
    result = soak(args.events, args.warm_up)
    out = Path("build/soak.json")
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0 if clean(result) else 1


if __name__ == "__main__":
    sys.exit(main())
