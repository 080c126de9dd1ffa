"""Who is calling: established by claude-jwt-claims, read by every other plugin and by the invoker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Identity:
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

    def finding(self) -> dict[str, Any]:
        """The identity as claims of the attestation; empty members are left out."""
        who = {
            "idp": self.issuer,
            "perms": list(self.permissions),
            "email": self.email,
            "tid": self.token_id,
            "con": self.consumer,
            "crd": self.credential,
            "claims": dict(self.claims),
        }
        found: dict[str, Any] = {"sub": self.subject, "tier": self.tier, "roles": list(self.roles)}
        found["who"] = {name: value for name, value in who.items() if value}
        return {name: value for name, value in found.items() if value}


def identity_from_finding(finding: Mapping[str, Any]) -> Identity | None:
    """The identity in (verified) attestation claims; None without a subject."""
    subject = finding.get("sub")
    if not isinstance(subject, str) or not subject:
        return None
    who = finding.get("who") or {}
    return Identity(
        subject=subject,
        issuer=who.get("idp", ""),
        tier=finding.get("tier"),
        roles=tuple(finding.get("roles") or ()),
        permissions=tuple(who.get("perms") or ()),
        email=who.get("email"),
        token_id=who.get("tid"),
        consumer=who.get("con"),
        credential=who.get("crd"),
        claims=who.get("claims") or {},
    )


def identity_from_facts(facts: Any) -> Identity | None:
    """The identity that claude-jwt-claims left in `kong.ctx.shared.claude_identity`."""
    return identity_from_finding(facts) if isinstance(facts, Mapping) else None
