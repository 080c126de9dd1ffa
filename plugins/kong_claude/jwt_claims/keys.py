"""Verification keys: parsed from a secret, PEM or JSON Web Key Set (RFC 7517), each with what it may verify."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509 import load_pem_x509_certificate

from claude_contract.errors import ConfigError
from kong_claude.jwt_claims.algorithms import MIN_SECRET, Material, algorithms_of

MAX_KEYS = 64


@dataclass(frozen=True, slots=True)
class Key:
    """One verification key and the algorithms that it, and its issuer's configuration, allow."""

    kid: str | None
    algorithms: frozenset[str]
    material: Material = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeySet:
    """An issuer's keys at one moment. A new KeySet object means that the keys have changed."""

    keys: tuple[Key, ...] = field(repr=False)

    def candidates(self, kid: str | None, algorithm: str) -> tuple[Key, ...]:
        """Keys that may have signed: by kid where the token has one. A key without kid matches any."""
        return tuple(
            key for key in self.keys if algorithm in key.algorithms and (kid is None or key.kid in (None, kid))
        )


class Unavailable(Exception):
    """The issuer's keys are not to be had, or too old to be trusted."""


class KeySource(Protocol):
    """Where an issuer's keys come from."""

    def current(self) -> KeySet:
        """The keys to use now. Raises Unavailable."""

    def refreshed(self, old: KeySet) -> KeySet:
        """The keys after a look for newer ones than `old`; the same object if there are none."""


class StaticKeys:
    """Keys from the configuration."""

    def __init__(self, keys: KeySet) -> None:
        self._keys = keys

    def current(self) -> KeySet:
        return self._keys

    def refreshed(self, old: KeySet) -> KeySet:
        return old


def key_from_secret(secret: str, algorithms: frozenset[str], name: str) -> Key:
    """A shared secret. Raises ConfigError where it is empty, too short, or looks like a public key."""
    # An unresolved vault reference reaches a plugin as "".
    if not secret:
        raise ConfigError(name, "is empty (an unresolved vault reference?)")
    if secret.lstrip().startswith("-----BEGIN"):
        raise ConfigError(name, "is a PEM key; a public key belongs into public_key")
    _only(algorithms, frozenset(MIN_SECRET), name, "a shared secret")
    material = secret.encode()
    needed = max(MIN_SECRET[algorithm] for algorithm in algorithms)
    if len(material) < needed:
        raise ConfigError(name, f"must be at least {needed} bytes for {', '.join(sorted(algorithms))}")
    return Key(None, algorithms, material)


def key_from_pem(pem: str, algorithms: frozenset[str], name: str) -> Key:
    """A public key or certificate. Raises ConfigError."""
    if not pem:
        raise ConfigError(name, "is empty (an unresolved vault reference?)")
    if "PRIVATE KEY" in pem:
        raise ConfigError(name, "is a private key; only the public one belongs here")
    try:
        data = pem.encode()
        certificate = "BEGIN CERTIFICATE" in pem
        material = load_pem_x509_certificate(data).public_key() if certificate else load_pem_public_key(data)
    except Exception as error:  # cryptography raises several kinds, none of which says more
        raise ConfigError(name, "is not a PEM public key that can be read") from error
    if not isinstance(material, RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey | Ed448PublicKey):
        raise ConfigError(name, "must be an RSA, EC or EdDSA key")
    served = algorithms_of(material)
    if not served:
        raise ConfigError(name, "is too weak, or on a curve that no algorithm uses")
    _only(algorithms, served, name, "this key")
    return Key(None, algorithms, material)


def keys_from_text(text: str, algorithms: frozenset[str], name: str) -> KeySet:
    """A key set from the configuration; every key must be usable. Raises ConfigError."""
    if not text:
        raise ConfigError(name, "is empty (an unresolved vault reference?)")
    try:
        entries = jwks_entries(json.loads(text))
        keys = tuple(_parse(entry, algorithms) for entry in entries)
    except (ValueError, RecursionError) as error:
        raise ConfigError(name, f"is not a usable JSON Web Key Set: {error}") from error
    if not keys:
        raise ConfigError(name, "holds no key")
    unserved = algorithms - {served for key in keys for served in key.algorithms}
    if unserved:
        raise ConfigError(name, f"has no key for {', '.join(sorted(unserved))}")
    return KeySet(keys)


def keys_from_issuer(document: Any, algorithms: frozenset[str]) -> KeySet:
    """A fetched key set: what cannot serve is skipped, symmetric keys never serve. Raises ValueError if malformed."""
    keys = []
    for entry in jwks_entries(document):
        try:
            key = _parse(entry, algorithms)
        except ValueError:
            continue
        if not isinstance(key.material, bytes):
            keys.append(key)
    return KeySet(tuple(keys))


def jwks_entries(document: Any) -> list[Mapping[str, Any]]:
    """The members of `keys`. Raises ValueError if the document is no key set, or a giant one."""
    entries = document.get("keys") if isinstance(document, Mapping) else None
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise ValueError("no list of keys")
    if len(entries) > MAX_KEYS:
        raise ValueError(f"more than {MAX_KEYS} keys")
    return entries


def _parse(entry: Mapping[str, Any], algorithms: frozenset[str]) -> Key:
    """One JWK. Raises ValueError where it is not a signature key that serves one of `algorithms`."""
    kid = entry.get("kid")
    if kid is not None and not isinstance(kid, str):
        raise ValueError("a kid is not a string")
    operations = entry.get("key_ops", ["verify"])
    if entry.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        raise ValueError(f"key {kid!r} is not for signatures")
    kinds = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA", "oct": "HS256"}
    kind = next((algorithm for kty, algorithm in kinds.items() if entry.get("kty") == kty), None)
    if kind is None:
        raise ValueError(f"key {kid!r} has an unknown kty")
    try:
        if kind == "RS256":
            material: Any = jwt.algorithms.RSAAlgorithm.from_jwk(dict(entry))
        elif kind == "ES256":
            material = jwt.algorithms.ECAlgorithm.from_jwk(dict(entry))
        elif kind == "EdDSA":
            material = jwt.algorithms.OKPAlgorithm.from_jwk(dict(entry))
        else:
            material = jwt.algorithms.HMACAlgorithm.from_jwk(dict(entry))
        if hasattr(material, "public_key"):  # a private JWK: only its public half stays
            material = material.public_key()
    except Exception as error:  # from_jwk lets KeyError, TypeError and binascii.Error through
        raise ValueError(f"key {kid!r} cannot be read") from error
    served = algorithms_of(material) & algorithms
    if "alg" in entry:
        served &= {entry["alg"]} if isinstance(entry["alg"], str) else set()
    if not served:
        raise ValueError(f"key {kid!r} serves none of {', '.join(sorted(algorithms))}")
    return Key(kid, served, material)


def _only(algorithms: Iterable[str], served: frozenset[str], name: str, what: str) -> None:
    wrong = set(algorithms) - served
    if wrong:
        raise ConfigError(name, f"{what} cannot serve {', '.join(sorted(wrong))}")
