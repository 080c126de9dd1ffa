"""The other generations of this plugin server.

On `kong reload` old and new workers of Kong use old and new connections to one path, each for anything. So a step for
an event of the old server may reach the new one: who gets it hands it to who has the event, and returns his answer.
And the connections themselves are handed to the new server: closed by the old one, Kong could be about to use them.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from kong_claude.server import wire

log = logging.getLogger("kong_claude.pluginserver")

ASK = "siblings.Ask"  # [question, argument]: see `kong_claude.generations`
TAKE = "siblings.Take"  # Kong's connections come with it
UNKNOWN_EVENT = "unknown event"  # said to a sibling only: Kong would let the request pass
ANSWER_SECONDS = 1.0


class Named(Protocol):
    """What is needed of a Listener."""

    path: Path

    def siblings(self) -> list[Path]: ...
    @property
    def superseded(self) -> bool: ...


class Siblings:
    """Reaches the others. `patience`: seconds for what runs plugin code."""

    def __init__(self, listener: Named, patience: float) -> None:
        self.listener = listener
        self.patience = patience

    @property
    def superseded(self) -> bool:
        return self.listener.superseded

    @property
    def living(self) -> set[int]:
        """Process numbers of the others, as far as is known."""
        return {int(path.name.rpartition(".")[2]) for path in self.doors()}

    def doors(self) -> list[Path]:
        return self.listener.siblings()

    def successor(self) -> Path | None:
        """The door of who has taken the path from us."""
        doors = self.doors() if self.superseded else []
        return max(doors, key=_changed, default=None)

    def hand_over(self, frame: Sequence[Any], doors: Sequence[Path]) -> bytes | None:
        """Kong's request to the first of `doors` that can answer it. Returns the answer, None if none can."""
        for path in doors:
            try:
                raw, answer = _exchange(path, frame, self.patience)
            except Exception as error:  # gone, silent, or of another make: the next
                log.debug("%s: %s", path, error)
                continue
            if answer[2] != UNKNOWN_EVENT:
                return raw
        return None

    def pass_on(self, descriptors: Sequence[int]) -> bool:
        """Kong's connections to our successor. Returns whether he has them."""
        heir = self.successor()
        if heir is None:
            return False
        try:
            return _exchange(heir, [0, 0, TAKE, [None]], ANSWER_SECONDS, descriptors)[1][3] is True
        except Exception as error:
            log.warning("connections cannot be handed over: %s", error)
            return False

    def bequeath(self, question: str, argument: Any) -> bool:
        """Tells it who has taken the path from us. Returns whether that was heard."""
        heir = self.successor()
        try:
            return (
                heir is not None and _exchange(heir, [0, 0, ASK, [[question, argument]]], self.patience)[1][2] is None
            )
        except Exception as error:
            log.warning("what this server knew of %s is lost: %s", question, error)
            return False

    def ask(self, question: str, argument: Any) -> Iterator[Any]:
        """As `generations.ask`; each answer that is not None."""
        for path in self.doors():
            try:
                _, answer = _exchange(path, [0, 0, ASK, [[question, argument]]], ANSWER_SECONDS)
            except Exception as error:
                log.debug("%s: %s", path, error)
                continue
            if answer[2] is None and answer[3] is not None:
                yield answer[3]


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _exchange(path: Path, frame: Sequence[Any], seconds: float, descriptors: Sequence[int] = ()) -> tuple[bytes, Any]:
    """One request, with what goes along, and its answer, as bytes and as values. Raises OSError, ValueError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.settimeout(seconds)
        door.connect(str(path))
        if struct.unpack("iII", door.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1] != os.geteuid():
            raise PermissionError(f"{path} is another user's")  # where the socket's directory is everybody's
        if descriptors:
            socket.send_fds(door, [wire.pack(frame)], descriptors)
        else:
            door.sendall(wire.pack_large(frame))
        decoder, raw = wire.Decoder(), bytearray()
        while data := door.recv(1 << 16):
            raw += data
            for answer in decoder.feed(data):
                if not isinstance(answer, (list, tuple)) or len(answer) != 4:
                    raise ValueError("no answer")
                return bytes(raw), answer
    raise ConnectionError(f"{path}: closed")
