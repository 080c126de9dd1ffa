"""What invoker and filter say to each other: a JSON object in each packet (SOCK_SEQPACKET)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

from claude_contract.destinations import Destination, parse

MAX_PACKET = 65536  # bytes


@dataclass(frozen=True)
class Order:
    """To the filter. `open` comes with a listener and with what a run may reach; nothing passes before `begin`, nor
    after `close`."""

    verb: Literal["open", "begin", "close"]
    passage: int
    destinations: tuple[str, ...] = ()
    max_bytes: int = 0

    @property
    def hosts(self) -> tuple[Destination, ...]:
        return tuple(map(parse, self.destinations))


@dataclass(frozen=True)
class Visit:
    """From the filter: somewhere a run has asked to go, before anything is sent there."""

    passage: int
    destination: str
    address: str = ""
    """Where it is led to; empty where it is not."""
    refusal: str = ""

    @property
    def outcome(self) -> str:
        """On one line, as logs show it."""
        return f"refused: {self.refusal}" if self.refusal else f"{self.destination} at {self.address}"


@dataclass(frozen=True)
class Moved:
    """From the filter: bytes that a connection has moved, both ways."""

    passage: int
    bytes: int


def encode(message: Order | Visit | Moved) -> bytes:
    return json.dumps({type(message).__name__: asdict(message)}).encode()


def decode(packet: bytes) -> Order | Visit | Moved:
    """Raises ValueError, TypeError for what is not such a message."""
    ((name, members),) = json.loads(packet).items()
    if name == "Order":
        members["destinations"] = tuple(members["destinations"])
        return Order(**members)
    return Visit(**members) if name == "Visit" else Moved(**members)
