"""The body of a run's request, which is read whole and within bounds."""

from __future__ import annotations

from claude_invoker.metering.exchange import Grant, Receive

_MAX_BODY = 32 * 1024 * 1024
"""Of one request: the API itself takes no more."""
_MAX_HELD = 2 * _MAX_BODY
"""Of all requests of a run at once: none of them is given up before it is answered, and all of them are in memory."""


class Body:
    """A request's body, counted as held by its run until the request is answered."""

    def __init__(self, grant: Grant) -> None:
        self._grant = grant
        self._size = 0

    async def __aenter__(self) -> Body:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._grant.held -= self._size

    async def read(self, receive: Receive) -> bytes | None:
        """None where it is too large, beside what the run has under way, or breaks off."""
        parts = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            part = message.get("body", b"")
            self._size += len(part)
            self._grant.held += len(part)
            if self._size > _MAX_BODY or self._grant.held > _MAX_HELD:
                return None
            parts += part
            if not message.get("more_body"):
                return bytes(parts)


async def disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
