"""claude-rate-tiers: admits a request within its caller's tier, or says which limit is in the way and until when."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from claude_contract import graphql
from claude_contract.claims import NAMESPACE_ROOM, Clamp, Limits, Place
from claude_contract.errors import ConfigError
from claude_contract.ledger import (
    Admission,
    Admit,
    BudgetWarning,
    Busy,
    Lease,
    Ledger,
    LedgerUnavailable,
    Peek,
    Slot,
    micro_usd,
)
from claude_contract.ledger.figures import PoolsSeen
from claude_contract.ledger.limits import NO_SLOT
from claude_contract.ledger.live import BLOCKED
from claude_contract.ledger.warnings import warnings_of
from kong_claude.decision import Answer, Decision, Pass, Refuse
from kong_claude.pipeline import plugin
from kong_claude.rate_tiers import gauges, local_ledger, looking, named, redis_ledger, report, telling
from kong_claude.rate_tiers.admin import Admin
from kong_claude.rate_tiers.headers import LimitHeaders
from kong_claude.rate_tiers.kongs import folded
from kong_claude.rate_tiers.pools import Sharing
from kong_claude.rate_tiers.schema import ERROR_MESSAGE, RateTiersConfig
from kong_claude.rate_tiers.subjects import Subjects, TierChoice
from kong_claude.rate_tiers.tiers import UNRENEWED_TTL, Tier, lowered, tiers_from_config
from kong_claude.rate_tiers.wishes import Configured, Wrong
from kong_claude.request import Request, answer, text
from kong_claude.stage import Shared, Stage

COST_HEADER = "X-Claude-Cost-USD"
CONFIRM_MS = 5000  # until the invoker has to have the request: a client that leaves while it sends it leaves no lease
ON_BUDGET_HEADER = "X-Claude-On-Budget"
MAX_NAMED = 100  # unknown tiers that are logged before the log falls silent

R = TypeVar("R")


class RateTiers(Stage[RateTiersConfig]):
    """The stage. Raises ConfigError."""

    check = "rate-tiers"
    shared_key = "claude_admission"
    Config = RateTiersConfig

    def __init__(self, config: RateTiersConfig, shared: Shared) -> None:
        self.namespace = config.namespace
        if len(self.namespace) > NAMESPACE_ROOM:  # a part of every lease, which travels in the attestation
            raise ConfigError("namespace", f"must not be longer than {NAMESPACE_ROOM} characters")
        self.local = local_ledger.shared(self.namespace)
        counts_in_redis = config.policy == "redis"
        self.redis = redis_ledger.shared(redis_ledger.Settings.from_config(config)) if counts_in_redis else None
        self.on_error = folded(config).on_error
        self.signed = shared.attestation is not None
        # The invoker ends a run's lease where it can: it must learn of it and have the same Redis.
        self.invoker_settles = self.signed and self.redis is not None
        ttl = config.lease_ttl if self.invoker_settles else UNRENEWED_TTL
        tiers, default = tiers_from_config(config, ttl, signed=self.signed)
        kinds = [*tiers.values(), *[tier.messages for tier in tiers.values() if tier.messages is not None]]
        self.settles = any(tier.takes_lease for tier in kinds)
        self.by_model = config.by_model
        if self.by_model and not self.signed:
            raise ConfigError("by_model", "needs attestation, by which the invoker learns as what it was counted")
        self.by_operation = config.by_operation
        if self.by_operation and (not self.signed or self.by_model or config.report or config.admin):
            raise ConfigError("by_operation", "needs attestation, and is not for by_model, report or admin")
        self.choice = TierChoice(tiers, default, (config.tier_header or "").lower(), config.consumer_tier or "")
        self.subjects = Subjects.from_config(config, shared)
        self.sharing = Sharing(bool(config.pools), config.organisation_claim or "", config.on_missing_identity)
        self.busy: Busy = "queue" if config.on_busy == "queue" else "reject"
        self.shadow = config.mode == "shadow"
        self.header_style = config.header_style
        shown = [] if config.hide_client_headers else kinds
        self.headers = {(tier.name, tier.kind): self._headers(tier) for tier in shown}
        self.error_code = config.error_code
        self.error_message = config.error_message
        self.report = config.report
        if config.admin and config.report:
            raise ConfigError("admin", "and report are answers of two routes")
        self.tell = config.tell
        if self.tell and (not self.signed or self.by_model or self.by_operation or config.report or config.admin):
            raise ConfigError("tell", "needs attestation, and is not for by_model, by_operation, report or admin")
        organisation_claim = (config.organisation_claim or "") if config.pools else ""
        self.configured = Configured(self.namespace, tiers, default, config.limit_by, organisation_claim)
        self.admin = Admin(self.configured, self.redis, pools=bool(config.pools)) if config.admin else None
        if self.admin is not None and self.redis is not None and not self.redis.one_node:
            _check_one_tag(config)
        self.teller = telling.Teller()
        for tier in tiers.values():
            telling.expect("", tier.slot.own.budgets)
            for pool in tier.pools:
                telling.expect(pool.name, pool.terms.budgets)
        self.pools_seen = PoolsSeen()
        gauges.POOLS.sources.add(self)
        self._named: set[str] = set()

    def access(self, request: Request) -> Decision:
        if self.admin is not None:
            return self.admin.access(request)
        subject_key = self.subjects.key(request)
        if isinstance(subject_key, Refuse):
            return subject_key
        tier, unknown = self.choice.choose(request)
        if unknown is not None:
            self._log_unknown(request, unknown)
        if self.tell:
            return self._told(request, subject_key, tier)
        if self.by_operation:
            decision = self._by_operation(request, subject_key, tier)
        else:
            chosen = named.of_its_kind(request, tier) if self.by_model else tier
            decision = chosen if isinstance(chosen, Refuse) else self._in_tier(request, subject_key, chosen)
        return decision.of(Limits(tier.name, tier.clamp)) if isinstance(decision, Refuse) else decision

    def _by_operation(self, request: Request, subject_key: str, tier: Tier) -> Decision:
        """A GraphQL request. What is not counted here is attested without this check, so that it starts nothing."""
        body = request.body(named.MAX_GRAPHQL)
        if body is None:
            return Refuse(413, f"the body is larger than {named.MAX_GRAPHQL} bytes", "body_too_large")
        if graphql.may_start(body):
            decision, ours = self._in_tier(request, subject_key, tier), looking.limits_header(request, None)
            return replace(decision, upstream_headers=ours) if ours and isinstance(decision, Pass) else decision
        told = None
        if graphql.asks_for_limits(body):
            found = self._peeked(request, subject_key, tier)
            if isinstance(found, Refuse):
                return found
            told = looking.written(found.body)
        return Pass(upstream_headers=looking.limits_header(request, told), checked=False)

    def _told(self, request: Request, subject_key: str, tier: Tier) -> Decision:
        """Somebody looks: it passes uncounted, so that it starts nothing, and the service is told the caller's tier and
        what is left of his limits, or of another's whom an admin names. Where that cannot be said, why."""
        found: Answer | Refuse
        more: dict[str, Any] = {}
        claims = None
        try:
            about = looking.looked_up(request, self.configured, pools=self.sharing.tagged)
        except Wrong as wrong:
            found = wrong.refusal
        else:
            if about is None:
                found = self._peeked(request, subject_key, tier)
                claims = found.claims if isinstance(found, Answer) else None
            else:
                found = self._report(request, about.tier, about.peek)
                more = {"sub": about.sub, "unknown_pools": [[pool.name, pool.claim] for pool in about.unknown]}
        told = {"problem": found.message} if isinstance(found, Refuse) else report.figures(found.body) | more
        ours = looking.limits_header(request, looking.written(told) or looking.TOO_MUCH)
        return Pass(upstream_headers=ours, claims=claims or Limits(tier.name, tier.clamp), checked=False)

    def _peeked(self, request: Request, subject_key: str, tier: Tier) -> Answer | Refuse:
        shared_by = self.sharing.shared(request, tier.pools)
        if isinstance(shared_by, Refuse):
            return shared_by
        asked = Peek(self.namespace, subject_key, tier.windows, tier.slot, shared_by, tier.pool_windows, tier.name)
        return self._report(request, tier, asked)

    def _in_tier(self, request: Request, subject_key: str, tier: Tier) -> Decision:
        shared_by = self.sharing.shared(request, tier.pools)
        if isinstance(shared_by, Refuse):
            return shared_by
        self.pools_seen.note(self.namespace, shared_by, tier.slot.pools)
        if self.report:
            return self._peeked(request, subject_key, tier)
        # Where an attestation carries the clamp the invoker refuses a model outside the tier. So the body is read only
        # where nobody else would enforce the tier, or where it costs nothing.
        seen = not self.signed or (request.body_seen is not None and not (self.by_model or self.by_operation))
        models = tier.clamp.models
        refusal = named.model_refusal(request, tier.name, models) if seen and models and _may_start(request) else None
        if refusal and not self.shadow:
            return refusal

        # With an attestation the method is known; without one the log phase ends every lease, so none is left over.
        needs_lease = tier.takes_lease and (not self.signed or _may_start(request))
        lease, message = None, tier.kind == "message"
        if needs_lease:
            lease = Lease.new(self.namespace, subject_key, tier.slot.run_micro_usd, shared_by, message=message)
        busy: Busy = self.busy
        if message:
            busy = "reject"
        elif _prefers_async(request):
            busy = "later"
        wanted = Admit(
            self.namespace,
            subject_key,
            tier.windows,
            lease,
            tier.slot,
            busy,
            shared_by,
            tier.pool_windows,
            tier.name,
            message=message,
        )
        shared: dict[str, Any] = {"subject": subject_key, "tier": tier.name}
        try:
            found = self._admit(request, tier, wanted)
        except LedgerUnavailable:
            return self._without_ledger(tier, shared)
        admission, lease, local = found.admission, found.asked.request.lease, found.local
        tier = tier.now(admission.changed)
        headers = {}
        if self.headers:
            headers = (self._headers(tier) if admission.changed else self.headers[tier.name, tier.kind]).of(admission)
        if found.seen:
            self.teller.tell(found.seen, self._keeper(local), request.kong.log.warn)
            if self.headers:
                headers[telling.HEADER] = telling.header(found.seen)
        if not admission.admitted:
            if not self.shadow:
                return self._refuse(admission, tier, headers)
            shared["shadow"] = report.exceeded(admission, tier)
            request.kong.log.warn(f"shadow: {subject_key} in tier {tier.name} would be refused, {shared['shadow']}")
        if found.asked.said:
            headers[ON_BUDGET_HEADER] = found.asked.said
        place = None
        if lease is not None and (admission.queued or not local):
            # The configuration's: where the place is taken later, it is under what is changed then.
            place = Place(lease, found.asked.slot, admission.queued)
        if lease is not None and admission.admitted and not admission.queued:
            shared["lease"] = str(lease)
            if local:
                shared["local"] = True
            if local or not self.invoker_settles:
                shared["settles"] = True  # read by the Lua half: the log phase has work even where a service answered
        clamp = lowered(found.asked.clamp, admission.changed)
        return Pass(response_headers=headers, claims=Limits(tier.name, clamp, place, message), shared=shared)

    def _admit(self, request: Request, tier: Tier, wanted: Admit) -> _Found:
        """What the store says; of a budget that refuses, what the tier has instead. Raises LedgerUnavailable."""
        asked = _Asked(wanted, tier.slot, tier.clamp)
        admission, local = self._admitted(request, wanted)
        seen = warnings_of(wanted, admission)
        instead = None if admission.admitted or self.shadow else _on_budget(tier, wanted, admission)
        if instead is not None:
            second, local = self._admitted(request, instead.request)
            if second.admitted:
                asked, admission = instead, second
        return _Found(asked, admission, local, seen)

    def _admitted(self, request: Request, wanted: Admit) -> tuple[Admission, bool]:
        """As `_ask`."""
        confirmed = replace(wanted, confirm_ms=CONFIRM_MS) if self.invoker_settles else wanted
        return self._ask(request, lambda store: store.admit(wanted if store is self.local else confirmed))

    def log(self, kong: Any, left: Callable[[], Mapping[str, Any]]) -> None:
        """Ends the lease where the invoker will not."""
        served = text(answer(kong.response.get_source())) == "service"
        if served and self.invoker_settles and self.on_error != "local":
            return
        shared = left()
        if not shared.get("lease"):
            return
        lease, local = Lease.parse(text(shared["lease"])), bool(shared.get("local"))
        if not served:
            self._release(lease, local)
        elif shared.get("settles"):
            cost = micro_usd(_cost(answer(kong.response.get_header(COST_HEADER))))
            with suppress(LedgerUnavailable):  # then it lapses by itself
                self._keeper(local).settle(lease, cost)

    def undo(self, decision: Pass) -> None:
        """A later stage refused the request: nothing will run."""
        if "lease" in decision.shared:
            self._release(Lease.parse(decision.shared["lease"]), "local" in decision.shared)

    def close(self) -> None:
        """Connections are shared with other instances; they go with the last one."""
        gauges.POOLS.sources.discard(self)
        self.redis = self.admin = None

    @property
    def store(self) -> Ledger:
        return self.redis or self.local

    def _release(self, lease: Lease, local: bool) -> None:
        with suppress(LedgerUnavailable):  # then it lapses by itself
            self._keeper(local).release(lease)

    def _keeper(self, local: bool) -> Ledger:
        """Who has a lease."""
        return self.local if local else self.store

    def _ask(self, request: Request, verb: Callable[[Ledger], R]) -> tuple[R, bool]:
        """The answer, and whether it came from this process. Raises LedgerUnavailable."""
        if self.redis is None:
            return verb(self.local), True
        try:
            return verb(self.redis), False
        except LedgerUnavailable as error:
            if self.redis.news():
                request.kong.log.err(f"limits cannot be checked ({error}); on_error is {self.on_error}")
            if self.on_error != "local":
                raise
            return verb(self.local), True

    def _without_ledger(self, tier: Tier, shared: dict[str, Any]) -> Decision:
        if self.on_error == "allow" or self.shadow:
            claims = Limits(tier.name, tier.clamp, message=tier.kind == "message")
            return Pass(claims=claims, shared={**shared, "uncounted": True})
        return Refuse(503, "rate limits cannot be checked now", "limits_unavailable", {"Retry-After": "1"})

    def _headers(self, tier: Tier) -> LimitHeaders:
        pools = [(pool.name, pool.windows.each) for pool in tier.pools]
        return LimitHeaders(tier.windows.each, self.header_style, pools)

    def _refuse(self, admission: Admission, tier: Tier, headers: dict[str, str]) -> Refuse:
        if admission.exceeded == BLOCKED:
            detail = report.blocked(admission, tier)
            return Refuse(403, f"an administrator has blocked {report.whom(detail)} for now", BLOCKED, detail=detail)
        detail = report.refusal(admission, tier)
        wait = str(detail["retry_after"])
        message = self.error_message
        if message == ERROR_MESSAGE:  # an operator's own words stay as they are
            message = f"{message}: {report.in_words(admission, tier)}"
        return Refuse(self.error_code, message, "rate_limited", {**headers, "Retry-After": wait}, detail)

    def _report(self, request: Request, tier: Tier, asked: Peek) -> Answer | Refuse:
        messages = None
        try:
            usage, _ = self._ask(request, lambda store: store.peek(asked))
            if tier.messages is not None:
                of_messages = replace(asked, windows=tier.messages.windows, slot=tier.messages.slot, message=True)
                messages, _ = self._ask(request, lambda store: store.peek(of_messages))
        except LedgerUnavailable:
            return Refuse(503, "limits cannot be read now", "limits_unavailable", {"Retry-After": "1"})
        tier = tier.now(usage.changed)
        return Answer(
            200, report.limits(usage, tier, messages), {"Cache-Control": "no-store"}, Limits(tier.name, tier.clamp)
        )

    def _log_unknown(self, request: Request, name: str) -> None:
        if name not in self._named and len(self._named) < MAX_NAMED:
            self._named.add(name)
            request.kong.log.warn(f"no tier {name!r:.80}: its callers are in {self.choice.default.name!r}")


