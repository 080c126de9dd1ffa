"""Stages → a kong-pdk Plugin class.

A stage turns a request into a decision. The pipeline runs stages in order on one Request, stops at the first
that does not pass, applies all effects in as few PDK calls as they need, and writes the mark last: only then
does the fail-closed guard let the request reach an upstream.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from functools import partial
from typing import Any

from claude_contract.attestation import HEADER, Signer, signer_from_config
from claude_contract.claims import METHOD_ROOM, Attestation, body_hash
from claude_contract.errors import ConfigError
from claude_contract.members import AttestationError
from kong_claude import in_flight
from kong_claude.decision import Answer, Decision, Pass, Refuse
from kong_claude.errors import render
from kong_claude.request import Request, RequestLine, answer
from kong_claude.schema import read
from kong_claude.signed import Signed
from kong_claude.stage import Shared, Stage

_HEADER = HEADER.lower()
JSON = "application/json; charset=utf-8"  # as Kong has it
UNAVAILABLE = {"message": "service temporarily unavailable"}
# Kong drops a header whose value is an empty table: removal costs no call of its own.
REMOVE: dict[str, str] = {}
SIGNED = Signed()
REQUEST = "request"  # the check that is made before any stage: whether the request can be looked at


class Pipeline:
    """The stages of one plugin instance with the settings they share (`mark`, `attestation`).

    Raises ConfigError where neither a route nor a service is what the instance was configured for.
    """

    def __init__(self, stages: Sequence[Stage[Any]], shared_key: str, config: Shared) -> None:
        self.stages = stages
        self.logging = [stage for stage in stages if stage.logs() and stage.settles]
        self.shared_key = shared_key
        self.fused = [stage.shared_key for stage in stages] != [shared_key]
        self.fresh = any(stage.establishes_identity for stage in stages)
        self.route = config.route_id
        # What the guard compares: whose configuration this is. A global one is nobody's.
        bound = config.route_id or config.service_id
        if not bound:
            raise ConfigError(
                "route",
                "the plugin is bound to no route and no service, so that no guard could tell whose configuration let a "
                "request pass: bind it to a route or a service",
            )
        self.mark = config.mark or bound
        attestation = config.attestation
        self.signer: Signer | None = signer_from_config(asdict(attestation)) if attestation else None
        self.line = static_line(attestation.request) if attestation else None

    def access(self, kong: Any) -> None:
        request = Request(kong, static_line=self.line)
        try:
            decisions = self.decide(request)
            last = decisions[-1]
            if isinstance(last, Refuse):
                refuse(request, last)
            elif isinstance(last, Answer):
                tell_caller(request)
                # As text: in what Kong makes JSON of, an empty list becomes {}, and what is None is left out.
                body = json.dumps(last.body, separators=(",", ":"))
                kong.response.exit(last.status, body, {"Content-Type": JSON, **last.headers})
            else:
                self.let_pass(request, [d for d in decisions if isinstance(d, Pass)])
        except Exception:
            # Kong lets a request pass when a plugin fails; so the failure itself must be an answer.
            kong.log.err(f"refused, internal error: {traceback.format_exc()}")
            with suppress(Exception):
                tell_caller(request)
            kong.response.exit(503, UNAVAILABLE, {"Retry-After": "1", "X-Claude-Refusal": "pipeline/internal_error"})

    def decide(self, request: Request) -> list[Decision]:
        """The decisions up to and including the first that does not pass."""
        decisions: list[Decision] = []
        if request.too_many_headers:
            return [Refuse(431, "too many request headers", "too_many_headers", check=REQUEST)]
        if self.signer:
            if len(request.line.method) > METHOD_ROOM:
                return [Refuse(501, "this method is not known here", "unknown_method", check=REQUEST)]
            request.attestation = self.open_or_resume(request)
        for stage in self.stages:
            try:
                decision = stage.access(request)
            except Exception:
                undo(self.stages, decisions)
                raise
            decisions.append(decision.by(stage.check) if isinstance(decision, Refuse) else decision)
            request.learn(decision.claims)
            if not isinstance(decision, Pass):
                undo(self.stages, decisions)
                break
            if stage is not self.stages[-1]:
                request.follow(decision)
        return decisions

    def open_or_resume(self, request: Request) -> Attestation:
        """The attestation of an earlier plugin of this request, else a fresh one. A forged header counts as none."""
        assert self.signer is not None
        line = request.line
        binding = self.signer.binding(
            method=line.method, path=request.upstream_path, route=self.route, request_id=request.id
        )
        if self.fresh:  # what came before knew nobody; anything of another identity must not linger
            return self.signer.open_for(binding)
        given = request.headers.get(_HEADER, [])
        if len(given) == 1:
            try:
                return self.signer.resume(given[0], binding, SIGNED.take(given[0], self.signer))
            except AttestationError as error:
                said = error if error.reason == "version" else error.reason  # an admin's to repair, not a client's
                request.kong.log.warn(f"ignored a client's {HEADER}: {said}")
        return self.signer.open_for(binding)

    def let_pass(self, request: Request, passed: list[Pass]) -> None:
        """Every stage lets the request pass: so it does, unless what they found cannot be attested."""
        attestation = header = None
        if self.signer:
            attestation = self.found(request, passed)
            try:
                header = self.signer.sign(attestation)
            except AttestationError as error:
                undo(self.stages, [*passed])
                refuse(request, Refuse(431, str(error), "attestation_too_large", check="attestation"))
                return
            if not self.fused:  # else no other plugin follows
                SIGNED.keep(header, self.signer, attestation)
        self.apply(request, passed, header)
        if attestation is not None:
            in_flight.begin(attestation)

    def found(self, request: Request, passed: list[Pass]) -> Attestation:
        """What earlier plugins found and what the stages of this one did."""
        before = request.attestation
        assert before is not None
        body, checks, repository = request.body_seen, before.checks, before.repository
        for stage, decision in zip(self.stages, passed, strict=True):
            body = body if decision.body is None else decision.body
            repository = decision.repository or repository
            if decision.checked:
                checks = (*checks, stage.check)
        return Attestation(
            before.binding,
            before.issued_at,
            before.expires_at,
            before.id,
            tuple(sorted(set(checks))) if before.checks else tuple(sorted(checks)),
            request.attested_identity,
            request.known_limits,
            request.additions or before.additions,
            before.body_hash if body is None else body_hash(body),
            repository,
        )

    def apply(self, request: Request, passed: list[Pass], attestation: str | None) -> None:
        """All effects of all stages, one call each, the mark last."""
        kong = request.kong
        upstream: dict[str, Any] = {}
        response: dict[str, str] = {}
        body: bytes | None = None
        for decision in passed:
            for name, value in decision.upstream_headers.items():
                upstream[name] = REMOVE if value is None else value
            response.update(decision.response_headers)
            body = decision.body if decision.body is not None else body
            if decision.consumer is not None:
                kong.client.authenticate(*(part for part in decision.consumer if part is not None))
            if decision.raw_query is not None:
                kong.service.request.set_raw_query(decision.raw_query)
        if attestation is not None:
            upstream[HEADER] = attestation
        for spelling in request.spellings(_HEADER):
            upstream.setdefault(HEADER if spelling == _HEADER else spelling, REMOVE)
        # Kong sets them in no order, and names are the same in any case: a client's must not take ours with it.
        if removed := [name for name, value in upstream.items() if value is REMOVE]:
            ours = {name.lower() for name, value in upstream.items() if value is not REMOVE}
            for name in removed:
                if name.lower() in ours:
                    del upstream[name]
        if upstream:
            kong.service.request.set_headers(upstream)
        if body is not None:
            kong.service.request.set_raw_body(body)
        if response:
            kong.response.set_headers(response)
        shared = self.shared(passed)
        shared["mark"] = self.mark
        kong.ctx.shared.set(self.shared_key, shared)

    def shared(self, passed: list[Pass]) -> dict[str, Any]:
        """For the shared context: what the one stage leaves; fused, what each leaves under its key, in one call."""
        if not self.fused:
            return dict(passed[0].shared)
        return {s.shared_key: d.shared for s, d in zip(self.stages, passed, strict=True) if d.shared}

    def close(self) -> None:
        """Ends what the stages hold (connections, threads)."""
        for stage in self.stages:
            stage.close()

    def log(self, kong: Any) -> None:
        for stage in self.logging:
            stage.log(kong, partial(self.left_by, stage, kong))

    def left_by(self, stage: Stage[Any], kong: Any) -> Mapping[str, Any]:
        """What the stage left in the shared context for the log phase. One call."""
        shared = answer(kong.ctx.shared.get(self.shared_key))
        own = shared.get(stage.shared_key) if self.fused and isinstance(shared, Mapping) else shared
        return own if isinstance(own, Mapping) else {}


def undo(stages: Sequence[Stage[Any]], decisions: list[Decision]) -> None:
    """A later stage refused: what earlier ones took (a lease, a reservation) is given back now."""
    for stage, decision in zip(stages, decisions, strict=False):
        if isinstance(decision, Pass):
            stage.undo(decision)


def refuse(request: Request, refusal: Refuse) -> None:
    """Ends the request: one call, plus one for the request id where no header carries it, plus one where it is known
    who is calling.

    `X-Claude-Refusal` tells the log phase who refused and why, without a call of its own.
    """
    tell_caller(request)
    body, headers = render(refusal, request_id=request.id, accept=request.header("accept"))
    headers["X-Claude-Refusal"] = f"{refusal.check}/{refusal.reason}"
    request.kong.response.exit(refusal.status, body, headers)


def tell_caller(request: Request) -> None:
    """The request ends here: Kong's log learns who called and in which tier, as far as that is known. One call."""
    identity, limits = request.known_identity, request.known_limits
    tier = limits.tier if limits else identity.tier if identity else None
    if identity is not None or tier:
        in_flight.answered(request.kong, identity, tier or "")


