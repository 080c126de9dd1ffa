"""Where something listens, as settings name it."""

from __future__ import annotations

from typing import NamedTuple


class Listen(NamedTuple):
    host: str
    port: int
    """0: any that is free."""

    @classmethod
    def parse(cls, text: str) -> Listen:
        """Of `HOST:PORT`, an IPv6 address in brackets. Raises ValueError."""
        host, colon, port = text.strip().rpartition(":")
        if not (colon and host and port.isascii() and port.isdigit() and int(port) < 65536):
            raise ValueError("must be HOST:PORT, such as 0.0.0.0:8110")
        return cls(host.removeprefix("[").removesuffix("]"), int(port))
