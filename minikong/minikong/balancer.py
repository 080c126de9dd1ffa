"""Names to addresses: DNS and the targets of upstreams (kong/runloop/balancer, round-robin only)."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from minikong.entities import Upstream

TTL = 5.0  # seconds a resolved name is kept


def read_hosts(path: str) -> dict[str, str]:
    """Name → first address of a hosts file (`dns_hostsfile`); a file that is not there has none, as in Kong."""
    hosts: dict[str, str] = {}
    try:
        lines = Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return hosts
    for line in lines:
        address, *names = line.partition("#")[0].split() or [""]
        for name in names:
            hosts.setdefault(name.lower(), address)
    return hosts


class Resolver:
    """Remembers addresses for a while and whose turn it is in each upstream."""

    def __init__(self, hosts: dict[str, str] | None = None) -> None:
        self._hosts = hosts or {}
        self._addresses: dict[str, tuple[float, str]] = {}
        self._turns: dict[int, tuple[Upstream, Iterator[tuple[str, int]]]] = {}

    async def resolve(self, name: str, port: int) -> str | None:
        """An address of `name` (IPv4 before IPv6); None if there is none."""
        if name in self._hosts:
            return self._hosts[name]
        now = time.monotonic()
        known = self._addresses.get(name)
        if known is not None and now - known[0] < TTL:
            return known[1]
        try:
            found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return None
        addresses = sorted(found, key=lambda info: info[0] != socket.AF_INET)
        if not addresses:
            return None
        address = str(addresses[0][4][0])
        self._addresses[name] = (now, address)
        return address

    def pick(self, upstream: Upstream) -> tuple[str, int] | None:
        """The next target by weight, round-robin; None without a target of weight."""
        turn = self._turns.get(id(upstream))
        if turn is None or turn[0] is not upstream:
            turn = (upstream, _smooth(upstream))
            self._turns[id(upstream)] = turn
        return next(turn[1], None)


def _smooth(upstream: Upstream) -> Iterator[tuple[str, int]]:
    """Smooth weighted round-robin over the targets."""
    targets = [(*_split(t.target), t.weight) for t in upstream.targets if t.weight > 0]
    current = [0] * len(targets)
    total = sum(weight for _, _, weight in targets)
    while targets:
        for i, (_, _, weight) in enumerate(targets):
            current[i] += weight
        best = max(range(len(targets)), key=current.__getitem__)
        current[best] -= total
        yield targets[best][0], targets[best][1]


def _split(target: str) -> tuple[str, int]:
    host, _, port = target.rpartition(":")
    return host, int(port)
