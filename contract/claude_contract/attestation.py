"""`X-Claude-Attestation`: what the gateway's plugins found out about a request (see `claims`), signed.

A compact JWS (RFC 7515): EdDSA (RFC 8037), for which the invoker holds only the public key, or HS256 with a shared
secret. The first plugin mints jti, iat and exp; later ones verify, add, and sign anew without prolonging, so that a
replay always meets the same jti.
"""

from __future__ import annotations

import binascii
import hmac
import json
import re
import secrets
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from claude_contract import secret_file
from claude_contract.claims import (
    MAX_HEADER,
    NAME_ROOM,
    Attestation,
    Binding,
    body_hash,
    encode,
    path_claim,
)
from claude_contract.errors import ConfigError
from claude_contract.members import AttestationError
from claude_contract.secret_file import SecretFileError

HEADER = "X-Claude-Attestation"
MAX_TTL = 60  # seconds
MIN_SECRET = 32  # bytes, RFC 7518 section 3.2
KID_ROOM = 32  # bytes
DEFAULT_KID = "1"

Key = bytes | Ed25519PrivateKey | Ed25519PublicKey


_URL_SAFE, _PLAIN = bytes.maketrans(b"+/", b"-_"), bytes.maketrans(b"-_", b"+/")


def _b64(data: bytes) -> bytes:
    return binascii.b2a_base64(data, newline=False).translate(_URL_SAFE, b"=")


def _from_b64(text: bytes) -> bytes:
    """Raises ValueError for what `_b64` does not write."""
    data = binascii.a2b_base64(text.translate(_PLAIN) + b"==")
    if _b64(data) != text:  # of all spellings that are read, one is written
        raise ValueError("not as it is written")
    return data


# Written out (RFC 7515, section 3) instead of PyJWT's encode, which takes three times as long for the same bytes.
@cache
def _protected(algorithm: str, kid: str) -> str:
    text = json.dumps({"alg": algorithm, "kid": kid, "typ": "JWT"}, separators=(",", ":"))
    return _b64(text.encode()).decode() + "."


def _material(key: Key) -> bytes:
    """What tells a key from others: a secret, or the public half."""
    if isinstance(key, bytes):
        return key
    return (key.public_key() if isinstance(key, Ed25519PrivateKey) else key).public_bytes_raw()


def _algorithm(key: Key) -> str:
    return "HS256" if isinstance(key, bytes) else "EdDSA"


@dataclass(frozen=True)
class Signer:
    """Signs with one key, verifies with up to two (rotation by `kid`)."""

    kid: str
    key: Key = field(repr=False)
    keys: Mapping[str, Key] = field(repr=False)  # kid → verification key, the signing key's among them
    issuer: str = "kong-claude"
    audience: str = "claude-invoker"
    ttl: int = 30  # seconds

    def binding(self, *, method: str, path: str, route: str, request_id: str) -> Binding:
        """To one request, whose path is raw, without the query."""
        return Binding(self.issuer, self.audience, method, path_claim(path), route, request_id)

    def open(self, *, method: str, path: str, route: str, request_id: str, now: float | None = None) -> Attestation:
        """A fresh one for a request that carries none yet."""
        return self.open_for(self.binding(method=method, path=path, route=route, request_id=request_id), now)

    def open_for(self, binding: Binding, now: float | None = None) -> Attestation:
        """The same, for a request that is bound already."""
        issued = int(time.time() if now is None else now)
        return Attestation(binding, issued, issued + self.ttl, _b64(secrets.token_bytes(12)).decode())

    def is_of(self, header: str) -> bool:
        """Whether it says that it is signed with this key; `verify` tells whether it is."""
        return header.startswith(_protected(_algorithm(self.key), self.kid))

    def sign(self, attestation: Attestation) -> str:
        """The header's value. Raises AttestationError where it is larger than MAX_HEADER."""
        header = self.sign_claims(attestation.to_claims())
        if len(header) > MAX_HEADER:
            raise AttestationError(
                "too_large", f"the attestation takes {len(header)} bytes, at most {MAX_HEADER} are sent"
            )
        return header

    def sign_claims(self, claims: Mapping[str, Any]) -> str:
        """Any claims at all, signed."""
        signing_input = self._protected + _b64(encode(claims))
        return (signing_input + b"." + _b64(self._signature(signing_input))).decode()

    @cached_property
    def _protected(self) -> bytes:
        return _protected(_algorithm(self.key), self.kid).encode()

    @cached_property
    def _signature(self) -> Callable[[bytes], bytes]:
        key = self.key
        if isinstance(key, bytes):
            empty = hmac.new(key, digestmod="sha256")

            def signature(data: bytes) -> bytes:
                keyed = empty.copy()
                keyed.update(data)
                return keyed.digest()

            return signature
        if isinstance(key, Ed25519PublicKey):
            raise TypeError("a public key cannot sign")
        # The same bytes in two thirds of OpenSSL's time.
        sign = SigningKey(key.private_bytes_raw()).sign
        return lambda data: sign(data).signature

    def resume(self, header: str, binding: Binding, earlier: Attestation | None = None) -> Attestation:
        """What an earlier plugin of the same request signed. Raises AttestationError if it is not that.

        `earlier`: what the header says, where that is known without verifying it.
        """
        if earlier is None:
            earlier = Attestation.from_claims(_verified(header, self.keys))
        in_force(earlier, issuer=self.issuer, audience=self.audience)
        if earlier.binding != binding:
            raise AttestationError("mismatch", "the attestation belongs to another request")
        return earlier

    def trusts(self, other: Signer) -> bool:
        """Whether this one verifies what the other signs."""
        return other._signs_with in self._verifies_with

    @cached_property
    def _signs_with(self) -> tuple[str, str, bytes]:
        return self.kid, _algorithm(self.key), _material(self.key)

    @cached_property
    def _verifies_with(self) -> frozenset[tuple[str, str, bytes]]:
        return frozenset((kid, _algorithm(key), _material(key)) for kid, key in self.keys.items())


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


