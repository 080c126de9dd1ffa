"""Configuration of `claude-jwt-claims` in Kong's schema dialect.

Kong checks what this language can say; `plugin.JwtClaims` checks the rest when an instance starts (ConfigError).
"""

from __future__ import annotations

from typing import Any

from kong_claude.jwt_claims.algorithms import ALGORITHMS
from kong_claude.schema import ENFORCING_FIELDS, Field

HEADER_TOKEN = "^[A-Za-z0-9!#$&'*+.^_`|~-]+$"  # noqa: S105  a Lua pattern: RFC 9110 token, without %


def _strings(name: str, description: str, **more: Any) -> Field:
    elements = {"type": "string", **more.pop("elements", {})}
    return {name: {"type": "set", "elements": elements, "required": False, "description": description, **more}}


def _string(name: str, description: str, **more: Any) -> Field:
    return {name: {"type": "string", "required": False, "description": description, **more}}


def _integer(name: str, default: int, between: tuple[int, int], description: str) -> Field:
    return {
        name: {
            "type": "integer",
            "required": False,
            "default": default,
            "between": list(between),
            "description": description,
        }
    }


def _boolean(name: str, default: bool, description: str) -> Field:
    return {name: {"type": "boolean", "required": False, "default": default, "description": description}}


ISSUER_FIELDS: list[Field] = [
    _string("issuer", "The exact iss claim; for OIDC discovery also the base of its URL.", required=True),
    _strings(
        "algorithms",
        "The signature algorithms accepted from this issuer. All others are refused, whatever a token says.",
        elements={"one_of": sorted(ALGORITHMS)},
        required=True,
        len_min=1,
    ),
    _string(
        "secret",
        "Shared secret for HS256/384/512: at least 32/48/64 bytes.",
        referenceable=True,
        encrypted=True,
    ),
    _string("public_key", "Public key or certificate in PEM.", referenceable=True),
    _string("jwks", "JSON Web Key Set as text.", referenceable=True, encrypted=True),
    _string("jwks_uri", "Where the issuer publishes its JSON Web Key Set.", match="^https?://"),
    # Without a default: with one, at_least_one_of would always find it set.
    {
        "discovery": {
            "type": "boolean",
            "required": False,
            "description": "Find jwks_uri in <issuer>/.well-known/openid-configuration.",
        }
    },
    _boolean("allow_insecure_jwks", False, "Allow http:// for jwks_uri and discovery: local tests only."),
    _string(
        "subject_prefix",
        "Put before the subject, so that equal subjects of different issuers stay different callers.",
        match="^[A-Za-z0-9._:@/-]+$",
    ),
]

RULE_FIELDS: list[Field] = [
    _string("claim", "Path of the claim, such as roles, scope or realm_access.roles.", required=True),
    _strings("any_of", "The claim holds at least one of these values.", len_min=1),
    _strings("all_of", "The claim holds all of these values.", len_min=1),
    _strings("none_of", "The claim holds none of these values.", len_min=1),
    _string("equals", "The claim is this single value."),
]

FIELDS: list[Field] = [
    {
        "issuers": {
            "type": "array",
            "required": True,
            "len_min": 1,
            "description": "Who may issue tokens, and how their signatures are checked.",
            "elements": {
                "type": "record",
                "fields": ISSUER_FIELDS,
                "entity_checks": [
                    {"at_least_one_of": ["secret", "public_key", "jwks", "jwks_uri", "discovery"]},
                    {"mutually_exclusive": ["secret", "public_key", "jwks", "jwks_uri"]},
                ],
            },
        }
    },
    _strings("audience", "A token must name at least one of these in aud.", required=True, len_min=1),
    _strings(
        "header_names",
        "Headers that may carry `Bearer <token>`.",
        default=["authorization"],
        elements={"match": HEADER_TOKEN},
    ),
    _strings("cookie_names", "Cookies that may carry the token.", default=[], elements={"match": HEADER_TOKEN}),
    _strings(
        "uri_param_names",
        "Query parameters that may carry the token; removed from what goes upstream. Costs a call per request.",
        default=[],
    ),
    _integer("leeway", 5, (0, 120), "Seconds of clock difference to forgive in exp, nbf and iat."),
    _integer(
        "maximum_expiration", 0, (0, 31536000), "The furthest in the future, in seconds, exp may be. 0 sets no limit."
    ),
    _strings(
        "typ",
        "Accepted typ headers, without case or application/. A token without typ counts as JWT.",
        default=["JWT", "at+jwt"],
    ),
    _strings("required_claims", "Paths of further claims that a token must have.", default=[]),
    _string("subject_claim", "The claim that names the caller.", default="sub"),
    _string("tier_claim", "The claim that names the caller's tier.", default="tier"),
    _string("roles_claim", "The claim that lists the caller's roles.", default="roles"),
    _string("permissions_claim", "The claim that lists the caller's permissions.", default="permissions"),
    _strings("forward_claims", "Paths of further claims handed on in the identity.", default=[]),
    {
        "rules": {
            "type": "array",
            "required": False,
            "description": "What the claims must say; all rules must hold, else 403.",
            "elements": {
                "type": "record",
                "fields": RULE_FIELDS,
                "entity_checks": [{"at_least_one_of": ["any_of", "all_of", "none_of", "equals"]}],
            },
        }
    },
    _strings(
        "email_domains",
        "The email claim must be verified (email_verified) and in one of these domains.",
        elements={"match": "^[A-Za-z0-9.-]+%.[A-Za-z0-9-]+$"},
        len_min=1,
    ),
    _string("repo_claim", "The claim with globs of the repositories the caller may name in X-Repo."),
    _string("repo_header", "The header that names the repository.", default="x-repo", match=HEADER_TOKEN),
    _string("repo_capture", "The named capture of the route's regex that names the repository."),
    _string("consumer_claim", "The claim that holds the username or the id of a Kong consumer."),
    _string("anonymous", "Username or id of the consumer that callers without a valid token become."),
    _boolean("run_on_preflight", True, "Whether OPTIONS requests need a token too."),
    _string("realm", "The realm in WWW-Authenticate.", match='^[^"\\%c]+$'),
    _string(
        "revocation_redis_url",
        "redis:// URL of the Redis with revoked tokens; without it nothing is asked.",
        referenceable=True,
        encrypted=True,
    ),
    _string("revocation_key", "The Redis set with members jti:<jti> and sub:<subject>.", default="claude:revoked"),
    _string(
        "revocation_on_error",
        "What happens to valid tokens while Redis is away.",
        default="deny",
        one_of=["deny", "allow"],
    ),
    _integer("jwks_ttl", 300, (1, 86400), "Seconds until a remote key set is fetched again."),
    _integer(
        "jwks_max_stale", 3600, (0, 604800), "Seconds beyond jwks_ttl that keys are used while the issuer is away."
    ),
    _integer("jwks_cooldown", 30, (1, 3600), "Seconds between fetches for unknown key ids, and after a failed fetch."),
    _integer("jwks_timeout", 5, (1, 30), "Seconds until a fetch of keys fails."),
    _integer("cache_size", 10000, (0, 1000000), "How many verified tokens are remembered."),
]

SCHEMA: list[Field] = [*FIELDS, *ENFORCING_FIELDS]
