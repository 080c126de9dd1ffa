"""Configuration of `claude-jwt-claims`.

Kong checks what its schema language can say; `plugin.JwtClaims` checks the rest when an instance starts (ConfigError).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kong_claude.jwt_claims.algorithms import ALGORITHMS
from kong_claude.schema import Field, boolean, choice, fields, integer, records, string, strings
from kong_claude.stage import ENFORCING_FIELDS

HEADER_TOKEN = "^[A-Za-z0-9!#$&'*+.^_`|~-]+$"  # noqa: S105  a Lua pattern: RFC 9110 token, without %


def _set(what: str, **more: Any) -> Any:
    return strings(what, kind="set", **more)


@dataclass(frozen=True, slots=True)
class IssuerConfig:
    """Who may issue tokens, and with which keys."""

    issuer: str | None = string("The exact iss claim; for OIDC discovery also the base of its URL.", required=True)
    algorithms: tuple[str, ...] = _set(
        "The signature algorithms accepted from this issuer. All others are refused, whatever a token says.",
        elements={"one_of": sorted(ALGORITHMS)},
        required=True,
        len_min=1,
    )
    secret: str | None = string(
        "Shared secret for HS256/384/512: at least 32/48/64 bytes.", referenceable=True, encrypted=True
    )
    secret_is_base64: bool = boolean("The secret is given in base64, of either alphabet.", default=False)
    public_key: str | None = string("Public key or certificate in PEM.", referenceable=True)
    jwks: str | None = string("JSON Web Key Set as text.", referenceable=True, encrypted=True)
    jwks_uri: str | None = string("Where the issuer publishes its JSON Web Key Set.", match="^https?://")
    # Without a default: with one, at_least_one_of would always find it set.
    discovery: bool = boolean("Find jwks_uri in <issuer>/.well-known/openid-configuration.")
    allow_insecure_jwks: bool = boolean("Allow http:// for jwks_uri and discovery: local tests only.", default=False)
    subject_prefix: str | None = string(
        "Put before the subject, so that equal subjects of different issuers stay different callers.",
        match="^[A-Za-z0-9._:@/{}-]+$",
    )
    tenants: tuple[str, ...] = _set(
        "The tenants' ids that {tenantid} in issuer may be: a multi-tenant issuer's, as Entra's.",
        elements={"match": "^[%x-]+$"},
        len_min=1,
    )


@dataclass(frozen=True, slots=True)
class RuleConfig:
    """What one claim must say."""

    claim: str | None = string("Path of the claim, such as roles, scope or realm_access.roles.", required=True)
    any_of: tuple[str, ...] = _set("The claim holds at least one of these values.", len_min=1)
    all_of: tuple[str, ...] = _set("The claim holds all of these values.", len_min=1)
    none_of: tuple[str, ...] = _set("The claim holds none of these values.", len_min=1)
    equals: str | None = string("The claim is this single value.")


@dataclass(frozen=True, slots=True)
class JwtClaimsConfig:
    """The plugin's own fields."""

    issuers: tuple[IssuerConfig, ...] = records(
        "Who may issue tokens, and how their signatures are checked.",
        IssuerConfig,
        checks=[
            {"at_least_one_of": ["secret", "public_key", "jwks", "jwks_uri", "discovery"]},
            {"mutually_exclusive": ["secret", "public_key", "jwks", "jwks_uri"]},
        ],
        required=True,
        len_min=1,
    )
    audience: tuple[str, ...] = _set("A token must name at least one of these in aud.", required=True, len_min=1)
    audience_claims: tuple[str, ...] = strings(
        "The claims that may name the audience; the first that a token has counts, the others are not looked at.",
        default=("aud",),
        len_min=1,
    )
    header_names: tuple[str, ...] = _set(
        "Headers that may carry `Bearer <token>`.", default=("authorization",), elements={"match": HEADER_TOKEN}
    )
    raw_header_names: tuple[str, ...] = _set(
        "Headers that may carry the token itself, without `Bearer`, such as x-api-key.",
        default=(),
        elements={"match": HEADER_TOKEN},
    )
    cookie_names: tuple[str, ...] = _set(
        "Cookies that may carry the token.", default=(), elements={"match": HEADER_TOKEN}
    )
    uri_param_names: tuple[str, ...] = _set(
        "Query parameters that may carry the token; removed from what goes upstream. Costs a call per request.",
        default=(),
    )
    leeway: int = integer("Seconds of clock difference to forgive in exp, nbf and iat.", default=5, between=[0, 120])
    maximum_expiration: int = integer(
        "The furthest in the future, in seconds, exp may be. 0 sets no limit.", default=0, between=[0, 31536000]
    )
    typ: tuple[str, ...] = _set(
        "Accepted typ headers, without case or application/. A token without typ counts as JWT.",
        default=("JWT", "at+jwt"),
    )
    required_claims: tuple[str, ...] = _set("Paths of further claims that a token must have.", default=())
    subject_claim: str = string("The claim that names the caller.", default="sub")
    tier_claim: str = string("The claim that names the caller's tier.", default="tier")
    roles_claim: str = string("The claim that lists the caller's roles.", default="roles")
    permissions_claim: str = string("The claim that lists the caller's permissions.", default="permissions")
    forward_claims: tuple[str, ...] = _set("Paths of further claims handed on in the identity.", default=())
    rules: tuple[RuleConfig, ...] = records(
        "What the claims must say; all rules must hold, else 403.",
        RuleConfig,
        checks=[{"at_least_one_of": ["any_of", "all_of", "none_of", "equals"]}],
    )
    email_domains: tuple[str, ...] = _set(
        "The email claim must be verified (email_verified) and in one of these domains.",
        elements={"match": "^[A-Za-z0-9.-]+%.[A-Za-z0-9-]+$"},
        len_min=1,
    )
    repo_claim: str | None = string("The claim with globs of the repositories the caller may name in X-Repo.")
    repo_header: str = string("The header that names the repository.", default="x-repo", match=HEADER_TOKEN)
    repo_capture: str | None = string("The named capture of the route's regex that names the repository.")
    ref_header: str = string(
        "The header that names the branch, tag or commit of that repository.", default="x-branch", match=HEADER_TOKEN
    )
    push_claim: str | None = string(
        "The claim with globs of the repositories the caller may push branches to; without it nobody may."
    )
    pull_request_claim: str | None = string(
        "The claim with globs of the repositories the caller may open pull requests at; without it nobody may."
    )
    consumer_claim: str | None = string("The claim that holds the username or the id of a Kong consumer.")
    anonymous: str | None = string("Username or id of the consumer that callers without a valid token become.")
    run_on_preflight: bool = boolean("Whether OPTIONS requests need a token too.", default=True)
    realm: str | None = string("The realm in WWW-Authenticate.", match='^[^"\\%c]+$')
    revocation_redis_url: str | None = string(
        "redis:// URL of the Redis with revoked tokens; without it nothing is asked.",
        referenceable=True,
        encrypted=True,
    )
    revocation_key: str = string("The Redis set with members jti:<jti> and sub:<subject>.", default="claude:revoked")
    revocation_on_error: str = choice(
        "What happens to valid tokens while Redis is away.", ("deny", "allow"), default="deny"
    )
    jwks_ttl: int = integer("Seconds until a remote key set is fetched again.", default=300, between=[1, 86400])
    jwks_max_stale: int = integer(
        "Seconds beyond jwks_ttl that keys are used while the issuer is away.", default=3600, between=[0, 604800]
    )
    jwks_cooldown: int = integer(
        "Seconds between fetches for unknown key ids, and after a failed fetch.", default=30, between=[1, 3600]
    )
    jwks_timeout: int = integer("Seconds until a fetch of keys fails.", default=5, between=[1, 30])
    cache_size: int = integer("How many verified tokens are remembered.", default=10000, between=[0, 1000000])


FIELDS: list[Field] = fields(JwtClaimsConfig)
SCHEMA: list[Field] = [*FIELDS, *ENFORCING_FIELDS]
