"""The chain on a real Kong, against Kong's own plugins: `KONG=/usr/local/bin/kong python -m bench.kong [row ...]`.

    [--seconds 2.0] [--rounds 5]      of one measurement; `--seconds 0.3 --rounds 1` for a look in between

Kong (one worker), Redis and the plugin server are started in a directory of their own and ended again. Without KONG,
one line and exit status 3. A row is a route with its plugins; all rows are measured in turn within each round, by 16
clients that send a POST of 60 bytes each and wait for its answer. Clients and upstream are one epoll loop in a process
of its own. Figures are medians over the rounds; ratios are made within a round.

`rps_<row>`, `p99_ms_<row>`     requests per second, 99th percentile of their time
`kong_us_<row>`, `server_us_<row>`, `redis_us_<row>`
                                CPU of Kong's worker, of the plugin server and of Redis per request, from /proc: less
                                at the mercy of what else the machine does than requests per second are
`x_trio_gateway`                rps of claude-gateway over that of Kong's jwt, rate-limiting (Redis, minute and hour)
                                and request-transformer
`x_trio_gateway_body`           the same where both change the body
`x_trio_apart`                  our three plugins apart over the trio
`x_trio_shipped`                kong.yml's route claude-invoke with its global plugins and guard, for 1,000 callers and
                                with leases taken, over the trio
`p99_vs_trio`                   p99 of claude-gateway over that of the trio

Rows: plain; jwt; trio; trio_body; claims (claude-jwt-claims alone); gateway; gateway_ed25519 (signed with a private
key); gateway_quiet (no rate limit headers for the client); gateway_body; apart; nothing (a plugin that makes
claude-gateway's calls and does nothing else); shipped.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import jwt
import yaml

from bench.chain import JWT, PROMPT, SECRET, TOKEN_SECRET
from bench.machine import machine
from claude_contract.attestation import new_private_key
from kong_claude import PLUGINS
from kong_claude.guard import LUA_PATH
from kong_claude_local.stack import redis_binary

ROOT = Path(__file__).parents[1]
CLIENTS = 16
CALLERS = 1000
MANY = 100_000_000  # nobody is refused
TIMEOUT_MS = 5000  # for Redis, of ours and of Kong's plugin: a busy machine is no error
BODY = b'{"prompt": "Explain this function.", "system": "Be brief."  }'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nup\n"
# What claude-gateway asks and tells for a request that passes, without finding anything out.
NOTHING = """
version, priority = "1", 1440
HEADERS = {"X-RateLimit-Limit-Minute": "10", "X-RateLimit-Remaining-Minute": "9", "X-RateLimit-Limit-Hour": "10",
           "X-RateLimit-Remaining-Hour": "9", "RateLimit-Limit": "10", "RateLimit-Remaining": "9",
           "RateLimit-Reset": "60", "RateLimit-Policy": '"minute";q=10;w=60, "hour";q=10;w=3600',
           "RateLimit": '"minute";r=9;t=60'}
class Plugin:
    def __init__(self, config):
        pass
    def access(self, kong):
        kong.request.get_headers(1000)
        kong.service.request.set_headers({"X-Claude-Attestation": "x" * 700, "X-Claude-Subject": "ada",
                                          "X-Claude-Context": "v=1"})
        kong.response.set_headers(HEADERS)
        kong.ctx.shared.set("claude_nothing", {"claude_identity": {"sub": "ada"}, "mark": "x"})
    def log(self, kong):
        pass
