"""The configured issuers: who may sign, with which algorithms, and where their keys are."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from claude_contract.errors import ConfigError
from kong_claude.jwt_claims.algorithms import ALGORITHMS, MIN_SECRET, accepted
from kong_claude.jwt_claims.jwks import keys_from_text
from kong_claude.jwt_claims.keys import Key, KeySet, KeySource, StaticKeys, key_from_pem, key_from_secret
from kong_claude.jwt_claims.remote import discovery_url, remote_keys
from kong_claude.jwt_claims.schema import IssuerConfig, JwtClaimsConfig
from kong_claude.jwt_claims.token import InvalidToken, Token

MAX_TRIED = 64  # keys for one token: a bad one must not cost as many signatures as an issuer likes to publish keys
CONSUMER_PREFIX = "consumer:"  # of callers who are known as a Kong consumer only
SOURCES = ("secret", "public_key", "jwks", "jwks_uri", "discovery")
TENANT = "{tenantid}"  # what Entra's discovery document has in the place of a tenant's id
_TENANT_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_EVERYBODY = re.compile(
    r"https://(?:login\.[a-z.]*microsoftonline\.[a-z]+|sts\.windows\.net)/(?:common|organizations)(?:/.*)?"
)


@dataclass(frozen=True, slots=True)
class Issuer:
    """One issuer; of a multi-tenant one, one of its tenants.

    `algorithms` is fixed here: a token can choose among them, never add one.
    """

    name: str
    algorithms: frozenset[str]
    keys: KeySource
    subject_prefix: str = ""
    foreign: tuple[str, ...] = ()
    """Longer prefixes, of others: `subject_prefix` and a subject together must not begin with one of them."""
    tenant: str | None = None

    def candidates(self, keys: KeySet, token: Token) -> tuple[Key, ...]:
        """The keys that may have signed the token. Raises InvalidToken where they are too many to try."""
        found = keys.candidates(token.kid, token.algorithm)
        if self.tenant is not None:
            found = tuple(key for key in found if key.issuer is None or self._own(key.issuer))
        if len(found) > MAX_TRIED:
            raise InvalidToken("kid", f"the token must name its key (kid): its issuer has more than {MAX_TRIED} keys")
        return found

    def _own(self, key_issuer: str) -> bool:
        """Entra publishes keys of all tenants beside keys of one, which must sign for no other."""
        return key_issuer.replace(TENANT, self.tenant or "") == self.name


def issuers_from_config(config: JwtClaimsConfig) -> dict[str, Issuer]:
    """iss claim → Issuer. Raises ConfigError."""
    issuers: dict[str, Issuer] = {}
    for number, entry in enumerate(config.issuers, 1):
        for issuer in _tenants(_issuer(entry, f"issuers[{number}]", config), entry, f"issuers[{number}]"):
            if issuer.name in issuers:
                raise ConfigError(f"issuers[{number}].issuer", "is configured twice")
            issuers[issuer.name] = issuer
    if not issuers:
        raise ConfigError("issuers", "names no issuer")
    prefixes = {CONSUMER_PREFIX, *(issuer.subject_prefix for issuer in issuers.values())}
    return {name: replace(issuer, foreign=_beyond(issuer.subject_prefix, prefixes)) for name, issuer in issuers.items()}


def _beyond(own: str, prefixes: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(prefix for prefix in prefixes if prefix != own and prefix.startswith(own)))


def _tenants(issuer: Issuer, entry: IssuerConfig, name: str) -> list[Issuer]:
    """An Issuer for each tenant, so that `iss` is compared exactly here, too. They share their keys' source."""
    if TENANT not in issuer.name:
        if entry.tenants:
            raise ConfigError(f"{name}.tenants", f"needs {TENANT} in issuer, in the place of the tenant's id")
        if TENANT in issuer.subject_prefix:
            raise ConfigError(f"{name}.subject_prefix", f"has {TENANT}, and issuer has not")
        if _EVERYBODY.fullmatch(issuer.name):
            raise ConfigError(
                f"{name}.issuer", f"is no token's iss: write {TENANT} for common or organizations, and name the tenants"
            )
        return [issuer]
    ids = sorted({tenant.lower() for tenant in entry.tenants})
    if not ids:
        raise ConfigError(f"{name}.tenants", f"must name the tenants that {TENANT} in issuer may be")
    wrong = [tenant for tenant in ids if not _TENANT_ID.fullmatch(tenant)]
    if wrong:
        raise ConfigError(f"{name}.tenants", f"{wrong[0]!r:.80} is not a tenant's id, which is a GUID")
    return [
        replace(
            issuer,
            name=issuer.name.replace(TENANT, tenant),
            subject_prefix=issuer.subject_prefix.replace(TENANT, tenant),
            tenant=tenant,
        )
        for tenant in ids
    ]


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
    if any(brace in (entry.subject_prefix or "").replace(TENANT, "") for brace in "{}"):
        raise ConfigError(f"{name}.subject_prefix", f"may have braces in {TENANT} only")
    # "" is an unresolved vault reference, not an absent field.
    given = [source for source in SOURCES if getattr(entry, source) not in (None, False)]
    if len(given) != 1:
        raise ConfigError(name, f"needs exactly one of {', '.join(SOURCES)}")
    return Issuer(
        name=entry.issuer,
        algorithms=accepted(algorithms),
        keys=_source(entry, entry.issuer, algorithms, f"{name}.{given[0]}", config),
        subject_prefix=entry.subject_prefix or "",
    )


def _source(
    entry: IssuerConfig, issuer: str, algorithms: frozenset[str], name: str, config: JwtClaimsConfig
) -> KeySource:
    if entry.secret is not None:
        return StaticKeys(KeySet((key_from_secret(entry.secret, algorithms, name, entry.secret_is_base64),)))
    if entry.public_key is not None:
        return StaticKeys(KeySet((key_from_pem(entry.public_key, algorithms, name),)))
    if entry.jwks is not None:
        return StaticKeys(keys_from_text(entry.jwks, algorithms, name))
    if algorithms & MIN_SECRET.keys():
        raise ConfigError(name, "published keys cannot serve HS algorithms")
    return remote_keys(
        entry.jwks_uri or discovery_url(issuer.replace(TENANT, "common")),
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
