"""What somebody who only looks is told of limits: a caller of his own, an admin of any."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from claude_contract.graphql import LIMITS_HEADER
from claude_contract.ledger import ALONE, Peek, Shared, pool_key
from claude_contract.ledger.live import Target
from kong_claude.rate_tiers.pools import Pool
from kong_claude.rate_tiers.tiers import Tier
from kong_claude.rate_tiers.wishes import Configured, claims_of, read_query
from kong_claude.request import Request

ADMIN = "admin"
"""The role, as the identity provider gives it."""
_ROOM = 4096  # bytes of a header
TOO_MUCH = json.dumps({"problem": "these limits are more than a page can be told: ask GET /claude/limits"})


class About(NamedTuple):
    """Whose limits an admin looks at, in which tier."""

    sub: str
    target: Target
    tier: Tier
    """With those of its pools of which it is known which one is meant."""
    peek: Peek
    pool_keys: tuple[str, ...]
    unknown: tuple[Pool, ...]
    """Those of the tier's of which it is not."""

    @classmethod
    def of(cls, query: Mapping[str, str], configured: Configured, *, pools: bool) -> About:
        """By `sub`, `tier` (else the default one), `organisation` and `claim.NAME`. Raises Wrong."""
        target = configured.target({"sub": query.get("sub")})
        name = query.get("tier", configured.default.name)
        configured.target({"tier": name})
        claims, whole = claims_of(query), configured.tiers[name]
        tag = configured.tag(query.get("organisation"))
        tier = _of_known_pools(whole, claims)
        keys = tuple([_pool_key(pool.name, pool.claim, claims) for pool in tier.pools])
        by = Shared(tag, keys) if pools else ALONE
        peek = Peek(configured.namespace, target.key, tier.windows, tier.slot, by, tier.pool_windows, tier.name)
        return cls(query["sub"], target, tier, peek, keys, tuple([p for p in whole.pools if p not in tier.pools]))


def looked_up(request: Request, configured: Configured, *, pools: bool) -> About | None:
    """Whose limits an admin wants to see; None: his own, as all others. Raises Wrong."""
    identity = request.identity
    if identity is None or ADMIN not in identity.roles or not request.raw_query:
        return None
    query = {name: value for name, value in read_query(request.raw_query).items() if value}
    return About.of(query, configured, pools=pools) if "sub" in query else None


def written(told: Mapping[str, Any]) -> str | None:
    """As it stands in a header; None where that is more than one has room for."""
    text = json.dumps(told)
    return text if len(text) <= _ROOM else None


def limits_header(request: Request, text: str | None) -> dict[str, str | None]:
    """By which the service is told, if there is something; what a client sends under that name goes nowhere."""
    ours: dict[str, str | None] = dict.fromkeys(request.spellings(LIMITS_HEADER.lower()))
    if text is not None:
        ours.pop(LIMITS_HEADER.lower(), None)
        ours[LIMITS_HEADER] = text
    return ours


def _of_known_pools(tier: Tier, claims: Mapping[str, str]) -> Tier:
    """With those of its pools of which it is known which one is meant."""
    pools = tuple([pool for pool in tier.pools if not pool.claim or pool.claim in claims])
    return replace(tier, pools=pools, slot=replace(tier.slot, pools=tuple([pool.terms for pool in pools])))


def _pool_key(name: str, claim: str, claims: Mapping[str, str]) -> str:
    return pool_key(name, "claim", claims[claim]) if claim else pool_key(name)
