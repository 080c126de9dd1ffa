"""Which skills a run has: those that it asks for, if its caller may use them and it has what they need. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from claude_contract.claims import Clamp
from claude_contract.destinations import Destination
from claude_invoker.catalog.catalog import Catalog
from claude_invoker.catalog.entry import Skill
from claude_invoker.problem import Problem


def asked_for(
    names: Collection[str] | None, tools: Collection[str] | None, clamp: Clamp, catalog: Catalog
) -> tuple[Skill, ...]:
    """In the order of their names. `names` None: the tier's default ones; those of them that need other tools than a
    caller asks for (`tools`) are left out then. Raises Problem 403."""
    asked = clamp.default_skills if names is None else names
    if refused := sorted(set(asked) - set(clamp.skills)):
        raise _forbidden(
            f"skills not allowed by the tier at the gateway: {', '.join(refused)}", "allowed", clamp.skills
        )
    found = []
    for name in sorted(set(asked)):
        skill = catalog.skills.get(name)
        if skill is None:
            raise Problem(403, "forbidden", f"there is no skill {name} in this invoker's catalog (INVOKER_CATALOG)")
        if names is None and tools is not None and not set(skill.needs.tools) <= set(tools):
            continue
        if name in catalog.obstacles:
            raise Problem(403, "forbidden", f"skill {name} cannot be used here: {catalog.obstacles[name]}")
        found.append(skill)
    return tuple(found)


def tools_of(skills: Iterable[Skill], ceiling: Collection[str]) -> tuple[str, ...]:
    """What a run with these has besides its usual tools, of those that it may have."""
    return tuple(dict.fromkeys(tool for skill in skills for tool in skill.needs.tools if tool in ceiling))


def refuse_without_tools(skills: Iterable[Skill], tools: Collection[str], ceiling: Sequence[str]) -> None:
    """Raises Problem 403 for a skill that needs a tool that the run may not have, 422 for one that it did not ask
    for."""
    for skill in skills:
        for tool in skill.needs.tools:
            if tool not in ceiling:
                raise _forbidden(f"skill {skill.name} needs the tool {tool}, which is not allowed", "allowed", ceiling)
            if tool not in tools:
                raise Problem(422, "invalid", f"skill {skill.name} needs the tool {tool}: name it among tools, too")


def refuse_without_hosts(skills: Iterable[Skill], egress: Collection[Destination]) -> None:
    """Raises Problem 403 for a skill that needs a host that the run does not reach."""
    for skill in skills:
        for host in skill.needs.egress:
            if not any(opened.covers(host) for opened in egress):
                raise _forbidden(
                    f"skill {skill.name} needs the host {host}, which is not open (egress)", "open", map(str, egress)
                )


def _forbidden(why: str, what: str, names: Iterable[str]) -> Problem:
    return Problem(403, "forbidden", f"{why}; {what}: {', '.join(names) or 'none'}")
