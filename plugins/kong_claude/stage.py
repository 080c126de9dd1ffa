"""A stage: one plugin's decision, made from its typed configuration; and what all plugins of a route share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from claude_contract.attestation import DEFAULT_KID, KID_ROOM, MAX_TTL, Signer
from claude_contract.claims import NAME_ROOM
from kong_claude.decision import Decision, Pass
from kong_claude.request import Request
from kong_claude.schema import Field, fields, given, integer, record, string

C = TypeVar("C")


def _secret(what: str) -> Any:
    return string(what, referenceable=True, encrypted=True)


@dataclass(frozen=True, slots=True)
class AttestationConfig:
    """How attestations are signed (`claude_contract.attestation`)."""

    secret: str | None = _secret("The signing key: shared secret for HS256, 32 bytes or more.")
    secret_file: str | None = string("The signing key: a file that holds the secret or an Ed25519 key in PEM.")
    private_key: str | None = _secret("The signing key: Ed25519 key in PEM (EdDSA), instead of a secret.")
    kid: str = string("Key id of the signing key.", default=DEFAULT_KID, len_max=KID_ROOM)
    previous_secret: str | None = _secret(
        "The key before rotation, still accepted from other plugins: shared secret for HS256, 32 bytes or more."
    )
    previous_secret_file: str | None = string(
        "The key before rotation, still accepted from other plugins: a file that holds the secret or an Ed25519 key "
        "in PEM."
    )
    previous_private_key: str | None = _secret(
        "The key before rotation, still accepted from other plugins: Ed25519 key in PEM (EdDSA), instead of a secret."
    )
    previous_kid: str | None = string("Key id of the previous key.", len_max=KID_ROOM)
    issuer: str = string("The iss claim: names this gateway.", default=Signer.issuer, len_max=NAME_ROOM)
    audience: str = string("The aud claim: names the invoker.", default=Signer.audience, len_max=NAME_ROOM)
    ttl: int = integer("Seconds until the attestation expires.", default=Signer.ttl, between=[1, MAX_TTL])
    request: str | None = string(
        "Method and path of the route's only request, such as POST /claude/invoke. "
        "Saves asking Kong for them; the invoker refuses any other.",
        match="^[A-Z]+ /[^%s?]*$",
    )


@dataclass(frozen=True, slots=True)
class Shared:
    """What every enforcing plugin has beside its own fields, and what Kong says about where it is bound."""

    mark: str | None = string(
        "The value this plugin leaves for the fail-closed guard when it has let a request pass. "
        "Default, and what the guard compares: the id of the route or service that the plugin is bound to. "
        "Only for guards of 0.1.0, which name it (kong-claude guard --mark).",
        len_min=1,
    )
    attestation: AttestationConfig | None = record(
        "Signs what this plugin found into X-Claude-Attestation for the invoker. "
        "All plugins of a route share these settings.",
        AttestationConfig,
    )
    route_id: str = given()
    service_id: str = given()


ENFORCING_FIELDS: list[Field] = fields(Shared)


class Stage(ABC, Generic[C]):
    """Made once per plugin instance from its own fields and the shared ones; `__init__` may raise ConfigError."""

    check: str  # its word in the attestation's `chk` and in refusals
    shared_key: str  # its key in kong.ctx.shared
    establishes_identity: bool = False  # see pipeline.open_or_resume
    settles: bool = True  # False where this configuration leaves nothing to do in the log phase
    Config: ClassVar[type[Any]]  # what C is

    @abstractmethod
    def __init__(self, config: C, shared: Shared) -> None: ...

    @abstractmethod
    def access(self, request: Request) -> Decision:
        """Decides. May add nothing to Kong itself: effects belong into the decision."""

    def undo(self, decision: Pass) -> None:
        """Gives back what the decision took: a later stage has refused the request."""

    def log(self, kong: Any, left: Callable[[], Mapping[str, Any]]) -> None:
        """Runs in the log phase, where `left()` is what `access` left in the shared context, {} for nothing: one call.
        A phase is a round trip: see `logs`."""

    def close(self) -> None:
        """Ends what the stage holds (connections, threads)."""

    @classmethod
    def logs(cls) -> bool:
        """Whether there is anything to do in the log phase."""
        return cls.log is not Stage.log
