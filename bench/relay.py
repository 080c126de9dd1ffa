"""A relay that passes each piece of an answer on and does nothing else: `python -m bench.relay PORT UPSTREAM_PORT`.

What of a streamed megabyte's CPU time is the HTTP client's that the metering proxy uses, and the loop's, whatever is
metered. One process, as the proxy is; it asks by aiohttp and writes what comes at once, as chunks.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import aiohttp
import uvloop

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"


class Relay(asyncio.Protocol):
    """One request of a connection, whose body has a length."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url
        self._rest = b""
        self._answering: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        self._rest += data
        head, found, content = self._rest.partition(b"\r\n\r\n")
        if found and len(content) == int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]):
            self._answering = asyncio.create_task(self._answer(content))

    async def _answer(self, content: bytes) -> None:
        try:
            async with self._session.post(self._url, data=content) as answer:
                self._transport.write(_HEAD)
                async for piece, _ in answer.content.iter_chunks():
                    if piece:
                        self._transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self._transport.write(b"0\r\n\r\n")
        finally:
            self._transport.close()


async def serve(port: int, upstream: int) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        url = f"http://127.0.0.1:{upstream}/v1/messages"
        server = await asyncio.get_running_loop().create_server(lambda: Relay(session, url), "127.0.0.1", port)
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(*map(int, sys.argv[1:])))
