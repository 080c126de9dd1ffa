"""Keys, tokens and configurations for the tests of claude-jwt-claims."""

from __future__ import annotations

import base64
import json
import time
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

ISSUER, AUDIENCE = "https://idp.example.com/", "claude-code"
SECRET = "not-a-secret-" * 6  # long enough for HS512
OTHER_SECRET = "another-one--" * 6
ATTESTATION = {"secret": "attestation-secret-of-the-tests!", "request": "POST /claude/invoke"}
RULES = [{"claim": "roles", "any_of": ["claude:invoke"]}]


def private_key(algorithm: str, name: str = "one") -> Any:
    """The same key for the same arguments, for the whole test run; RS and PS share theirs."""
    if algorithm.startswith("HS"):
        return SECRET if name == "one" else OTHER_SECRET
    return _private_key("RSA" if algorithm[:2] in ("RS", "PS") else algorithm, name)


@cache
def _private_key(kind: str, name: str) -> Any:
    if kind == "RSA":
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    if kind == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key({"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}[kind])


def pem(algorithm: str, name: str = "one") -> str:
    """The public key in PEM."""
    key = private_key(algorithm, name).public_key()
    encoded: bytes = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return encoded.decode()


def jwk(algorithm: str, name: str = "one", **members: Any) -> dict[str, Any]:
    """The public key as a JWK with kid = `name`."""
    key = private_key(algorithm, name)
    if isinstance(key, str):
        found = {"kty": "oct", "k": b64(key.encode())}
    else:
        found = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
        found.pop("key_ops", None)
    return {"kid": name, "use": "sig", **found, **members}


def issuer(algorithm: str = "HS256", **fields: Any) -> dict[str, Any]:
    source = {"secret": SECRET} if algorithm.startswith("HS") else {"public_key": pem(algorithm)}
    return {"issuer": ISSUER, "algorithms": [algorithm], **source, **fields}


def config(algorithm: str = "HS256", **fields: Any) -> dict[str, Any]:
    """As Kong would send it, shared settings included; a field given as None is left out."""
    base = {
        "issuers": [issuer(algorithm)],
        "audience": [AUDIENCE],
        "rules": RULES,
        "mark": "the-route",
        "attestation": ATTESTATION,
        **fields,
    }
    return {name: value for name, value in base.items() if value is not None}


def claims(**more: Any) -> dict[str, Any]:
    """Valid claims; one given as None is left out."""
    now = int(time.time())
    base = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "alice",
        "tier": "pro",
        "roles": ["claude:invoke"],
        "jti": "t-1",
        "iat": now,
        "exp": now + 80_000,  # tables are made long before they are run: the whole suite may last hours
        **more,
    }
    return {name: value for name, value in base.items() if value is not None}


def token(algorithm: str = "HS256", name: str = "one", header: dict[str, Any] | None = None, **more: Any) -> str:
    return jwt.encode(claims(**more), private_key(algorithm, name), algorithm=algorithm, headers=header)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign(header: str | dict[str, Any], payload: str | dict[str, Any], algorithm: str = "HS256", key: Any = None) -> str:
    """A token with exactly this header and payload, validly signed, whatever they say."""
    parts = [b64((part if isinstance(part, str) else json.dumps(part)).encode()) for part in (header, payload)]
    signing_input = ".".join(parts).encode()
    verifier = jwt.get_algorithm_by_name(algorithm)
    signature = verifier.sign(signing_input, verifier.prepare_key(private_key(algorithm) if key is None else key))
    return f"{signing_input.decode()}.{b64(signature)}"


def bearer(compact: str, **headers: Any) -> dict[str, Any]:
    return {"authorization": f"Bearer {compact}", "x-request-id": "r-1", **headers}