"""

Plugins = list[tuple[str, dict[str, Any]]]


def rows(redis_port: int, private_key: str) -> dict[str, Plugins]:
    """Row → plugins of its route."""
    limits: dict[str, Any] = {
        "policy": "redis",
        "redis_url": f"redis://127.0.0.1:{redis_port}",
        "timeout_ms": TIMEOUT_MS,
        "default_tier": "pro",
        "tiers": [{"name": "pro", "minute": MANY, "hour": MANY}],
    }
    trio: Plugins = [
        ("jwt", {}),
        ("rate-limiting", {"minute": MANY, "hour": MANY, "policy": "redis",
                           "redis": {"host": "127.0.0.1", "port": redis_port, "timeout": TIMEOUT_MS}}),
    ]  # fmt: skip
    added = ["X-Gateway: kong", "X-Team: bench", "X-Note: added"]
    keyed = {"private_key": private_key}
    return {
        "plain": [],
        "jwt": [("jwt", {})],
        "trio": [*trio, ("request-transformer", {"add": {"headers": added}})],
        "trio_body": [
            *trio,
            ("request-transformer", {"add": {"headers": added, "body": ["context:You review code."]}}),
        ],
        "claims": [("claude-jwt-claims", signed("claims", JWT))],
        "gateway": gateway("gateway", limits, PROMPT),
        "gateway_ed25519": gateway("gateway_ed25519", limits, PROMPT, keyed),
        "gateway_quiet": gateway("gateway_quiet", {**limits, "hide_client_headers": True}, PROMPT),
        "gateway_body": gateway("gateway_body", limits, {**PROMPT, "apply": "body"}),
        "apart": [
            ("claude-jwt-claims", signed("apart", JWT)),
            ("claude-rate-tiers", signed("apart", limits)),
            ("claude-prompt-context", signed("apart", PROMPT)),
        ],
        "nothing": [("bench-nothing", {})],
    }


def signed(row: str, config: dict[str, Any], key: dict[str, str] | None = None) -> dict[str, Any]:
    return {**config, "attestation": {**(key or {"secret": SECRET}), "request": f"POST /{row}"}}


def gateway(row: str, limits: dict[str, Any], prompt: dict[str, Any], key: dict[str, str] | None = None) -> Plugins:
    return [("claude-gateway", signed(row, {"jwt_claims": JWT, "rate_tiers": limits, "prompt_context": prompt}, key))]


def shipped(upstream: int, redis_port: int, private_key: str) -> dict[str, Any]:
    """kong.yml's service with its route claude-invoke and the global plugins, with this bench's keys and addresses.

    Limits are such that nobody is refused. What runs behind the gateway ends no lease, so that leases last five
    seconds: each caller has some twenty of them.
    """
    known = {
        "{vault://env/claude-jwt-secret}": TOKEN_SECRET,
        "{vault://env/claude-redis-url}": f"redis://127.0.0.1:{redis_port}",
        "{vault://env/claude-attestation-key}": private_key,
    }

    def resolved(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: resolved(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [resolved(inner) for inner in value]
        return known.get(value, value) if isinstance(value, str) else value

    config = resolved(yaml.safe_load((ROOT / "kong.yml").read_text()))
    service = next(s for s in config["services"] if s["name"] == "claude-code-service")
    (route,) = (r for r in service["routes"] if r["name"] == "claude-invoke")
    plugin = route["plugins"][0]["config"]
    plugin["attestation"]["request"] = "POST /shipped"
    plugin["jwt_claims"]["issuers"][0]["issuer"] = "bench"
    limits = plugin["rate_tiers"]
    limits |= {"lease_ttl": 5, "timeout_ms": TIMEOUT_MS}
    for tier in limits["tiers"]:
        for name in ("minute", "hour", "concurrent"):
            tier[name] = MANY
        tier["usd_per_day"] = 1_000_000
    route |= {"name": "shipped", "paths": ["~/shipped$"]}
    # The same plugins as globally, but not for the other rows.
    route["plugins"] += [p for p in config["plugins"] if p["name"] in ("correlation-id", "claude-metrics")]
    return {**service, "name": "shipped", "url": f"http://127.0.0.1:{upstream}", "routes": [route]}


def kong_yml(upstream: int, redis_port: int) -> dict[str, Any]:
    private_key = new_private_key()
    routes = [
        {
            "name": row,
            "paths": [f"/{row}"],
            "strip_path": False,
            "plugins": [{"name": name, "config": config} for name, config in plugins],
        }
        for row, plugins in rows(redis_port, private_key).items()
    ]
    return {
        "_format_version": "3.0",
        "services": [
            {"name": "bench", "url": f"http://127.0.0.1:{upstream}", "routes": routes},
            shipped(upstream, redis_port, private_key),
        ],
        "consumers": [
            {"username": "bench", "jwt_secrets": [{"key": "bench", "algorithm": "HS256", "secret": TOKEN_SECRET}]}
        ],
    }


def token(caller: int) -> str:
    claims = {"iss": "bench", "sub": f"user-{caller}", "aud": "claude-code", "tier": "pro", "roles": ["claude:invoke"]}
    return jwt.encode({**claims, "exp": int(time.time()) + 86400}, TOKEN_SECRET, algorithm="HS256")


def request(row: str, caller: int) -> bytes:
    head = [
        f"POST /{row} HTTP/1.1",
        "Host: bench.test",
        "User-Agent: bench",
        "Accept: */*",
        "Content-Type: application/json",
        f"Content-Length: {len(BODY)}",
        f"Authorization: Bearer {token(caller)}",
        "X-Repo: org/app",
        "X-Branch: main",
    ]
    if row != "shipped":  # there correlation-id makes one
        head.append("X-Request-Id: 0123456789abcdef")
    return "\r\n".join([*head, "", ""]).encode() + BODY


class Load:
    """The clients and the upstream, in one epoll loop: what they cost is the same for every row."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.listening.setblocking(False)
        self.epoll.register(self.listening, select.EPOLLIN)
        self.upstream: dict[int, tuple[socket.socket, bytearray]] = {}

    @property
    def port(self) -> int:
        return int(self.listening.getsockname()[1])

    def run(self, port: int, messages: list[bytes], seconds: float) -> tuple[float, list[float]]:
        """Requests per second, and their times in seconds, sorted. Raises RuntimeError for any answer but 200."""
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(CLIENTS)]
        by_fd = {sock.fileno(): sock for sock in clients}
        for sock in clients:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.epoll.register(sock, select.EPOLLIN)
        clock, next_message = time.perf_counter, cycle(messages).__next__
        started: dict[int, float] = {}
        times: list[float] = []
        begin = clock()
        end = begin + seconds
        for fd, sock in by_fd.items():
            started[fd] = clock()
            sock.send(next_message())
        while started:
            ready = self.epoll.poll(30)
            if not ready:
                raise TimeoutError("Kong does not answer")
            for fd, _ in ready:
                client = by_fd.get(fd)
                if client is None:
                    self.serve(fd)
                    continue
                data = client.recv(65536)
                if not data.endswith(b"up\n"):
                    data += rest(client, data)
                if not data.startswith(b"HTTP/1.1 200"):
                    raise RuntimeError(f"not 200: {data[:600].decode(errors='replace')}")
                now = clock()
                times.append(now - started[fd])
                if now > end:
                    del started[fd]
                else:
                    started[fd] = now
                    client.send(next_message())
        elapsed = clock() - begin
        for sock in clients:
            self.epoll.unregister(sock)
            sock.close()
        times.sort()
        return len(times) / elapsed, times

    def serve(self, fd: int) -> None:
        """What an upstream does: takes a whole request, answers."""
        if fd == self.listening.fileno():
            sock = self.listening.accept()[0]
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.upstream[sock.fileno()] = (sock, bytearray())
            self.epoll.register(sock, select.EPOLLIN)
            return
        sock, seen = self.upstream[fd]
        data = sock.recv(65536)
        if not data:
            self.epoll.unregister(sock)
            del self.upstream[fd]
            sock.close()
            return
        seen += data
        if seen.endswith(b"}"):  # Kong sends one request at a time; its head ends in no brace
            seen.clear()
            sock.send(ANSWER)

    def close(self) -> None:
        for sock, _ in self.upstream.values():
            sock.close()
        self.listening.close()
        self.epoll.close()


