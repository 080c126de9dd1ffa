"""What an attestation says: one value for the gateway's plugins, which write it, and the invoker, which obeys it.

`Attestation.to_claims` is how it travels (`docs/fail-closed.md` lists the claims), `Attestation.from_claims` the
inverse. Whatever is not known or not of its type refuses the whole: a bound that is passed over would be no bound. So a
new claim is a new `VERSION`.

Each part has its room, and the rooms together fit into MAX_HEADER: whether a request can be attested never depends on
how long the other parts are. Who makes a part sees to its room: a ConfigError where the configuration decides it, a
refusal where the caller does.
"""

from __future__ import annotations

import hashlib
import json
import re
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from claude_contract import destinations, features, rules
from claude_contract.destinations import Destination
from claude_contract.features import Feature
from claude_contract.identity import Identity
from claude_contract.kinds import Kind
from claude_contract.ledger import Lease, Slot
from claude_contract.members import AttestationError, Members, malformed
from claude_contract.rules import NO_RULES, Rules
from claude_contract.versions import UnknownVersion

_Parsed = TypeVar("_Parsed")

VERSION = 1
"""Written as `v`. A reader takes this and the one before; 0 is release 0.1.0, which wrote none."""

MAX_HEADER = 63 << 7  # bytes of the signed header: nginx takes 8 KiB for a line, its name included
IDENTITY_ROOM = 1024  # bytes of JSON, as all rooms: sub, roles and who
CLAMP_ROOM = 1024
ADDITIONS_ROOM = 1536
NAME_ROOM = 64  # iss, aud, the name of a tier
METHOD_ROOM = 32
NAMESPACE_ROOM = 32  # of the limits' keys
POOLS_ROOM = 960  # budgets and pools of a place; see `pools_size`
POOL_NAME_ROOM = 32
REPOSITORY_ROOM = 128  # a repository's name, and as much its ref
SEARCH = "WebSearch"
"""The tool of a run that is the API's own `web_search`."""
# In any other path a character may take several bytes.
_READABLE_PATH = re.compile(r"[!#-\[\]-~]{1,128}")

# No escapes beyond JSON's own: the longest subject in Chinese takes 3 bytes a character, not 6.
_ENCODE_ANY = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
_ENCODE = msgspec.json.Encoder().encode


def encode(value: Any) -> bytes:
    """JSON as attestations have it, of finite numbers. Raises ValueError for what JSON has no way to write."""
    try:
        return _ENCODE(value)
    except UnicodeEncodeError:  # a path may hold bytes that are no UTF-8
        return _ENCODE_ANY(value).encode("utf-8", "surrogatepass")


def size(value: Any) -> int:
    """Bytes that a value takes in an attestation."""
    return len(encode(value))


def body_hash(body: bytes) -> str:
    """base64url SHA-256 of the body that goes upstream, unpadded."""
    return urlsafe_b64encode(hashlib.sha256(body).digest()).rstrip(b"=").decode()


def path_claim(path: str) -> str:
    """A raw path as it is attested: itself, or where it is long or odd its digest, which no path looks like."""
    if _READABLE_PATH.fullmatch(path):
        return path
    return f"sha256:{body_hash(path.encode('utf-8', 'surrogatepass'))}"


class Binding(Struct, frozen=True):
    """The one request, from one gateway to one receiver, that an attestation is good for."""

    issuer: str
    audience: str
    method: str
    path: str  # see `path_claim`
    route: str  # Kong's id of it
    request_id: str


