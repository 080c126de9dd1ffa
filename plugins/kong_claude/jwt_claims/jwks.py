"""JSON Web Key Sets (RFC 7517): from the configuration, where each key must be usable, or as an issuer publishes them,
where what cannot be used is left out and said.

Only the public members of a key are read, so that a private key published by mistake never is in memory as one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    SECP521R1,
    EllipticCurve,
    EllipticCurvePublicKey,
    EllipticCurvePublicNumbers,
)
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey, RSAPublicNumbers
from cryptography.x509 import load_der_x509_certificate

from claude_contract.errors import ConfigError
from kong_claude.jwt_claims.algorithms import Material, served
from kong_claude.jwt_claims.keys import Key, KeySet, from_base64

# kty → the members that are the key
_OWN: Final = {"RSA": ("n", "e"), "EC": ("x", "y"), "OKP": ("x",), "oct": ("k",)}
_CURVES: Final[dict[str, EllipticCurve]] = {"P-256": SECP256R1(), "P-384": SECP384R1(), "P-521": SECP521R1()}
_EDWARDS: Final[dict[str, type[Ed25519PublicKey | Ed448PublicKey]]] = {
    "Ed25519": Ed25519PublicKey,
    "Ed448": Ed448PublicKey,
}


def keys_from_text(text: str, algorithms: frozenset[str], name: str) -> KeySet:
    """A key set from the configuration; every key must be usable. Raises ConfigError."""
    if not text:
        raise ConfigError(name, "is empty (an unresolved vault reference?)")
    try:
        keys = tuple(key_from_jwk(entry, algorithms) for entry in _entries(json.loads(text)))
    except (ValueError, RecursionError) as error:
        raise ConfigError(name, f"is not a usable JSON Web Key Set: {error}") from error
    if not keys:
        raise ConfigError(name, "holds no key")
    unserved = algorithms - {one for key in keys for one in key.algorithms}
    if unserved:
        raise ConfigError(name, f"has no key for {', '.join(sorted(unserved))}")
    return KeySet(keys)


def keys_from_issuer(document: Any, algorithms: frozenset[str]) -> KeySet:
    """A fetched key set: what cannot serve is left out, with the reason in `skipped`; symmetric keys never serve.

    Raises ValueError where no key is left: an issuer that publishes none has a fault, which must not take the place of
    keys that are known.
    """
    keys, skipped = [], []
    for entry in _entries(document):
        try:
            key = key_from_jwk(entry, algorithms)
        except ValueError as error:
            skipped.append(str(error))
            continue
        if isinstance(key.material, bytes):
            skipped.append(f"key {_shown(key.kid)} is a secret, which nobody publishes")
        else:
            keys.append(key)
    if not keys:
        raise ValueError(f"no usable key{': ' if skipped else ''}{summary(skipped)}")
    return KeySet(tuple(keys), tuple(skipped))


def summary(reasons: list[str] | tuple[str, ...], most: int = 5) -> str:
    """The first reasons in one line, and how many more there are."""
    more = f"; and {len(reasons) - most} more" if len(reasons) > most else ""
    return "; ".join(reasons[:most]) + more


def key_from_jwk(entry: Any, algorithms: frozenset[str]) -> Key:
    """One JWK. Raises ValueError where it is not a signature key that serves one of `algorithms`.

    Members that are null count as absent, so do empty `use` and `alg`.
    """
    if not isinstance(entry, Mapping):
        raise ValueError("an entry is not an object")
    members = {name: value for name, value in entry.items() if value is not None}
    kid = members.get("kid")
    if not isinstance(kid, str | None):
        raise ValueError("a kid is not a string")
    operations = members.get("key_ops", ["verify"])
    if members.get("use", "") not in ("", "sig") or not isinstance(operations, list) or "verify" not in operations:
        raise ValueError(f"key {_shown(kid)} is not for signatures")
    kty = members.get("kty")
    if not isinstance(kty, str) or kty not in _OWN:
        raise ValueError(f"key {_shown(kid)} has an unknown kty")
    try:
        material = _material(kty, members)
    except Exception as error:  # cryptography raises several kinds, beside the KeyErrors of absent members
        raise ValueError(f"key {_shown(kid)} cannot be read") from error
    alg = members.get("alg", "")
    limits = [algorithms] if alg == "" else [algorithms, frozenset({alg} if isinstance(alg, str) else ())]
    serves = served(material, *limits)
    if not serves:
        raise ValueError(f"key {_shown(kid)} serves none of {', '.join(sorted(algorithms))}")
    issuer = members.get("issuer")
    return Key(kid, serves, material, None if issuer is None else str(issuer))


def _entries(document: Any) -> list[Any]:
    """The members of `keys`. Raises ValueError."""
    entries = document.get("keys") if isinstance(document, Mapping) else None
    if not isinstance(entries, list):
        raise ValueError("no list of keys")
    return entries


def _material(kty: str, members: Mapping[str, Any]) -> Material:
    """Raises ValueError, KeyError, TypeError and what else cryptography has."""
    if "x5c" in members and not any(name in members for name in _OWN[kty]):
        return _certified(kty, members)
    if kty == "RSA":
        return RSAPublicNumbers(_integer(members["e"]), _integer(members["n"])).public_key()
    if kty == "EC":
        # Coordinates are numbers: some issuers drop leading zeros, or add the one of a signed integer.
        x, y, curve = _integer(members["x"]), _integer(members["y"]), _CURVES[members["crv"]]
        if max(x, y).bit_length() > curve.key_size:  # OpenSSL takes the remainder instead
            raise ValueError("a coordinate is beyond the curve's field")
        return EllipticCurvePublicNumbers(x, y, curve).public_key()
    if kty == "OKP":
        return _EDWARDS[members["crv"]].from_public_bytes(from_base64(members["x"]))
    return from_base64(members["k"])


def _certified(kty: str, members: Mapping[str, Any]) -> Material:
    """The key of a JWK that has it in a certificate only. The certificate is a wrapping here, as the set is what is
    trusted: its dates and its chain say nothing."""
    material = load_der_x509_certificate(from_base64(members["x5c"][0])).public_key()
    if kty == "RSA" and isinstance(material, RSAPublicKey):
        return material
    if kty == "EC" and isinstance(material, EllipticCurvePublicKey):
        return _on(members.get("crv"), material)
    raise ValueError("the certificate's key is of another kind")


def _on(crv: Any, key: EllipticCurvePublicKey) -> EllipticCurvePublicKey:
    """The key, if its curve is the one that the JWK names, if it names one. Raises KeyError, ValueError."""
    if crv is not None and _CURVES[crv].name != key.curve.name:
        raise ValueError("the certificate's key is on another curve")
    return key


def _integer(text: Any) -> int:
    return int.from_bytes(from_base64(text), "big")


def _shown(kid: str | None) -> str:
    return f"{kid!r:.80}"
