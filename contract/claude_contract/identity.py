"""Who is calling: established by claude-jwt-claims, read by every other plugin and by the invoker."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from msgspec import Struct, field

from claude_contract.members import AttestationError, Members, malformed

CLAIMS = ("sub", "tier", "roles", "who")


class Identity(Struct, frozen=True, dict=True):
    """A verified caller. `claims` holds only those that the configuration hands on (`forward_claims`)."""

    subject: str
    issuer: str = ""
    tier: str | None = None
    roles: tuple[str, ...] = ()
    permissions: tuple[str, ...] = ()
    email: str | None = None
    token_id: str | None = None
    consumer: str | None = None  # username of the matching Kong consumer
    credential: str | None = None
    claims: Mapping[str, Any] = field(default_factory=dict)

    def to_claims(self) -> dict[str, Any]:
        """As claims of the attestation; empty members are left out."""
        return dict(self._as_claims)

    @cached_property
    def _as_claims(self) -> dict[str, Any]:
        # Made once: an identity is remembered with its token, and attested with each of its requests.
        who = {
            "idp": self.issuer,
            "perms": list(self.permissions),
            "email": self.email,
            "tid": self.token_id,
            "con": self.consumer,
            "crd": self.credential,
            "claims": dict(self.claims),
        }
        found = {
            "sub": self.subject,
            "tier": self.tier,
            "roles": list(self.roles),
            "who": {name: value for name, value in who.items() if value},
        }
        return {name: value for name, value in found.items() if value}

    @classmethod
    def take(cls, claims: Members) -> Identity | None:
        """The identity among (verified) claims; None without a subject. Raises AttestationError."""
        subject = claims.text("sub", None)
        tier = claims.text("tier", None)
        roles = claims.texts("roles", ())
        who = claims.inside("who")
        found = cls(
            subject=subject or "",
            issuer=who.text("idp", ""),
            tier=tier,
            roles=roles,
            permissions=who.texts("perms", ()),
            email=who.text("email", None),
            token_id=who.text("tid", None),
            consumer=who.text("con", None),
            credential=who.text("crd", None),
            claims=who.mapping("claims"),
        )
        who.done()
        if not subject and found != cls("", tier=tier):
            raise malformed("sub", "is missing")
        return found if subject else None


def identity_from_shared(shared: Any) -> Identity | None:
    """The identity that claude-jwt-claims left in `kong.ctx.shared.claude_identity`; None for anything else."""
    if not isinstance(shared, Mapping):
        return None
    try:
        return Identity.take(Members({name: shared[name] for name in CLAIMS if name in shared}))
    except AttestationError:
        return None
