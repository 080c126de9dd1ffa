"""Verification keys, each with what it may verify; from a shared secret or PEM. Key sets: `jwks`."""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_public_key
from cryptography.x509 import load_der_x509_certificate, load_pem_x509_certificate

from claude_contract.errors import ConfigError
from kong_claude.jwt_claims.algorithms import MIN_SECRET, Material, algorithms_of, served

_DER: Final[tuple[Callable[[bytes], object], ...]] = (load_der_public_key, load_der_x509_certificate)


@dataclass(frozen=True, slots=True)
class Key:
    """One verification key and the algorithms that it, and its issuer's configuration, allow."""

    kid: str | None
    algorithms: frozenset[str]
    material: Material = field(repr=False)
    issuer: str | None = None
    """What a JWK of Entra says about whose tokens it signs: an `iss`, maybe with `{tenantid}`."""


@dataclass(frozen=True, slots=True, eq=False)
class KeySet:
    """An issuer's keys at one moment. A new KeySet object means that the keys have changed."""

    keys: tuple[Key, ...] = field(repr=False)
    skipped: tuple[str, ...] = ()
    """Why entries of a published set serve for nothing, one text each."""
    _by_kid: Mapping[str | None, list[Key]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        by_kid: dict[str | None, list[Key]] = {}
        for key in self.keys:
            by_kid.setdefault(key.kid, []).append(key)
        object.__setattr__(self, "_by_kid", by_kid)

    def candidates(self, kid: str | None, algorithm: str) -> tuple[Key, ...]:
        """Keys that may have signed: by kid where the token has one. A key without kid matches any."""
        named = self.keys if kid is None else (*self._by_kid.get(kid, ()), *self._by_kid.get(None, ()))
        return tuple(key for key in named if algorithm in key.algorithms)

    def same(self, other: KeySet) -> bool:
        """True where both hold the same keys, whatever the order of their kids."""
        return self._by_kid == other._by_kid


class Unavailable(Exception):
    """The issuer's keys are not to be had, or too old to be trusted."""


class KeySource(Protocol):
    """Where an issuer's keys come from. `news`: texts for Kong's log, each to be taken once."""

    news: deque[str]

    def current(self) -> KeySet:
        """The keys to use now. Raises Unavailable."""

    def refreshed(self, old: KeySet) -> KeySet:
        """The keys after a look for newer ones than `old`; the same object if there are none."""


class StaticKeys:
    """Keys from the configuration."""

    def __init__(self, keys: KeySet) -> None:
        self._keys = keys
        self.news: deque[str] = deque()

    def current(self) -> KeySet:
        return self._keys

    def refreshed(self, old: KeySet) -> KeySet:
        return old


def key_from_secret(secret: str, algorithms: frozenset[str], name: str, is_base64: bool = False) -> Key:
    """A shared secret. Raises ConfigError where it is empty, too short, or a public key."""
    # An unresolved vault reference reaches a plugin as "".
    if not secret:
        raise ConfigError(name, "is empty (an unresolved vault reference?)")
    _only(algorithms, frozenset(MIN_SECRET), name, "a shared secret")
    try:
        material = from_base64(secret) if is_base64 else secret.encode()
    except ValueError as error:
        raise ConfigError(name, "is not base64, as secret_is_base64 says") from error
    if _is_published(material):
        raise ConfigError(name, "is a public or private key; a public key belongs into public_key")
    needed = max(MIN_SECRET[algorithm] for algorithm in algorithms)
    if len(material) < needed:
        when = " when decoded" if is_base64 else ""
        raise ConfigError(name, f"must be at least {needed} bytes for {', '.join(sorted(algorithms))}{when}")
    return Key(None, algorithms, material)


def from_base64(text: str) -> bytes:
    """The bytes of base64 in either alphabet, padded or not, in one line or several. Raises ValueError."""
    packed = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    return base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)


def _is_published(material: bytes) -> bool:
    """True for what others may know: a public key or a certificate, as PEM, or without PEM's first and last line, as
    some issuers show theirs. Taken for a secret, everybody could sign with it."""
    try:
        decoded = from_base64(material.decode("latin-1"))
    except ValueError:
        decoded = b""
    return any(b"-----BEGIN" in data or any(_loads(load, data) for load in _DER) for data in (material, decoded))


def _loads(load: Callable[[bytes], object], data: bytes) -> bool:
    try:
        load(data)
    except Exception:  # cryptography raises several kinds
        return False
    return True


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
    if not algorithms_of(material):
        raise ConfigError(name, "is too weak, or on a curve that no algorithm uses")
    serves = served(material, algorithms)
    _only(algorithms, serves, name, "this key")
    return Key(None, serves, material)


def _only(algorithms: Iterable[str], serves: frozenset[str], name: str, what: str) -> None:
    wrong = set(algorithms) - serves
    if wrong:
        raise ConfigError(name, f"{what} cannot serve {', '.join(sorted(wrong))}")
