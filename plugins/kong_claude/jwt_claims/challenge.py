"""Refusals with their `WWW-Authenticate` challenge (RFC 6750, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

from kong_claude.decision import Refuse


@dataclass(frozen=True, slots=True)
class Challenge:
    """Makes the refusals of one configuration."""

    realm: str | None = None

    def no_token(self) -> Refuse:
        return self._refuse(401, "a bearer token is needed", "no_token")

    def invalid_request(self, message: str) -> Refuse:
        return self._refuse(400, message, "invalid_request", error="invalid_request")

    def invalid_token(self, message: str, reason: str) -> Refuse:
        return self._refuse(401, message, reason, error="invalid_token")

    def insufficient_scope(self, message: str, scope: str = "") -> Refuse:
        return self._refuse(403, message, "insufficient_scope", error="insufficient_scope", scope=scope)

    def _refuse(self, status: int, message: str, reason: str, **attributes: str) -> Refuse:
        named = {"realm": self.realm, **attributes}
        challenge = "Bearer " + ", ".join(f'{name}="{value}"' for name, value in named.items() if value)
        return Refuse(status, message, reason, headers={"WWW-Authenticate": challenge.strip()})


def unavailable(message: str, reason: str, retry_after: int = 5) -> Refuse:
    """Whether the token is good cannot be told now: the request does not pass."""
    return Refuse(503, message, reason, headers={"Retry-After": str(retry_after)})