_DECODE = json.JSONDecoder(parse_constant=_no_number).decode


def verify(header: str, keys: Mapping[str, Key], *, issuer: str, audience: str, skew: float = 0.0) -> Attestation:
    """A valid attestation: signed by a known key with that key's own algorithm, for `audience`, of `issuer`, in time.

    `skew`: seconds of clock difference to forgive. Raises AttestationError.
    """
    found = Attestation.from_claims(_verified(header, keys))
    in_force(found, issuer=issuer, audience=audience, skew=skew)
    return found


def in_force(found: Attestation, *, issuer: str, audience: str, skew: float = 0.0) -> None:
    """Whether what is signed is for `audience`, of `issuer`, and in time. Raises AttestationError."""
    now = time.time()
    if found.binding.issuer != issuer or found.binding.audience != audience:
        raise AttestationError("invalid", "the attestation is of another gateway or for another receiver")
    if found.expires_at <= now - skew:
        raise AttestationError("expired", "the attestation has expired")
    if found.issued_at > now + skew:
        raise AttestationError("invalid", "the attestation is of the future: compare the clocks")
    if found.expires_at - found.issued_at > MAX_TTL:
        raise AttestationError("invalid", "the attestation lives longer than it may")


def _verified(header: str, keys: Mapping[str, Key]) -> Any:
    """The JSON value that one of the keys has signed. Raises AttestationError."""
    # Nothing in a forger's hands is parsed to choose the key: the first part is exactly what our own signer writes.
    for kid, key in keys.items():
        protected = _protected(_algorithm(key), kid)
        if header.startswith(protected):
            break
    else:
        raise AttestationError("unknown_key", "the attestation is not signed by a known key")
    try:
        signed, _, signature = header.encode().rpartition(b".")
        _check(key, signed, _from_b64(signature))
        return _DECODE(_from_b64(signed[len(protected) :]).decode("utf-8", "surrogatepass"))
    except (BadSignatureError, ValueError, RecursionError) as error:
        raise AttestationError("invalid", "the attestation is not valid") from error


def _check(key: Key, signed: bytes, signature: bytes) -> None:
    """RFC 7515, section 5.2, once the header is known. Raises BadSignatureError."""
    if not isinstance(key, bytes):
        VerifyKey(_material(key)).verify(signed, signature)
    elif not hmac.compare_digest(hmac.digest(key, signed, "sha256"), signature):
        raise BadSignatureError


def demand(
    attestation: Attestation, *, method: str, path: str, checks: Iterable[str], body: bytes | None = None
) -> None:
    """What the receiver demands of a verified attestation: this request, this body, these checks.

    `path`: raw, as received. `body`: the bytes received, or None where there was none. Raises AttestationError.
    """
    bound = attestation.binding
    if bound.method != method or bound.path not in (path, path_claim(path)):
        raise AttestationError("mismatch", "the attestation belongs to another request")
    missing = set(checks) - set(attestation.checks)
    if missing:
        raise AttestationError("checks", f"checks missing at the gateway: {', '.join(sorted(missing))}")
    if attestation.body_hash is not None and attestation.body_hash != body_hash(body or b""):
        raise AttestationError("body", "the body is not the one that the gateway saw")


class _Claimed(msgspec.Struct):
    jti: str


_CLAIMED = msgspec.json.Decoder(_Claimed).decode


def claimed_id(header: str) -> str | None:
    """The `jti` in a header that is not verified: good for finding one's own again, for nothing else."""
    try:
        payload = header.split(".")[1]
        return _CLAIMED(urlsafe_b64decode(payload + "=" * (-len(payload) % 4))).jti
    except (IndexError, ValueError, RecursionError):
        return None


def signer_from_config(config: Mapping[str, Any] | None) -> Signer | None:
    """A Signer from a plugin's `attestation` section (see `trust.schema`). Raises ConfigError; None without one."""
    if not config:
        return None
    keys: dict[str, Key] = {}
    kid = config.get("kid") or DEFAULT_KID
    for name, room in (("kid", KID_ROOM), ("previous_kid", KID_ROOM), ("issuer", NAME_ROOM), ("audience", NAME_ROOM)):
        if len(json.dumps(config.get(name) or "")) - 2 > room:  # without the quotes; a kid is written in ASCII
            raise ConfigError(f"attestation.{name}", f"takes more than {room} bytes in the attestation")
    key = load_key(config, "attestation")
    keys[kid] = key
    if config.get("previous_kid"):
        if config["previous_kid"] == kid:
            raise ConfigError("attestation.previous_kid", "is the same as kid")
        keys[config["previous_kid"]] = load_key(config, "attestation", "previous_")
    if isinstance(key, Ed25519PublicKey):
        raise ConfigError("attestation.private_key", "is a public key, signing needs the private one")
    ttl = int(config.get("ttl") or Signer.ttl)
    if not 1 <= ttl <= MAX_TTL:
        raise ConfigError("attestation.ttl", f"must be 1 to {MAX_TTL} seconds")
    return Signer(
        kid=kid,
        key=key,
        keys=keys,
        issuer=config.get("issuer") or Signer.issuer,
        audience=config.get("audience") or Signer.audience,
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
