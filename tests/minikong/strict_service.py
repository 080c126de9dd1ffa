"""A service that reads requests with h11, a parser that shares nothing with the edge's, and keeps what it read."""

from __future__ import annotations

import asyncio
from typing import Any

import h11


class StrictService:
    """`requests` is what arrived: (method, target, body). `errors` is what h11 could not accept."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, bytes, bytes]] = []
        self.errors: list[str] = []
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> StrictService:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=200_000)
        request: h11.Request | None = None
        body = b""
        try:
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    connection.receive_data(await reader.read(65536))
                elif isinstance(event, h11.Request):
                    request, body = event, b""
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    assert request is not None
                    self.requests.append((request.method.decode(), bytes(request.target), body))
                    headers = [("Content-Length", "3"), ("Content-Type", "text/plain")]
                    for answer in (h11.Response(status_code=200, headers=headers), h11.Data(b"up\n")):
                        writer.write(connection.send(answer) or b"")
                    writer.write(connection.send(h11.EndOfMessage()) or b"")
                    if connection.our_state is h11.MUST_CLOSE:
                        return
                    connection.start_next_cycle()
                else:  # ConnectionClosed, PAUSED
                    return
        except h11.RemoteProtocolError as error:
            if request is not None or connection.trailing_data[0]:
                self.errors.append(str(error))
        except (ConnectionError, h11.LocalProtocolError):
            pass
        finally:
            writer.close()
