"""The token that the gateway is sent, out of what a token endpoint answers."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import jwt

from kong_claude.login.device import seconds
from kong_claude.problem import Problem

_TOKEN = re.compile(r"[!-~]+")


@dataclass(frozen=True)
class Tokens:
    """`token` is good for `life_s` seconds. `refresh`: for the next one; None where the issuer gave none."""

    token: str
    life_s: int
    refresh: str | None
    claims: dict[str, Any]


def read(answer: dict[str, Any], *, id_token: bool) -> Tokens:
    """Raises Problem, which never has a token in it."""
    name = "id_token" if id_token else "access_token"
    token = answer.get(name)
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise Problem(f"the issuer gives no {name}" + (": --scope must have openid" if id_token else ""))
    try:
        # Whether it is good the gateway finds out; here it is only looked at.
        claims = jwt.decode(token, options={"verify_signature": False, "verify_exp": False})
    except jwt.PyJWTError:
        raise Problem(
            f"the issuer's {name} is no JWT, which is what the gateway reads: docs/identity says for each provider "
            "what to ask for (--audience, --scope, or --id-token)"
        ) from None
    refresh = answer.get("refresh_token")
    return Tokens(token, _life(claims, answer), refresh if isinstance(refresh, str) and refresh else None, claims)


def _life(claims: dict[str, Any], answer: dict[str, Any]) -> int:
    """By the issuer's clock alone: this machine's may be wrong."""
    lives = [seconds(answer.get("expires_in"), 86_400)]
    issued, expires = claims.get("iat"), claims.get("exp")
    if isinstance(issued, int | float) and isinstance(expires, int | float):
        with suppress(OverflowError):  # a number of hundreds of digits less a fraction
            lives.append(seconds(expires - issued, 86_400))
    return min(lives)
