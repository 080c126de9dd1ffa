"""`X-Claude-Attestation`: what the gateway's plugins found out about a request, signed.

A compact JWS (RFC 7515): EdDSA (RFC 8037), for which the invoker holds only the public key, or HS256 with a shared
secret. Claims: iss, aud, sub, tier, roles, who{}, chk[], clamp{}, lease, reservation, add{}, mth, pth, rte, rid,
bsh, iat, exp, jti. The first plugin mints jti, iat and exp; later ones verify, add, and sign anew without
prolonging, so that a replay always meets the same jti.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from claude_contract import secret_file
from claude_contract.errors import ConfigError
from claude_contract.secret_file import SecretFileError

HEADER = "X-Claude-Attestation"
MAX_TTL = 60  # seconds
MIN_SECRET = 32  # bytes, RFC 7518 section 3.2
# Claims that bind an attestation to one request; they must agree when a later plugin continues it.
BINDING = ("iss", "aud", "mth", "pth", "rte", "rid")

Key = bytes | Ed25519PrivateKey | Ed25519PublicKey


class AttestationError(Exception):
    """An attestation that must not be trusted. `reason` is a stable word for logs and metrics."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def body_hash(body: bytes) -> str:
    """`bsh`: base64url SHA-256 of the body that goes upstream, unpadded."""
    return _b64(hashlib.sha256(body).digest()).decode()


def _b64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


# Written out (RFC 7515, section 3) instead of PyJWT's encode, which takes three times as long for the same bytes.
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode


@cache
def _protected(algorithm: str, kid: str) -> bytes:
    return _b64(_ENCODE({"alg": algorithm, "kid": kid, "typ": "JWT"}).encode()) + b"."


@dataclass(frozen=True)
class Signer:
    """Signs with one key, verifies with up to two (rotation by `kid`)."""

    kid: str
    key: Key = field(repr=False)
    keys: Mapping[str, Key] = field(repr=False)  # kid → verification key, the signing key's among them
    issuer: str = "kong-claude"
    audience: str = "claude-invoker"
    ttl: int = 30  # seconds

    def open(self, *, method: str, path: str, route: str, request_id: str, now: float | None = None) -> dict[str, Any]:
        """Fresh claims for a request that carries no attestation yet."""
        issued = int(time.time() if now is None else now)
        return {
            "iss": self.issuer,
            "aud": self.audience,
            "mth": method,
            "pth": path,
            "rte": route,
            "rid": request_id,
            "iat": issued,
            "exp": issued + self.ttl,
            "jti": secrets.token_urlsafe(12),
            "chk": [],
        }

    def sign(self, claims: Mapping[str, Any]) -> str:
        """The header's value."""
        if isinstance(self.key, Ed25519PublicKey):
            raise TypeError("a public key cannot sign")
        algorithm = "HS256" if isinstance(self.key, bytes) else "EdDSA"
        signing_input = _protected(algorithm, self.kid) + _b64(_ENCODE(claims).encode())
        if isinstance(self.key, bytes):
            signature = hmac.digest(self.key, signing_input, "sha256")
        else:
            signature = self.key.sign(signing_input)
        return (signing_input + b"." + _b64(signature)).decode()

    def resume(self, header: str, fresh: Mapping[str, Any]) -> dict[str, Any]:
        """The claims of an earlier plugin of the same request. Raises AttestationError if they are not."""
        claims = verify(header, self.keys, issuer=self.issuer, audience=self.audience)
        if any(claims.get(name) != fresh[name] for name in BINDING):
            raise AttestationError("mismatch", "the attestation belongs to another request")
        return claims


