"""Random and mutated requests at the listener: no crash, no hang, no leak, and nothing misframed to the service.

`MINIKONG_FUZZ_SECONDS` sets how long (default 4; `make fuzz` runs 600), `MINIKONG_FUZZ_SEED` repeats a run.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import re
import time
from pathlib import Path

import pytest

from tests.minikong.plain_gateway import running_edge
from tests.minikong.strict_service import StrictService
from tests.minikong.test_smuggling import CASES
from tests.support.waiting import HANG_S, until

SECONDS = float(os.environ.get("MINIKONG_FUZZ_SECONDS", "4"))
SEED = int(os.environ.get("MINIKONG_FUZZ_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
TOKENS = [
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b"%", b"%00", b"%2e", b"/../", b"//", b"?", b"#", b"*", b"\xff",
    b"Content-Length: 5\r\n", b"Content-Length: 99999999999999999999\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"Host: b\r\n",
    b"Upgrade: websocket\r\nConnection: Upgrade\r\n", b"0\r\n\r\n", b"ffffffffffffffff\r\n", b"HTTP/1.1", b"HTTP/9.9",
    b"GET ", b"POST /gateway/x HTTP/1.1\r\nHost: a\r\n\r\n", b"X" * 9000, b"GET http://[::1]:80/ HTTP/1.1\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00", b"TE: trailers\r\n", b"HEAD /h HTTP/1.0\r\n\r\n",
]  # fmt: skip
# bytes in targets and values that nginx hands on and h11 does not like; they do not move a message's end
_PASSED_BY_NGINX = re.compile(r"illegal (request line: bytearray\(b['\"][A-Z_-]+ /|header line: )")
SANE = b"GET /sane HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


def mutated(rng: random.Random) -> bytes:
    """A request of the corpus with a few bytes changed, or noise."""
    if rng.random() < 0.1:
        return rng.randbytes(rng.randrange(1, 3000))
    data = bytearray(rng.choice(CASES)[1])
    for _ in range(rng.randrange(0, 6)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0 if data:
                data[at % len(data)] = rng.randrange(256)
            case 1:
                data[at:at] = rng.choice(TOKENS)
            case 2:
                del data[at : at + rng.randrange(1, 12)]
            case 3:
                piece = data[at : at + rng.randrange(1, 40)]
                data[at:at] = piece * rng.randrange(1, 4)
            case _:
                data[at:] = data[at:] + rng.choice(CASES)[1]
    return bytes(data)


async def _attack(rng: random.Random, port: int) -> None:
    """One connection: sends in random pieces, reads a little or not, leaves in a random way."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = mutated(rng)
    try:
        while data:
            size = rng.choice((len(data), rng.randrange(1, 60)))
            writer.write(data[:size])
            data = data[size:]
            if rng.random() < 0.3:
                await asyncio.sleep(0)
        if rng.random() < 0.3:
            writer.write_eof()
        if rng.random() < 0.7:
            async with asyncio.timeout(rng.choice((0.002, 0.02))):
                while await reader.read(65536):
                    pass
    except (TimeoutError, ConnectionError):
        pass
    if rng.random() < 0.3:
        writer.transport.abort()
    else:
        writer.close()


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.timeout(SECONDS * 2 + 60)
def test_fuzz(caplog: pytest.LogCaptureFixture) -> None:
    """Afterwards nothing is left open and a sane request still gets its answer."""

    async def run() -> None:
        rng = random.Random(SEED)
        loop = asyncio.get_running_loop()
        surprises: list[str] = []
        loop.set_exception_handler(lambda _, context: surprises.append(str(context)))
        async with (
            StrictService() as service,
            running_edge(lambda: service.port, client_max_body_size="100k") as (edge, port),
        ):
            before = _descriptors()
            deadline = time.monotonic() + SECONDS
            rounds = 0
            while time.monotonic() < deadline:
                await asyncio.wait_for(asyncio.gather(*(_attack(rng, port) for _ in range(8))), 30)
                rounds += 1
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(SANE)
            answer = await asyncio.wait_for(reader.read(), HANG_S)
            writer.close()
            assert answer.startswith(b"HTTP/1.1 200 "), answer

            async def closed() -> bool:  # lingering closes take up to 2 s
                return edge.open_connections == 0 and edge.open_tasks == 0

            await until(closed, "the end of all connections")
            edge.pool.close()
            await asyncio.sleep(0.2)
            gc.collect()
            assert _descriptors() <= before + 1
            assert rounds > 10
            assert [error for error in service.errors if not _PASSED_BY_NGINX.match(error)] == []
            assert surprises == []

    with caplog.at_level(logging.ERROR, logger="minikong"):
        asyncio.run(run())
    assert not caplog.records, f"seed {SEED}: {caplog.text[:3000]}"
