"""For whom a request is counted, and in which tier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from claude_contract.errors import ConfigError
from claude_contract.ledger import subject_key
from kong_claude.decision import Refuse
from kong_claude.rate_tiers.schema import KINDS, RateTiersConfig
from kong_claude.rate_tiers.tiers import Tier, first_known
from kong_claude.request import Request, answer, text
from kong_claude.stage import Shared


class Subjects(NamedTuple):
    """`limit_by` and what belongs to it. Most kinds are answered without asking Kong."""

    kind: str
    on_missing: str  # "deny" or "ip"
    header_name: str
    path: str
    service_id: str
    route_id: str

    @classmethod
    def from_config(cls, config: RateTiersConfig, shared: Shared) -> Subjects:
        """Raises ConfigError."""
        kind, header, path = config.limit_by, config.header_name or "", config.path or ""
        if kind not in KINDS:
            raise ConfigError("limit_by", f"must be one of {', '.join(KINDS)}")
        for needed, value, of in (("header_name", header, "header"), ("path", path, "path")):
            if kind == of and not value:
                raise ConfigError(needed, f"is needed where limit_by is {of}")
        return cls(kind, config.on_missing_identity, header.lower(), path, shared.service_id, shared.route_id)

    def key(self, request: Request) -> str | Refuse:
        """Under which key the ledger counts the request."""
        value = self._value(request)
        if value:
            return subject_key(self.kind, value)
        if self.on_missing == "ip":
            return subject_key("ip", request.client_ip)
        if self.kind in ("subject", "consumer", "credential"):
            return Refuse(401, f"no {self.kind} is known for this request", "no_identity")
        return Refuse(400, f"no {self.header_name or self.kind} to count this request by", "no_subject")

    def _value(self, request: Request) -> str | None:
        identity = request.identity if self.kind in ("subject", "consumer", "credential") else None
        match self.kind:
            case "subject":
                return identity.subject if identity else None
            case "consumer":
                return (identity and identity.consumer) or _name(request.consumer)
            case "credential":
                credential = identity and identity.credential
                return credential or _name(answer(request.kong.client.get_credential()))
            case "ip":
                return request.client_ip
            case "header":
                return request.header(self.header_name)
            case "path":
                return self.path if request.line.path == self.path else None
            case "service":
                return self.service_id or _id(answer(request.kong.router.get_service()))
            case _:
                return self.route_id or _id(answer(request.kong.router.get_route()))


def _id(entity: Any) -> str | None:
    return text(entity["id"]) if isinstance(entity, Mapping) and entity.get("id") else None


def _name(entity: Any) -> str | None:
    """A consumer's username, as claude-jwt-claims hands it on; else the entity's id."""
    if isinstance(entity, Mapping) and entity.get("username"):
        return text(entity["username"])
    return _id(entity)


class TierChoice(NamedTuple):
    """Which tier a request is in. Order: the identity's claim, Kong's consumer, the header, the default."""

    tiers: Mapping[str, Tier]
    default: Tier
    header: str
    consumer: str  # "tag", "group" or ""

    def choose(self, request: Request) -> tuple[Tier, str | None]:
        """The tier, and the name that was asked for where there is no such tier."""
        asked = self._asked(request)
        if asked is None:
            return self.default, None
        tier = self.tiers.get(asked)
        return (tier, None) if tier else (self.default, asked)

    def _asked(self, request: Request) -> str | None:
        if len(self.tiers) == 1:
            return None
        identity = request.identity
        if identity and identity.tier:
            return identity.tier
        if self.consumer:
            found = first_known(self._consumer_names(request), self.tiers)
            if found:
                return found
        return request.header(self.header) if self.header else None

    def _consumer_names(self, request: Request) -> list[str]:
        consumer = request.consumer
        if not consumer:
            return []
        if self.consumer == "tag":
            return [text(name) for name in consumer.get("tags") or ()]
        # Set by Kong's acl for every request with a consumer, so a client's own value cannot arrive here.
        return [name.strip() for name in (request.header("x-consumer-groups") or "").split(",")]
