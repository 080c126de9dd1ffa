"""The three plugins one after the other, as Kong would run them, and the same sections in claude-gateway."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jwt

from tests.support.kong_driver import Driver, Event, Request

SECRET = "0123456789abcdef0123456789abcdef"
TOKEN_SECRET = "abcdefghijklmnopqrstuvwxyz012345"
PLUGINS = {
    "jwt_claims": ("claude-jwt-claims", "claude_identity"),
    "rate_tiers": ("claude-rate-tiers", "claude_admission"),
    "prompt_context": ("claude-prompt-context", "claude_context"),
}
NEW_PER_REQUEST = ("jti", "iat", "exp", "lease", "reservation")
_namespaces = itertools.count()


@dataclass
class Outcome:
    """What a request came to, in terms that do not depend on how the plugins were arranged."""

    status: int | None = None
    body: Any = None
    exit_headers: dict[str, Any] = field(default_factory=dict)
    upstream_headers: dict[str, Any] = field(default_factory=dict)
    upstream_body: Any = None
    response_headers: dict[str, Any] = field(default_factory=dict)
    claims: dict[str, Any] | None = None
    shared: dict[str, Any] = field(default_factory=dict)
    marked: bool = False


@dataclass
class Arrangement:
    """One configuration, started; `send` plays a request through all phases."""

    kong: Driver
    instances: list[tuple[Any, str]]  # (instance, key in kong.ctx.shared), in order of priority
    calls: list[str] = field(default_factory=list)
    logged: Any = None  # what Kong's log was told of who called

    def send(self, request: Request) -> Outcome:
        request = copy.deepcopy(request)
        self.calls, self.logged = [], None
        exited: Event | None = None
        for instance, _ in self.instances:
            event = self.kong.handle(instance, "access", request)
            self.calls += event.methods
            told = [args for method, args in event.calls if method == "kong.log.set_serialize_value"]
            self.logged = next((value for name, value in told if name == "claude"), self.logged)
            if event.exit:
                exited = event
                break
            carry_over(request)
        outcome = outcome_of(request, exited, [key for _, key in self.instances])
        # An exit or a service, never an error: the log phase follows either way.
        request.answers = {
            **request.answers,
            "kong.response.get_source": "exit" if exited else "service",
            "kong.response.get_header": None,
        }
        for instance, key in self.instances:
            if key in ("claude_admission", "claude_gateway"):
                self.kong.handle(instance, "log", request)
        return outcome


def apart(kong: Driver, sections: Mapping[str, Any], shared: Mapping[str, Any]) -> Arrangement:
    started = []
    for section, (plugin, key) in PLUGINS.items():
        if section in sections:
            started.append((kong.start_instance(plugin, {**shared, **own_counts(sections)[section]}), key))
    return Arrangement(kong, started)


def fused(kong: Driver, sections: Mapping[str, Any], shared: Mapping[str, Any]) -> Arrangement:
    return Arrangement(
        kong, [(kong.start_instance("claude-gateway", {**shared, **own_counts(sections)}), "claude_gateway")]
    )


def own_counts(sections: Mapping[str, Any]) -> dict[str, Any]:
    """The sections with a namespace of their own, so that no arrangement counts another's requests."""
    mine = copy.deepcopy(dict(sections))
    if "rate_tiers" in mine:
        mine["rate_tiers"]["namespace"] = f"test-{next(_namespaces)}"
    return mine


def carry_over(request: Request) -> None:
    """The request as the next plugin sees it: Kong's setters change what its getters read."""
    for name, value in request.upstream_headers.items():
        for spelling in [n for n in request.headers if n.lower() == name]:
            del request.headers[spelling]
        if value not in ({}, []):
            request.headers[name] = value
    if request.upstream_body is not None:
        request.body = request.upstream_body
        request.headers["content-length"] = str(len(request.body))


def outcome_of(request: Request, exited: Event | None, keys: list[str]) -> Outcome:
    outcome = Outcome()
    if exited is not None:
        assert exited.exit is not None
        outcome.status, outcome.body, outcome.exit_headers = exited.exit.status, exited.exit.body, exited.exit.headers
        return outcome
    headers = {n: None if v in ({}, []) else v for n, v in request.upstream_headers.items()}
    attestation = headers.pop("x-claude-attestation", None)
    outcome.upstream_headers = headers
    outcome.response_headers = request.response_headers
    outcome.upstream_body = json.loads(request.upstream_body) if request.upstream_body is not None else None
    if attestation:
        claims = jwt.decode(attestation, SECRET, algorithms=["HS256"], audience="claude-invoker")
        outcome.claims = {n: "new" if n in NEW_PER_REQUEST else v for n, v in claims.items()}
    for key in keys:
        left = dict(request.shared[key])
        outcome.marked = left.pop("mark") == "m"
        outcome.shared |= left if key == "claude_gateway" else {key: left}
    outcome.shared = {
        key: {n: "new" if n == "lease" else v for n, v in f.items()} for key, f in outcome.shared.items() if f
    }
    return outcome
