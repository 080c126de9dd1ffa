"""The plugin server against kong-pdk's own (threads, -g) and against a floor, in events per second and CPU per event.

    python -m bench.pluginserver [--rounds 3] [--seconds 0.5]

One driver plays Kong for all four: `c` events at once over a pool of connections that is used last-in-first-out, each
event of `n` PDK calls. The servers are measured in turn within each round; figures are medians over the rounds. The
floor is a bare epoll loop that reads, decodes, looks up and answers the same frames as ours, without a plugin.
CPU is the server process's own, from /proc (10 ms ticks). Keys: `<server>_n<n>c<c>_<figure>`, the ratios
`x_stock_threads_*`, `x_stock_gevent_*` (events/s), `x_floor_cpu_*` (CPU per event), and ours as `p50_ms_*`, `p99_ms_*`.
`ours_n10c64_nil_*` and `ours_n10c64_idfirst_*`: the same with Kong's other forms of a Step.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import select
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgpack

from bench.machine import machine
from tests.support.kong_driver import Driver, plugin_server

CALLS = (0, 1, 3, 10)
CONCURRENCY = (1, 16, 64)
PLUGIN = """
version = "1"
class Plugin:
    def __init__(self, config):
        self.calls = range(config["calls"])
    def access(self, kong):
        for _ in self.calls:
            kong.request.get_header("authorization")
"""

# The driver shares the machine with what it measures, so it decodes nothing: it finds the EventId's bytes in an answer
# and sends frames whose beginnings, with msgid, are made beforehand.
HEADS = [b"\x94\x00" + msgpack.packb(msgid) for msgid in range(1, 4096)]
EVENT_ID, RET = msgpack.packb("EventId"), msgpack.packb("Data") + msgpack.packb("ret")
# What comes before and after the id in a Step. Kong's key order is each worker's own; a nil answer has no Data.
DATA, STEP = msgpack.packb("Data") + msgpack.packb("Bearer x"), msgpack.packb("plugin.Step") + b"\x91"
FORMS = {
    "value": (STEP + b"\x82" + DATA + EVENT_ID, b""),
    "idfirst": (STEP + b"\x82" + EVENT_ID, DATA),
    "nil": (STEP + b"\x81" + EVENT_ID, b""),
}
LENGTH = {0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9} | dict.fromkeys(range(0x80), 1)  # of a packed integer


class Load:
    """Kong's side: `run` keeps `concurrency` events going and returns (events/s, sorted latencies in s)."""

    def __init__(self, path: str, calls: int, form: str = "value") -> None:
        with Driver(path) as driver:
            instance = driver.start_instance("bench", {"calls": calls})
        pack = msgpack.packb
        arg = pack([{"InstanceId": instance, "EventName": "access"}])
        self.event = pack("plugin.HandleEvent") + arg
        self.before_id, self.after_id = FORMS[form]
        self.path = path
        self.pool: list[socket.socket] = []

    def run(self, concurrency: int, seconds: float) -> tuple[float, list[float]]:
        clock, event, before, after = time.perf_counter, self.event, self.before_id, self.after_id
        epoll = select.epoll()
        while len(self.pool) < concurrency:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.connect(self.path)
            self.pool.append(sock)
        # Last in, first out: an event's next frame goes out on the connection that its answer has just come in on.
        started, receive, send = {}, {}, {}
        for sock in self.pool[:concurrency]:
            fd = sock.fileno()
            epoll.register(fd, select.EPOLLIN)
            receive[fd], send[fd] = sock.recv, sock.send
        heads = itertools.cycle(HEADS)
        latencies: list[float] = []
        begin = clock()
        end = begin + seconds
        for fd, write in send.items():
            started[fd] = clock()
            write(next(heads) + event)
        while started:
            ready = epoll.poll(30)
            if not ready:
                raise TimeoutError("the server does not answer")
            for fd, _ in ready:
                answer = receive[fd](65536)
                if RET in answer:
                    now = clock()
                    latencies.append(now - started[fd])
                    if now > end:
                        del started[fd]
                    else:
                        started[fd] = now
                        send[fd](next(heads) + event)
                else:
                    at = answer.index(EVENT_ID) + len(EVENT_ID)
                    send[fd](next(heads) + before + answer[at : at + LENGTH[answer[at]]] + after)
        elapsed = clock() - begin
        epoll.close()
        latencies.sort()
        return len(latencies) / elapsed, latencies

    def close(self) -> None:
        for sock in self.pool:
            sock.close()


