"""The configured issuers: who may sign, with which algorithms, and where their keys are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from claude_contract.errors import ConfigError
from kong_claude.jwt_claims.algorithms import ALGORITHMS, MIN_SECRET
from kong_claude.jwt_claims.keys import KeySet, KeySource, StaticKeys, key_from_pem, key_from_secret, keys_from_text
from kong_claude.jwt_claims.remote import discovery_url, remote_keys
from kong_claude.jwt_claims.schema import IssuerConfig, JwtClaimsConfig

CONSUMER_PREFIX = "consumer:"  # of callers who are known as a Kong consumer only
SOURCES = ("secret", "public_key", "jwks", "jwks_uri", "discovery")


@dataclass(frozen=True, slots=True)
class Issuer:
    """One issuer. `algorithms` is fixed here: a token can choose among them, never add one."""

    name: str
    algorithms: frozenset[str]
    keys: KeySource
    subject_prefix: str = ""
    foreign: tuple[str, ...] = ()
    """Longer prefixes, of others: `subject_prefix` and a subject together must not begin with one of them."""


def issuers_from_config(config: JwtClaimsConfig) -> dict[str, Issuer]:
    """iss claim → Issuer. Raises ConfigError."""
    issuers: dict[str, Issuer] = {}
    for number, entry in enumerate(config.issuers, 1):
        issuer = _issuer(entry, f"issuers[{number}]", config)
        if issuer.name in issuers:
            raise ConfigError(f"issuers[{number}].issuer", "is configured twice")
        issuers[issuer.name] = issuer
    if not issuers:
        raise ConfigError("issuers", "names no issuer")
    prefixes = {CONSUMER_PREFIX, *(issuer.subject_prefix for issuer in issuers.values())}
    return {name: replace(issuer, foreign=_beyond(issuer.subject_prefix, prefixes)) for name, issuer in issuers.items()}


def _beyond(own: str, prefixes: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(prefix for prefix in prefixes if prefix != own and prefix.startswith(own)))


def _issuer(entry: IssuerConfig, name: str, config: JwtClaimsConfig) -> Issuer:
    if not entry.issuer:
        raise ConfigError(f"{name}.issuer", "is required")
    algorithms = frozenset(entry.algorithms)
    if not algorithms:
        raise ConfigError(f"{name}.algorithms", "names no algorithm")
    if algorithms - ALGORITHMS:
        raise ConfigError(f"{name}.algorithms", f"does not know {', '.join(sorted(map(str, algorithms - ALGORITHMS)))}")
    if (entry.subject_prefix or "").startswith(CONSUMER_PREFIX):
        raise ConfigError(
            f"{name}.subject_prefix", f"must not begin with {CONSUMER_PREFIX}, which marks Kong's consumers"
        )
    # "" is an unresolved vault reference, not an absent field.
    given = [source for source in SOURCES if getattr(entry, source) not in (None, False)]
    if len(given) != 1:
        raise ConfigError(name, f"needs exactly one of {', '.join(SOURCES)}")
    return Issuer(
        name=entry.issuer,
        algorithms=algorithms,
        keys=_source(entry, entry.issuer, algorithms, f"{name}.{given[0]}", config),
        subject_prefix=entry.subject_prefix or "",
    )


def _source(
    entry: IssuerConfig, issuer: str, algorithms: frozenset[str], name: str, config: JwtClaimsConfig
) -> KeySource:
    if entry.secret is not None:
        return StaticKeys(KeySet((key_from_secret(entry.secret, algorithms, name),)))
    if entry.public_key is not None:
        return StaticKeys(KeySet((key_from_pem(entry.public_key, algorithms, name),)))
    if entry.jwks is not None:
        return StaticKeys(keys_from_text(entry.jwks, algorithms, name))
    if algorithms & MIN_SECRET.keys():
        raise ConfigError(name, "published keys cannot serve HS algorithms")
    return remote_keys(
        entry.jwks_uri or discovery_url(issuer),
        algorithms,
        issuer=issuer,
        discovery=entry.jwks_uri is None,
        insecure=entry.allow_insecure_jwks,
        field=name,
        ttl=config.jwks_ttl,
        max_stale=config.jwks_max_stale,
        cooldown=config.jwks_cooldown,
        timeout=config.jwks_timeout,
    )
