"""How many connections one run may have to the metering proxy at once, where runs have users of their own: what a
process may have open is one number for all of them."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections import Counter
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_CREDENTIALS = struct.Struct("3i")
"""Process, user and group, as SO_PEERCRED has them (unix(7))."""


class _Few(HttpToolsProtocol):
    most: ClassVar[int]
    open: ClassVar[Counter[int]]
    """By user."""
    _user: int | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        user = _user_of(transport.get_extra_info("socket").fileno())
        if user != os.geteuid() and self.open[user] >= self.most:
            transport.abort()
            return
        self._user = user
        self.open[user] += 1
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._user is not None:
            self.open[self._user] -= 1
            super().connection_lost(exc)


def _user_of(descriptor: int) -> int:
    """Who has connected."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, descriptor)
    try:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    finally:
        connection.detach()  # it is the transport's
    _, user, _ = _CREDENTIALS.unpack(credentials)
    return int(user)


def few(protocol: type[HttpToolsProtocol], most: int) -> type[HttpToolsProtocol]:
    """The same on unix sockets, with so many connections of one user at most: further ones are closed. Ours may have
    any number: that is who runs without users of their own are."""
    return type("FewConnections", (_Few, protocol), {"most": most, "open": Counter[int]()})
