"""The configured issuers: who may sign, with which algorithms, and where their keys are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from claude_contract.errors import ConfigError
from kong_claude.jwt_claims.algorithms import ALGORITHMS, MIN_SECRET
from kong_claude.jwt_claims.keys import KeySet, KeySource, StaticKeys, key_from_pem, key_from_secret, keys_from_text
from kong_claude.jwt_claims.remote import discovery_url, remote_keys

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


def issuers_from_config(config: Mapping[str, Any]) -> dict[str, Issuer]:
    """iss claim → Issuer. Raises ConfigError."""
    issuers: dict[str, Issuer] = {}
    for number, entry in enumerate(config.get("issuers") or (), 1):
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


def _issuer(entry: Mapping[str, Any], name: str, config: Mapping[str, Any]) -> Issuer:
    if not entry.get("issuer"):
        raise ConfigError(f"{name}.issuer", "is required")
    algorithms = frozenset(entry.get("algorithms") or ())
    if not algorithms:
        raise ConfigError(f"{name}.algorithms", "names no algorithm")
    if algorithms - ALGORITHMS:
        raise ConfigError(f"{name}.algorithms", f"does not know {', '.join(sorted(map(str, algorithms - ALGORITHMS)))}")
    if (entry.get("subject_prefix") or "").startswith(CONSUMER_PREFIX):
        raise ConfigError(
            f"{name}.subject_prefix", f"must not begin with {CONSUMER_PREFIX}, which marks Kong's consumers"
        )
    # "" is an unresolved vault reference, not an absent field.
    given = [source for source in SOURCES if entry.get(source) not in (None, False)]
    if len(given) != 1:
        raise ConfigError(name, f"needs exactly one of {', '.join(SOURCES)}")
    return Issuer(
        name=entry["issuer"],
        algorithms=algorithms,
        keys=_source(given[0], entry, algorithms, f"{name}.{given[0]}", config),
        subject_prefix=entry.get("subject_prefix") or "",
    )


def _source(
    kind: str, entry: Mapping[str, Any], algorithms: frozenset[str], name: str, config: Mapping[str, Any]
) -> KeySource:
    if kind == "secret":
        return StaticKeys(KeySet((key_from_secret(entry["secret"], algorithms, name),)))
    if kind == "public_key":
        return StaticKeys(KeySet((key_from_pem(entry["public_key"], algorithms, name),)))
    if kind == "jwks":
        return StaticKeys(keys_from_text(entry["jwks"], algorithms, name))
    discovery = kind == "discovery"
    if algorithms & MIN_SECRET.keys():
        raise ConfigError(name, "published keys cannot serve HS algorithms")
    return remote_keys(
        discovery_url(entry["issuer"]) if discovery else entry["jwks_uri"],
        algorithms,
        issuer=entry["issuer"],
        discovery=discovery,
        insecure=entry.get("allow_insecure_jwks") is True,
        field=name,
        ttl=config.get("jwks_ttl", 300),
        max_stale=config.get("jwks_max_stale", 3600),
        cooldown=config.get("jwks_cooldown", 30),
        timeout=config.get("jwks_timeout", 5),
    )