def static_line(value: str | None) -> RequestLine | None:
    """`attestation.request` → the request line it fixes."""
    if not value:
        return None
    method, _, path = value.partition(" ")
    if not method or not path.startswith("/"):
        raise ConfigError("attestation.request", "must be a method and a path, such as POST /claude/invoke")
    return RequestLine(method, path, "")


def plugin(*kinds: type[Stage[Any]], sections: type | None = None, shared_key: str = "") -> type:
    """A kong-pdk Plugin class; the last part of every `claude-*.py`.

    Of one kind of stage, whose fields are the plugin's. Or, with `sections` (a configuration with one optional record
    per kind, in their order), of those whose section is there. Each may raise ConfigError, which Kong logs and answers
    with 500. The class has a `log` phase only where a stage has one, since every phase is a round trip.
    """

    class Plugin:
        def __init__(self, config: Mapping[str, Any]) -> None:
            shared = read(Shared, config)
            if sections is None:
                (kind,) = kinds
                stages = [kind(read(kind.Config, config), shared)]
            else:
                stages = sectioned(read(sections, config), kinds, shared)
            self.pipeline = Pipeline(stages, shared_key or kinds[0].shared_key, shared)

        def access(self, kong: Any) -> None:
            self.pipeline.access(kong)

        def close(self) -> None:
            self.pipeline.close()

    if any(kind.logs() for kind in kinds):
        Plugin.log = lambda self, kong: self.pipeline.log(kong)  # type: ignore[attr-defined]
    return Plugin


def sectioned(config: Any, kinds: Sequence[type[Stage[Any]]], shared: Shared) -> list[Stage[Any]]:
    """A stage for each section that is there. Raises ConfigError, with the section in the field's name."""
    made: list[Stage[Any]] = []
    names = [field.name for field in fields(config)]
    for name, kind in zip(names, kinds, strict=True):
        section = getattr(config, name)
        if section is None:
            continue
        try:
            made.append(kind(section, shared))
        except ConfigError as error:
            raise ConfigError(f"{name}.{error.field_name}", error.problem) from None
    if not made:
        raise ConfigError(names[0], "no section is configured, so nothing would be checked")
    return made
