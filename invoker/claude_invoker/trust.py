"""Who is asking: taken from the gateway's attestation and from nothing else."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import Request

from claude_contract.attestation import (
    HEADER,
    AttestationError,
    Key,
    demand,
    parse_pem,
    verify,
)
from claude_contract.ledger import Lease
from claude_invoker.plan import Clamp
from claude_invoker.problem import Problem
from claude_invoker.services import services
from claude_invoker.settings import Settings

SKEW_S = 5.0


@dataclass(frozen=True)
class Caller:
    """A caller that the gateway vouches for."""

    subject: str
    tier: str | None = None
    roles: tuple[str, ...] = ()
    clamp: Clamp = field(default_factory=Clamp)
    lease: str | None = None
    reservation: str | None = None
    slot: dict[str, int] | None = None
    """What the lease stands for, where it has to be taken again (see `claude_contract.ledger`)."""
    queued: bool = False
    """The gateway has let the run in to wait: its lease is not taken yet."""
    additions: dict[str, Any] = field(default_factory=dict)
    route: str | None = None
    request_id: str | None = None


DEVELOPER = Caller("developer", roles=("admin",), route="open", request_id=None)


class SeenOnce:
    """Remembers attestation ids for as long as they could be replayed."""

    def __init__(self, redis_url: str | None) -> None:
        self._redis: Any = None
        self._seen: dict[str, float] = {}
        if redis_url:
            from redis.asyncio import Redis

            self._redis = Redis.from_url(redis_url, socket_timeout=2.0, socket_connect_timeout=2.0)

    async def first(self, jti: str, until: float) -> bool:
        """Whether this id comes for the first time. Raises Problem 503 where Redis cannot tell."""
        now = time.time()
        lasts = max(1, int(until - now + SKEW_S + 1))
        if self._redis is not None:
            try:
                return bool(await self._redis.set(f"claude:jti:{jti}", 1, nx=True, ex=lasts))
            except Exception as error:
                raise Problem(503, "busy", "replay protection is not available", {"Retry-After": "2"}) from error
        if len(self._seen) > 10_000:
            self._seen = {known: end for known, end in self._seen.items() if end > now}
        if self._seen.get(jti, 0) > now:
            return False
        self._seen[jti] = now + lasts
        return True

    async def reachable(self) -> bool:
        if self._redis is None:
            return True
        try:
            return bool(await self._redis.ping())
        except Exception:
            return False

    async def close(self) -> None:
        if self._redis is not None:
            await self._redis.aclose()


def keys(settings: Settings) -> dict[str, Key]:
    """Verification keys by `kid`. Raises ValueError without a usable key."""
    found: dict[str, Key] = {}
    for name, kid, secret in (
        ("INVOKER_ATTESTATION_KEY", settings.attestation_kid, settings.attestation_key),
        ("INVOKER_ATTESTATION_PREVIOUS_KEY", settings.attestation_previous_kid, settings.attestation_previous_key),
    ):
        if secret is None:
            continue
        text = secret.get_secret_value().strip()
        if text.startswith("-----BEGIN"):
            key = parse_pem(text, name)
            if isinstance(key, Ed25519PrivateKey):
                raise ValueError(f"{name} is a private key: only the gateway signs, give the invoker its public half")
            found[kid] = key
        elif len(text.encode()) < 32:
            raise ValueError(f"{name} needs at least 32 bytes")
        else:
            found[kid] = text.encode()
    if not found and settings.trust == "attested":
        raise ValueError(
            "INVOKER_ATTESTATION_KEY is not set: the public key (or shared secret) of the gateway's plugins"
        )
    return found


async def attested(request: Request) -> Caller:
    """The caller of a request that looks at something (a FastAPI dependency). Raises Problem 401."""
    return await _attested(request, services(request).settings.required_checks)


async def attested_run(request: Request) -> AsyncIterator[Caller]:
    """The caller of a request that starts something; gives the lease back where nothing was started
    (`request.state.started`). Raises Problem 401."""
    caller = await _attested(request, services(request).settings.required_checks_run)
    request.state.started = False
    try:
        yield caller
    finally:
        ledger = services(request).ledger
        if not request.state.started and ledger is not None:
            await ledger.release(caller)


async def attested_visitor(request: Request) -> None:
    """A request that needs no caller, but must have come through the gateway's limits. Raises Problem 401."""
    if services(request).settings.trust != "open":
        await _first_use(request, await _claims(request, ("rate-tiers",)))


async def _claims(request: Request, checks: tuple[str, ...]) -> dict[str, Any]:
    """Verifies the signature, the times, method and path, the body's hash and the checks that the gateway made."""
    settings: Settings = services(request).settings
    header = request.headers.get(HEADER)
    if header is None:
        raise _unauthenticated("there is no attestation: ask through the gateway")
    path = request.scope.get("raw_path", b"").decode("latin-1").partition("?")[0]
    try:
        claims = verify(
            header,
            services(request).attestation_keys,
            issuer=settings.attestation_issuer,
            audience=settings.attestation_audience,
            skew=SKEW_S,
        )
        demand(
            claims,
            method=request.method,
            path=path,
            checks=checks,
            body=await request.body(),
        )
    except AttestationError as error:
        raise _unauthenticated(str(error), error.reason) from error
    return claims


async def _first_use(request: Request, claims: Mapping[str, Any]) -> None:
    seen: SeenOnce = services(request).seen
    if not await seen.first(str(claims["jti"]), float(claims["exp"])):
        raise _unauthenticated("the attestation was used before", "replay")


async def _attested(request: Request, checks: tuple[str, ...]) -> Caller:
    if services(request).settings.trust == "open":
        return DEVELOPER
    claims = await _claims(request, checks)
    subject = claims.get("sub")
    if not isinstance(subject, str) or not subject:
        raise _unauthenticated("the attestation names no subject")
    await _first_use(request, claims)
    return Caller(
        subject=subject,
        tier=_text(claims.get("tier")),
        roles=tuple(claims.get("roles") or ()),
        clamp=clamp_from(claims.get("clamp") or {}),
        lease=_lease(claims.get("lease")),
        reservation=_text(claims.get("reservation")),
        slot=claims.get("slot"),
        queued=bool(claims.get("queue")),
        additions=dict(claims.get("add") or {}),
        route=_text(claims.get("rte")),
        request_id=_text(claims.get("rid")),
    )


def clamp_from(claims: Mapping[str, Any]) -> Clamp:
    """The `clamp` claim. Problem 401 for a bound that is not understood: it could not be enforced."""
    try:
        if unknown := set(claims) - {"models", "tools", "max_turns", "max_usd"}:
            raise ValueError(f"unknown: {unknown}")
        return Clamp(
            models=_names(claims.get("models")),
            tools=_names(claims.get("tools")),
            max_turns=_number(claims.get("max_turns"), int),
            max_usd=_number(claims.get("max_usd"), float),
        )
    except (TypeError, ValueError) as error:
        raise _unauthenticated("the attestation's clamps are not understood", "clamp") from error


def _lease(value: Any) -> str | None:
    if value is None:
        return None
    try:
        return str(Lease.parse(value))
    except ValueError as error:
        raise _unauthenticated("the attestation's lease is not understood", "lease") from error


def _names(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str) or not all(isinstance(name, str) for name in value):
        raise TypeError("not a list of names")
    return tuple(value)


def _number(value: Any, kind: Any) -> Any:
    return None if value is None else kind(value)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _unauthenticated(detail: str, reason: str = "missing") -> Problem:
    return Problem(401, "unauthenticated", detail, {"WWW-Authenticate": f'X-Claude-Attestation error="{reason}"'})
