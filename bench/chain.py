"""What the plugins add to a request through minikong: `python -m bench.chain [seconds of load per route]`.

One plugin server, one Redis, one service; a route per arrangement. For each suffix (`_jwt`, `_rate`, `_prompt`,
`_metrics`, `_all` the three apart, `_gateway` fused, `_gateway_quiet` without rate limit headers for the client,
`_gateway_body` with the prompt rewritten in the body):

`added_ms_p50`, `added_ms_p99`  one client, interleaved with a route without plugins, quantile minus quantile
`rps`                           16 clients
`pdk_calls`, `pdk_calls_log`    before the upstream is asked, and in the log phase
`rpc_round_trips`               all frames from Kong: events and answers to calls, both phases
`redis_round_trips`             commands that reached Redis

Calls are counted on the wire by a proxy in front of the plugin server, Redis commands by MONITOR; neither is there
while times are taken. `x_added_gateway` is added_ms_p50_gateway over added_ms_p50_all.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import jwt
import msgpack
import redis.asyncio
import uvloop

from bench.machine import machine
from kong_claude import PLUGINS
from kong_claude_local.stack import redis_binary

ROOT = Path(__file__).parents[1]
SECRET = "0123456789abcdef0123456789abcdef"
TOKEN_SECRET = "abcdefghijklmnopqrstuvwxyz012345"
BODY = json.dumps({"prompt": "Explain this function.", "system": "Be brief.", "model": "haiku"}).encode()
SAMPLES = 300
COUNTED = 5
CLIENTS = 16
JWT: dict[str, Any] = {
    "issuers": [{"issuer": "bench", "algorithms": ["HS256"], "secret": TOKEN_SECRET}],
    "audience": ["claude-code"],
    "rules": [{"claim": "roles", "any_of": ["claude:invoke"]}],
}
PROMPT: dict[str, Any] = {
    "prepend": "You are a code review assistant. ",
    "apply": "attested",
    "context": {"repository": {"source": "header:X-Repo"}, "branch": {"source": "header:X-Branch"}},
}


def rate(redis_url: str, **more: Any) -> dict[str, Any]:
    tier = {"name": "pro", "minute": 10_000_000, "hour": 100_000_000}
    return {"policy": "redis", "redis_url": redis_url, "default_tier": "pro", "tiers": [tier], **more}


def routes(redis_url: str) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Suffix → plugins of the route /<suffix>."""
    return {
        "plain": [],
        "jwt": [("claude-jwt-claims", JWT)],
        # By a header, as in a chain, where the identity comes with the headers: no call for the address.
        "rate": [("claude-rate-tiers", rate(redis_url, limit_by="header", header_name="X-Repo"))],
        "prompt": [("claude-prompt-context", PROMPT)],
        "metrics": [("claude-metrics", {})],
        "all": [("claude-jwt-claims", JWT), ("claude-rate-tiers", rate(redis_url)), ("claude-prompt-context", PROMPT)],
        "gateway": gateway(rate(redis_url), PROMPT),
        "gateway_quiet": gateway(rate(redis_url, hide_client_headers=True), PROMPT),
        "gateway_body": gateway(rate(redis_url), {**PROMPT, "apply": "body"}),
    }


def gateway(rate_tiers: dict[str, Any], prompt_context: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [("claude-gateway", {"jwt_claims": JWT, "rate_tiers": rate_tiers, "prompt_context": prompt_context})]


def kong_yml(port: int, redis_url: str) -> dict[str, Any]:
    found = []
    for suffix, plugins in routes(redis_url).items():
        attestation = {"secret": SECRET, "request": f"POST /{suffix}"}
        entries = [
            {"name": name, "config": config if name == "claude-metrics" else {**config, "attestation": attestation}}
            for name, config in plugins
        ]
        found.append({"name": suffix, "paths": [f"/{suffix}"], "strip_path": False, "plugins": entries})
    service = {"name": "bench", "url": f"http://127.0.0.1:{port}", "routes": found}
    return {"_format_version": "3.0", "services": [service]}


class Service(asyncio.Protocol):
    """Reads a request with a length, answers at once."""

    ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nup\n"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.seen = cast(asyncio.Transport, transport), b""

    def data_received(self, data: bytes) -> None:
        self.seen += data
        while True:
            head, end, body = self.seen.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
            if not end or len(body) < length:
                return
            self.seen = body[length:]
            self.transport.write(self.ANSWER)


class Counts:
    """PDK calls and frames, as they pass between Kong and the plugin server."""

    def __init__(self) -> None:
        self.phase: dict[int, str] = {}
        self.calls: Counter[str] = Counter()
        self.frames = 0
        self.methods: dict[str, list[str]] = {"access": [], "log": []}

    async def serve(self, path: str, target: str) -> asyncio.Server:
        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            upstream, downstream = await asyncio.open_unix_connection(target)
            phases: dict[int, str] = {}
            last = {"msgid": 0, "phase": ""}
            await asyncio.gather(
                self.pipe(reader, downstream, lambda frame: self.from_kong(frame, phases, last)),
                self.pipe(upstream, writer, lambda frame: self.from_server(frame, phases, last)),
                return_exceptions=True,
            )
            writer.close()

        return await asyncio.start_unix_server(relay, path)

    async def pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, look: Any) -> None:
        frames = msgpack.Unpacker(strict_map_key=False, unicode_errors="surrogateescape")
        while data := await reader.read(1 << 16):
            frames.feed(data)
            for frame in frames:
                look(frame)
            writer.write(data)
        writer.close()

    def from_kong(self, frame: Any, phases: dict[int, str], last: dict[str, Any]) -> None:
        _, _, method, (argument,) = frame
        self.frames += method != "plugin.StartInstance"
        if method == "plugin.HandleEvent":
            last["phase"] = argument["EventName"]
        elif method.startswith("plugin.Step"):
            last["phase"] = phases.get(argument["EventId"], last["phase"])

    def from_server(self, frame: Any, phases: dict[int, str], last: dict[str, Any]) -> None:
        result = frame[3] if frame[0] == 1 else None
        if isinstance(result, dict) and "EventId" in result:
            phases[result["EventId"]] = last["phase"]
            if isinstance(result["Data"], dict):
                self.calls[last["phase"]] += 1
                self.methods.setdefault(last["phase"], []).append(result["Data"]["Method"])

    def reset(self) -> None:
        self.calls.clear()
        self.frames = 0
        self.methods = {"access": [], "log": []}