def verify(header: str, keys: Mapping[str, Key], *, issuer: str, audience: str, skew: float = 0.0) -> dict[str, Any]:
    """The claims of a valid attestation: known kid, its key's own algorithm, iss, aud, times, jti.

    `skew`: seconds of clock difference to forgive. Raises AttestationError.
    """
    try:
        kid = jwt.get_unverified_header(header).get("kid")
        key = keys[kid]  # type: ignore[index]
    except (jwt.PyJWTError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise AttestationError("unknown_key", "the attestation is not signed by a known key") from error
    if isinstance(key, Ed25519PrivateKey):
        key = key.public_key()
    try:
        claims: dict[str, Any] = jwt.decode(
            header,
            key,
            algorithms=["HS256"] if isinstance(key, bytes) else ["EdDSA"],
            issuer=issuer,
            audience=audience,
            leeway=skew,
            options={"require": ["iss", "aud", "iat", "exp", "jti", "mth", "pth"], "strict_aud": True},
        )
    except jwt.ExpiredSignatureError as error:
        raise AttestationError("expired", "the attestation has expired") from error
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise AttestationError("invalid", "the attestation is not valid") from error
    if claims["exp"] - claims["iat"] > MAX_TTL:
        raise AttestationError("invalid", "the attestation lives longer than it may")
    return claims


def demand(
    claims: Mapping[str, Any], *, method: str, path: str, checks: Iterable[str], body: bytes | None = None
) -> None:
    """What the receiver demands of verified claims: this request, this body, these checks.

    `body`: the bytes received, or None where there was none. Raises AttestationError.
    """
    if claims["mth"] != method or claims["pth"] != path:
        raise AttestationError("mismatch", "the attestation belongs to another request")
    missing = set(checks) - set(claims.get("chk") or ())
    if missing:
        raise AttestationError("checks", f"checks missing at the gateway: {', '.join(sorted(missing))}")
    if "bsh" in claims and claims["bsh"] != body_hash(body or b""):
        raise AttestationError("body", "the body is not the one that the gateway saw")


def signer_from_config(config: Mapping[str, Any] | None) -> Signer | None:
    """A Signer from a plugin's `attestation` section (see `trust.schema`). Raises ConfigError; None without one."""
    if not config:
        return None
    keys: dict[str, Key] = {}
    kid = config.get("kid") or "1"
    key = load_key(config, "attestation")
    keys[kid] = key
    if config.get("previous_kid"):
        if config["previous_kid"] == kid:
            raise ConfigError("attestation.previous_kid", "is the same as kid")
        keys[config["previous_kid"]] = load_key(config, "attestation", "previous_")
    if isinstance(key, Ed25519PublicKey):
        raise ConfigError("attestation.private_key", "is a public key, signing needs the private one")
    ttl = int(config.get("ttl") or 30)
    if not 1 <= ttl <= MAX_TTL:
        raise ConfigError("attestation.ttl", f"must be 1 to {MAX_TTL} seconds")
    return Signer(
        kid=kid,
        key=key,
        keys=keys,
        issuer=config.get("issuer") or "kong-claude",
        audience=config.get("audience") or "claude-invoker",
        ttl=ttl,
    )


def load_key(config: Mapping[str, Any], section: str, prefix: str = "") -> Key:
    """The key in `<prefix>secret`, `<prefix>secret_file` or `<prefix>private_key`. Raises ConfigError."""
    name = f"{section}.{prefix}secret"
    pem = config.get(f"{prefix}private_key")
    if pem is not None:
        # An unresolved vault reference reaches a plugin as "": no reason to fall back on another key.
        if not pem:
            raise ConfigError(f"{section}.{prefix}private_key", "is empty (an unresolved vault reference?)")
        return parse_pem(pem, f"{section}.{prefix}private_key")
    secret = config.get(f"{prefix}secret")
    path = config.get(f"{prefix}secret_file")
    if not secret and path:
        try:
            secret = secret_file.read(path)
        except SecretFileError as error:
            raise ConfigError(f"{section}.{prefix}secret_file", str(error)) from error
        if secret.startswith("-----BEGIN"):
            return parse_pem(secret, f"{section}.{prefix}secret_file")
    if not secret:
        raise ConfigError(name, "is empty (an unresolved vault reference?)")
    if secret.lstrip().startswith("-----BEGIN"):  # the public half as a shared secret would let everybody sign
        raise ConfigError(name, f"is a PEM key; it belongs into {prefix}private_key")
    if len(secret.encode()) < MIN_SECRET:
        raise ConfigError(name, f"must be at least {MIN_SECRET} bytes")
    return bytes(secret.encode())


_PEM = re.compile(r"-----BEGIN ([A-Z ]+)-----(.+?)-----END \1-----", re.DOTALL)


def parse_pem(pem: str, name: str) -> Key:
    """An Ed25519 key, private or public. Raises ConfigError.

    Line breaks may be missing or written as `\\n`: an environment file has room for one line only.
    """
    if match := _PEM.search(pem):
        body = "".join(match[2].replace("\\n", "").split())
        pem = f"-----BEGIN {match[1]}-----\n{body}\n-----END {match[1]}-----\n"
    data = pem.encode()
    try:
        key = load_pem_private_key(data, None) if "PRIVATE" in pem else load_pem_public_key(data)
    except (ValueError, TypeError) as error:
        raise ConfigError(name, "is not a PEM key that can be read") from error
    if not isinstance(key, Ed25519PrivateKey | Ed25519PublicKey):
        raise ConfigError(name, "must be an Ed25519 key")
    return key


def new_private_key() -> str:
    """A fresh Ed25519 key in PEM, for the gateway."""
    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def public_key_of(private_key: str, name: str) -> str:
    """The public half in PEM, for the invoker. Raises ConfigError where it is no private key."""
    key = parse_pem(private_key, name)
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(name, "is a public key, signing needs the private one")
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
