"""Ports for servers that a test starts itself."""

from __future__ import annotations

import itertools
import random
import socket
import tempfile
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import IO

# Below those that the kernel gives to clients (32768 and up): a port that was free a moment ago is nobody's source port.
# 10,000 above lies the bus of a Redis Cluster's node.
_PORTS = range(12_000, 22_000)
_held: dict[int, IO[bytes]] = {}
_next = itertools.cycle(random.sample(_PORTS, len(_PORTS)))


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has, and that no other test process of this machine is given while this one lives."""
    folder = Path(tempfile.gettempdir()) / "kong-claude-ports-of-tests"
    folder.mkdir(exist_ok=True)
    for port in itertools.islice(_next, len(_PORTS)):
        if port not in _held and _is_mine(folder / str(port), port):
            return port
    raise RuntimeError("no port is free")


def _is_mine(lock: Path, port: int) -> bool:
    file = lock.open("wb")
    try:
        flock(file, LOCK_EX | LOCK_NB)
        for number in (port, port + 10_000):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", number))
    except OSError:
        file.close()
        return False
    _held[port] = file
    return True
