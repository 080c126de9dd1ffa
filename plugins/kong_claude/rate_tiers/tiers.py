"""Tiers: named sets of limits, read from the configuration once. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise

from claude_contract import destinations
from claude_contract.claims import CLAMP_ROOM, NAME_ROOM, Clamp, size
from claude_contract.destinations import Destination
from claude_contract.errors import ConfigError
from claude_contract.ledger import PERIODS, Slot, Window, Windows, micro_usd
from kong_claude.rate_tiers.schema import Limits, RateTiersConfig, TierConfig

# A lease that nobody renews (no attestation carries it to the invoker, or the ledger is this process) must outlive
# the longest run; the log phase ends it.
UNRENEWED_TTL = 3600  # seconds
MOST = 2**31 - 1  # requests
MOST_USD = 1_000_000_000  # in micro-dollars still a whole number that every reader of JSON has

LIMITS = tuple(limit.name for limit in fields(Limits))


@dataclass(frozen=True)
class Tier:
    """What its callers may use. None and () mean: not limited by this tier."""

    name: str
    windows: Windows
    slot: Slot
    clamp: Clamp = field(default_factory=Clamp)  # binds the invoker, whatever the body asks for

    @property
    def takes_lease(self) -> bool:
        return self.slot.concurrent is not None or self.has_budget

    @property
    def has_budget(self) -> bool:
        return self.slot.day_micro_usd is not None or self.slot.month_micro_usd is not None


def tiers_from_config(config: RateTiersConfig, ttl: float, *, signed: bool) -> tuple[dict[str, Tier], Tier]:
    """All tiers by name, and the default one; `ttl`: of a lease, in seconds; `signed`: an attestation carries them.

    Limits at the top level (as Kong's rate-limiting has them) make a tier of their own, `default`. Raises ConfigError.
    """
    tiers: dict[str, Tier] = {}
    for number, section in enumerate(config.tiers, start=1):
        tier = _tier(section, f"tiers[{number}]", ttl)
        if tier.name in tiers:
            raise ConfigError(f"tiers[{number}].name", f"there are two tiers {tier.name!r}")
        tiers[tier.name] = tier
    plain = {name: limit for name in LIMITS if (limit := getattr(config, name)) is not None}
    if plain:
        if "default" in tiers:
            raise ConfigError(
                next(iter(plain)), "limits at the top level are the tier 'default', which tiers names too"
            )
        tiers["default"] = _tier(TierConfig(name="default", **plain), "", ttl)
    if not tiers:
        raise ConfigError("tiers", "no limits are given")
    name = config.default_tier or ("default" if "default" in tiers or len(tiers) > 1 else next(iter(tiers)))
    if name not in tiers:
        raise ConfigError("default_tier", f"must name one of the tiers: {', '.join(tiers)}")
    if signed:
        check_rooms(tiers)
    return tiers, tiers[name]


def _tier(section: TierConfig, path: str, ttl: float) -> Tier:
    prefix = f"{path}." if path else ""
    if not section.name:
        raise ConfigError(f"{prefix}name", "is required")
    windows = _windows(section, prefix)
    day, month = (
        _money(section.usd_per_day, f"{prefix}usd_per_day"),
        _money(section.usd_per_month, f"{prefix}usd_per_month"),
    )
    run = _money(section.max_usd_per_run, f"{prefix}max_usd_per_run")
    if (day is not None or month is not None) and not run:
        raise ConfigError(f"{prefix}max_usd_per_run", "is needed with a budget: it is what each run reserves")
    if run and any(budget is not None and budget < run for budget in (day, month)):
        raise ConfigError(f"{prefix}max_usd_per_run", "is more than the budget, so that no run could start")
    return Tier(
        name=section.name,
        windows=windows,
        slot=Slot(
            concurrent=_whole(section.concurrent, f"{prefix}concurrent"),
            run_micro_usd=(run or 0) if day is not None or month is not None else 0,
            day_micro_usd=day,
            month_micro_usd=month,
            ttl_ms=int(ttl * 1000),
        ),
        clamp=_clamp(section, prefix),
    )


def _clamp(section: TierConfig, prefix: str) -> Clamp:
    return Clamp(
        models=section.models or None,
        tools=section.tools,  # () allows none
        max_turns=_whole(section.max_turns, f"{prefix}max_turns"),
        max_usd=section.max_usd_per_run,
        egress=_egress(section, prefix),
    )


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
        claims = tier.clamp.to_claims()
        taken = size(claims)
        if taken > CLAMP_ROOM:
            longest = max(("models", "tools", "egress"), key=lambda name: size(claims.get(name)))
            raise ConfigError(
                f"tiers[{number}].{longest}",
                f"models, tools and egress take {taken} bytes in the attestation, at most {CLAMP_ROOM}: "
                "name fewer of them",
            )


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
