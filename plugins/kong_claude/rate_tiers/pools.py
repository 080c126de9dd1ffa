"""Pools: limits that many subjects share, and which of them a request counts for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from claude_contract.ledger import ALONE, DEPLOYMENT, Shared, Terms, Windows, organisation_tag, pool_key
from claude_contract.ledger.model import MAX_POOL_KEY
from kong_claude.decision import Refuse
from kong_claude.request import Request

WIDEST = "x" * MAX_POOL_KEY  # a claim's value that takes as much room as any


@dataclass(frozen=True)
class Pool:
    """What its sharers may use together."""

    name: str
    claim: str  # those with the same value share it; "": everybody does
    windows: Windows
    terms: Terms

    @property
    def widest_key(self) -> str:
        """A key as long as any of its."""
        return pool_key(self.name, "claim", WIDEST) if self.claim else pool_key(self.name)


@dataclass(frozen=True, slots=True)
class Sharing:
    """How requests find their pools. `tagged`: the configuration has pools, of which a tier may have none."""

    tagged: bool
    organisation_claim: str
    on_missing: str  # "deny" or "ip"

    def shared(self, request: Request, pools: Iterable[Pool]) -> Shared | Refuse:
        """What a request counts for besides its subject: all of these pools, or it is refused."""
        if not self.tagged:
            return ALONE
        tag = DEPLOYMENT
        if self.organisation_claim:
            found = self._value(request, self.organisation_claim)
            if isinstance(found, Refuse):
                return found
            tag = organisation_tag(*found)
        keys = []
        for pool in pools:
            if not pool.claim:
                keys.append(pool_key(pool.name))
                continue
            found = self._value(request, pool.claim)
            if isinstance(found, Refuse):
                return found
            keys.append(pool_key(pool.name, *found))
        return Shared(tag, tuple(keys))

    def _value(self, request: Request, claim: str) -> tuple[str, str] | Refuse:
        """What is counted, and its value: the claim's, which must be one text."""
        identity = request.identity
        value = identity.claims.get(claim) if identity else None
        if isinstance(value, str) and value:
            return "claim", value
        if self.on_missing == "ip":
            return "ip", request.client_ip
        if identity is None:
            return Refuse(401, "no subject is known for this request", "no_identity")
        return Refuse(
            403,
            f"your token names no {claim}, by which its limits are shared",
            "no_pool",
            detail={"claim": claim},
        )
