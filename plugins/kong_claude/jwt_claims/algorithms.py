"""The accepted signature algorithms, each bound to the one kind of key that may serve it (RFC 8725, 3.1)."""

from __future__ import annotations

from typing import Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

Material = bytes | RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey | Ed448PublicKey

MIN_SECRET: Final = {"HS256": 32, "HS384": 48, "HS512": 64}  # bytes, RFC 7518 section 3.2
_RSA: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
MIN_RSA_BITS: Final = 2048  # RFC 7518 section 3.3
# RFC 9864 gives each curve a name of its own. `EdDSA` is the older name of both, and still what most write: a key and a
# token may use either name of the key's curve, never that of the other.
_EDWARDS: Final = {"Ed25519": frozenset({"EdDSA", "Ed25519"}), "Ed448": frozenset({"EdDSA", "Ed448"})}
ALGORITHMS: Final = frozenset({*MIN_SECRET, *_RSA, *_CURVES.values(), *_EDWARDS["Ed25519"], *_EDWARDS["Ed448"]})

# PyJWT's verifiers. They are given key objects only: none of its key guessing takes part.
VERIFIERS: Final = {
    name: jwt.get_algorithm_by_name("EdDSA" if name in _EDWARDS else name) for name in sorted(ALGORITHMS)
}


def accepted(configured: frozenset[str]) -> frozenset[str]:
    """The names that tokens may give to the configured algorithms."""
    return configured.union(*(names for names in _EDWARDS.values() if names & configured))


def served(material: Material, *limits: frozenset[str]) -> frozenset[str]:
    """The names of the algorithms that a key may serve within each of `limits`, any name of which may be meant.

    An Ed25519 key serves EdDSA and Ed25519 where either is allowed, and nothing where only Ed448 is.
    """
    own = algorithms_of(material)
    for limit in limits:
        own = (own if own in _EDWARDS.values() else own & limit) if own & limit else frozenset()
    return own


def algorithms_of(material: Material) -> frozenset[str]:
    """The algorithms a key may serve, by all their names; none for one that is too weak."""
    if isinstance(material, bytes):
        return frozenset(name for name, size in MIN_SECRET.items() if len(material) >= size)
    if isinstance(material, RSAPublicKey):
        return _RSA if material.key_size >= MIN_RSA_BITS else frozenset()
    if isinstance(material, EllipticCurvePublicKey):
        name = _CURVES.get(material.curve.name)
        return frozenset({name}) if name else frozenset()
    return _EDWARDS["Ed25519" if isinstance(material, Ed25519PublicKey) else "Ed448"]
