"""Listening sockets: proxy and Admin API, plain and TLS."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minikong.http.connection import ClientConnection, Handler
from minikong.http.head import enabled_headers
from minikong.http.tls import TlsAcceptor, server_context
from minikong.http.upstream import UpstreamPool

if TYPE_CHECKING:
    from minikong.conf import KongConf, Listen
    from minikong.http.seam import Gateway


class Edge:
    """All listeners of one gateway, with what their connections share."""

    keepalive_requests = 10000  # Kong's nginx_http_keepalive_requests

    def __init__(self, conf: KongConf, gateway: Gateway) -> None:
        self.conf = conf
        self.gateway = gateway
        self.pool = UpstreamPool(conf)
        self.enabled_headers = enabled_headers(conf.headers)
        self._connections: set[ClientConnection] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._servers: list[asyncio.Server] = []
        self._paths: list[str] = []
        self._tls: ssl.SSLContext | None = None

    async def listen(self, listen: Listen, handler: Handler) -> tuple[str, int]:
        """Opens one listener; returns the address it is bound to (port 0 in `listen` takes a free one).

        A unix socket is of our own user only (0600). Raises OSError where something listens there already.
        """
        loop = asyncio.get_running_loop()
        if listen.ssl:
            if self._tls is None:
                self._tls = server_context(self.conf.ssl_cert, self.conf.ssl_cert_key)
            context = self._tls

            def factory() -> asyncio.BaseProtocol:
                return TlsAcceptor(self, handler, context)

        else:

            def factory() -> asyncio.BaseProtocol:
                return ClientConnection(self, handler)

        if listen.path is not None:
            bound = _bind(listen.path)
            self._paths.append(listen.path)
            self._servers.append(await loop.create_unix_server(factory, sock=bound, backlog=1024))
            return listen.host, 0
        server = await loop.create_server(factory, listen.host, listen.port, backlog=1024)
        self._servers.append(server)
        host, port = server.sockets[0].getsockname()[:2]
        return str(host), int(port)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task that belongs to the edge: kept alive while it runs, cancelled at `close`."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def opened(self, connection: ClientConnection) -> None:
        self._connections.add(connection)

    def closed(self, connection: ClientConnection) -> None:
        self._connections.discard(connection)

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    @property
    def open_tasks(self) -> int:
        return len(self._tasks)

    async def close(self) -> None:
        """Closes listeners and connections; requests in progress are cut."""
        for server in self._servers:
            server.close()
        for path in self._paths:
            Path(path).unlink(missing_ok=True)
        for connection in list(self._connections):
            connection.abort()
        self.pool.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _bind(path: str) -> socket.socket:
    """A bound unix socket that only our own user can connect to; what a predecessor left behind goes."""
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
        probe.connect(path)
        raise OSError(errno.EADDRINUSE, f"something listens on {path} already")
    if Path(path).is_socket():
        Path(path).unlink()
    bound = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)  # the mode is there from the first moment on
    try:
        bound.bind(path)
    except OSError:
        bound.close()
        raise
    finally:
        os.umask(mask)
    return bound
