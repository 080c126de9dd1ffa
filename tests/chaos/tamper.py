"""A relay between the gateway and the plugin server's socket that can cut, spoil or hold replies."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path


class Relay:
    """`mode`: pass | cut (half a reply, then closed) | garbage | hold (no reply, connection open)."""

    def __init__(self, listen: Path, target: Path) -> None:
        self.listen, self.target = listen, target
        self.mode = "pass"
        self.tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self.server = await asyncio.start_unix_server(self._serve, self.listen)

    async def stop(self) -> None:
        self.server.close()
        self.drop()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def drop(self) -> None:
        """Closes all connections: Kong has to make new ones."""
        for task in list(self.tasks):
            task.cancel()

    async def _serve(self, kong_in: asyncio.StreamReader, kong_out: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        server_out: asyncio.StreamWriter | None = None
        try:
            server_in, server_out = await asyncio.open_unix_connection(self.target)
            await asyncio.gather(self._copy(kong_in, server_out), self._copy(server_in, kong_out, replies=True))
        except (OSError, asyncio.CancelledError, EOFError):
            pass
        finally:
            for writer in (kong_out, server_out):
                if writer is not None:
                    writer.close()
            self.tasks.discard(task)

    async def _copy(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, replies: bool = False) -> None:
        while data := await source.read(65536):
            if replies and self.mode == "cut":
                sink.write(data[: random.randrange(len(data))])
                await sink.drain()
                raise EOFError
            if replies and self.mode == "garbage":
                data = random.randbytes(random.randrange(1, 200))
            if replies and self.mode == "hold":
                continue
            sink.write(data)
            await sink.drain()
        raise EOFError
