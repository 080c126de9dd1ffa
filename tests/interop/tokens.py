"""Tokens and key sets as issuers make them and clients send them, for claude-jwt-claims.

`was` says what 0.1.0 made of a case: "good", or the status that it refused it with. `refused` says why one that real issuers
send is still refused, on purpose. `source` and `reported`: see the README.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.jwt_claims.support import b64, jwk, private_key, sign

SECRET = "a-secret-of-the-tests-that-is-long-enough-for-any-of-them-64-bytes!"
TENANT, OTHER_TENANT = "72f988bf-86f1-41af-91ab-2d7cd011db47", "9188040d-6c67-4c5b-b112-36a304b66dad"
ENTRA = "https://login.microsoftonline.com/{tenantid}/v2.0"


@dataclass(frozen=True)
class Case:
    """One token in one configuration. Claims, members and fields given as None are left out."""

    who: str
    what: str
    was: str = "good"
    refused: str = ""
    issuer: str = "https://idp.example.com"
    algorithm: str = "RS256"
    audience: str = "claude-code"
    claims: dict[str, Any] = field(default_factory=dict)
    header: dict[str, Any] = field(default_factory=dict)
    keys: Callable[[], Any] | None = None
    """The document at jwks_uri; without it a set of the one key. Not for HS algorithms."""
    entry: dict[str, Any] = field(default_factory=dict)
    """Further fields of the issuer."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Further fields of the plugin."""
    sent: Callable[[str], dict[str, Any]] = lambda token: {"authorization": f"Bearer {token}"}
    key: Callable[[], Any] | None = None
    """The private key; without it that of the tests."""
    payload: Callable[[str], str] = str
    """The last change of the payload's text."""
    source: str = ""
    reported: bool = False

    def __str__(self) -> str:
        return f"{self.who}: {self.what}"

    def token(self) -> str:
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "aud": self.audience,
            "sub": "alice",
            "iat": now,
            "exp": now + 3500,
            **self.claims,
        }
        header = {"alg": self.algorithm, "typ": "JWT", "kid": "one", **self.header}
        payload = self.payload(json.dumps({name: value for name, value in claims.items() if value is not None}))
        signer = "EdDSA" if self.algorithm in ("Ed25519", "Ed448") else self.algorithm
        secret = SECRET if self.algorithm.startswith("HS") else None
        return sign(_without_none(header), payload, signer, self.key() if self.key else secret or private_key(signer))

    def document(self) -> Any:
        """What is published."""
        return self.keys() if self.keys else {"keys": [jwk(self.algorithm)]}

    def config(self, jwks_uri: str) -> dict[str, Any]:
        source = {"secret": SECRET} if self.algorithm.startswith("HS") else {"jwks_uri": jwks_uri}
        entry = {
            "issuer": self.issuer,
            "algorithms": [self.algorithm],
            "allow_insecure_jwks": True,
            **source,
            **self.entry,
        }
        return {"issuers": [_without_none(entry)], "audience": [self.audience], "mark": "m", **self.fields}


def _without_none(members: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


def raw(header: str) -> Callable[[str], dict[str, Any]]:
    return lambda token: {header: token}


def keys(*entries: Any, **members: Any) -> Callable[[], Any]:
    """A set of these entries, texts standing for the key of an algorithm."""
    return lambda: {"keys": [jwk(entry) if isinstance(entry, str) else entry for entry in entries], **members}


def rsa(**members: Any) -> dict[str, Any]:
    return _without_none(jwk("RS256", **members))


def shortest(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


@cache
def short_key(curve: type[ec.EllipticCurve] = ec.SECP256R1) -> ec.EllipticCurvePrivateKey:
    """A key whose x begins with a zero byte: 1 of 256."""
    while True:
        key = ec.generate_private_key(curve())
        if key.public_key().public_numbers().x.bit_length() <= (curve().key_size + 7) // 8 * 8 - 8:
            return key


def ec_jwk(key: Any, crv: str = "P-256", pack: Callable[[int], bytes] = shortest, **members: Any) -> Callable[[], Any]:
    """The key with its coordinates packed so."""

    def made() -> Any:
        point = (key() if callable(key) else key).public_key().public_numbers()
        own = {"kty": "EC", "crv": crv, "x": b64(pack(point.x)), "y": b64(pack(point.y))}
        return {"keys": [{"kid": "one", "use": "sig", **own, **members}]}

    return made


@cache
def certificate(algorithm: str = "RS256", name: str = "one") -> str:
    """A self-signed certificate as in x5c, long expired, as those of issuers often are."""
    key = private_key(algorithm, name)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "idp")])
    then = datetime(2020, 1, 1, tzinfo=UTC)
    made = x509.CertificateBuilder(subject, subject, key.public_key(), 1, then, then + timedelta(days=1))
    digest = None if algorithm == "EdDSA" else hashes.SHA256()
    return base64.b64encode(made.sign(key, digest).public_bytes(Encoding.DER)).decode()


