"""Configurations that cannot be honoured are refused when the instance starts, so that Kong answers 500."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from claude_contract.errors import ConfigError
from kong_claude.jwt_claims.plugin import JwtClaims
from tests.interop.tokens import TENANT, certificate
from tests.jwt_claims.support import ISSUER, SECRET, config, issuer, jwk, pem, private_key
from tests.support.kong_driver import Driver, RPCError
from tests.support.stages import stage_of

PRIVATE = private_key("RS256").private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def public_pem(key: Any) -> str:
    encoded: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return encoded.decode()


WEAK = public_pem(rsa.generate_private_key(65537, 1024))
KOBLITZ = public_pem(ec.generate_private_key(ec.SECP256K1()))


def one(**fields: Any) -> dict[str, Any]:
    """A configuration with one issuer that has no key source of its own."""
    entry = {"issuer": ISSUER, "algorithms": ["RS256"], **fields}
    return config(issuers=[{name: value for name, value in entry.items() if value is not None}])


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no issuer": (config(issuers=[]), "issuers: names no issuer"),
    "issuers absent": (config(issuers=None), "issuers: names no issuer"),
    "issuer without a name": (one(issuer="", public_key=pem("RS256")), "issuers[1].issuer: is required"),
    "the same issuer twice": (config(issuers=[issuer(), issuer()]), "issuers[2].issuer: is configured twice"),
    "no algorithm": (one(algorithms=[], public_key=pem("RS256")), "issuers[1].algorithms: names no algorithm"),
    "algorithm none": (one(algorithms=["none"], public_key=pem("RS256")), "issuers[1].algorithms: does not know none"),
    "no audience": (config(audience=[]), "audience: names no audience"),
    "no place for a token": (config(header_names=[]), "header_names: is empty"),
    "no key": (one(), "issuers[1]: needs exactly one of"),
    "discovery false and nothing else": (one(discovery=False), "issuers[1]: needs exactly one of"),
    "two keys": (one(public_key=pem("RS256"), secret=SECRET), "issuers[1]: needs exactly one of"),
    "discovery and a key": (one(public_key=pem("RS256"), discovery=True), "issuers[1]: needs exactly one of"),
    "secret for RS256": (one(secret=SECRET), "issuers[1].secret: a shared secret cannot serve RS256"),
    "secret for HS256 and RS256": (one(secret=SECRET, algorithms=["HS256", "RS256"]), "cannot serve RS256"),
    "short secret": (one(secret="x" * 31, algorithms=["HS256"]), "issuers[1].secret: must be at least 32 bytes"),
    "secret too short for HS512": (one(secret="x" * 63, algorithms=["HS256", "HS512"]), "at least 64 bytes"),
    "unresolved reference": (one(secret="", algorithms=["HS256"]), "unresolved vault reference"),
    "unresolved PEM reference": (one(public_key=""), "unresolved vault reference"),
    "unresolved JWKS reference": (one(jwks=""), "unresolved vault reference"),
    "a public key as secret": (
        one(secret=pem("RS256"), algorithms=["HS256"]),
        "issuers[1].secret: is a public or private key",
    ),
    "a public key in base64 as secret": (
        one(secret=base64.b64encode(pem("RS256").encode()).decode(), algorithms=["HS256"], secret_is_base64=True),
        "issuers[1].secret: is a public or private key",
    ),
    "a public key without PEM's lines as secret": (
        one(secret="".join(pem("RS256").splitlines()[1:-1]), algorithms=["HS256"]),
        "issuers[1].secret: is a public or private key",
    ),
    "a public key without PEM's lines as secret in base64": (
        one(secret="".join(pem("RS256").splitlines()[1:-1]), algorithms=["HS256"], secret_is_base64=True),
        "issuers[1].secret: is a public or private key",
    ),
    "a certificate without PEM's lines as secret": (
        one(secret=certificate(), algorithms=["HS256"]),
        "issuers[1].secret: is a public or private key",
    ),
    "a secret that is not base64": (
        one(secret="$" * 64, algorithms=["HS256"], secret_is_base64=True),
        "issuers[1].secret: is not base64",
    ),
    "a secret shorter than the hash once decoded": (
        one(secret=base64.b64encode(b"x" * 31).decode(), algorithms=["HS256"], secret_is_base64=True),
        "issuers[1].secret: must be at least 32 bytes for HS256 when decoded",
    ),
    "a secret in base64 shorter than HS512's hash": (
        one(secret=base64.b64encode(b"x" * 63).decode(), algorithms=["HS512"], secret_is_base64=True),
        "at least 64 bytes for HS512 when decoded",
    ),
    "a template without tenants": (
        one(issuer="https://x/{tenantid}/v2.0", public_key=pem("RS256")),
        "issuers[1].tenants: must name the tenants",
    ),
    "tenants without a template": (
        one(public_key=pem("RS256"), tenants=[TENANT]),
        "issuers[1].tenants: needs {tenantid} in issuer",
    ),
    "a tenant with a slash": (
        one(issuer="https://x/{tenantid}/v2.0", public_key=pem("RS256"), tenants=[TENANT, "a/b"]),
        "issuers[1].tenants: 'a/b' is not a tenant's id",
    ),
    "a tenant by its domain": (
        one(issuer="https://x/{tenantid}/v2.0", public_key=pem("RS256"), tenants=["example.onmicrosoft.com"]),
        "is not a tenant's id",
    ),
    "a tenant with a line break": (
        one(issuer="https://x/{tenantid}/v2.0", public_key=pem("RS256"), tenants=[TENANT + "\n"]),
        "is not a tenant's id",
    ),
    "everybody's tenants": (
        one(issuer="https://login.microsoftonline.com/common/v2.0", discovery=True),
        "issuers[1].issuer: is no token's iss: write {tenantid}",
    ),
    "everybody's organisations": (
        one(issuer="https://sts.windows.net/organizations/", discovery=True),
        "issuers[1].issuer: is no token's iss: write {tenantid}",
    ),
    "a tenant configured twice": (
        config(
            issuers=[
                {"issuer": f"https://x/{tenant}/v2.0", "algorithms": ["RS256"], "public_key": pem("RS256"), **more}
                for tenant, more in ((TENANT, {}), ("{tenantid}", {"tenants": [TENANT]}))
            ]
        ),
        "issuers[2].issuer: is configured twice",
    ),
    "a prefix with a template, an issuer without": (
        one(public_key=pem("RS256"), subject_prefix="{tenantid}:"),
        "issuers[1].subject_prefix: has {tenantid}",
    ),
    "a prefix with other braces": (
        one(public_key=pem("RS256"), subject_prefix="{oid}:"),
        "issuers[1].subject_prefix: may have braces in {tenantid} only",
    ),
    "no audience claim": (config(audience_claims=[]), "audience_claims: names no claim"),
    "Ed448 from an Ed25519 key": (
        one(public_key=pem("EdDSA"), algorithms=["Ed448"]),
        "this key cannot serve Ed448",
    ),
    "PEM garbage": (
        one(public_key="-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"),
        "is not a PEM public key",
    ),
    "not a PEM": (one(public_key="hello"), "is not a PEM public key"),
    "a private key": (one(public_key=PRIVATE), "is a private key"),
    "EC key for RS256": (one(public_key=pem("ES256")), "issuers[1].public_key: this key cannot serve RS256"),
    "a key to agree on keys": (
        one(public_key=public_pem(x25519.X25519PrivateKey.generate()), algorithms=["EdDSA"]),
        "issuers[1].public_key: must be an RSA, EC or EdDSA key",
    ),
    "a DSA key": (
        one(public_key=public_pem(dsa.generate_private_key(1024)), algorithms=["Ed448"]),
        "issuers[1].public_key: must be an RSA, EC or EdDSA key",
    ),
    "RSA key for ES256": (one(public_key=pem("RS256"), algorithms=["ES256"]), "this key cannot serve ES256"),
    "P-256 key for ES384": (one(public_key=pem("ES256"), algorithms=["ES256", "ES384"]), "cannot serve ES384"),
    "RSA key for RS256 and HS256": (one(public_key=pem("RS256"), algorithms=["RS256", "HS256"]), "cannot serve HS256"),
    "1024-bit RSA": (one(public_key=WEAK), "is too weak"),
    "another curve": (one(public_key=KOBLITZ, algorithms=["ES256"]), "is too weak, or on a curve"),
    "JWKS not JSON": (one(jwks="{"), "issuers[1].jwks: is not a usable"),
    "JWKS a list": (one(jwks="[]"), "no list of keys"),
    "JWKS empty": (one(jwks='{"keys":[]}'), "holds no key"),
    "JWKS with a key for encryption": (one(jwks=json.dumps({"keys": [jwk("RS256", use="enc")]})), "not for signatures"),
    "JWKS with a key to wrap keys": (
        one(jwks=json.dumps({"keys": [jwk("RS256", key_ops=["wrapKey"])]})),
        "not for signatures",
    ),
    "JWKS with another kind of key": (one(jwks=json.dumps({"keys": [jwk("ES256")]})), "serves none of RS256"),
    "JWKS with another alg": (one(jwks=json.dumps({"keys": [jwk("RS256", alg="RS512")]})), "serves none of RS256"),
    "JWKS with a torn key": (one(jwks=json.dumps({"keys": [{"kty": "RSA", "n": "!", "e": "AQAB"}]})), "cannot be read"),
    "JWKS without a key for one algorithm": (
        one(algorithms=["RS256", "ES256"], jwks=json.dumps({"keys": [jwk("RS256")]})),
        "has no key for ES256",
    ),
    "JWKS with a short secret": (
        one(algorithms=["HS256"], jwks=json.dumps({"keys": [{"kty": "oct", "k": "c2hvcnQ"}]})),
        "serves none of HS256",
    ),
    "jwks_uri over http": (one(jwks_uri="http://idp.example.com/jwks"), "must be an https URL"),
    "jwks_uri of a file": (one(jwks_uri="file:///etc/passwd", allow_insecure_jwks=True), "must be an https URL"),
    "jwks_uri with a password": (one(jwks_uri="https://u:p@idp.example.com/jwks"), "must be an https URL"),
    "jwks_uri without a host": (one(jwks_uri="https:///jwks"), "must be an https URL"),
    "jwks_uri for HS256": (one(jwks_uri="https://x.example/", algorithms=["HS256"]), "cannot serve HS"),
    "discovery of what is no URL": (one(issuer="idp", discovery=True), "must be an https URL"),
    "a rule without a demand": (config(rules=[{"claim": "roles"}]), "rules[1]: needs any_of"),
    "an unresolved Redis reference": (config(revocation_redis_url=""), "revocation_redis_url: is empty"),
    "a Redis URL that is none": (
        config(revocation_redis_url="http://:hunter2@x"),
        "revocation_redis_url: must begin with redis://",
    ),
    "a short attestation secret": (config(attestation={"secret": "x"}), "attestation.secret: must be at least 32"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused_through_the_socket(kong: Driver, name: str) -> None:
    bad, text = BAD[name]
    with pytest.raises(RPCError) as refused:
        kong.start_instance("claude-jwt-claims", bad)
    assert text in str(refused.value)
    assert "hunter2" not in str(refused.value)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("bits", ["secret", "private_key", "d", "k"])
def test_keys_do_not_show(bits: str) -> None:
    stage = stage_of(JwtClaims, config())
    assert SECRET not in repr(vars(stage)) + repr(stage._issuers) + repr(stage._issuers[ISSUER].keys.current())


def test_a_certificate_serves_as_a_public_key() -> None:
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "idp")])
    now = datetime.datetime.now(datetime.UTC)
    key = private_key("RS256")
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
        .decode()
    )
    stage_of(JwtClaims, one(public_key=certificate))
    with pytest.raises(ConfigError, match="cannot serve ES256"):
        stage_of(JwtClaims, one(public_key=certificate, algorithms=["ES256"]))


@pytest.mark.parametrize("place", ["header_names", "raw_header_names", "cookie_names", "uri_param_names", None])
def test_one_place_where_a_token_could_be_is_enough(place: str | None) -> None:
    nowhere: dict[str, Any] = {"header_names": [], "raw_header_names": [], "cookie_names": [], "uri_param_names": []}
    if place:
        assert stage_of(JwtClaims, config(**{**nowhere, place: ["x"]}))
    else:
        with pytest.raises(ConfigError, match="header_names: is empty, and so are the other places"):
            stage_of(JwtClaims, config(**nowhere))