def request(suffix: str, token: str) -> bytes:
    head = [
        f"POST /{suffix} HTTP/1.1",
        "Host: bench.test",
        "User-Agent: bench",
        "Accept: */*",
        "Content-Type: application/json",
        f"Content-Length: {len(BODY)}",
        f"Authorization: Bearer {token}",
        "X-Request-Id: 0123456789abcdef",
        "X-Repo: org/app",
        "X-Branch: main",
    ]
    return "\r\n".join([*head, "", ""]).encode() + BODY


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: bytes) -> None:
    writer.write(message)
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"{message.split()[1].decode()}: {head.decode()}{(await reader.read(500)).decode()}")
    await reader.readuntil(b"up\n")


async def added(port: int, messages: dict[str, bytes]) -> dict[str, list[float]]:
    """Milliseconds per request, one client, the routes interleaved."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    times: dict[str, list[float]] = {suffix: [] for suffix in messages}
    for turn in range(SAMPLES + 20):
        for suffix in random.sample(sorted(messages), len(messages)):
            started = time.perf_counter()
            await ask(reader, writer, messages[suffix])
            if turn >= 20:
                times[suffix].append((time.perf_counter() - started) * 1000)
            await asyncio.sleep(0.001)  # the log phase of this request is not the next one's cost
    writer.close()
    return times


async def load(port: int, message: bytes, seconds: float) -> float:
    """Requests per second of CLIENTS clients."""
    stop = time.perf_counter() + seconds

    async def client() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        answered = 0
        while time.perf_counter() < stop:
            await ask(reader, writer, message)
            answered += 1
        writer.close()
        return answered

    started = time.perf_counter()
    answered = sum(await asyncio.gather(*(client() for _ in range(CLIENTS))))
    return answered / (time.perf_counter() - started)


async def count(port: int, messages: dict[str, bytes], counts: Counts, redis_url: str) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    connection = redis.asyncio.Redis.from_url(redis_url)
    seen: list[str] = []

    async def watch(monitor: Any) -> None:
        async for command in monitor.listen():
            if command["client_type"] != "lua":
                seen.append(command["command"])

    async with connection.monitor() as monitor:
        watching = asyncio.create_task(watch(monitor))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for suffix, message in messages.items():
            await ask(reader, writer, message)  # starts the instance, opens connections
            await asyncio.sleep(0.3)
            counts.reset()
            seen.clear()
            for _ in range(COUNTED):
                await ask(reader, writer, message)
            await asyncio.sleep(0.3)
            figures[f"pdk_calls_{suffix}"] = counts.calls["access"] / COUNTED
            figures[f"pdk_calls_log_{suffix}"] = counts.calls["log"] / COUNTED
            figures[f"rpc_round_trips_{suffix}"] = counts.frames / COUNTED
            figures[f"redis_round_trips_{suffix}"] = len(seen) / COUNTED
            calls = counts.methods["access"][: counts.calls["access"] // COUNTED]
            print(f"{suffix}: {', '.join(c.removeprefix('kong.') for c in calls) or 'no calls'}", file=sys.stderr)
        writer.close()
        watching.cancel()
    await connection.aclose()
    return figures


@contextlib.asynccontextmanager
async def process(*command: str, ready: str | Path, **env: str) -> AsyncIterator[None]:
    """A child until the block ends; `ready`: a socket to wait for, or host:port."""
    child = subprocess.Popen(command, env={**os.environ, **env}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                if isinstance(ready, Path):
                    _, writer = await asyncio.open_unix_connection(str(ready))
                else:
                    _, writer = await asyncio.open_connection(*ready.split(":"))
                writer.close()
                break
            except OSError:
                if child.poll() is not None:
                    raise RuntimeError(f"{shlex.join(command)} exited with {child.returncode}") from None
                await asyncio.sleep(0.05)
        yield
    finally:
        child.terminate()
        child.wait(20)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def kong(folder: Path, name: str, plugins: list[str], socket_path: Path) -> tuple[list[str], dict[str, str], int]:
    """minikong in front of a plugin server that is managed by somebody else."""
    port, prefix = free_port(), folder / name
    prefix.mkdir()
    environment = {
        "KONG_PREFIX": str(prefix),
        "KONG_DECLARATIVE_CONFIG": str(folder / "kong.json"),
        "KONG_PROXY_LISTEN": f"127.0.0.1:{port}",
        "KONG_ADMIN_LISTEN": "off",
        "KONG_PLUGINS": ",".join(("bundled", *plugins)),
        "KONG_PLUGINSERVER_NAMES": ",".join(plugins),
    }
    for plugin in plugins:
        key = f"KONG_PLUGINSERVER_{plugin.upper().replace('-', '_')}"
        environment[f"{key}_SOCKET"] = str(socket_path)
        environment[f"{key}_QUERY_CMD"] = shlex.join(
            [
                sys.executable,
                "-m",
                "kong_claude.server",
                "-d",
                str(PLUGINS),
                "--dump",
                plugin,
            ]
        )
    return [sys.executable, "-m", "minikong"], environment, port


async def measure(seconds: float) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    plugins = [path.stem for path in sorted((PLUGINS).glob("claude-*.py"))]
    with tempfile.TemporaryDirectory(prefix="kc-") as name:
        folder = Path(name)
        service = await loop.create_server(Service, "127.0.0.1", 0)
        redis_socket, plugin_socket, counted_socket = (folder / f"{n}.sock" for n in ("redis", "plugins", "counted"))
        redis_url = f"unix://{redis_socket}"
        config = kong_yml(service.sockets[0].getsockname()[1], redis_url)
        for route in config["services"][0]["routes"]:
            route["plugins"] = [entry for entry in route["plugins"] if entry["name"] in plugins]
        (folder / "kong.json").write_text(json.dumps(config))
        now = int(time.time())
        claims = {"iss": "bench", "sub": "ada", "aud": "claude-code", "roles": ["claude:invoke"], "exp": now + 3600}
        token = jwt.encode(claims, TOKEN_SECRET, algorithm="HS256")
        messages = {
            route["name"]: request(route["name"], token)
            for route in config["services"][0]["routes"]
            if route["plugins"] or route["name"] == "plain"
        }
        counts = Counts()
        relay = await counts.serve(str(counted_socket), str(plugin_socket))
        server = [
            sys.executable,
            "-m",
            "kong_claude.server",
            "-d",
            str(PLUGINS),
            "-p",
            name,
        ]
        server += ["--socket-name", plugin_socket.name]
        redis_command = [redis_binary(), "--port", "0", "--unixsocket", str(redis_socket), "--save", "", "--dir", name]
        async with (
            process(*redis_command, ready=redis_socket),
            process(*server, ready=plugin_socket),
        ):
            command, environment, port = kong(folder, "counting", plugins, counted_socket)
            async with process(*command, ready=f"127.0.0.1:{port}", **environment):
                figures = await count(port, messages, counts, redis_url)
            command, environment, port = kong(folder, "timing", plugins, plugin_socket)
            async with process(*command, ready=f"127.0.0.1:{port}", **environment):
                times = await added(port, messages)
                for suffix, message in messages.items():
                    figures[f"rps_{suffix}"] = round(await load(port, message, seconds), 1)
        relay.close()
        service.close()
    plain = times.pop("plain")
    for suffix, taken in times.items():
        figures[f"added_ms_p50_{suffix}"] = round(statistics.median(taken) - statistics.median(plain), 3)
        figures[f"added_ms_p99_{suffix}"] = round(percentile(taken, 99) - percentile(plain, 99), 3)
        print(f"{suffix}: +{figures[f'added_ms_p50_{suffix}']} ms, {figures[f'rps_{suffix}']}/s", file=sys.stderr)
    # What one PDK call costs: the same event with one more.
    figures["ms_per_pdk_call"] = round(figures["added_ms_p50_gateway"] - figures["added_ms_p50_gateway_quiet"], 3)
    figures["x_added_gateway"] = round(figures["added_ms_p50_gateway"] / figures["added_ms_p50_all"], 3)
    return figures


def percentile(values: list[float], rank: int) -> float:
    return statistics.quantiles(values, n=100)[rank - 1]


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 2.0
    figures = uvloop.run(measure(seconds))
    print(json.dumps({**figures, "machine": machine()}))


if __name__ == "__main__":
    main()
