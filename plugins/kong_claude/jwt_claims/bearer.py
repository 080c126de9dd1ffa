"""Finds the token in a request: headers, cookies, query parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote_plus

_SCHEME, _BLANK = "bearer", " \t"
_B64TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, section 2.1


class BadRequest(Exception):
    """The request carries its token in a way that cannot be understood."""


class SeveralTokens(Exception):
    """The request carries different tokens."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where tokens may be. Header names in lower case."""

    headers: tuple[str, ...]
    raw_headers: tuple[str, ...]
    """Without `Bearer`, though it may be there."""
    cookies: tuple[str, ...]
    parameters: tuple[str, ...]

    def token(self, headers: Mapping[str, Sequence[str]], query_tokens: Sequence[str] = ()) -> str | None:
        """The only token, or None. Raises BadRequest or SeveralTokens."""
        found = [*query_tokens]
        for names, read in ((self.headers, _from_header), (self.raw_headers, _from_raw_header)):
            for name in names:
                if name in headers and (given := _only([read(value) for value in headers[name]])) is not None:
                    found.append(given)
        if self.cookies:
            found += _from_cookies(headers.get("cookie", ()), self.cookies)
        token = _only(found)
        if token is not None and not _B64TOKEN.fullmatch(token):
            raise BadRequest("the bearer token has characters that are not allowed in a token")
        return token

    def split_query(self, query: str) -> tuple[list[str], str]:
        """The tokens in a raw query, and the query without them."""
        tokens, rest = [], []
        for piece in query.split("&"):
            name, _, value = piece.partition("=")
            if unquote_plus(name) in self.parameters:
                if value:
                    tokens.append(unquote_plus(value))
            else:
                rest.append(piece)
        return tokens, "&".join(rest)


def _only(given: Sequence[str | None]) -> str | None:
    """What all of them are. Raises SeveralTokens."""
    if not given:
        return None
    first, *others = given
    if any(other != first for other in others):
        raise SeveralTokens
    return first


def _from_header(value: str) -> str | None:
    value = value.strip(_BLANK)
    rest = value[len(_SCHEME) :]
    if value[: len(_SCHEME)].lower() != _SCHEME or (rest and rest[0] not in _BLANK):  # another scheme
        return None
    if not rest:
        raise BadRequest("missing token: there is nothing after Bearer")
    return rest.lstrip(_BLANK)


def _from_raw_header(value: str) -> str | None:
    return _from_header(value) or value.strip(_BLANK) or None


def _from_cookies(lines: Sequence[str], names: Sequence[str]) -> list[str]:
    pairs = (piece.strip().partition("=") for line in lines for piece in line.split(";"))
    return [value for name, _, value in pairs if name in names and value]
