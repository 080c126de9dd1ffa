"""Requests that our plugins let through and whose log phase has not come yet, in this process.

claude-metrics has no access phase, since that would cost every request an event. The enforcing plugins have one
anyway: what they let through begins here, under the attestation's `jti`, and ends in claude-metrics' log phase. A
`jti` is 96 random bits that no client sees, so finding it also proves what was attested: who, and in which tier.
"""

from __future__ import annotations

import binascii
import json
import time
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from typing import Any, NamedTuple

MAX_SECONDS = 3600.0
"""Kong calls no log phase for the requests of a worker that was killed: they are forgotten after this."""
MAX_ENTRIES = 100_000


class Attested(NamedTuple):
    """What the gateway found about a request."""

    since: float  # time.monotonic()
    subject: str
    tier: str
    team: str


_entries: dict[str, Attested] = {}
_watchers: set[object] = set()


def watch(who: object) -> None:
    """Nothing is kept unless somebody ends it: until `unwatch`, `who` calls `end` for every request."""
    _watchers.add(who)


def unwatch(who: object) -> None:
    _watchers.discard(who)
    if not _watchers:
        _entries.clear()


def begin(claims: Mapping[str, Any]) -> None:
    """A request is let through. A later plugin of the same request replaces what an earlier one said."""
    if not _watchers or len(_entries) >= MAX_ENTRIES:
        return
    who = claims.get("who") or {}
    more = who.get("claims") or {}
    team = more.get("team")
    _entries[str(claims["jti"])] = Attested(
        time.monotonic(),
        str(claims.get("sub") or ""),
        str(claims.get("tier") or ""),
        team if isinstance(team, str) else "",
    )


def end(attestation: str) -> Attested | None:
    """The request with this attestation header is over; None for one that did not begin here, or a forged header."""
    try:
        payload = attestation.split(".")[1]
        jti = json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4))).get("jti")
    except (IndexError, ValueError, binascii.Error, AttributeError, RecursionError):
        return None
    return _entries.pop(jti, None) if isinstance(jti, str) else None


def count() -> int:
    """How many requests are in flight now."""
    limit = time.monotonic() - MAX_SECONDS
    for jti in [jti for jti, entry in list(_entries.items()) if entry.since < limit]:
        _entries.pop(jti, None)
    return len(_entries)
