"""From verified claims to the identity that is handed on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from claude_contract.identity import Identity
from kong_claude.decision import Pass, Refuse
from kong_claude.jwt_claims.issuers import Issuer
from kong_claude.jwt_claims.rules import lookup, values
from kong_claude.jwt_claims.token import InvalidToken

SUBJECT, TIER = "X-Claude-Subject", "X-Claude-Tier"
_WORD = re.compile(r"[A-Za-z0-9._:-]{1,64}")


@dataclass(frozen=True, slots=True)
class Caller:
    """Everything about a request that follows from its token and the configuration alone."""

    identity: Identity
    claims: Mapping[str, Any]
    headers: Mapping[str, str | None]
    passed: Pass  # for a request that has nothing of its own to add
    denial: Refuse | None = None  # verified, but not allowed here


def caller(identity: Identity, claims: Mapping[str, Any], denial: Refuse | None) -> Caller:
    """A Caller with what its identity becomes upstream, made once per token."""
    headers = {SUBJECT: header_text(identity.subject), TIER: identity.tier}
    passed = Pass(upstream_headers=headers, claims=identity, shared=identity.to_claims())
    return Caller(identity, claims, headers, passed, denial)


def header_text(value: str) -> str:
    """A header value that no other text has: printable ASCII, the rest and `%` itself percent-encoded."""
    return (
        value
        if value.isascii() and value.isprintable() and "%" not in value
        else quote(value, safe=" !#$&'()*+,/:;=?@[]|~")
    )


@dataclass(frozen=True, slots=True)
class ClaimNames:
    """Which claim means what."""

    subject: str
    tier: str
    roles: str
    permissions: str
    forward: tuple[str, ...] = ()

    def identity(self, claims: Mapping[str, Any], issuer: Issuer) -> Identity:
        """Raises InvalidToken where a claim that others rely on is unusable."""
        subject = lookup(claims, self.subject)
        if not isinstance(subject, str) or not plain(subject):
            raise InvalidToken("claims", f"the token has no usable {self.subject} claim")
        subject = issuer.subject_prefix + subject
        if subject.startswith(issuer.foreign):
            raise InvalidToken("claims", f"the claim {self.subject} begins like the subjects of another issuer")
        tier = lookup(claims, self.tier)
        if tier is not None and not (isinstance(tier, str) and _WORD.fullmatch(tier)):
            raise InvalidToken("claims", f"the claim {self.tier} is not a tier's name")
        token_id = claims.get("jti")
        if token_id is not None and not (isinstance(token_id, str) and plain(token_id)):
            raise InvalidToken("claims", "the claim jti is not usable")
        email = claims.get("email")
        forward = {path: lookup(claims, path) for path in self.forward}
        return Identity(
            subject=subject,
            issuer=issuer.name,
            tier=tier,
            roles=_plain_values(claims, self.roles),
            permissions=_plain_values(claims, self.permissions),
            email=email if isinstance(email, str) and plain(email) else None,
            token_id=token_id,
            claims={path: value for path, value in forward.items() if value is not None},
        )


def plain(text: str) -> bool:
    """True for 1 to 255 printable characters: they reach logs, Redis keys and headers."""
    return 0 < len(text) <= 255 and text.isprintable() and text == text.strip()


def _plain_values(claims: Mapping[str, Any], path: str) -> tuple[str, ...]:
    return tuple(value for value in values(claims, path) if plain(value))