@cache
def ed448_key() -> ed448.Ed448PrivateKey:
    return ed448.Ed448PrivateKey.generate()


def ed448_jwk(**members: Any) -> dict[str, Any]:
    x = ed448_key().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return {"kty": "OKP", "crv": "Ed448", "kid": "one", "use": "sig", "x": b64(x), **members}


COGNITO = "https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_AbCdEfGhI"
ODD = "a key set with something odd in it"
NOW = int(time.time())
CASES = [
    # Keycloak, and what is built on it
    Case(
        "Keycloak",
        "an encryption key beside, payload's typ Bearer",
        issuer="https://sso.example.com/realms/dev",
        claims={"typ": "Bearer", "azp": "cli", "realm_access": {"roles": ["claude:invoke"]}},
        keys=lambda: {"keys": [jwk("RS256", alg="RS256"), jwk("RS256", "enc", use="enc", alg="RSA-OAEP")]},
        fields={"rules": [{"claim": "realm_access.roles", "any_of": ["claude:invoke"]}]},
    ),
    Case(
        "Keycloak before 21",
        "an EC coordinate of 31 bytes", source="keycloak/keycloak#14933", reported=True,
        was="401",
        algorithm="ES256",
        key=short_key,
        keys=ec_jwk(short_key),
    ),
    Case(
        "Keycloak before 21",
        "P-521 coordinates of 65 bytes", source="jpadilla/pyjwt#709",
        was="401",
        algorithm="ES512",
        key=lambda: short_key(ec.SECP521R1),
        keys=ec_jwk(lambda: short_key(ec.SECP521R1), "P-521"),
    ),
    Case(
        "Keycloak",
        "the client in azp, aud is account", reported=True,
        was="401",
        claims={"aud": "account", "azp": "claude-code"},
        fields={"audience_claims": ["azp"]},
    ),
    Case("Keycloak", "EdDSA", algorithm="EdDSA", keys=lambda: {"keys": [jwk("EdDSA", alg="EdDSA")]}),
    Case(
        "Nimbus, Java's BigInteger",
        "EC coordinates of 33 bytes", reported=True,
        was="401",
        algorithm="ES256",
        keys=ec_jwk(lambda: private_key("ES256"), pack=lambda n: b"\0" + n.to_bytes(32, "big")),
    ),
    Case(
        "Nimbus, Java's BigInteger",
        "a modulus of 257 bytes",
        keys=lambda: {
            "keys": [rsa(n=b64(b"\0" + private_key("RS256").public_key().public_numbers().n.to_bytes(256, "big")))]
        },
    ),
    # Entra
    Case(
        "Entra",
        "one tenant, keys without alg",
        issuer=f"https://login.microsoftonline.com/{TENANT}/v2.0",
        claims={"tid": TENANT, "ver": "2.0", "scp": "access"},
        keys=lambda: {
            "keys": [rsa(alg=None, x5t="one", x5c=[certificate()], issuer=f"https://login.microsoftonline.com/{TENANT}/v2.0")]
        },
        fields={"rules": [{"claim": "scp", "all_of": ["access"]}]},
    ),
    Case(
        "Entra",
        "version 1 tokens",
        issuer=f"https://sts.windows.net/{TENANT}/",
        claims={"tid": TENANT, "ver": "1.0", "appid": "x"},
    ),
    Case(
        "Entra",
        "many tenants, one of the list", reported=True,
        was="401",
        issuer=ENTRA,
        claims={"iss": ENTRA.replace("{tenantid}", TENANT), "tid": TENANT},
        keys=lambda: {"keys": [rsa(alg=None, issuer=ENTRA)]},
        entry={"tenants": [TENANT]},
    ),
    Case(
        "Entra",
        "many tenants, one that is not of the list", reported=True,
        was="401",
        refused="the token's issuer is not accepted here",
        issuer=ENTRA,
        claims={"iss": ENTRA.replace("{tenantid}", OTHER_TENANT), "tid": OTHER_TENANT},
        keys=lambda: {"keys": [rsa(issuer=ENTRA)]},
        entry={"tenants": [TENANT]},
    ),
    Case(
        "Entra B2C",
        "an issuer with the tenant's id, keys of a policy's own place",
        issuer=f"https://example.b2clogin.com/{TENANT}/v2.0/",
        claims={"tfp": "B2C_1_signin"},
    ),
    Case(
        "AD FS",
        "an http issuer that is not the place of its keys",
        issuer="http://adfs.example.com/adfs/services/trust",
        audience="microsoft:identityserver:claude",
        claims={"apptype": "Public", "appid": "x"},
        header={"x5t": "one"},
    ),
    Case(
        "App Service",
        "the token without Bearer in X-MS-TOKEN-AAD-ACCESS-TOKEN",
        was="401",
        fields={"raw_header_names": ["X-MS-TOKEN-AAD-ACCESS-TOKEN"]},
        sent=raw("x-ms-token-aad-access-token"),
    ),
    # Amazon
    Case(
        "Cognito",
        "an access token: client_id and no aud", reported=True,
        was="401",
        issuer=COGNITO,
        claims={"aud": None, "client_id": "claude-code", "token_use": "access", "scope": "claude/invoke"},
        fields={"audience_claims": ["aud", "client_id"], "rules": [{"claim": "token_use", "equals": "access"}]},
    ),
    Case("Cognito", "an id token", issuer=COGNITO, claims={"token_use": "id", "cognito:groups": ["dev"]}),
    Case(
        "Application Load Balancer",
        "padded parts in x-amzn-oidc-data",
        was="401",
        refused="characters that are not allowed in a token",
        algorithm="ES256",
        fields={"raw_header_names": ["x-amzn-oidc-data"]},
        sent=lambda token: {"x-amzn-oidc-data": "=.".join(token.split("."))},
    ),
    # Google
    Case("Google", "the issuer without https", issuer="accounts.google.com", claims={"azp": "x", "hd": "example.com"}),
    Case(
        "Identity-Aware Proxy",
        "the token without Bearer in x-goog-iap-jwt-assertion",
        was="401",
        issuer="https://cloud.google.com/iap",
        algorithm="ES256",
        audience="/projects/1/global/backendServices/2",
        fields={"raw_header_names": ["x-goog-iap-jwt-assertion"]},
        sent=raw("x-goog-iap-jwt-assertion"),
    ),
    Case(
        "Firebase",
        "email_verified and nested claims",
        issuer="https://securetoken.google.com/proj",
        claims={"email": "a@example.com", "email_verified": True, "firebase": {"sign_in_provider": "google.com"}},
        fields={"email_domains": ["example.com"]},
    ),
    # Auth0 and Okta
    Case(
        "Auth0",
        "an audience list, at+jwt, a namespaced claim",
        issuer="https://dev-1.eu.auth0.com/",
        claims={"aud": ["claude-code", "https://dev-1.eu.auth0.com/userinfo"], "https://example.com/roles": ["dev"]},
        header={"typ": "at+jwt"},
        fields={"rules": [{"claim": "https://example.com/roles", "any_of": ["dev"]}]},
    ),
    Case("RFC 9068", "typ with its whole name", source="RFC 9068", header={"typ": "application/AT+JWT"}),
    Case(
        "Auth0 with Apple",
        'email_verified "true"', reported=True,
        was="403",
        claims={"email": "a@example.com", "email_verified": "true"},
        fields={"email_domains": ["example.com"]},
    ),
    Case(
        "Apple",
        'email_verified and is_private_email "true"',
        was="403",
        issuer="https://appleid.apple.com",
        claims={"email": "a@privaterelay.appleid.com", "email_verified": "true", "is_private_email": "true"},
        fields={"email_domains": ["privaterelay.appleid.com"]},
    ),
    Case(
        "Okta",
        "scp as a list, aud a name with slashes",
        issuer="https://dev-1.okta.com/oauth2/default",
        audience="api://default",
        claims={"ver": 1, "cid": "0oa1", "uid": "00u1", "scp": ["claude", "openid"]},
        fields={"rules": [{"claim": "scp", "all_of": ["claude"]}]},
    ),
    Case(
        "Okta",
        "the organisation's own access token",
        was="401",
        refused="this type of token is not accepted here",
        issuer="https://dev-1.okta.com",
        header={"typ": "application/okta-internal-at+jwt"},
    ),
    # Other services that people log in with
    Case(
        "Clerk",
        "a session token: azp and no aud",
        was="401",
        issuer="https://clerk.example.com",
        audience="https://app.example.com",
        claims={"aud": None, "azp": "https://app.example.com", "sid": "sess_1", "fva": [5370, -1], "nbf": NOW - 10},
        fields={"audience_claims": ["azp"]},
    ),
    Case(
        "Kinde",
        "an empty aud and the client in azp", source="nuxt-modules/kinde#102",
        was="401",
        claims={"aud": [], "azp": "claude-code", "scp": ["openid"]},
        fields={"audience_claims": ["aud", "azp"]},
    ),
    Case(
        "Ory Hydra",
        "an empty aud and client_id, an Ed25519 key beside", source="ory/hydra#3441",
        was="401",
        claims={"aud": [], "client_id": "claude-code", "ext": {}, "scp": []},
        keys=lambda: {"keys": [jwk("EdDSA", "two", alg="EdDSA"), jwk("RS256")]},
        fields={"audience_claims": ["aud", "client_id"]},
    ),
    Case("Rauthy", "RSA and Ed25519 keys side by side", source="PrefectHQ/fastmcp#4517", algorithm="EdDSA", keys=keys("RS256", "EdDSA")),
    Case("Supabase", "key_ops and ext in a key", algorithm="ES256", keys=lambda: {"keys": [jwk("ES256", key_ops=["verify"], ext=True)]}),
    Case("Supabase", "the shared secret as it stands", algorithm="HS256", claims={"role": "authenticated"}, header={"kid": None}),
    Case(
        "Zitadel",
        "roles as names of an object",
        claims={"aud": ["1", "claude-code"], "urn:zitadel:iam:org:project:roles": {"dev": {"1": "example.com"}}},
        fields={"required_claims": ["urn:zitadel:iam:org:project:roles.dev"]},
    ),
    Case("Authentik", "groups, ES256", algorithm="ES256", issuer="https://auth.example.com/application/o/claude/", claims={"groups": ["dev"]}),
    Case("Dex", "a subject in base64", claims={"sub": "CgcyMzQyNzQ5EgZnaXRodWI", "at_hash": "x", "email_verified": True}),
    Case("Logto", "ES384", algorithm="ES384", issuer="https://logto.example.com/oidc", header={"typ": "at+jwt"}),
    Case("FusionAuth", "HS256 with a kid that no set has", algorithm="HS256", header={"kid": "f6dd5e1a"}),
    Case("PingFederate", "EC keys first, keys without alg", source="mpdavis/python-jose#331", keys=lambda: {"keys": [jwk("ES256", "two"), rsa(alg=None)]}),
    Case(
        "IdentityServer",
        "PS256, one kid for several algorithms", source="jpadilla/pyjwt#1129",
        algorithm="PS256",
        keys=lambda: {"keys": [jwk("RS256", "attacker", kid="one", alg="RS256"), jwk("PS256", alg="PS256")]},
    ),
    Case(
        "SAP XSUAA",
        "jku in the header, keys with their PEM beside",
        claims={"zid": "z", "scope": ["claude!t1.invoke"]},
        header={"jku": "https://evil.example/token_keys"},
        keys=lambda: {"keys": [rsa(alg="RS256", value="-----BEGIN PUBLIC KEY-----")]},
        fields={"rules": [{"claim": "scope", "any_of": ["claude!t1.invoke"]}]},
    ),
    Case("Cloud Foundry UAA", "a MAC key beside", keys=lambda: {"keys": [{"kty": "MAC", "alg": "HS256", "kid": "m", "value": "x"}, jwk("RS256")]}),
    Case("Vault", "an issuer with a port and a path", issuer="https://vault.example.com:8200/v1/identity/oidc", algorithm="EdDSA"),
    Case("WSO2", "a kid with the algorithm's name", header={"kid": "one_RS256"}, keys=lambda: {"keys": [jwk("RS256", kid="one_RS256", x5t="x")]}),
    # Machines
    Case(
        "GitHub Actions",
        "a subject with slashes and colons",
        issuer="https://token.actions.githubusercontent.com",
        claims={"sub": "repo:org/app:ref:refs/heads/main", "repository": "org/app", "run_id": "1"},
        fields={"repo_claim": "repository"},
    ),
    Case("GitLab", "a subject as its pipelines have it", issuer="https://gitlab.com", claims={"sub": "project_path:org/app:ref_type:branch:ref:main", "nbf": NOW - 10}),
    Case("Kubernetes", "a service account", issuer="https://kubernetes.default.svc.cluster.local", claims={"aud": ["claude-code"], "sub": "system:serviceaccount:ns:sa", "kubernetes.io": {"namespace": "ns"}}, fields={"forward_claims": ["kubernetes.io.namespace"]}),
    Case("CircleCI", "an organisation's issuer", issuer="https://oidc.circleci.com/org/1f", claims={"sub": "org/1f/project/2e/user/3d"}),
    Case("Buildkite", "a long subject", issuer="https://agent.buildkite.com", claims={"sub": "organization:acme:pipeline:app:ref:refs/heads/main:commit:9f3182061f1e2cca4702c368cbc039b7dc9d4485:step:build"}),
    Case(
        "SPIRE's discovery provider",
        "keys without use, a SPIFFE id as subject",
        algorithm="ES256",
        claims={"sub": "spiffe://example.org/ns/a/sa/b", "aud": ["claude-code"]},
        keys=lambda: {"keys": [_without_none(jwk("ES256", use=None))]},
    ),
    Case(
        "SPIFFE bundle",
        "keys for use as jwt-svid",
        was="401",
        refused="503",
        algorithm="ES256",
        keys=lambda: {"keys": [jwk("ES256", use="jwt-svid"), jwk("ES256", "two", use="x509-svid")], "spiffe_sequence": 1},
    ),
    # Servers in between
    Case("Cloudflare Access", "Cf-Access-Jwt-Assertion, PEM beside the keys", was="401", issuer="https://team.cloudflareaccess.com", claims={"aud": ["claude-code"], "type": "app"}, keys=keys("RS256", public_cert={"kid": "x"}, public_certs=[]), fields={"raw_header_names": ["Cf-Access-Jwt-Assertion"]}, sent=raw("cf-access-jwt-assertion")),
    Case("oauth2-proxy", "X-Forwarded-Access-Token", reported=True, was="401", fields={"raw_header_names": ["X-Forwarded-Access-Token"]}, sent=raw("x-forwarded-access-token")),
    Case("Pomerium", "X-Pomerium-Jwt-Assertion, an issuer that is a host", was="401", issuer="claude.example.com", algorithm="ES256", fields={"raw_header_names": ["x-pomerium-jwt-assertion"]}, sent=raw("x-pomerium-jwt-assertion")),
    Case("Teleport", "Teleport-Jwt-Assertion", was="401", issuer="teleport.example.com", fields={"raw_header_names": ["teleport-jwt-assertion"]}, sent=raw("teleport-jwt-assertion")),
    # Clients
    Case("Claude Code", "the token as ANTHROPIC_API_KEY", reported=True, was="401", fields={"raw_header_names": ["x-api-key"]}, sent=raw("x-api-key")),
    Case("Claude Code", "the token as ANTHROPIC_AUTH_TOKEN, a key of the API beside", sent=lambda token: {"authorization": f"Bearer {token}", "x-api-key": "sk-ant-api03-x"}),
    Case("a client", "bearer in small letters and two spaces", sent=lambda token: {"authorization": f"bearer  {token}"}),
    Case("a client", "Bearer in a header for tokens without", was="401", fields={"raw_header_names": ["x-api-key"]}, sent=lambda token: {"x-api-key": f"Bearer {token}"}),
    # Times
    Case("Laravel Passport", "times with a fraction", reported=True, was="401", claims={"iat": NOW - 5.403285, "nbf": NOW - 5.403291, "exp": NOW + 80_000.387841, "scopes": ["claude"]}),
    Case("JetBrains Hub", "times with a fraction", source="panva/openid-client#263", reported=True, was="401", claims={"iat": NOW - 0.5, "exp": NOW + 80_000.5}),
    Case("envoy's reports", "times with an exponent", source="envoyproxy/envoy#28201", was="401", claims={"iat": 1}, payload=lambda text: text.replace('"iat": 1,', f'"iat": {NOW / 1e9:.9f}E9,')),
    Case("a serializer of doubles", "times with a zero fraction", reported=True, was="401", claims={"exp": NOW + 80_000.0, "iat": NOW - 1.0}),
    Case("a serializer of nulls", "nbf and iat null", reported=True, was="401", claims={"nbf": "NULL", "iat": "NULL"}, payload=lambda text: text.replace('"NULL"', "null")),
    Case("a client of JavaScript", "iat in milliseconds", was="401", refused="iat is not a number", claims={"iat": NOW * 1000}),
    Case("a client of JavaScript", "exp as text", was="401", refused="exp is not a number", claims={"exp": str(NOW + 80_000)}),
    # Subjects and names
    Case("Laravel Passport", "no iss", was="401", refused="the token's issuer is not accepted here", claims={"iss": None}),
    Case("an older GitLab", "a number as subject", was="401", refused="no usable sub claim", claims={"sub": 42}),
    Case("Django", "user_id in the place of sub", algorithm="HS256", header={"kid": None}, claims={"sub": None, "user_id": "alice", "token_type": "access"}, fields={"subject_claim": "user_id"}),
    # Secrets
    Case("Kong's jwt plugin", "a secret in base64", reported=True, was="401", algorithm="HS256", entry={"secret": base64.b64encode(SECRET.encode()).decode(), "secret_is_base64": True}),
    Case("Kong's jwt plugin", "a secret in base64url without padding", was="401", algorithm="HS256", entry={"secret": b64(SECRET.encode()), "secret_is_base64": True}),
    # Names of EdDSA (RFC 9864)
    Case("RFC 9864", "EdDSA tokens, Ed25519 in the key", reported=True, was="401", algorithm="EdDSA", keys=lambda: {"keys": [jwk("EdDSA", alg="Ed25519")]}),
    Case("RFC 9864", "Ed25519 tokens, EdDSA in the key and here", reported=True, was="401", algorithm="Ed25519", keys=lambda: {"keys": [jwk("EdDSA", alg="EdDSA")]}, entry={"algorithms": ["EdDSA"]}),
    Case("RFC 9864", "Ed25519 everywhere", source="RFC 9864", was="500", algorithm="Ed25519", keys=lambda: {"keys": [jwk("EdDSA", alg="Ed25519")]}),
    Case("RFC 9864", "Ed448", source="RFC 9864", was="500", algorithm="Ed448", key=ed448_key, keys=lambda: {"keys": [ed448_jwk(alg="Ed448")]}),
    Case("RFC 8037", "EdDSA with an Ed448 key", source="RFC 8037", algorithm="EdDSA", key=ed448_key, keys=lambda: {"keys": [ed448_jwk()]}),
    # Key sets
    Case(ODD, "null as an entry", reported=True, was="503", keys=keys("RS256", None)),
    Case(ODD, "a text as an entry", reported=True, was="503", keys=lambda: {"keys": ["x", jwk("RS256")]}),
    Case(ODD, "a list and a number as entries", was="503", keys=lambda: {"keys": [[], 7, jwk("RS256")]}),
    Case(ODD, "120 keys", reported=True, was="503", keys=lambda: {"keys": [jwk("RS256", kid=f"k{n}") for n in range(119)] + [jwk("RS256")]}),
    Case(ODD, "null members", reported=True, was="401", keys=lambda: {"keys": [{**jwk("RS256"), "use": None, "alg": None, "key_ops": None, "x5c": None}]}),
    Case(ODD, "empty use and alg", reported=True, was="401", keys=lambda: {"keys": [jwk("RS256", use="", alg="")]}),
    Case(ODD, "a key in a certificate only", source="panva/jose#96", reported=True, was="401", keys=lambda: {"keys": [{"kty": "RSA", "use": "sig", "kid": "one", "x5c": [certificate()]}]}),
    Case(ODD, "an EC key in a certificate only", was="401", algorithm="ES256", keys=lambda: {"keys": [{"kty": "EC", "kid": "one", "x5c": [certificate("ES256")]}]}),
    Case(ODD, "a post-quantum key beside", source="authlib/authlib#913", keys=lambda: {"keys": [{"kty": "AKP", "alg": "ML-DSA-65", "kid": "pq", "pub": "AA"}, jwk("RS256")]}),
    Case(ODD, "a key without modulus beside", source="open-policy-agent/opa#3038", keys=lambda: {"keys": [{"kty": "RSA", "kid": "broken"}, jwk("RS256")]}),
    Case(ODD, "no kid anywhere", header={"kid": None}, keys=lambda: {"keys": [rsa(kid=None)]}),
    Case(ODD, "a number as kid beside", source="limosa-io/laravel-openid-connect-server#33", keys=lambda: {"keys": [jwk("RS256", "two", kid=1), jwk("RS256")]}),
    Case(ODD, "a modulus in base64 with padding", keys=lambda: {"keys": [rsa(n=base64.b64encode(shortest(private_key("RS256").public_key().public_numbers().n)).decode())]}),
    Case(ODD, "the private key published", keys=lambda: {"keys": [{**jwk("RS256"), "d": "AQAB"}]}, was="401"),
    Case(ODD, "a key for encryption on a curve that nobody signs with", source="jpadilla/pyjwt#862", keys=lambda: {"keys": [{"kty": "OKP", "crv": "X25519", "kid": "x", "x": b64(bytes(32))}, jwk("RS256")]}),
    Case(ODD, "an encryption key that claims to be for signatures", source="jpadilla/pyjwt#762", keys=lambda: {"keys": [jwk("RS256", "enc", use="sig", alg="RSA-OAEP"), jwk("RS256")]}),
    Case(ODD, "an object in the place of the list", source="latchset/jwcrypto#378", was="503", refused="503", keys=lambda: {"keys": {"one": jwk("RS256")}}),
    Case(ODD, "a list without a set around it", source="latchset/jwcrypto#378", was="503", refused="503", keys=lambda: [jwk("RS256")]),
    Case("Authentik, Gafaelfawr", "an issuer with a slash behind it, written without", source="oidc-wp/openid-connect-generic#633, lsst-sqre/gafaelfawr#1431", was="401", refused="the token's issuer is not accepted here", claims={"iss": "https://idp.example.com/"}),
    Case("a phone whose clock is behind", "nbf a second from now, with leeway", source="blake-simpson/expo-jwt#7, simov/grant#195", claims={"nbf": NOW + 20}, fields={"leeway": 60}),
    Case(ODD, "a byte order mark before it", source="RFC 8259", keys=lambda: "\ufeff" + json.dumps({"keys": [jwk("RS256")]})),
]  # fmt: skip
