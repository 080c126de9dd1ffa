"""Who is asking: taken from the gateway's attestation and from nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import Request

from claude_contract.attestation import HEADER, Key, demand, parse_pem, verify
from claude_contract.claims import Attestation
from claude_contract.members import AttestationError
from claude_invoker.caller import DEVELOPER, Caller, caller_in
from claude_invoker.head import asked_method
from claude_invoker.problem import Problem
from claude_invoker.replay import SKEW_S
from claude_invoker.services import services
from claude_invoker.settings import Settings


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


async def attested_unread(request: Request) -> Caller:
    """The same, of a request whose body is read later and in pieces, or not at all. Raises Problem 401, also where the
    gateway has looked at the body."""
    return await _attested(request, services(request).settings.required_checks, reads_body=False)


async def attested_run(request: Request) -> AsyncIterator[Caller]:
    """The caller of a request that starts something; gives the lease back where nothing was started
    (`request.state.started`). Raises Problem 401."""
    async with starting(request) as caller:
        yield caller


async def attested_form(request: Request) -> AsyncIterator[Caller]:
    """The same, of a request whose body is read later and in pieces. Raises Problem 401, also where the gateway has
    looked at the body: then it is to be held against what that has seen."""
    async with starting(request, reads_body=False) as caller:
        yield caller


@asynccontextmanager
async def looking(request: Request) -> AsyncIterator[Caller]:
    """As `attested`, where it depends on the request itself which of the two it is."""
    yield await attested(request)


@asynccontextmanager
async def starting(request: Request, *, reads_body: bool = True) -> AsyncIterator[Caller]:
    """As `attested_run`."""
    caller = await _attested(request, services(request).settings.required_checks_run, reads_body=reads_body)
    request.state.started = request.state.gave_back = False
    try:
        yield caller
    finally:
        await give_back(request, caller)


async def give_back(request: Request, caller: Caller) -> None:
    """Gives the lease back that the gateway took for this request, once, where nothing was started with it. A job takes
    it again when its turn has come: that may be before the answer is out, so it is given back before."""
    ledger = services(request).ledger
    if ledger is None or request.state.started or request.state.gave_back:
        return
    request.state.gave_back = True
    await ledger.release(caller)


async def attested_visitor(request: Request) -> None:
    """A request that needs no caller, but must have come through the gateway's limits. Raises Problem 401."""
    if services(request).settings.trust != "open":
        await _first_use(request, await _attestation(request, ("rate-tiers",)))


async def _attestation(request: Request, checks: tuple[str, ...], *, reads_body: bool = True) -> Attestation:
    """Verifies the signature, the times, method and path, the body's hash and the checks that the gateway made."""
    settings: Settings = services(request).settings
    header = request.headers.get(HEADER)
    if header is None:
        raise _unauthenticated("there is no attestation: ask through the gateway")
    path = request.scope.get("raw_path", b"").decode("latin-1").partition("?")[0]
    try:
        attestation = _of_a_replica(request, header) or verify(
            header,
            services(request).attestation_keys,
            issuer=settings.attestation_issuer,
            audience=settings.attestation_audience,
            skew=SKEW_S,
        )
        body = await request.body() if reads_body else None
        demand(attestation, method=asked_method(request), path=path, checks=checks, body=body)
    except AttestationError as error:
        raise _unauthenticated(str(error), error.reason) from error
    return attestation


def _of_a_replica(request: Request, header: str) -> Attestation | None:
    """What another invoker says of the caller whom the gateway has attested to it. None where it is of no invoker.
    Raises AttestationError."""
    replicas = services(request).replicas
    signer = replicas.register.signer(replicas.register.name) if replicas is not None else None
    if signer is None or not signer.is_of(header):
        return None
    request.state.forwarded = True
    return verify(header, signer.keys, issuer=signer.issuer, audience=signer.audience, skew=SKEW_S)


async def _first_use(request: Request, attestation: Attestation) -> None:
    lives_s = attestation.expires_at - attestation.issued_at
    if not await services(request).seen.first(attestation.id, lives_s):
        raise _unauthenticated("the attestation was used before", "replay")


async def _attested(request: Request, checks: tuple[str, ...], *, reads_body: bool = True) -> Caller:
    if services(request).settings.trust == "open":
        catalog = services(request).engine.catalog
        clamp = replace(
            DEVELOPER.clamp,
            skills=tuple(catalog.of("skill")),
            agents=tuple(catalog.of("agent")),
            mcp=tuple(catalog.of("server")),
        )
        return replace(DEVELOPER, clamp=clamp)
    attestation = await _attestation(request, checks, reads_body=reads_body)
    if attestation.identity is None:
        raise _unauthenticated("the attestation names no subject")
    await _first_use(request, attestation)
    return caller_in(attestation)


def _unauthenticated(detail: str, reason: str = "missing") -> Problem:
    return Problem(401, "unauthenticated", detail, {"WWW-Authenticate": f'X-Claude-Attestation error="{reason}"'})
