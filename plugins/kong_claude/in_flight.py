"""Requests that our plugins let through and whose log phase has not come yet, in this process.

claude-metrics has no access phase, since that would cost every request an event. The enforcing plugins have one
anyway: what they let through begins here, under the attestation's `jti`, and ends in claude-metrics' log phase. A
`jti` is 96 random bits that no client sees, so finding it also proves what was attested: who, and in which tier.

Where the server has several generations (`kong reload`), a request may begin in one and end in another.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from claude_contract.attestation import claimed_id
from claude_contract.claims import Attestation
from kong_claude import generations

ENDED, INHERITED = "in_flight.ended", "in_flight.inherited"

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


def begin(attestation: Attestation) -> None:
    """A request is let through. A later plugin of the same request replaces what an earlier one said."""
    if not _watchers or len(_entries) >= MAX_ENTRIES:
        return
    identity = attestation.identity
    team = identity.claims.get("team") if identity else None
    _entries[attestation.id] = Attested(
        time.monotonic(),
        identity.subject if identity else "",
        attestation.tier or "",
        team if isinstance(team, str) else "",
    )


def end(header: str) -> Attested | None:
    """The request with this attestation header is over; None for one that did not begin here, or a forged header."""
    known = claimed_id(header)
    if known is None:
        return None
    return _entries.pop(known, None) or next((Attested(*said) for said in generations.ask(ENDED, known)), None)


def _end_for_another(known: str) -> Attested | None:
    return _entries.pop(known, None)


def _inherit(left: Mapping[str, Sequence[Any]]) -> bool:
    """A generation has ended before its requests."""
    _entries.update({known: Attested(*entry) for known, entry in left.items()})
    return True


generations.answers |= {ENDED: _end_for_another, INHERITED: _inherit}
generations.bequests[INHERITED] = lambda: _entries


def count() -> int:
    """How many requests are in flight now."""
    limit = time.monotonic() - MAX_SECONDS
    for jti in [jti for jti, entry in list(_entries.items()) if entry.since < limit]:
        _entries.pop(jti, None)
    return len(_entries)