def floor(path: str) -> None:
    """Answers the frames of a plugin with n calls (its InstanceId is n) without running one."""
    unpack, pack = msgpack.unpackb, msgpack.Packer().pack
    call = b"\xa4Data\x82\xa6Method" + pack("kong.request.get_header") + b"\xa4Args"
    arguments = ("authorization",)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(path)
    listening.listen(128)
    epoll = select.epoll()
    epoll.register(listening.fileno(), select.EPOLLIN)
    connections: dict[int, socket.socket] = {}
    events: dict[int, list[Any]] = {}  # by EventId: calls still to make, the reply's constant middle
    next_event = 1 << 51
    while True:
        for fd, _ in epoll.poll():
            if fd == listening.fileno():
                sock = listening.accept()[0]
                sock.setblocking(False)
                connections[sock.fileno()] = sock
                epoll.register(sock.fileno(), select.EPOLLIN)
                continue
            sock = connections[fd]
            data = sock.recv(448)
            if not data:
                epoll.unregister(fd)
                connections.pop(fd).close()
                continue
            _, msgid, method, args = unpack(data)
            if method == "plugin.Step":
                event_id = args[0]["EventId"]
                event = events[event_id]
            elif method == "plugin.HandleEvent":
                event_id = next_event = next_event + 1
                event = events[event_id] = [args[0]["InstanceId"], b"\xc0\x82\xa7EventId" + pack(event_id)]
            else:
                reply = {"Id": json.loads(args[0]["Config"])["calls"]}
                sock.send(msgpack.packb([1, msgid, None, reply]))
                continue
            if event[0]:
                event[0] -= 1
                sock.send(b"\x94\x01" + pack(msgid) + event[1] + call + pack(arguments))
            else:
                del events[event_id]
                sock.send(b"\x94\x01" + pack(msgid) + event[1] + b"\xa4Data\xa3ret")


def cpu_seconds(pid: int) -> float:
    """User and system time of the process with all its threads, those that ended too."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(rounds: int, seconds: float, log: Any = sys.stderr) -> dict[str, float]:
    samples: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kc-")))
        (directory / "plugins").mkdir()
        (directory / "plugins/bench.py").write_text(PLUGIN)
        servers = {}
        for name, flags in {"ours": (), "stock_threads": (), "stock_gevent": ("-g",)}.items():
            server = stack.enter_context(
                plugin_server(directory / "plugins", "--no-lua-style", *flags, stock=name.startswith("stock"))
            )
            servers[name] = (server.socket_path, server.process.pid)
        path = str(directory / "floor.sock")
        process = subprocess.Popen([sys.executable, "-m", "bench.pluginserver", "--floor", path])
        stack.callback(process.wait)
        stack.callback(process.send_signal, signal.SIGTERM)
        while not os.path.exists(path):
            time.sleep(0.01)
        servers["floor"] = (path, process.pid)
        for calls in CALLS:
            loads = {name: Load(path, calls) for name, (path, _) in servers.items()}
            for concurrency in CONCURRENCY:
                key = f"n{calls}c{concurrency}"
                for _ in range(rounds):
                    for name, load in loads.items():
                        load.run(concurrency, seconds / 5)
                        before = cpu_seconds(servers[name][1])
                        rate, latencies = load.run(concurrency, seconds)
                        spent = cpu_seconds(servers[name][1]) - before
                        figures = {
                            "rps": rate,
                            "cpu_us": spent / len(latencies) * 1e6,
                            "p50_ms": latencies[len(latencies) // 2] * 1e3,
                            "p99_ms": latencies[len(latencies) * 99 // 100] * 1e3,
                        }
                        for figure, value in figures.items():
                            samples.setdefault(f"{name}_{key}", {}).setdefault(figure, []).append(value)
                medians = {name: _medians(samples[f"{name}_{key}"]) for name in servers}
                line = ", ".join(f"{n} {m['rps']:.0f}/s {m['cpu_us']:.1f} us" for n, m in medians.items())
                print(f"{key}: {line}", file=log, flush=True)
            for load in loads.values():
                load.close()
        for key in ("nil", "idfirst"):
            load = Load(servers["ours"][0], 10, key)
            for _ in range(rounds):
                load.run(64, seconds / 5)
                before = cpu_seconds(servers["ours"][1])
                _, latencies = load.run(64, seconds)
                spent = cpu_seconds(servers["ours"][1]) - before
                samples.setdefault(f"ours_n10c64_{key}", {}).setdefault("cpu_us", []).append(
                    spent / len(latencies) * 1e6
                )
            load.close()
    out: dict[str, float] = {}
    for key in ("nil", "idfirst"):
        out[f"ours_n10c64_{key}_cpu_us"] = round(_medians(samples[f"ours_n10c64_{key}"])["cpu_us"], 4)
    for calls in CALLS:
        for concurrency in CONCURRENCY:
            key = f"n{calls}c{concurrency}"
            m = {name: _medians(samples[f"{name}_{key}"]) for name in servers}
            for name, figures in m.items():
                out.update({f"{name}_{key}_{figure}": round(value, 4) for figure, value in figures.items()})
            ours = m["ours"]
            out[f"x_stock_threads_{key}"] = round(ours["rps"] / m["stock_threads"]["rps"], 2)
            out[f"x_stock_gevent_{key}"] = round(ours["rps"] / m["stock_gevent"]["rps"], 2)
            out[f"x_floor_cpu_{key}"] = round(ours["cpu_us"] / m["floor"]["cpu_us"], 2)
            out[f"p50_ms_{key}"] = round(ours["p50_ms"], 3)
            out[f"p99_ms_{key}"] = round(ours["p99_ms"], 3)
    return out


def _medians(figures: dict[str, list[float]]) -> dict[str, float]:
    return {figure: statistics.median(values) for figure, values in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.5, help="of one measurement")
    parser.add_argument("--floor", metavar="PATH", help="be the floor's server on this socket")
    args = parser.parse_args()
    if args.floor:
        floor(args.floor)
    print(json.dumps({**measure(args.rounds, args.seconds), "machine": machine()}))


if __name__ == "__main__":
    main()
