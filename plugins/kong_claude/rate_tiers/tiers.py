"""Tiers: named sets of limits, read from the configuration once. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise

from claude_contract import destinations, features, rules
from claude_contract.claims import CLAMP_ROOM, NAME_ROOM, POOLS_ROOM, SEARCH, Clamp, Place, pools_size, size
from claude_contract.destinations import Destination
from claude_contract.errors import ConfigError
from claude_contract.features import Feature
from claude_contract.kinds import Kind
from claude_contract.ledger import (
    MAX_POOLS,
    PERIODS,
    Budget,
    Changed,
    Lease,
    Shared,
    Slot,
    Terms,
    Window,
    Windows,
    micro_usd,
    organisation_tag,
    periods,
    usd,
)
from claude_contract.ledger.limits import BUDGETS, MAX_BUDGETS, MAX_PERCENT, NO_WINDOWS
from claude_contract.ledger.live import with_changes
from claude_contract.ledger.periods import PERS, Per
from claude_contract.rules import Pattern, Rules
from kong_claude.rate_tiers.pools import WIDEST, Pool
from kong_claude.rate_tiers.schema import Limits, MessagesConfig, Money, RateTiersConfig, TierConfig

# A lease that nobody renews (no attestation carries it to the invoker, or the ledger is this process) must outlive
# the longest run; the log phase ends it.
UNRENEWED_TTL = 3600  # seconds
MOST = 2**31 - 1  # requests
MOST_USD = 1_000_000_000  # in micro-dollars still a whole number that every reader of JSON has

LIMITS = tuple(limit.name for limit in fields(Limits))


@dataclass(frozen=True)
class Cheaper:
    """What a run gets where a budget is used up: its own budgets a bit further, and another model."""

    slot: Slot
    clamp: Clamp  # which names the model


@dataclass(frozen=True)
class Tier:
    """What its callers may use. None and () mean: not limited by this tier."""

    name: str
    windows: Windows
    slot: Slot
    clamp: Clamp = field(default_factory=Clamp)  # binds the invoker, whatever the body asks for
    pools: tuple[Pool, ...] = ()  # in the order of the slot's
    on_budget: str = "refuse"  # or "queue", "model": one of schema.ON_BUDGET
    cheaper: Cheaper | None = None  # with "model"
    messages: Tier | None = None  # the same for requests to models themselves; None: there are to be none
    kind: Kind = "run"

    @property
    def least_hold(self) -> int:
        """Micro-USD that must be left of each budget for a run to start, be it a cheaper one."""
        own = self.slot.run_micro_usd
        return own if self.cheaper is None else min(own, self.cheaper.slot.run_micro_usd)

    @property
    def takes_lease(self) -> bool:
        terms = (self.slot.own, *self.slot.pools)
        return self.slot.has_budget or any(each.concurrent is not None for each in terms)

    @property
    def pool_windows(self) -> tuple[Windows, ...]:
        return tuple([pool.windows for pool in self.pools])

    def limits(self) -> dict[str, set[str]]:
        """What may be changed for a while: of its own under "", of its pools under their names."""
        accounts = [("", self.windows, self.slot.own), *[(pool.name, pool.windows, pool.terms) for pool in self.pools]]
        return {
            name: {
                *[window.name for window in windows.each],
                *[budget.name for budget in terms.budgets],
                *(["concurrent"] if terms.concurrent is not None else []),
            }
            for name, windows, terms in accounts
        }

    def now(self, changed: Sequence[Changed]) -> Tier:
        """With what an admin has changed. A run may then cost no more than any lowered budget."""
        if not changed:
            return self
        windows, own = with_changes(self.windows, self.slot.own, 0, changed)
        pools = []
        for at, pool in enumerate(self.pools, start=1):
            of_pool, terms = with_changes(pool.windows, pool.terms, at, changed)
            pools.append(replace(pool, windows=of_pool, terms=terms))
        short = [self.slot.day_micro_usd, self.slot.month_micro_usd]
        given = iter(own.budgets)
        day, month = [None if before is None else next(given).micro_usd for before in short]
        slot = replace(
            self.slot,
            concurrent=own.concurrent,
            day_micro_usd=day,
            month_micro_usd=month,
            budgets=tuple(given),
            pools=tuple([pool.terms for pool in pools]),
        )
        clamp = lowered(self.clamp, changed)
        return replace(self, windows=windows, slot=slot, clamp=clamp, pools=tuple(pools))


def lowered(clamp: Clamp, changed: Sequence[Changed]) -> Clamp:
    """Of a run that may cost no more than any budget that was lowered."""
    if clamp.max_usd is None or not changed:
        return clamp
    lowest = [usd(value) for _, limit, value in changed if limit in BUDGETS]
    return replace(clamp, max_usd=min([clamp.max_usd, *lowest]))


def tiers_from_config(config: RateTiersConfig, ttl: float, *, signed: bool) -> tuple[dict[str, Tier], Tier]:
    """All tiers by name, and the default one; `ttl`: of a lease, in seconds; `signed`: an attestation carries them.

    Limits at the top level (as Kong's rate-limiting has them) make a tier of their own, `default`. Raises ConfigError.
    """
    pools = pools_from_config(config)
    tiers: dict[str, Tier] = {}
    for number, section in enumerate(config.tiers, start=1):
        tier = _tier(section, f"tiers[{number}]", ttl, pools)
        if section.on_budget != "refuse" and not signed:
            raise ConfigError(f"tiers[{number}].on_budget", "needs attestation, by which the invoker learns of it")
        if tier.name in tiers:
            raise ConfigError(f"tiers[{number}].name", f"there are two tiers {tier.name!r}")
        tiers[tier.name] = tier
    plain = {name: limit for name in LIMITS if (limit := getattr(config, name)) is not None}
    if plain:
        if "default" in tiers:
            raise ConfigError(
                next(iter(plain)), "limits at the top level are the tier 'default', which tiers names too"
            )
        tiers["default"] = _tier(TierConfig(name="default", **plain), "", ttl, pools)
    if not tiers:
        raise ConfigError("tiers", "no limits are given")
    name = config.default_tier or ("default" if "default" in tiers or len(tiers) > 1 else next(iter(tiers)))
    if name not in tiers:
        raise ConfigError("default_tier", f"must name one of the tiers: {', '.join(tiers)}")
    if signed:
        check_rooms(tiers)
    return tiers, tiers[name]


def pools_from_config(config: RateTiersConfig) -> dict[str, Pool]:
    """All pools by name. Raises ConfigError."""
    pools: dict[str, Pool] = {}
    for number, section in enumerate(config.pools, start=1):
        prefix = f"pools[{number}]."
        name, claim = section.name or "", section.claim or ""
        if not name:
            raise ConfigError(f"{prefix}name", "is required")
        if name in pools:
            raise ConfigError(f"{prefix}name", f"there are two pools {name!r}")
        if section.by == "deployment":
            if claim:
                raise ConfigError(f"{prefix}claim", "is for pools by claim; this one is the whole deployment's")
            if config.organisation_claim:
                raise ConfigError(
                    f"{prefix}by",
                    "with organisation_claim each organisation's keys are apart, so that none is counted for all",
                )
        elif not claim:
            raise ConfigError(f"{prefix}claim", "is needed: who has the same value of it shares the pool")
        budgets = _short_budgets(section, prefix) + _budgets(section, prefix)
        terms = Terms(_whole(section.concurrent, f"{prefix}concurrent"), budgets)
        pool = Pool(name, claim, _windows(section, prefix), terms)
        if not pool.windows.each and terms == Terms():
            raise ConfigError(f"{prefix}name", f"the pool {name!r} has no limits")
        pools[name] = pool
    return pools


def _tier(section: TierConfig, path: str, ttl: float, pools: Mapping[str, Pool]) -> Tier:
    prefix = f"{path}." if path else ""
    if not section.name:
        raise ConfigError(f"{prefix}name", "is required")
    shared = _pools_of(section, prefix, pools)
    short = {budget.per: budget.micro_usd for budget in _short_budgets(section, prefix)}
    run = _money(section.max_usd_per_run, f"{prefix}max_usd_per_run") or 0
    slot = Slot(
        concurrent=_whole(section.concurrent, f"{prefix}concurrent"),
        run_micro_usd=run,
        day_micro_usd=short.get("day"),
        month_micro_usd=short.get("month"),
        ttl_ms=int(ttl * 1000),
        budgets=_budgets(section, prefix),
        pools=tuple([pool.terms for pool in shared]),
    )
    if slot.has_budget and not run:
        raise ConfigError(f"{prefix}max_usd_per_run", "is needed with a budget: it is what each run reserves")
    if any(budget.micro_usd < run for terms in (slot.own, *slot.pools) for budget in terms.budgets):
        raise ConfigError(f"{prefix}max_usd_per_run", "is more than a budget, so that no run could start")
    if section.on_budget != "refuse" and not slot.has_budget:
        raise ConfigError(f"{prefix}on_budget", "is for tiers with a budget, of their own or of a pool")
    clamp = _clamp(section, prefix)
    found = Tier(
        name=section.name,
        windows=_windows(section, prefix),
        slot=slot if slot.has_budget else replace(slot, run_micro_usd=0),
        clamp=clamp,
        pools=shared,
        on_budget=section.on_budget,
        cheaper=_cheaper(section, prefix, slot, clamp),
    )
    if section.messages is None:
        return found
    return replace(found, messages=_of_messages(found, section.messages, f"{prefix}messages."))


def _of_messages(tier: Tier, section: MessagesConfig, prefix: str) -> Tier:
    """Windows and places of their own; budgets, pools' budgets and models in common with runs. A message holds no money
    before it is sent: then what it may cost is known, and drawn."""
    terms = [replace(pool.terms, concurrent=None) for pool in tier.pools]
    pools = tuple([replace(pool, windows=NO_WINDOWS, terms=own) for pool, own in zip(tier.pools, terms, strict=True)])
    concurrent = _whole(section.concurrent, f"{prefix}concurrent")
    slot = replace(tier.slot, concurrent=concurrent, run_micro_usd=0, pools=tuple(terms))
    windows = _windows(section, prefix)
    if not windows.each and concurrent is None:
        raise ConfigError(prefix.removesuffix("."), "has no limits: give it minute, concurrent or another")
    return Tier(tier.name, windows, slot, tier.clamp, pools, kind="message")


def _cheaper(section: TierConfig, prefix: str, slot: Slot, clamp: Clamp) -> Cheaper | None:
    given = section.cheaper
    if section.on_budget != "model":
        if given is not None:
            raise ConfigError(f"{prefix}cheaper", "is for on_budget: model")
        return None
    if given is None:
        raise ConfigError(
            f"{prefix}cheaper", "is needed with on_budget: model: which model, and up to how much of the budget"
        )
    at = f"{prefix}cheaper."
    if not given.model:
        raise ConfigError(f"{at}model", "is required")
    if clamp.models is not None and given.model not in clamp.models:
        raise ConfigError(f"{at}model", f"must be one of the tier's models: {', '.join(clamp.models)}")
    if given.up_to_percent is None or not 100 < given.up_to_percent <= MAX_PERCENT:
        raise ConfigError(f"{at}up_to_percent", f"must be a whole number from 101 to {MAX_PERCENT}")
    if not slot.own.budgets:
        raise ConfigError(f"{at}up_to_percent", "needs a budget of the tier's own: those of pools are never exceeded")
    run = _money(given.max_usd_per_run, f"{at}max_usd_per_run")
    if run is not None and run > slot.run_micro_usd:
        raise ConfigError(f"{at}max_usd_per_run", "is more than the tier's")
    most = section.max_usd_per_run if run is None else given.max_usd_per_run
    return Cheaper(
        replace(slot, run_micro_usd=run or slot.run_micro_usd, up_to_percent=given.up_to_percent),
        replace(clamp, model=given.model, max_usd=most),
    )


def _pools_of(section: TierConfig, prefix: str, pools: Mapping[str, Pool]) -> tuple[Pool, ...]:
    found = []
    for name in pools if section.pools is None else section.pools:
        if name not in pools:
            raise ConfigError(f"{prefix}pools", f"there is no pool {name!r}")
        found.append(pools[name])
    if len(found) > MAX_POOLS or len(set(found)) < len(found):
        raise ConfigError(f"{prefix}pools", f"a request counts for each pool once, and for at most {MAX_POOLS}")
    return tuple(found)


def _short_budgets(section: Money, prefix: str) -> tuple[Budget, ...]:
    """usd_per_day and usd_per_month."""
    day = _money(section.usd_per_day, f"{prefix}usd_per_day")
    month = _money(section.usd_per_month, f"{prefix}usd_per_month")
    given: tuple[tuple[int | None, Per], ...] = ((day, "day"), (month, "month"))
    return tuple([Budget(amount, per) for amount, per in given if amount is not None])


def _budgets(section: Money, prefix: str) -> tuple[Budget, ...]:
    found: list[Budget] = []
    for number, given in enumerate(section.budgets, start=1):
        at = f"{prefix}budgets[{number}]."
        amount = _money(given.usd, f"{at}usd")
        per = next((known for known in PERS if known == given.per), None)
        if amount is None:
            raise ConfigError(f"{at}usd", "is required")
        if per is None:
            raise ConfigError(f"{at}per", f"must be one of {', '.join(PERS)}")
        if given.rolling:
            if given.zone:
                raise ConfigError(f"{at}zone", "is for periods of the calendar, a rolling one has none")
            found.append(Budget(amount, per, rolling=True))
            continue
        try:
            periods.zone(given.zone or "UTC")
        except ValueError as error:
            raise ConfigError(f"{at}zone", str(error)) from error
        found.append(Budget(amount, per, given.zone or "UTC"))
    names = [budget.name for budget in (*_short_budgets(section, prefix), *found)]
    if len(set(names)) < len(names):
        raise ConfigError(f"{prefix}budgets", "there are two budgets of the same period")
    if len(names) > MAX_BUDGETS:
        raise ConfigError(f"{prefix}budgets", f"there are more than {MAX_BUDGETS} budgets")
    return tuple(found)


def _clamp(section: TierConfig, prefix: str) -> Clamp:
    return Clamp(
        models=section.models or None,
        tools=section.tools,  # () allows none
        max_turns=_whole(section.max_turns, f"{prefix}max_turns"),
        max_usd=section.max_usd_per_run,
        egress=_egress(section, prefix),
        features=_features(section, prefix),
        skills=tuple(dict.fromkeys(section.skills)),
        default_skills=_default_skills(section, prefix),
        agents=tuple(dict.fromkeys(section.agents)),
        mcp=tuple(dict.fromkeys(section.mcp)),
        rules=_rules(section, prefix),
    )


def _default_skills(section: TierConfig, prefix: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(section.default_skills))
    if missing := [name for name in found if name not in section.skills]:
        raise ConfigError(f"{prefix}default_skills", f"{missing[0]} is not among the tier's skills")
    return found


def _features(section: TierConfig, prefix: str) -> tuple[Feature, ...] | None:
    if section.api_features is None:
        return None
    at = f"{prefix}api_features"
    try:
        found = features.parse(section.api_features)
    except ValueError as error:
        raise ConfigError(at, str(error)) from error
    if SEARCH in (section.tools or ()) and "web_search" not in found:
        raise ConfigError(at, f"needs web_search, since the tier's tools have {SEARCH}, which is that")
    instead = section.cheaper.model if section.cheaper is not None else None
    for name in (*section.models, instead or ""):
        for feature in features.of_model(name):
            if feature not in found:
                raise ConfigError(at, f"needs {feature}, since the tier's models have {name}")
    return found


def _rules(section: TierConfig, prefix: str) -> Rules:
    """A rule about what the tier's runs do not have would be a slip of the pen."""
    found = {name: _patterns(section, name, f"{prefix}{name}") for name in ("ask", "deny", "allow")}
    if found["allow"] and not (found["ask"] or found["deny"]):
        raise ConfigError(f"{prefix}allow", "is what passes of that which ask asks about, and there is no ask")
    if section.four_eyes and not (found["ask"] or found["deny"]):
        raise ConfigError(f"{prefix}four_eyes", "is about what ask asks about, and there is no ask")
    return Rules(found["ask"], found["deny"], found["allow"], section.four_eyes)


def _patterns(section: TierConfig, name: str, at: str) -> tuple[Pattern, ...]:
    patterns = []
    had = None if section.tools is None else {*section.tools, *((rules.AGENT,) if section.agents else ())}
    for number, text in enumerate(getattr(section, name), start=1):
        try:
            pattern = rules.parse(text)
        except ValueError as error:
            raise ConfigError(f"{at}[{number}]", str(error)) from error
        if pattern.is_of_a_server:
            if pattern.server not in section.mcp:
                raise ConfigError(f"{at}[{number}]", f"{pattern} is about a server that is not among the tier's mcp")
        elif had is not None and not had.intersection(pattern.governs):
            raise ConfigError(
                f"{at}[{number}]",
                f"{pattern} is about {' and '.join(pattern.governs)}, which the tier's tools have not",
            )
        patterns.append(pattern)
    return tuple(dict.fromkeys(patterns))


def _egress(section: TierConfig, prefix: str) -> tuple[Destination, ...]:
    found = []
    for number, host in enumerate(section.egress, start=1):
        try:
            found.append(destinations.parse(host))
        except ValueError as error:
            raise ConfigError(f"{prefix}egress[{number}]", str(error)) from error
    return tuple(dict.fromkeys(found))


def check_rooms(tiers: Mapping[str, Tier]) -> None:
    """Raises ConfigError for a tier that does not fit into an attestation."""
    for number, tier in enumerate(tiers.values(), start=1):
        if size(tier.name) - 2 > NAME_ROOM:
            raise ConfigError(f"tiers[{number}].name", f"must not be longer than {NAME_ROOM} bytes")
        claims = (tier.cheaper or tier).clamp.to_claims()
        taken = size(claims)
        if taken > CLAMP_ROOM:
            parts = claims | claims.get("rules", {})
            names = ("models", "tools", "egress", "skills", "agents", "mcp", "ask", "deny", "allow")
            longest = max(names, key=lambda name: size(parts.get(name)))
            raise ConfigError(
                f"tiers[{number}].{longest}",
                f"models, tools, egress, skills, agents, mcp and rules take {taken} bytes in the attestation, "
                f"at most {CLAMP_ROOM}: name fewer of them",
            )
        taken = pools_size(Place(widest_lease(tier), tier.slot))
        if taken > POOLS_ROOM:
            raise ConfigError(
                f"tiers[{number}].pools",
                f"budgets and pools take {taken} bytes in the attestation, at most {POOLS_ROOM}: have fewer of them "
                "for one tier, or shorter names",
            )


def widest_lease(tier: Tier) -> Lease:
    """A lease as long as any of the tier's."""
    if not tier.pools:
        return Lease.new("", "")
    keys = tuple([pool.widest_key for pool in tier.pools])
    return Lease.new("", "", 0, Shared(organisation_tag("claim", WIDEST), keys))


def _windows(section: Limits, prefix: str) -> Windows:
    given = [(name, _whole(getattr(section, name), f"{prefix}{name}")) for name in PERIODS]
    limits = [(name, limit) for name, limit in given if limit is not None]
    burst = _whole(section.burst, f"{prefix}burst", least=0)
    if burst is not None and not limits:
        raise ConfigError(f"{prefix}burst", "needs a limit (such as second) to add to")
    for (_, lower), (name, upper) in pairwise(limits):
        if upper < lower:
            raise ConfigError(f"{prefix}{name}", "must not be lower than the limit of a shorter window")
    paced = [-1 if burst is None or n else burst for n in range(len(limits))]
    return Windows(tuple(Window(name, limit, pace) for (name, limit), pace in zip(limits, paced, strict=True)))


def _whole(value: int | None, name: str, least: int = 1) -> int | None:
    if value is not None and not least <= value <= MOST:
        raise ConfigError(name, f"must be a whole number from {least} to {MOST}")
    return value


def _money(value: float | None, name: str) -> int | None:
    """In micro-USD."""
    if value is None:
        return None
    try:
        amount = micro_usd(value)
    except ValueError as error:
        raise ConfigError(name, "must be an amount in US dollars") from error
    if not 0 < amount <= MOST_USD * 1_000_000:
        raise ConfigError(name, f"must be more than 0, and at most {MOST_USD}")
    return amount


def first_known(names: Sequence[str], tiers: Mapping[str, Tier]) -> str | None:
    """Of a consumer's tags or groups, the first that names a tier, plainly or as `tier:<name>`."""
    for name in names:
        plain = name.removeprefix("tier:")
        if plain in tiers:
            return plain
    return None
