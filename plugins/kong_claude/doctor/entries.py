"""Skills and MCP servers that a tier names and that none of its runs can have. Pure.

Of those that come with the invoker what they need is known; of an operator's own only what the tier itself says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from claude_contract import rules
from claude_contract.built_in import SERVERS, SKILLS
from claude_contract.rules import Rules, Verdict
from kong_claude.doctor.spelling import texts

_PREFIX = "mcp__"
_ANY = "any"
"""Stands for each tool of a server whose tools are not known here."""


def not_to_be_had(tier: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Field, name, and what is in its way."""
    servers = texts(tier.get("mcp"))
    tools = None if tier.get("tools") is None else texts(tier["tools"])
    for name in texts(tier.get("skills")):
        needs = SKILLS.get(name)
        if needs is None:
            continue
        default = name in texts(tier.get("default_skills"))
        which = "each request that names no skills" if default else "each request for it"
        if lacks := [tool for tool in needs.tools if tools is not None and tool not in tools]:
            yield "skills", name, f"needs {' and '.join(lacks)}, which the tier's tools have not: {which} is 403"
        if lacks := [server for server in needs.servers if server not in servers]:
            yield "skills", name, f"needs the MCP server {lacks[0]}, which the tier's mcp has not: {which} is 403"
    named = [tool for tool in tools or () if tool.startswith(_PREFIX)]
    for tool in named:
        if (server := tool[len(_PREFIX) :].partition("__")[0]) not in servers:
            yield (
                "tools",
                tool,
                f"is a tool of the MCP server {server}, which the tier's mcp has not: it allows nothing",
            )
    denied = Rules(deny=tuple(_patterns(tier)))
    for server in servers:
        if not _left(server, named, denied):
            yield "mcp", server, "has no tool left that a run of the tier may call: each request for it is 403"


def _left(server: str, named: list[str], denied: Rules) -> list[str]:
    """Its tools that a run may call, of those that the tier names where it names some."""
    prefix = f"{_PREFIX}{server}__"
    chosen = [tool for tool in named if tool.startswith(prefix)]
    tools = [f"{prefix}{tool}" for tool in SERVERS.get(server, ())] or chosen or [f"{prefix}{_ANY}"]
    if chosen:
        tools = [tool for tool in tools if tool in chosen]
    return [tool for tool in tools if denied.decide(tool, {}, lambda path: None).verdict is not Verdict.DENY]


def _patterns(tier: Mapping[str, Any]) -> Iterator[rules.Pattern]:
    for text in texts(tier.get("deny")):
        try:
            yield rules.parse(text)
        except ValueError:
            continue  # which the plugin refuses