class _Asked(Struct, frozen=True):
    """What is asked of the store, and what an admission of it gives."""

    request: Admit
    slot: Slot  # what the lease stands for
    clamp: Clamp
    said: str = ""  # to the caller, where it is not what he would have had


class _Found(Struct, frozen=True):
    asked: _Asked
    admission: Admission
    local: bool
    seen: tuple[BudgetWarning, ...]


def _on_budget(tier: Tier, wanted: Admit, refused: Admission) -> _Asked | None:
    """What the tier has where a budget has refused; None: nothing. A job that waits takes its lease when it starts."""
    if wanted.lease is None or not refused.exceeded.startswith("usd_"):
        return None
    if tier.on_budget == "queue" and wanted.busy != "reject":
        return _Asked(replace(wanted, slot=NO_SLOT, busy="later"), tier.slot, tier.clamp, "queue")
    if tier.cheaper is not None:
        slot, clamp = tier.cheaper.slot, tier.cheaper.clamp
        lease = Lease.new(wanted.namespace, wanted.subject_key, slot.run_micro_usd, wanted.shared)
        return _Asked(replace(wanted, lease=lease, slot=slot), slot, clamp, f"model={clamp.model}")
    return None


def _prefers_async(request: Request) -> bool:
    """`Prefer: respond-async` (RFC 7240)."""
    for value in request.headers.get("prefer", ()):
        if any(part.split(";")[0].strip().lower() == "respond-async" for part in value.split(",")):
            return True
    return False


def _may_start(request: Request) -> bool:
    """Reading and cancelling start no run."""
    return request.line.method not in ("GET", "HEAD", "OPTIONS", "DELETE")


def _check_one_tag(config: RateTiersConfig) -> None:
    """On a Cluster a script that decides reads what was changed on its own node: so all keys need one hash tag. Raises
    ConfigError."""
    if not config.pools or config.organisation_claim:
        raise ConfigError(
            "admin",
            "needs all keys on one node where Redis is a Cluster: define a pool (one `by: deployment` with a limit "
            "that nobody reaches is enough), and no organisation_claim",
        )


def _cost(value: Any) -> float:
    """X-Claude-Cost-USD of the answer; 0 where the service says none."""
    try:
        cost = float(text(value)) if value else 0.0
        return cost if 0 <= cost < 1e9 else 0.0
    except ValueError:
        return 0.0


Plugin = plugin(RateTiers)
