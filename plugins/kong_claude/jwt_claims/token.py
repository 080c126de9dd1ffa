"""A JSON Web Token: parsed strictly, its signature and its registered claims checked (RFC 7515, 7519, 8725).

The parser accepts one spelling of each token only: three unpadded canonical base64url parts, JSON without duplicate
names, NaN or Infinity. What a lenient parser forgives is where two readers disagree.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from claude_contract.nesting import TOO_DEEP, too_deep
from kong_claude.jwt_claims.algorithms import VERIFIERS
from kong_claude.jwt_claims.keys import Key

MAX_TOKEN = 16 * 1024  # bytes; nginx takes 8 KiB per header line by default
MAX_TIME = 253402300799  # the end of year 9999, in Unix seconds
_COMPACT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")


class InvalidToken(Exception):
    """A token that must not be trusted. `reason` is a stable word; the text tells the caller what to fix."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Token:
    """A parsed token. Nothing in it is true until `signed_by` found its key."""

    algorithm: str
    kid: str | None
    typ: str
    claims: Mapping[str, Any]
    signing_input: bytes = field(repr=False)
    signature: bytes = field(repr=False)


def parse(compact: str) -> Token:
    """Parses a compact JWS with a JSON object as payload. Raises InvalidToken."""
    if len(compact) > MAX_TOKEN:
        raise InvalidToken("too_large", "the token is too large")
    parts = _COMPACT.fullmatch(compact)
    if parts is None:
        raise InvalidToken("malformed", "the token is not a signed JWT")
    header = _object(_decode(parts[1]), "header")
    # Nothing here understands an extension, and b64 changes what is signed (RFC 7797).
    if "crit" in header or "b64" in header:
        raise InvalidToken("unsupported", "the token uses an extension that is not supported")
    algorithm, kid, typ = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
    if not isinstance(algorithm, str) or not isinstance(kid, str | None) or not isinstance(typ, str):
        raise InvalidToken("malformed", "the token's header is malformed")
    return Token(
        algorithm=algorithm,
        kid=kid,
        typ=typ.lower().removeprefix("application/"),
        claims=_object(_decode(parts[2]), "payload"),
        signing_input=compact[: parts.end(2)].encode(),
        signature=_decode(parts[3]),
    )


def signed_by(token: Token, keys: Iterable[Key]) -> Key | None:
    """The key that signed the token, or None."""
    verifier = VERIFIERS[token.algorithm]
    for key in keys:
        try:
            if verifier.verify(token.signing_input, key.material, token.signature):
                return key
        except (ValueError, TypeError):  # a signature of impossible form
            continue
    return None


@dataclass(frozen=True, slots=True)
class Checks:
    """What the registered claims must say."""

    audience: frozenset[str]
    audience_claims: tuple[str, ...]
    leeway: int  # seconds
    maximum_expiration: int  # seconds; 0: no limit

    def check(self, claims: Mapping[str, Any], now: float) -> float:
        """Checks the audience, exp, nbf and iat; returns exp. Raises InvalidToken."""
        self._check_audience(claims)
        expires = _time(claims, "exp")
        if expires is None:
            raise InvalidToken("claims", "the token has no exp claim")
        if now >= expires + self.leeway:
            raise InvalidToken("expired", "the token has expired")
        if self.maximum_expiration and expires > now + self.maximum_expiration + self.leeway:
            raise InvalidToken("lifetime", "the token lives longer than this gateway allows")
        for name in ("nbf", "iat"):
            start = _time(claims, name)
            if start is not None and start > now + self.leeway:
                raise InvalidToken("not_yet_valid", f"the token is not valid yet ({name})")
        return expires

    def _check_audience(self, claims: Mapping[str, Any]) -> None:
        # One claim decides: a token that names another audience in `aud` is not saved by its `client_id`.
        given = (claim for claim in self.audience_claims if claims.get(claim) not in (None, []))
        name = next(given, self.audience_claims[0])
        value = claims.get(name)
        named = [value] if isinstance(value, str) else value
        if not isinstance(named, list) or not all(isinstance(one, str) for one in named):
            raise InvalidToken("audience", f"the token has no usable {name} claim")
        if self.audience.isdisjoint(named):
            raise InvalidToken("audience", "the token is meant for another audience")


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    """A NumericDate (RFC 7519, section 2), which may have a fraction; None where it is absent or null."""
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_TIME:
        raise InvalidToken("claims", f"the claim {name} is not a number of seconds")
    return value


def _decode(part: str) -> bytes:
    try:
        data = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError as error:
        raise InvalidToken("malformed", "the token is not base64url") from error
    if base64.urlsafe_b64encode(data).rstrip(b"=") != part.encode():
        raise InvalidToken("malformed", "the token is not canonical base64url")
    return data


def _object(data: bytes, what: str) -> dict[str, Any]:
    try:
        text = data.decode("utf-8")
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_int=_integer,
            parse_float=_finite,
        )
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise InvalidToken("malformed", f"the token's {what} is not a JSON object") from error
    if not isinstance(value, dict):
        raise InvalidToken("malformed", f"the token's {what} is not a JSON object")
    if too_deep(value):  # it is written again: into the attestation, Kong's context, logs
        raise InvalidToken("malformed", f"the token's {what} {TOO_DEEP}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate names")
    return found


def _integer(digits: str) -> int:
    if len(digits) > 19:  # nobody downstream has more than 64 bits for it
        raise ValueError("a number is too large")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