def rest(client: socket.socket, data: bytes) -> bytes:
    """The remainder of an answer that did not come at once; of a refusal whatever is there."""
    found = b""
    client.settimeout(2)
    while data.startswith(b"HTTP/1.1 200") and not (data + found).endswith(b"up\n"):
        found += client.recv(65536)
    client.settimeout(None)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Raises OSError where nobody does."""
    with socket.create_connection(("127.0.0.1", port)):
        return True


def wait_for(what: Callable[[], Any], name: str, seconds: float = 60) -> Any:
    """What it returns when that is true. OSErrors count as not yet."""
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        try:
            if found := what():
                return found
        except OSError:
            pass
        time.sleep(0.05)
    raise TimeoutError(f"{name} did not come up")


@contextmanager
def process(*command: str) -> Iterator[int]:
    """The pid of a child that is ended with the block."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        yield child.pid
    finally:
        child.terminate()
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextmanager
def plugin_server(folder: Path, socket_path: Path, plugins: Path) -> Iterator[int]:
    # As docker-compose.yml has it.
    command = [sys.executable, "-m", "kong_claude.server", "-d", str(plugins), "-p", str(folder)]
    with process(*command, "--socket-name", socket_path.name, "--no-lua-style", "--event-timeout", "2") as pid:
        wait_for(socket_path.exists, "the plugin server")
        yield pid


