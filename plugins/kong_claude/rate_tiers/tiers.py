"""Tiers: named sets of limits, read from the configuration once. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from claude_contract.claims import CLAMP_ROOM, NAME_ROOM, Clamp, size
from claude_contract.errors import ConfigError
from claude_contract.ledger import PERIODS, Slot, Window, Windows, micro_usd

# A lease that nobody renews (no attestation carries it to the invoker, or the ledger is this process) must outlive
# the longest run; the log phase ends it.
UNRENEWED_TTL = 3600  # seconds
MOST = 2**31 - 1  # requests
MOST_USD = 1_000_000_000  # in micro-dollars still a whole number that every reader of JSON has


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


def tiers_from_config(config: Mapping[str, Any], ttl: float) -> tuple[dict[str, Tier], Tier]:
    """All tiers by name, and the default one. Raises ConfigError.

    Limits at the top level (as Kong's rate-limiting has them) make a tier of their own, `default`.
    """
    tiers: dict[str, Tier] = {}
    for number, section in enumerate(config.get("tiers") or (), start=1):
        tier = _tier(section, f"tiers[{number}]", ttl)
        if tier.name in tiers:
            raise ConfigError(f"tiers[{number}].name", f"there are two tiers {tier.name!r}")
        tiers[tier.name] = tier
    plain = {name: config[name] for name in (*PERIODS, "burst", "concurrent") if config.get(name) is not None}
    if plain:
        if "default" in tiers:
            raise ConfigError(
                next(iter(plain)), "limits at the top level are the tier 'default', which tiers names too"
            )
        tiers["default"] = _tier({"name": "default", **plain}, "", ttl)
    if not tiers:
        raise ConfigError("tiers", "no limits are given")
    name = config.get("default_tier") or ("default" if "default" in tiers or len(tiers) > 1 else next(iter(tiers)))
    if name not in tiers:
        raise ConfigError("default_tier", f"must name one of the tiers: {', '.join(tiers)}")
    if config.get("attestation"):
        check_rooms(tiers)
    return tiers, tiers[name]


def _tier(section: Mapping[str, Any], path: str, ttl: float) -> Tier:
    prefix = f"{path}." if path else ""
    windows = _windows(section, prefix)
    day, month = _money(section, "usd_per_day", prefix), _money(section, "usd_per_month", prefix)
    run = _money(section, "max_usd_per_run", prefix)
    if (day is not None or month is not None) and not run:
        raise ConfigError(f"{prefix}max_usd_per_run", "is needed with a budget: it is what each run reserves")
    if run and any(budget is not None and budget < run for budget in (day, month)):
        raise ConfigError(f"{prefix}max_usd_per_run", "is more than the budget, so that no run could start")
    return Tier(
        name=str(section["name"]),
        windows=windows,
        slot=Slot(
            concurrent=_whole(section, "concurrent", prefix),
            run_micro_usd=(run or 0) if day is not None or month is not None else 0,
            day_micro_usd=day,
            month_micro_usd=month,
            ttl_ms=int(ttl * 1000),
        ),
        clamp=_clamp(section, prefix),
    )


def _clamp(section: Mapping[str, Any], prefix: str) -> Clamp:
    tools = section.get("tools")
    return Clamp(
        models=tuple(section.get("models") or ()) or None,
        tools=None if tools is None else tuple(tools),  # () allows none
        max_turns=_whole(section, "max_turns", prefix),
        max_usd=section.get("max_usd_per_run"),
    )


def check_rooms(tiers: Mapping[str, Tier]) -> None:
    """Raises ConfigError for a tier that does not fit into an attestation."""
    for number, tier in enumerate(tiers.values(), start=1):
        if size(tier.name) - 2 > NAME_ROOM:
            raise ConfigError(f"tiers[{number}].name", f"must not be longer than {NAME_ROOM} bytes")
        taken = size(tier.clamp.to_claims())
        if taken > CLAMP_ROOM:
            longer = "tools" if size(tier.clamp.tools) > size(tier.clamp.models) else "models"
            raise ConfigError(
                f"tiers[{number}].{longer}",
                f"models and tools take {taken} bytes in the attestation, at most {CLAMP_ROOM}: name fewer of them",
            )


def _windows(section: Mapping[str, Any], prefix: str) -> Windows:
    limits = [(name, limit) for name in PERIODS if (limit := _whole(section, name, prefix)) is not None]
    burst = _whole(section, "burst", prefix)
    if burst is not None and not limits:
        raise ConfigError(f"{prefix}burst", "needs a limit (such as second) to add to")
    for (_, lower), (name, upper) in pairwise(limits):
        if upper < lower:
            raise ConfigError(f"{prefix}{name}", "must not be lower than the limit of a shorter window")
    paced = [-1 if burst is None or n else burst for n in range(len(limits))]
    return Windows(tuple(Window(name, limit, pace) for (name, limit), pace in zip(limits, paced, strict=True)))


def _whole(section: Mapping[str, Any], name: str, prefix: str) -> int | None:
    value = section.get(name)
    if value is None:
        return None
    least = 0 if name == "burst" else 1
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= MOST or value % 1:
        raise ConfigError(f"{prefix}{name}", f"must be a whole number from {least} to {MOST}")
    return int(value)


def _money(section: Mapping[str, Any], name: str, prefix: str) -> int | None:
    """In micro-USD."""
    value = section.get(name)
    if value is None:
        return None
    try:
        amount = micro_usd(float(value))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{prefix}{name}", "must be an amount in US dollars") from error
    if not 0 < amount <= MOST_USD * 1_000_000:
        raise ConfigError(f"{prefix}{name}", f"must be more than 0, and at most {MOST_USD}")
    return amount


def first_known(names: Sequence[str], tiers: Mapping[str, Tier]) -> str | None:
    """Of a consumer's tags or groups, the first that names a tier, plainly or as `tier:<name>`."""
    for name in names:
        plain = name.removeprefix("tier:")
        if plain in tiers:
            return plain
    return None
