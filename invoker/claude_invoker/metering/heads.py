"""Which headers of the API's answer come back to a client that asked for a model itself: pure."""

from __future__ import annotations

from collections.abc import Iterable

Headers = list[tuple[bytes, bytes]]

OF_A_CONNECTION = frozenset(
    (b"connection", b"content-length", b"expect", b"host", b"keep-alive", b"proxy-authenticate", b"proxy-authorization",
     b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)  # fmt: skip
_OF_THE_API = frozenset((b"alt-svc", b"date", b"server", b"set-cookie", b"strict-transport-security"))


def to_client(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """The API's headers as they come back, names in lower case; the length with them, since the body is the same."""
    given = [(name.lower(), value) for name, value in headers]
    dropped = (OF_A_CONNECTION | _OF_THE_API | named(given)) - {b"content-length"}
    return [(name, value) for name, value in given if name not in dropped]


def named(headers: Headers) -> frozenset[bytes]:
    """What `Connection` names is of one connection, too."""
    values = [value for name, value in headers if name == b"connection"]
    return frozenset(part.strip().lower() for value in values for part in value.split(b","))
