"""Requests that our plugins let through and whose log phase has not come yet, in this process.

claude-metrics has no access phase, since that would cost every request an event. The enforcing plugins have one
anyway: what they let through begins here, under the attestation's `jti`, and ends in claude-metrics' log phase. A
`jti` is 96 random bits that no client sees, so finding it also proves what was attested: who, and in which tier.

Where the server has several generations (`kong reload`), a request may begin in one and end in another.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from claude_contract.attestation import claimed_id
from claude_contract.claims import Attestation
from claude_contract.identity import Identity
from kong_claude import generations

ANSWERED = "claude"  # a member of what Kong serializes
ENDED, INHERITED = "in_flight.ended", "in_flight.inherited"

MAX_SECONDS = 3600.0
"""Kong calls no log phase for the requests of a worker that was killed: they are forgotten after this."""
MAX_ENTRIES = 100_000
MAX_UNWATCHED = 1_000
"""Kept while nobody has said that he ends them: claude-metrics begins with its first log phase, after the request."""


class Attested(NamedTuple):
    """What the gateway found about a request."""

    since: float  # time.monotonic()
    subject: str
    tier: str
    team: str


_entries: OrderedDict[str, Attested] = OrderedDict()  # a dict looks for its oldest through all that were taken out
_watchers: set[object] = set()


def watch(who: object) -> None:
    """Not much is kept unless somebody ends it: until `unwatch`, `who` calls `end` for every request."""
    _watchers.add(who)


def unwatch(who: object) -> None:
    """Kong closes an instance before it starts the next of a changed configuration: what is in flight stays."""
    _watchers.discard(who)


def begin(attestation: Attestation) -> None:
    """A request is let through. A later plugin of the same request replaces what an earlier one said."""
    if len(_entries) >= MAX_ENTRIES:
        return
    while not _watchers and len(_entries) >= MAX_UNWATCHED:
        _entries.popitem(last=False)
    _entries[attestation.id] = _attested(attestation.identity, attestation.tier or "")


def _attested(identity: Identity | None, tier: str) -> Attested:
    team = identity.claims.get("team") if identity else None
    subject = identity.subject if identity else ""
    return Attested(time.monotonic(), subject, tier, team if isinstance(team, str) else "")


def answered(kong: Any, identity: Identity | None, tier: str) -> None:
    """A plugin answers or refuses the request itself. Nothing goes upstream that the log phase could find it by: so
    Kong is told who it was, for the log alone. One call."""
    found = _attested(identity, tier)
    kong.log.set_serialize_value(ANSWERED, {"subject": found.subject, "tier": found.tier, "team": found.team})


def of_answer(serialized: Mapping[str, Any]) -> Attested | None:
    """What `answered` said, as Kong serializes it."""
    said = serialized.get(ANSWERED)
    if not isinstance(said, Mapping):
        return None
    return Attested(0.0, *(str(said.get(name) or "") for name in ("subject", "tier", "team")))


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
    """How many requests are in flight now; 0 where nobody ends them."""
    if not _watchers:
        return 0
    limit = time.monotonic() - MAX_SECONDS
    for jti in [jti for jti, entry in list(_entries.items()) if entry.since < limit]:
        _entries.pop(jti, None)
    return len(_entries)
