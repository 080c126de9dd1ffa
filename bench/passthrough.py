"""What stands between a client and the API for a request to a model itself: `python -m bench.passthrough [--rounds N]`.

Each round asks the same upstream once directly and once by each way that is measured, so that a busy machine is busy
for all. The body is as large as Claude Code's (48 KB); time is from sending it to the first byte of the answer's body.

| key | meaning |
|---|---|
| `direct_ms_p50` | the upstream asked directly |
| `added_nothing_ms_p50`, `added_nothing_ms_p99` | asked directly a second time: what of the others is the machine's |
| `added_proxy_ms_p50`, `added_proxy_ms_p99` | by the metering proxy alone, for nobody's money |
| `added_ms_p50`, `added_ms_p99` | by the invoker and its metering proxy, with attestation, ledger and journal |
| `added_kong_ms_p50`, `added_kong_ms_p99` | by the whole stack on a real Kong (`KONG=` its program): plugins, invoker |
| `added_minikong_ms_p50`, `added_minikong_ms_p99` | by the whole stack on minikong, its stand-in |
| `streams_200_merged_chunks` | pieces that did not come one by one, of 200 streams that are open at the same time |
| `kb_per_stream` | memory of invoker and proxy with these open, less that with none, for each |
| `cpu_ms_per_request` | CPU time of both for a request with a short answer |
| `cpu_ms_per_mb` | CPU time of both for a megabyte that is streamed, in pieces of 480 bytes, 20 ms apart |
| `relay_ms_per_mb` | the same of a process that does nothing but pass the pieces on (`bench.relay`) |
| `litellm_ms_per_request`, `litellm_ms_per_mb` | the same of LiteLLM's proxy, with `--litellm` |
| `cpu_vs_litellm`, `cpu_request_vs_litellm` | ours ÷ LiteLLM's, for a megabyte and for a request |
| `relay_vs_litellm` | that relay's ÷ LiteLLM's, for a megabyte |

`make bench-passthrough` installs LiteLLM into an environment of its own, below `build/`, and compares with it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import psutil
import uvloop

from bench.machine import machine
from claude_contract import ledger
from claude_contract.attestation import HEADER, Signer
from claude_invoker.metering.control import Metering, Settings, Terms
from claude_invoker.metering.figures import Figures
from tests.e2e.conftest import Gateway, standing
from tests.invoker.conftest import KEY, clean_environment, free_port, wait_for
from tests.rate_tiers.servers import RedisProcess
from tests.support.attest import signed

STREAMS = 200
PIECES, PIECE = 100, 400  # of a stream, and bytes of a piece's text
PAUSES_S = {b"?slow": 0.1, b"?paced": 0.02}
ROUNDS, AT_ONCE = 5, 10  # of what is measured of CPU
MODEL = "claude-haiku-4-5"
PATH = "/v1/messages"
SECRET = "s" * 32
SIGNER = Signer("1", SECRET.encode(), {"1": SECRET.encode()})
SLOT = ledger.Slot(concurrent=100_000, day_micro_usd=10**12, ttl_ms=60_000)
CHECKS = ["jwt-claims", "prompt-context", "rate-tiers"]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def body(size: int = 48_000, kind: str = "") -> bytes:
    """`kind`: of the answer, see `Upstream`."""
    prompt = "[[say " + "word " * 8 + f"]] {kind}"
    message = [{"role": "user", "content": prompt}]
    given = {"model": MODEL, "max_tokens": 1000, "stream": True, "system": "x" * size, "messages": message}
    return json.dumps(given).encode()


class Upstream(asyncio.Protocol):
    """Streams a message: at once, or where the prompt says so (`PAUSES_S`) a piece now and then; with `?short` it has
    one piece of text."""

    def __init__(self) -> None:
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        self._rest += data
        head, found, content = self._rest.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(content) < length:
            return
        self._rest = content[length:]
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        pieces = _pieces(1 if b"?short" in content else PIECES)
        pause_s = next((pause_s for kind, pause_s in PAUSES_S.items() if kind in content), None)
        if pause_s is not None:
            self._next(pieces, pause_s)
        else:
            for piece in pieces:
                self._transport.write(piece)

    def _next(self, pieces: Iterator[bytes], pause_s: float) -> None:
        piece = next(pieces, None)
        if piece is not None:
            self._transport.write(piece)
            asyncio.get_running_loop().call_later(pause_s, self._next, pieces, pause_s)


def _pieces(count: int) -> Iterator[bytes]:
    """Each as a chunk of HTTP, the last one the end."""

    def chunk(name: str, **members: Any) -> bytes:
        event = b"event: %s\ndata: %s\n\n" % (name.encode(), json.dumps({"type": name, **members}).encode())
        return b"%x\r\n%s\r\n" % (len(event), event)

    usage = {"input_tokens": 12, "output_tokens": 1}
    yield chunk("message_start", message={"id": "msg_1", "model": MODEL, "role": "assistant", "usage": usage})
    yield chunk("content_block_start", index=0, content_block={"type": "text", "text": ""})
    for _ in range(count):
        yield chunk("content_block_delta", index=0, delta={"type": "text_delta", "text": "a" * PIECE})
    yield chunk("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": count})
    yield chunk("message_stop")
    yield b"0\r\n\r\n"


async def upstream(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


class Client:
    """One connection that is kept: what httpx would take is no part of the measurement."""

    def __init__(self, url: str, socket_path: Path | None = None) -> None:
        """`socket_path`: of the unix socket, where it is one."""
        parts = urlsplit(url)
        self._place = (parts.hostname or "", parts.port or 80)
        self._socket = socket_path
        self._path = parts.path
        self._reader: asyncio.StreamReader | None = None

    async def open(self) -> None:
        if self._socket is not None:
            self._reader, self._writer = await asyncio.open_unix_connection(self._socket, limit=1 << 20)
        else:
            self._reader, self._writer = await asyncio.open_connection(*self._place, limit=1 << 20)

    async def ask(self, content: bytes, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
        """The chunks of the answer, as they are on the wire."""
        if self._reader is None:
            await self.open()
        reader = self._reader
        assert reader is not None
        given = {"host": "api", "content-type": "application/json", "content-length": str(len(content)), **headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        self._writer.write(f"POST {self._path} HTTP/1.1\r\n{head}\r\n".encode() + content)
        answered = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in answered.partition(b"\r\n")[0]:
            raise RuntimeError(answered.decode() + (await reader.read(2000)).decode())
        while size := int(await reader.readline(), 16):
            chunk = await reader.readexactly(size + 2)
            yield chunk[:-2]
        await reader.readexactly(2)
        if b"connection: close" in answered:
            self.close()
            self._reader = None

    async def first_ms(self, content: bytes, headers: Mapping[str, str]) -> float:
        began, first = time.perf_counter(), 0.0
        async for _ in self.ask(content, headers):
            first = first or time.perf_counter()
        return 1000 * (first - began)

    def close(self) -> None:
        if self._reader is not None:
            self._writer.close()


class Attesting:
    """As the gateway lets a message in: each with an attestation and a lease of its own."""

    def head(self, content: bytes, number: int) -> dict[str, str]:
        lease = ledger.Lease.new(ledger.NAMESPACE, f"sub-{number % 50}", message=True)
        claims: dict[str, Any] = {
            "sub": "sub",
            "chk": CHECKS,
            "tier": "team",
            "msg": True,
            "lease": str(lease),
            "slot": SLOT.claim(),
        }
        clamp = {"models": ["haiku"], "max_usd": 5}
        return {HEADER: signed(SIGNER, "POST", f"/claude{PATH}", clamp=clamp, **claims)}


@contextmanager
def started(command: list[str], environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, env=dict(environment), stdout=log.open("wb"), stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def both(invoker: int) -> list[psutil.Process]:
    """The invoker, and its metering proxy."""
    found = psutil.Process(invoker)
    return [found, *(child for child in found.children() if "claude_invoker.metering" in child.cmdline())]


def memory(processes: list[psutil.Process]) -> int:
    return sum(process.memory_full_info().uss for process in processes)


def cpu_s(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


Way = tuple[Client, Callable[[], dict[str, str]]]
"""By whom to ask, and the headers of the next request."""


async def added(rounds: int, url: str, ways: dict[str, Way]) -> dict[str, float]:
    """What each way adds to the time that the upstream at `url` takes directly, in the same round."""
    content, known = body(), {"x-api-key": KEY}
    direct, again = Client(url), Client(url)
    plain, more = list[float](), {name: list[float]() for name in ("nothing", *ways)}
    for number in range(rounds + 20):
        alone = await direct.first_ms(content, known)
        found = {"nothing": await again.first_ms(content, known)}
        for name, (client, head) in ways.items():
            found[name] = await client.first_ms(content, head())
        if number >= 20:  # libraries load what they need at first
            plain.append(alone)
            for name, ms in found.items():
                more[name].append(ms - alone)
    figures = {"direct_ms_p50": round(statistics.median(plain), 2)}
    for name, values in more.items():
        figures |= percentiles(f"added_{name}_ms" if name else "added_ms", values)
    return figures


@asynccontextmanager
async def proxy_alone(url: str, folder: Path) -> AsyncIterator[Way]:
    """A metering proxy of the API at `url`, and a token that is worth all requests."""
    key = os.memfd_create("key")
    os.write(key, KEY.encode())
    metering = Metering(Settings((url,)), folder / "journal", None, key)
    token = metering.issue()
    await metering.start(folder / "api.sock")
    try:
        await metering.open("bench", token, Terms(None, Decimal(10**6), None, 10**9), Figures())
        yield Client(f"http://api{PATH}", metering.socket), lambda: {"x-api-key": token}
    finally:
        await metering.stop()


async def streams(url: str, attesting: Attesting, processes: list[psutil.Process]) -> dict[str, float]:
    """Slow streams, all open at once; then the same content as fast as it comes."""
    content, sent = body(2_000, "?slow"), PIECES + 4
    begun, open_now = 0, asyncio.Event()

    async def one(number: int) -> int:
        nonlocal begun
        await asyncio.sleep(number * 0.03)
        client, chunks = Client(url), 0
        async for _ in client.ask(content, attesting.head(content, number)):
            begun += chunks == 0
            chunks += 1
            if begun == STREAMS:
                open_now.set()
        client.close()
        return chunks

    for _ in range(2):  # what stays of the first time (pools of connections to Redis) is not a stream's
        before, begun = memory(processes), 0
        open_now.clear()
        tasks = [asyncio.create_task(one(number)) for number in range(STREAMS)]
        all_open = asyncio.create_task(open_now.wait())
        await asyncio.wait({all_open, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        peak = memory(processes)
        chunks = await asyncio.gather(*tasks)
        all_open.cancel()
    return {
        "streams_200_merged_chunks": sum(max(sent - each, 0) for each in chunks),
        "kb_per_stream": round((peak - before) / 1024 / STREAMS, 1),
    }


async def cpu(url: str, heads: Callable[[bytes], dict[str, str]], processes: list[psutil.Process]) -> tuple[float, ...]:
    """CPU milliseconds of these processes for a request with a short answer, and for each megabyte that is streamed:
    ten streams at a time, their pieces 20 ms apart, as a model writes."""

    async def one(content: bytes) -> int:
        client, size = Client(url), 0
        async for chunk in client.ask(content, heads(content)):
            size += len(chunk)
        client.close()
        return size

    used: dict[str, tuple[float, int]] = {}
    for kind in ("?short warm", "?short", "?paced"):
        content, size, began = body(2_000, kind), 0, cpu_s(processes)
        for _ in range(ROUNDS):
            size += sum(await asyncio.gather(*(one(content) for _ in range(AT_ONCE))))
        await asyncio.sleep(0.2)  # what follows the answers is part of them
        used[kind] = cpu_s(processes) - began, size
    (short_s, short), (paced_s, paced) = used["?short"], used["?paced"]
    return 1000 * short_s / (ROUNDS * AT_ONCE), 1000 * (paced_s - short_s) / ((paced - short) / 1e6)


async def by_a_relay(port: int, folder: Path) -> float:
    """The CPU for a megabyte of what only passes it on."""
    own = free_port()
    with started([sys.executable, "-m", "bench.relay", str(own), str(port)], os.environ, folder / "relay.log") as relay:
        wait_for(lambda: _answers(own), 30, what="the relay")
        return (await cpu(f"http://127.0.0.1:{own}{PATH}", lambda _: {}, [psutil.Process(relay.pid)]))[1]


async def by_litellm(program: Path, port: int, folder: Path) -> tuple[float, ...]:
    """The CPU of LiteLLM's proxy for the same, with one worker, a key of its own and a price for the model."""
    key, own = "sk-bench", free_port()
    sent_to = {"model": f"anthropic/{MODEL}", "api_base": f"http://127.0.0.1:{port}", "api_key": KEY}
    config = {
        "model_list": [{"model_name": MODEL, "litellm_params": sent_to}],
        "general_settings": {"master_key": key},
    }
    (folder / "litellm.yaml").write_text(json.dumps(config))
    options = [
        "--config",
        str(folder / "litellm.yaml"),
        "--host",
        "127.0.0.1",
        "--port",
        str(own),
        "--telemetry",
        "False",
    ]
    environment = clean_environment() | {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with started([str(program), *options], environment, folder / "litellm.log") as litellm:
        wait_for(lambda: _answers(own), 120, what="LiteLLM")
        found = psutil.Process(litellm.pid)
        processes = [found, *found.children(recursive=True)]
        return await cpu(f"http://127.0.0.1:{own}{PATH}", lambda _: {"authorization": f"Bearer {key}"}, processes)


def percentiles(name: str, values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100)
    return {f"{name}_p50": round(statistics.median(values), 2), f"{name}_p99": round(cuts[98], 2)}


async def by_the_invoker(rounds: int, folder: Path, litellm: Path | None) -> dict[str, float]:
    redis, port, invoker_port = RedisProcess(), free_port(), free_port()
    settings = {
        "PORT": invoker_port,
        "ATTESTATION_KEY": SECRET,
        "REDIS_URL": redis.url,
        "ANTHROPIC_API_KEY": KEY,
        "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{port}",
        "STATE_DIR": folder / "state",
        "ISOLATION": "none",
        "POOL_SIZE": 0,
    }
    environment = clean_environment() | {f"INVOKER_{name}": str(value) for name, value in settings.items()}
    api = [sys.executable, "-m", "bench.passthrough", "--upstream", str(port)]
    service = [sys.executable, "-m", "claude_invoker"]
    url = f"http://127.0.0.1:{invoker_port}"
    try:
        with (
            started(api, os.environ, folder / "upstream.log"),
            started(service, environment, folder / "invoker.log") as invoker,
        ):
            wait_for(lambda: _answers(invoker_port) and _answers(port), 120, what="invoker and upstream")
            attesting, content, numbers = Attesting(), body(), itertools.count()
            by = Client(f"{url}/claude{PATH}"), lambda: attesting.head(content, next(numbers))
            async with proxy_alone(f"http://127.0.0.1:{port}", folder) as alone:
                times = await added(rounds, f"http://127.0.0.1:{port}{PATH}", {"proxy": alone, "": by})
            processes = both(invoker.pid)
            figures = await streams(f"{url}/claude{PATH}", attesting, processes)
            request_ms, mb_ms = await cpu(
                f"{url}/claude{PATH}", lambda content: attesting.head(content, next(numbers)), processes
            )
            relay_ms = await by_a_relay(port, folder)
            figures |= {"cpu_ms_per_request": round(request_ms, 1), "cpu_ms_per_mb": round(mb_ms, 1)}
            figures |= {"relay_ms_per_mb": round(relay_ms, 1)}
            if litellm is not None:
                theirs_request_ms, theirs_mb_ms = await by_litellm(litellm, port, folder)
                figures |= {
                    "litellm_ms_per_request": round(theirs_request_ms, 1),
                    "litellm_ms_per_mb": round(theirs_mb_ms, 1),
                    "cpu_vs_litellm": round(mb_ms / theirs_mb_ms, 3),
                    "cpu_request_vs_litellm": round(request_ms / theirs_request_ms, 3),
                    "relay_vs_litellm": round(relay_ms / theirs_mb_ms, 3),
                }
    finally:
        redis.close()
    return times | figures


async def by_the_gateway(rounds: int, name: str, gateway: Gateway) -> dict[str, float]:
    standin = json.loads((gateway.home / "stack.json").read_text())["standin"]
    head = {"authorization": f"Bearer {gateway.token('bench', '--tier', 'team')}"}
    by = Client(f"{gateway.url}/claude{PATH}"), lambda: head
    return {key: value for key, value in (await added(rounds, f"{standin}{PATH}", {name: by})).items() if name in key}


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.passthrough", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--litellm", type=Path, metavar="PROGRAM", help="compare with this: `make bench-passthrough`")
    parser.add_argument("--only", choices=("invoker",), help=argparse.SUPPRESS)
    parser.add_argument("--upstream", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.upstream:
        uvloop.run(upstream(options.upstream))
        return 0
    with tempfile.TemporaryDirectory(prefix="bench-passthrough-") as name:
        folder = Path(name)
        say("by the invoker and its metering proxy …")
        figures: dict[str, Any] = uvloop.run(by_the_invoker(options.rounds, folder, options.litellm))
        say(json.dumps(figures))
        if options.only:
            return 0
        kong = os.environ.pop("KONG", None)
        for name in ("minikong", "kong") if kong else ("minikong",):
            say(f"by the whole stack on {name} …")
            (folder / name).mkdir()
            if kong and name == "kong":
                os.environ["KONG"] = kong  # as the stack of tests takes it
            with standing(folder / name) as gateway:
                figures |= uvloop.run(by_the_gateway(options.rounds, name, gateway))
    print(json.dumps({**figures, "machine": machine()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