@dataclass(frozen=True, slots=True)
class Clamp:
    """Upper bounds of a run, whatever its caller asks for. None: the gateway sets none; () allows nothing."""

    models: tuple[str, ...] | None = None
    tools: tuple[str, ...] | None = None
    max_turns: int | None = None
    max_usd: float | None = None
    egress: tuple[Destination, ...] = ()  # what a run may reach: unlike the others, nothing where nothing is said
    model: str | None = None  # that of the run, whichever of `models` is asked for: the budget is used up
    features: tuple[Feature, ...] | None = None  # None: what each receiver allows by itself
    skills: tuple[str, ...] = ()  # that a run may ask for: as with egress, nothing where nothing is said
    default_skills: tuple[str, ...] = ()  # those of them that it has where it asks for none
    agents: tuple[str, ...] = ()  # that a run may ask for, to hand work to
    mcp: tuple[str, ...] = ()  # servers whose tools a run may ask for
    rules: Rules = NO_RULES  # what of its tools is asked about or denied
    _claims: Mapping[str, Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_claims", self._made())

    @property
    def api_features(self) -> tuple[Feature, ...]:
        """What it allows beside tokens, said or not: what says nothing has large contexts, and the API's search where
        it has the tool that is that. A receiver may allow less."""
        if self.features is not None:
            return self.features
        searches = self.tools is None or SEARCH in self.tools
        return ("context_1m", "web_search") if searches else ("context_1m",)

    def to_claims(self) -> Mapping[str, Any]:
        """Made once: a tier's clamp is attested with each of its requests."""
        return self._claims

    def _made(self) -> dict[str, Any]:
        given: dict[str, Any] = {}
        if self.models is not None:
            given["models"] = list(self.models)
        if self.max_turns is not None:
            given["max_turns"] = self.max_turns
        if self.max_usd is not None:
            given["max_usd"] = self.max_usd
        if self.tools is not None:
            given["tools"] = list(self.tools)
        if self.egress:
            given["egress"] = [str(host) for host in self.egress]
        if self.model is not None:
            given["model"] = self.model
        if self.features is not None:
            given["features"] = list(self.features)
        if self.skills:
            given["skills"] = list(self.skills)
        if self.default_skills:
            given["default_skills"] = list(self.default_skills)
        if self.agents:
            given["agents"] = list(self.agents)
        if self.mcp:
            given["mcp"] = list(self.mcp)
        if self.rules:
            given["rules"] = _rules_claim(self.rules)
        return given

    @classmethod
    def take(cls, claims: Members) -> Clamp:
        found = cls(
            claims.texts("models", None),
            claims.texts("tools", None),
            claims.whole("max_turns", None),
            claims.amount("max_usd", None),
            _as_written("clamp.egress", claims.texts("egress", ()), _destinations),
            claims.text("model") if "model" in claims else None,
            _as_written("clamp.features", claims.texts("features"), features.parse) if "features" in claims else None,
            claims.texts("skills", ()),
            claims.texts("default_skills", ()),
            claims.texts("agents", ()),
            claims.texts("mcp", ()),
            _rules(claims.inside("rules")) if "rules" in claims else NO_RULES,
        )
        claims.done()
        if not set(found.default_skills) <= set(found.skills):
            raise malformed("clamp.default_skills", "has some that are not among clamp.skills")
        return found


UNCLAMPED = Clamp()


class Place(Struct, frozen=True):
    """A run's place in the limits: the lease, and what it stands for wherever it has to be taken again."""

    lease: Lease
    slot: Slot
    queued: bool = False  # the run was let in to wait: its lease is not taken yet


def pools_size(place: Place) -> int:
    """Bytes that a place takes for what only those with pools or budgets of their own have."""
    claim, shared = place.slot.claim(), place.lease.shared
    more = {name: claim[name] for name in ("budgets", "pools") if name in claim}
    return (size(more) if more else 0) + sum(len(key) + 1 for key in (shared.tag, *shared.pools))


class Limits(Struct, frozen=True):
    """What claude-rate-tiers found: the tier that applies, its bounds, and the place that was taken."""

    tier: str | None
    clamp: Clamp = UNCLAMPED
    place: Place | None = None
    message: bool = False  # it was counted as a message of a model itself, not as a run


@dataclass(frozen=True, slots=True)
class Additions:
    """What claude-prompt-context adds to a prompt (see `prompt_context.compose.apply`)."""

    prepend: str = ""  # before and after the caller's system text
    append: str = ""
    context: Mapping[str, str | None] = field(default_factory=dict)  # of the body's `context`; None takes it away
    drop: tuple[str, ...] = ()  # top-level members that the caller may not set
    _claims: Mapping[str, Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        given = {"prepend": self.prepend, "append": self.append, "context": self.context, "drop": list(self.drop)}
        object.__setattr__(self, "_claims", {name: value for name, value in given.items() if value})

    def __bool__(self) -> bool:
        return bool(self._claims)

    def to_claims(self) -> Mapping[str, Any]:
        """Empty members are left out. Made once: the same additions are attested again and again."""
        return self._claims

    @classmethod
    def take(cls, claims: Members) -> Additions:
        context = claims.mapping("context")
        if not all(value is None or isinstance(value, str) for value in context.values()):
            raise malformed("add.context", "is not of its type")
        found = cls(claims.text("prepend", ""), claims.text("append", ""), context, claims.texts("drop", ()))
        claims.done()
        return found


NOTHING_ADDED = Additions()


@dataclass(frozen=True, slots=True)
class Repository:
    """What a run works on: a repository that the caller's token names, and the ref of it that was asked for."""

    name: str
    ref: str | None = None  # None: the repository's own default
    push: bool = False  # whether the token allows to push branches to it
    pull_request: bool = False  # and to open pull requests at it

    def to_claims(self) -> dict[str, Any]:
        given: dict[str, Any] = {"name": self.name}
        if self.ref is not None:
            given["ref"] = self.ref
        if self.push:
            given["push"] = True
        if self.pull_request:
            given["pull_request"] = True
        return given

    @classmethod
    def take(cls, claims: Members) -> Repository:
        found = cls(
            claims.text("name"),
            claims.text("ref") if "ref" in claims else None,
            claims.truth("push", False),
            claims.truth("pull_request", False),
        )
        claims.done()
        return found


class Attestation(Struct, frozen=True):
    """Everything that the gateway vouches for. Times are Unix seconds.

    `identity` is who calls, `limits` what claude-rate-tiers found. The tier that applies is `tier`; an identity that
    travels with limits arrives with that tier.
    """

    binding: Binding
    issued_at: int
    expires_at: int
    id: str  # good for one use
    checks: tuple[str, ...] = ()  # of the plugins that have let the request pass, sorted
    identity: Identity | None = None
    limits: Limits | None = None
    additions: Additions = NOTHING_ADDED
    body_hash: str | None = None  # where a plugin saw the body
    repository: Repository | None = None  # only one that the caller's token allows

    @property
    def tier(self) -> str | None:
        if self.limits is not None:
            return self.limits.tier
        return self.identity.tier if self.identity is not None else None

    @property
    def clamp(self) -> Clamp:
        return self.limits.clamp if self.limits is not None else UNCLAMPED

    @property
    def kind(self) -> Kind:
        """As what it was counted: it is good for nothing else."""
        return "message" if self.limits is not None and self.limits.message else "run"

    @property
    def place(self) -> Place | None:
        return self.limits.place if self.limits is not None else None

    def to_claims(self) -> dict[str, Any]:
        """As it is signed: claim → JSON value."""
        bound = self.binding
        claims: dict[str, Any] = {
            "v": VERSION,
            "iss": bound.issuer,
            "aud": bound.audience,
            "mth": bound.method,
            "pth": bound.path,
            "rte": bound.route,
            "rid": bound.request_id,
            "iat": self.issued_at,
            "exp": self.expires_at,
            "jti": self.id,
            "chk": list(self.checks),
        }
        if self.identity is not None:
            claims |= self.identity.to_claims()
        limits = self.limits
        if limits is not None:
            claims.pop("tier", None)  # the identity's: the one that applies is that of the limits
            if limits.tier is not None:
                claims["tier"] = limits.tier
            claims["clamp"] = limits.clamp.to_claims()
            if limits.message:
                claims["msg"] = True
            place = limits.place
            if place is not None:
                claims["lease"] = str(place.lease)
                claims["slot"] = place.slot.claim()
                if place.queued:
                    claims["queue"] = True
        if self.additions:
            claims["add"] = self.additions.to_claims()
        if self.body_hash is not None:
            claims["bsh"] = self.body_hash
        if self.repository is not None:
            claims["repo"] = self.repository.to_claims()
        return claims

    @classmethod
    def from_claims(cls, claims: Mapping[str, Any]) -> Attestation:
        """The inverse. Raises AttestationError: it names the claim that is missing, unknown or not of its type, or the
        version that is too old or too new."""
        left = Members(claims)
        _check_version(left.whole("v", 0))
        left.pass_over("reservation")  # 0.1.0 wrote the lease a second time, for nobody
        identity = Identity.take(left)
        limited = "clamp" in left or "lease" in left
        clamp = Clamp.take(left.inside("clamp"))
        place = _place(left)
        message = left.truth("msg", False)
        if message and not limited:
            raise malformed("msg", "is of no limits")
        if place is not None and place.lease.is_message != message:
            raise malformed("lease", "is of another kind than the request")
        found = cls(
            binding=Binding(
                left.text("iss"),
                left.text("aud"),
                left.text("mth"),
                left.text("pth"),
                left.text("rte", ""),
                left.text("rid", ""),
            ),
            issued_at=left.whole("iat"),
            expires_at=left.whole("exp"),
            id=left.text("jti"),
            checks=left.texts("chk", ()),
            identity=identity,
            limits=Limits(claims.get("tier"), clamp, place, message) if limited else None,
            additions=Additions.take(left.inside("add")),
            body_hash=left.text("bsh", None),
            repository=Repository.take(left.inside("repo")) if "repo" in left else None,
        )
        left.done()
        return found


def _as_written(
    name: str, given: tuple[str, ...], parse: Callable[[tuple[str, ...]], tuple[_Parsed, ...]]
) -> tuple[_Parsed, ...]:
    """What the texts stand for, where they are written as the gateway writes it. Raises AttestationError."""
    try:
        found = parse(given)
    except ValueError as error:
        raise malformed(name, str(error)) from None
    if tuple(map(str, found)) != given:
        raise malformed(name, "is not written as the gateway writes it")
    return found


def _rules_claim(given: Rules) -> dict[str, Any]:
    lists = {"ask": given.ask, "deny": given.deny, "allow": given.allow}
    found: dict[str, Any] = {name: [str(each) for each in patterns] for name, patterns in lists.items() if patterns}
    return found | ({"four_eyes": True} if given.four_eyes else {})


def _rules(claims: Members) -> Rules:
    ask, deny, allow = (
        _as_written(f"clamp.rules.{name}", claims.texts(name, ()), rules.parse_all) for name in ("ask", "deny", "allow")
    )
    found = Rules(ask, deny, allow, claims.truth("four_eyes", False))
    claims.done()
    return found


def _destinations(hosts: tuple[str, ...]) -> tuple[Destination, ...]:
    return tuple(map(destinations.parse, hosts))


def _place(claims: Members) -> Place | None:
    if "lease" not in claims:
        return None  # a slot or queue without it is left over, so refused
    try:
        lease = Lease.parse(claims.text("lease"))
    except UnknownVersion as error:
        raise AttestationError("version", f"the attestation cannot be obeyed: {error}") from None
    except ValueError:
        raise malformed("lease", "is not a lease") from None
    slot = claims.mapping("slot")
    members = Members(slot, "slot")
    lists = ("budgets", "pools")
    try:
        taken = Slot.from_claim({name: value if name in lists else members.whole(name) for name, value in slot.items()})
    except TypeError:
        raise malformed(_unreadable(slot), "has members that are not known here") from None
    except ValueError:
        raise malformed(_unreadable(slot), "has a budget that is none") from None
    if len(taken.pools) != len(lease.shared.pools):
        raise malformed("slot.pools", "are not as many as the lease's")
    return Place(lease, taken, claims.truth("queue", False))


def _unreadable(slot: Mapping[str, Any]) -> str:
    """Which part of a slot is none."""
    for name in ("budgets", "pools"):
        try:
            Slot.from_claim({name: slot[name]} if name in slot else {})
        except (TypeError, ValueError):
            return f"slot.{name}"
    return "slot"


def _check_version(version: int) -> None:
    if version not in (VERSION, VERSION - 1):
        late = "what reads it, the invoker before the gateway" if version > VERSION else "the gateway's plugins"
        raise AttestationError(
            "version",
            f"the attestation is of version {version}, only {VERSION - 1} and {VERSION} are read here: upgrade {late}",
        )
