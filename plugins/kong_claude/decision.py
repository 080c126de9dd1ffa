"""What a plugin decides about a request: refuse it, answer it, or pass it on with effects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from claude_contract.claims import Additions, Limits, Repository
from claude_contract.identity import Identity

Claims = Identity | Limits | Additions
Headers = Mapping[str, str]


class Refuse(Struct, frozen=True):
    """The request ends here with an error.

    `message` tells the caller what to fix and never holds key material or the token. `reason` is a stable
    word for logs, metrics and problem types (`no_token`, `rate_limited`). `detail` joins the body. `claims`: what the
    stage has found all the same, for the log. `check` names who refused: the pipeline fills in the stage's, and names
    its own where it refuses by itself.
    """

    status: int
    message: str
    reason: str
    headers: Headers = field(default_factory=dict)
    detail: Mapping[str, Any] = field(default_factory=dict)
    claims: Claims | None = None
    check: str = ""

    def by(self, check: str) -> Refuse:
        """The same, made by `check`."""
        return replace(self, check=check)

    def of(self, claims: Claims) -> Refuse:
        """The same, of a caller about whom `claims` is known."""
        return replace(self, claims=claims)


class Answer(Struct, frozen=True):
    """The plugin answers the request itself (a limits report, an explanation); nothing goes upstream.

    `claims`: what this stage has found, for the log.
    """

    status: int
    body: Mapping[str, Any]
    headers: Headers = field(default_factory=dict)
    claims: Claims | None = None


class Pass(Struct, frozen=True):
    """The request goes on. Effects of several stages are merged and applied together.

    `upstream_headers`: name → value, or None to remove what the client sent.
    `response_headers`: set on the answer to the client.
    `body`: the new request body; None leaves it.
    `raw_query`: the new query string without `?`; None leaves it.
    `consumer`: (consumer, credential) as Kong's `client.authenticate` takes them.
    `claims`: what this stage adds to the attestation (and shows to later stages).
    `repository`: the one that the run works on, where the caller may have it.
    `shared`: what goes into the shared context, for Lua and the log phase (JSON values, small).
    `checked`: False where the stage let the request pass unexamined; then the attestation does not name its check.
    """

    upstream_headers: Mapping[str, str | None] = field(default_factory=dict)
    response_headers: Headers = field(default_factory=dict)
    body: bytes | None = None
    raw_query: str | None = None
    consumer: tuple[Mapping[str, Any], Mapping[str, Any] | None] | None = None
    claims: Claims | None = None
    repository: Repository | None = None
    shared: Mapping[str, Any] = field(default_factory=dict)
    checked: bool = True


Decision = Refuse | Answer | Pass
