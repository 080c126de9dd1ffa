"""What a run has of the catalog: what it asks for, if its caller may use it and it has what that needs. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from claude_contract.claims import Clamp
from claude_contract.destinations import Destination
from claude_contract.rules import Rules, Verdict
from claude_invoker.catalog.catalog import Catalog
from claude_invoker.catalog.entry import Entry, Kind
from claude_invoker.catalog.server import CREDENTIAL_HEADER, PREFIX, names_of
from claude_invoker.problem import Problem


def skills(
    names: Collection[str] | None, tools: Collection[str] | None, clamp: Clamp, catalog: Catalog
) -> tuple[Entry, ...]:
    """In the order of their names. `names` None: the tier's default ones; those of them that need other tools than a
    caller asks for (`tools`) are left out then. Raises Problem 403."""
    found = _named("skill", clamp.default_skills if names is None else names, clamp.skills, catalog)
    if names is None and tools is not None:
        return tuple(entry for entry in found if set(entry.needs.tools) <= set(tools))
    return found


def agents(names: Collection[str] | None, clamp: Clamp, catalog: Catalog) -> tuple[Entry, ...]:
    """The same of agents, of which a run has none by default. Raises Problem 403."""
    return _named("agent", names or (), clamp.agents, catalog)


def servers(
    names: Collection[str] | None, needing: Iterable[Entry], clamp: Clamp, catalog: Catalog
) -> tuple[Entry, ...]:
    """MCP servers that a run asks for, and those that entries of it need. Raises Problem 403."""
    for entry in needing:
        for name in entry.needs.servers:
            if name not in clamp.mcp:
                what = f"{entry.kind} {entry.name} needs the server {name}, which is not allowed"
                raise _forbidden(what, "allowed", clamp.mcp)
    needed = (name for entry in needing for name in entry.needs.servers)
    return _named("server", {*(names or ()), *needed}, clamp.mcp, catalog)


def refuse_without_tokens(servers: Iterable[str], tokens: Collection[str] | None, catalog: Catalog) -> None:
    """`tokens`: for which servers a token of the caller's has come; None: none can be kept, since it is a job. Raises
    Problem 422 for a server that wants one."""
    for name in servers:
        described = catalog.of("server")[name].server
        if described is None or not described.of_caller or name in (tokens or ()):
            continue
        what = f"server {name} wants a token of your own (header {CREDENTIAL_HEADER}{name})"
        raise Problem(422, "invalid", what + (", which is kept for no job" if tokens is None else ""))


def is_of_a_server(tool: str) -> bool:
    return tool.startswith(PREFIX)


def tools_of_servers(
    found: Iterable[Entry], asked: Collection[str] | None, clamp: Clamp, rules: Iterable[Rules]
) -> tuple[str, ...]:
    """What a run may call of them. Where its tier's tools or those that it asks for have some of a server, it has these
    only; none that is denied whatever it is given. Raises Problem 403."""
    tools: list[str] = []
    for entry in found:
        left = names_of(entry)
        for named in (clamp.tools, asked):
            if some := {name for name in named or () if name.startswith(f"{PREFIX}{entry.name}__")}:
                left = tuple(tool for tool in left if tool in some)
        left = tuple(tool for tool in left if all(_is_open(tool, each) for each in rules))
        if not left:
            raise Problem(403, "forbidden", f"server {entry.name}: none of its tools is left that this run may call")
        tools += left
    if refused := sorted({name for name in asked or () if is_of_a_server(name)} - set(tools)):
        raise _forbidden(f"tools of MCP servers not allowed: {', '.join(refused)}", "allowed", tools)
    return tuple(tools)


def _is_open(tool: str, rules: Rules) -> bool:
    return rules.decide(tool, {}, lambda path: None).verdict is not Verdict.DENY


def _named(kind: Kind, asked: Collection[str], allowed: Sequence[str], catalog: Catalog) -> tuple[Entry, ...]:
    """Raises Problem 403."""
    if refused := sorted(set(asked) - set(allowed)):
        raise _forbidden(f"{kind}s not allowed by the tier at the gateway: {', '.join(refused)}", "allowed", allowed)
    entries = catalog.of(kind)
    found = []
    for name in sorted(set(asked)):
        if name not in entries:
            raise Problem(403, "forbidden", f"there is no {kind} {name} in this invoker's catalog (INVOKER_CATALOG)")
        if (kind, name) in catalog.obstacles:
            raise Problem(403, "forbidden", f"{kind} {name} cannot be used here: {catalog.obstacles[kind, name]}")
        found.append(entries[name])
    return tuple(found)


def tools_of(entries: Iterable[Entry], ceiling: Collection[str]) -> tuple[str, ...]:
    """What a run with these has besides its usual tools, of those that it may have."""
    return tuple(dict.fromkeys(tool for entry in entries for tool in entry.needs.tools if tool in ceiling))


def refuse_without_tools(entries: Iterable[Entry], tools: Collection[str], ceiling: Sequence[str]) -> None:
    """Raises Problem 403 for an entry that needs a tool that the run may not have, 422 for one that it did not ask
    for."""
    for entry in entries:
        for tool in entry.needs.tools:
            what = f"{entry.kind} {entry.name} needs the tool {tool}"
            if tool not in ceiling:
                raise _forbidden(f"{what}, which is not allowed", "allowed", ceiling)
            if tool not in tools:
                raise Problem(422, "invalid", f"{what}: name it among tools, too")


def refuse_without_hosts(entries: Iterable[Entry], egress: Collection[Destination]) -> None:
    """Raises Problem 403 for an entry that needs a host that the run does not reach."""
    for entry in entries:
        for host in entry.needs.egress:
            if not any(opened.covers(host) for opened in egress):
                what = f"{entry.kind} {entry.name} needs the host {host}, which is not open (egress)"
                raise _forbidden(what, "open", map(str, egress))


def refuse_without_models(entries: Iterable[Entry], permits: Callable[[str], bool]) -> None:
    """Raises Problem 403 for an agent of a model that the run may not use."""
    for entry in entries:
        if entry.needs.model is not None and not permits(entry.needs.model):
            what = f"{entry.kind} {entry.name} needs the model {entry.needs.model}, which is not allowed"
            raise Problem(403, "forbidden", what)


def _forbidden(why: str, what: str, names: Iterable[str]) -> Problem:
    return Problem(403, "forbidden", f"{why}; {what}: {', '.join(names) or 'none'}")
