"""Who a run is for, as the gateway has attested it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from claude_contract.claims import NOTHING_ADDED, UNCLAMPED, Additions, Attestation, Clamp, Repository
from claude_contract.keys import joined
from claude_contract.kinds import Kind
from claude_contract.ledger import Slot

APPROVE = "claude:approve"
"""A permission, or a role, by which somebody decides about the runs of others."""


@dataclass(frozen=True)
class Caller:
    """A caller that the gateway vouches for."""

    subject: str
    tier: str | None = None
    roles: tuple[str, ...] = ()
    clamp: Clamp = UNCLAMPED
    lease: str | None = None
    slot: Slot | None = None
    """What the lease stands for, where it has to be taken again."""
    queued: bool = False
    """The gateway has let the run in to wait: its lease is not taken yet."""
    additions: Additions = NOTHING_ADDED
    repository: Repository | None = None
    """What the run works on, which the caller's token allows."""
    issuer: str = ""
    """Of the token; empty where the caller is known as a Kong consumer only."""
    route: str | None = None
    request_id: str | None = None
    kind: Kind | None = "run"
    """As what the gateway has counted the request; None: as nothing, it may be either."""
    email: str | None = None
    permissions: tuple[str, ...] = ()
    claims: Mapping[str, Any] = field(default_factory=dict)
    """Those of the token that the gateway forwards."""

    @property
    def as_author(self) -> str:
        """As commits name people. What could pose as another line, or as another address, is left out."""
        plain = str.maketrans(dict.fromkeys("<>"))
        name, address = (
            "".join(filter(str.isprintable, text)).translate(plain) for text in (self.subject, self.email or "")
        )
        return f"{name} <{address}>"

    @property
    def team(self) -> str:
        """As the gateway's access log has it: the claim `team`, where it is forwarded."""
        team = self.claims.get("team")
        return team[:128] if isinstance(team, str) else ""

    @property
    def owner(self) -> str:
        """A digest of issuer and subject: what is kept by it is no other's, who may be called the same elsewhere."""
        return hashlib.sha256(joined("\0", self.issuer, self.subject).encode("utf-8", "surrogatepass")).hexdigest()

    def owns(self, subject: str) -> bool:
        return subject == self.subject

    def may_see(self, subject: str) -> bool:
        """Whether what belongs to that subject is shown to this caller."""
        return subject == self.subject or "admin" in self.roles

    def may_decide(self, subject: str) -> bool:
        """Whether this caller allows and denies what a run of that subject asks about."""
        return subject == self.subject or APPROVE in (*self.permissions, *self.roles)

    def may_look_on(self, subject: str) -> bool:
        """Whether this caller sees what such a run asks about."""
        return self.may_see(subject) or self.may_decide(subject)


DEVELOPER = Caller("developer", roles=("admin",), route="open", request_id=None, kind=None)


def caller_in(attestation: Attestation) -> Caller:
    """The caller that an attestation with an identity is about."""
    identity, place = attestation.identity, attestation.place
    assert identity is not None
    return Caller(
        subject=identity.subject,
        tier=attestation.tier,
        roles=identity.roles,
        clamp=attestation.clamp,
        lease=str(place.lease) if place else None,
        slot=place.slot if place else None,
        queued=place is not None and place.queued,
        additions=attestation.additions,
        repository=attestation.repository,
        issuer=identity.issuer,
        route=attestation.binding.route or None,
        request_id=attestation.binding.request_id or None,
        kind=attestation.kind,
        email=identity.email,
        permissions=identity.permissions,
        claims=identity.claims,
    )
