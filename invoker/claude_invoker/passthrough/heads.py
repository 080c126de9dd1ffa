"""Which headers go on to the API: pure. Which come back: `metering.heads`.

What is not known here passes, as Claude Code's gateway protocol has it. What is of this gateway, of a client's identity
or of one connection does not. The metering proxy takes out once more what names a caller to the API.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from claude_invoker.metering.heads import OF_A_CONNECTION, Headers, named

_OF_THE_CALLER = frozenset(
    (b"accept-encoding", b"authorization", b"cookie", b"forwarded", b"idempotency-key", b"via", b"x-api-key",
     b"x-idempotency-key", b"x-real-ip", b"x-request-id")
)  # fmt: skip
"""An idempotency key is one within an API key, which all callers share: of two with the same the second would have the
first one's answer."""
_OF_THE_GATEWAY = (
    b"x-claude-", b"x-forwarded-", b"x-kong-", b"kong-", b"x-consumer-", b"x-credential-", b"x-anonymous-consumer",
    b"x-authenticated-",
)  # fmt: skip
_OF_CLAUDE_CODE = b"x-claude-code-"
_ID = re.compile(rb"[!-~]{1,128}")


@dataclass(frozen=True)
class Session:
    """Of Claude Code, as it says itself; None where it says none. Nothing is decided by it."""

    id: str | None = None
    agent: str | None = None
    parent_agent: str | None = None


def to_api(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """A client's headers, names in lower case, as they go on."""
    given = list(headers)
    hops = named(given)
    return [(name, value) for name, value in given if _goes_on(name.replace(b"_", b"-"), hops)]


def _goes_on(name: bytes, hops: frozenset[bytes]) -> bool:
    if name in OF_A_CONNECTION or name in _OF_THE_CALLER or name in hops:
        return False
    return name.startswith(_OF_CLAUDE_CODE) or not name.startswith(_OF_THE_GATEWAY)


def session_of(headers: Mapping[bytes, bytes]) -> Session:
    return Session(
        *[_id(headers.get(_OF_CLAUDE_CODE + name)) for name in (b"session-id", b"agent-id", b"parent-agent-id")]
    )


def _id(value: bytes | None) -> str | None:
    return value.decode() if value is not None and _ID.fullmatch(value) else None
