"""What a tier says and most likely does not mean: names that are mistyped, skills and MCP servers that no run of it can
have, budgets that are one run's. Nobody is let in by it, and names may be new: so these are doubts and no openings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from claude_contract.built_in import SERVERS, SKILLS
from kong_claude.doctor import entries, spelling
from kong_claude.doctor.view import View, tiers_of

_SECTIONS = {"claude-rate-tiers": (), "claude-gateway": ("rate_tiers",)}
_OURS = {"skills": frozenset(SKILLS), "agents": frozenset[str](), "mcp": frozenset(SERVERS)}
_SINGULAR = {"skills": "skill", "agents": "agent", "mcp": "MCP server"}


@dataclass(frozen=True)
class Doubt:
    """`field`: where the name stands; `problem`: what there is to say of it; `meant`: the known one that is like it,
    where it is mistyped; `line`: in the file, where known."""

    field: str
    name: str
    problem: str
    meant: str | None = None
    line: int | None = None


def doubts(view: View) -> list[Doubt]:
    """Each once, however many plugins have it from one anchor."""
    found: dict[tuple[int | None, str, str], Doubt] = {}
    for plugin, path, section in _sections(view):
        for number, tier in tiers_of(section):
            said = [
                *(
                    (field, name, f"is not known here: {meant}?", meant)
                    for field, name, meant in spelling.misspelt(tier)
                ),
                *(
                    (field, name, problem, None)
                    for field, name, problem in (*entries.not_to_be_had(tier), *_narrow(tier, section))
                ),
            ]
            for field, name, problem, meant in said:
                at = f"tiers[{number}].{field}"
                line = view.line(plugin, ".".join((*path, at)))
                found.setdefault((line, name, problem), Doubt(at, name, problem, meant, line))
    return list(found.values())


def of_the_operator(view: View) -> list[str]:
    """What tiers name that does not come with an invoker, such as `skill house-style`: only the invoker knows whether
    its own catalog has it. Sorted, without what is most likely mistyped."""
    named = {
        (kind, name)
        for _, _, section in _sections(view)
        for _, tier in tiers_of(section)
        for kind in _OURS
        for name in spelling.texts(tier.get(kind))
    }
    return sorted(
        f"{_SINGULAR[kind]} {name}"
        for kind, name in named
        if name not in _OURS[kind] and spelling.entry(kind, name) is None
    )


def _sections(view: View) -> Iterator[tuple[Any, tuple[str, ...], Mapping[str, Any]]]:
    """Plugin, the way to its tiers, and what is there."""
    for plugin in view.plugins:
        if (path := _SECTIONS.get(str(plugin.get("name")))) is None:
            continue
        section = plugin.get("config")
        for name in path:
            section = section.get(name) if isinstance(section, Mapping) else None
        if isinstance(section, Mapping):
            yield plugin, path, section


def _narrow(tier: Mapping[str, Any], section: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Budgets, of the tier and of pools that it names, of which a run holds more than half."""
    holds = tier.get("max_usd_per_run")
    if not _amount(holds):
        return
    pools = section.get("pools")
    named = None if tier.get("pools") is None else spelling.texts(tier.get("pools"))
    accounts = [("", tier)]
    accounts += [
        (f" of the pool {pool.get('name')}", pool)
        for pool in (pools if isinstance(pools, list) else ())
        if isinstance(pool, Mapping) and (named is None or pool.get("name") in named)
    ]
    for whose, account in accounts:
        for name, allowed in _budgets(account):
            if holds <= allowed < 2 * holds:
                problem = (
                    f"({allowed}) is less than two runs hold: each holds max_usd_per_run ({holds}) until it ends and "
                    f"needs that much left to start, so that after the first, however little it cost, none may; "
                    f"lower max_usd_per_run, to {round(allowed / 4, 6):g} say"
                )
                yield "max_usd_per_run", f"{name}{whose}", problem


def _budgets(account: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Names as refusals have them, and US dollars."""
    for name in ("usd_per_day", "usd_per_month"):
        if _amount(allowed := account.get(name)):
            yield name, allowed
    budgets = account.get("budgets")
    for budget in budgets if isinstance(budgets, list) else ():
        if isinstance(budget, Mapping) and _amount(allowed := budget.get("usd")):
            yield f"usd_per_{'rolling_' if budget.get('rolling') is True else ''}{budget.get('per')}", allowed


def _amount(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