@contextmanager
def kong(program: str, folder: Path, servers: dict[str, tuple[Path, Path]]) -> Iterator[tuple[int, int]]:
    """(port, worker's pid) of a Kong with `servers`: plugin → (socket, directory of its file)."""
    port, prefix = free_port(), folder / "kong"
    bundled = "bundled,claude-guard,claude-guard-tiers,claude-guard-context"
    settings = {
        "PREFIX": str(prefix),
        "DATABASE": "off",
        "DECLARATIVE_CONFIG": str(folder / "kong.json"),
        "PROXY_LISTEN": f"127.0.0.1:{port}",
        "PROXY_ACCESS_LOG": "off",
        "ADMIN_LISTEN": "off",
        "ADMIN_GUI_LISTEN": "off",
        "STATUS_LISTEN": "off",
        "ANONYMOUS_REPORTS": "off",
        "NGINX_WORKER_PROCESSES": "1",
        "NGINX_HTTP_CLIENT_BODY_BUFFER_SIZE": "1m",
        "LUA_PACKAGE_PATH": f"{LUA_PATH};;",
        "PLUGINS": ",".join((bundled, *servers)),
        "PLUGINSERVER_NAMES": ",".join(servers),
    }
    if os.geteuid() == 0:
        settings["NGINX_USER"] = "root root"  # else the worker could not reach the sockets
    for plugin, (socket_path, directory) in servers.items():
        key = f"PLUGINSERVER_{plugin.upper().replace('-', '_')}"
        dump = [sys.executable, "-m", "kong_claude.server", "-d", str(directory), "--dump", plugin]
        settings |= {f"{key}_SOCKET": str(socket_path), f"{key}_QUERY_CMD": shlex.join(dump)}
    own = {name: value for name, value in os.environ.items() if not name.startswith("KONG_")}
    environment = own | {f"KONG_{name}": value for name, value in settings.items()}

    def call(verb: str) -> None:
        subprocess.run(
            [program, verb, "-p", str(prefix)], env=environment, check=True, stdout=subprocess.DEVNULL, timeout=120
        )

    call("start")
    master = int((prefix / "pids/nginx.pid").read_text())
    try:
        worker = wait_for(lambda: worker_of(master), "Kong's worker")
        wait_for(lambda: listens(port), "Kong")
        yield port, worker
    finally:
        call("stop")
        try:
            wait_for(lambda: not Path(f"/proc/{master}").exists(), "Kong's end", 20)
        except TimeoutError:
            os.kill(master, signal.SIGKILL)


def worker_of(master: int) -> int | None:
    children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    named = [int(pid) for pid in children if b"worker process" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return named[0] if len(named) == 1 else None


def cpu_seconds(pid: int) -> float:
    """User and system time of the process with all its threads, those that ended too."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(program: str, only: list[str], rounds: int, seconds: float) -> dict[str, Any]:
    samples: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kc-")))
        load = Load()
        stack.callback(load.close)
        (folder / "plugins").mkdir()
        (folder / "plugins/bench-nothing.py").write_text(NOTHING)
        redis_port = free_port()
        arguments = ["--port", str(redis_port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
        redis_pid = stack.enter_context(process(redis_binary(), *arguments))
        wait_for(lambda: listens(redis_port), "Redis")
        (folder / "kong.json").write_text(json.dumps(kong_yml(load.port, redis_port)))
        ours, nothing = folder / "claude.sock", folder / "nothing.sock"
        ours_pid = stack.enter_context(plugin_server(folder, ours, PLUGINS))
        nothing_pid = stack.enter_context(plugin_server(folder, nothing, folder / "plugins"))
        servers = {path.stem: (ours, PLUGINS) for path in sorted(PLUGINS.glob("claude-*.py"))}
        servers["bench-nothing"] = (nothing, folder / "plugins")
        port, worker = stack.enter_context(kong(program, folder, servers))
        names = [*rows(0, ""), "shipped"]
        if unknown := set(only) - set(names):
            raise SystemExit(f"no row {', '.join(sorted(unknown))}: there are {', '.join(names)}")
        messages = {
            row: [request(row, caller) for caller in range(CALLERS if row == "shipped" else 1)]
            for row in (only or names)
        }
        for row in messages:
            load.run(port, messages[row], 0.3)  # instances, connections, compiled code
        for number in range(rounds):
            for row, sent in messages.items():
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
    ratios = {
        "x_trio_gateway": ("gateway", "trio", "rps"),
        "x_trio_gateway_body": ("gateway_body", "trio_body", "rps"),
        "x_trio_apart": ("apart", "trio", "rps"),
        "x_trio_shipped": ("shipped", "trio", "rps"),
        "p99_vs_trio": ("gateway", "trio", "p99_ms"),
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
