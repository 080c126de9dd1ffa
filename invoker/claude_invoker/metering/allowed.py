"""What a request may have in it beside its model's tokens: what changes the price, or runs something at Anthropic, is a
list, and what is not on it is refused or passes as each list says. Pure.

After the API's reference of November 2026: https://platform.claude.com/docs/en/api/messages. Its names are
case-sensitive, so `Speed` is a name that it does not know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from claude_contract.features import Feature

_PRICED_MEMBERS = (
    "fast_mode", "container", "mcp_servers", "fallbacks", "fallback_credit_token", "compaction", "billing_policy",
    "thread",
)  # fmt: skip
"""Members by which a request costs something else than its model's tokens, is billed to somebody else, runs something
at Anthropic or has input that is kept there, without a bound that is known before. Other members pass."""
_OF_FEATURES: tuple[tuple[str, Feature, tuple[str, ...]], ...] = (
    ("speed", "fast_mode", ("fast", "standard")),
    ("inference_geo", "inference_geo", ("us", "global")),
)
"""Members that a feature of the tier allows, and the values of which the price is known."""
_TIERS = (None, "auto", "standard_only")
"""`auto` is what the API does without the member."""
_PRICED_BETAS = (
    "advisor-tool-", "code-execution-", "compact-", "inline-tools-", "mcp-client-", "message-threads-", "skills-",
    "user-profiles-",
)  # fmt: skip
"""Beginnings of betas by which the same becomes possible. Other betas pass; so do those of fallbacks, which the CLI
asks for after a refusal, and which do nothing without the members above."""
_LONG_CONTEXT = "context-1m-"
_BETAS_OF_FEATURES: tuple[tuple[str, Feature], ...] = ((_LONG_CONTEXT, "context_1m"), ("fast-mode-", "fast_mode"))
_CLIENT_TOOL = re.compile(r"(?:bash|text_editor|computer|memory)_\d{8}")
"""Tools that the API describes and the caller runs. Each is a type with the date of its version."""
_SERVER_TOOL = re.compile(r"(web_search|web_fetch)_\d{8}")
_WITHOUT_CODE = ("web_search_20250305", "web_fetch_20250910")
"""Later versions run code at Anthropic, unless they are to be called directly."""
_MAX_USES = 100
_EDIT = re.compile(r"(?:clear_tool_uses|clear_thinking)_\d{8}")
"""Edits of the context that leave something out. Others run a model."""
_MAX_SETTING = 65_536
"""Bytes of a member that says how to answer."""
_INLINE_TOOL = re.compile(rb'"type"\s*:\s*"tool_definition"')


class Refused(Exception):
    """The run may not send this."""


@dataclass(frozen=True)
class Uses:
    """How often the API may use tools of its own for a request, and how many tools it describes itself."""

    searches: int = 0
    fetches: int = 0
    described: int = 0


def once(value: bytes) -> Any:
    """JSON in which no object has a member twice: of two the API takes one, and who looks for the price the other.
    Raises Refused, ValueError, RecursionError."""
    return json.loads(value.decode(), object_pairs_hook=_each_once)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Refused("the request has a member twice where it decides the price")
    return found


@dataclass(frozen=True)
class Otherwise:
    """By what a request asks for tokens at another price than its model's usual one."""

    fast: bool = False
    in_us: bool = False


def check_members(members: Mapping[str, bytes], allowed: Collection[str] = ()) -> Otherwise:
    """`allowed`: features that the run may use. Raises Refused, ValueError, RecursionError."""
    for name in ("service_tier", "context_management", "thinking", *(each for each, _, _ in _OF_FEATURES)):
        if len(members.get(name, b"")) > _MAX_SETTING:
            raise Refused(f"the request has too large a {name}")
    for name in _PRICED_MEMBERS:
        if members.get(name, b"null") != b"null":
            raise Refused(f"the request may not have {name}")
    found: dict[str, Any] = {}
    for name, feature, values in _OF_FEATURES:
        if members.get(name, b"null") == b"null":
            continue
        if feature not in allowed:
            raise Refused(needs(name, feature))
        found[name] = once(members[name])
        if found[name] not in values:
            raise Refused(f"the request may have no {name} but {' and '.join(values)}")
    if once(members.get("service_tier", b"null")) not in _TIERS:
        raise Refused("the request may not ask for a service tier")
    management = once(members.get("context_management", b"null"))
    edits = management.get("edits") if isinstance(management, dict) else management
    for edit in edits or [] if isinstance(edits, list | None) else [edits]:
        kind = edit.get("type") if isinstance(edit, dict) else edit
        if not isinstance(kind, str) or not _EDIT.fullmatch(kind):
            raise Refused(f"the request may not ask for the edit {_shown(kind)} of its context")
    if any(_INLINE_TOOL.search(members.get(name, b"")) for name in ("messages", "system")):
        raise Refused("the request may define tools only in tools, not in its messages")
    return Otherwise(found.get("speed") == "fast", found.get("inference_geo") == "us")


def needs(what: str, feature: str) -> str:
    return f"the request may not use {what}: its tier's api_features do not name {feature}"


def check_betas(betas: Iterable[str], allowed: Collection[str]) -> bool:
    """`betas`: the values of `anthropic-beta`, each a list with commas. `allowed`: features that the run may use.
    Whether the request may have a context of a million tokens. Raises Refused."""
    names = [name.strip().lower() for value in betas for name in value.split(",")]
    for name in names:
        if name.startswith(_PRICED_BETAS):
            raise Refused(f"the request may not use the beta {name[:100]}")
        for beginning, feature in _BETAS_OF_FEATURES:
            if name.startswith(beginning) and feature not in allowed:
                raise Refused(needs(f"the beta {name[:100]}", feature))
    return any(name.startswith(_LONG_CONTEXT) for name in names)


def check_tools(tools: object, allowed: Collection[str]) -> Uses:
    """`allowed`: features that the run may use, such as `web_search`. Raises Refused, ValueError."""
    if tools is not None and not isinstance(tools, list):
        raise ValueError("tools are no list")
    uses, described = {"web_search": 0, "web_fetch": 0}, 0
    for tool in tools or []:
        if not isinstance(tool, dict):
            raise ValueError("a tool is no object")
        kind = tool.get("type")
        if kind in (None, "custom"):
            continue
        described += 1
        if isinstance(kind, str) and _CLIENT_TOOL.fullmatch(kind):
            continue
        found = _SERVER_TOOL.fullmatch(kind) if isinstance(kind, str) else None
        if found is None:
            raise Refused(f"the request may not use the API's own tool {_shown(kind)}")
        if found[1] not in allowed:
            raise Refused(needs(f"the API's own tool {_shown(kind)}", found[1]))
        if uses[found[1]]:
            raise Refused(f"the request has the tool {found[1]} twice")
        uses[found[1]] = _max_uses(tool, found[0])
    return Uses(uses["web_search"], uses["web_fetch"], described)


def with_searches(tools: list[Any], searches: int) -> list[Any]:
    """The same tools, with so many searches."""
    return [
        tool | {"max_uses": searches} if str(tool.get("type")).startswith("web_search_") else tool for tool in tools
    ]


def _max_uses(tool: dict[str, Any], kind: str) -> int:
    callers = tool.get("allowed_callers", ["direct"] if kind in _WITHOUT_CODE else None)
    if callers != ["direct"]:
        raise Refused(f'the API\'s own tool {kind} needs allowed_callers ["direct"], else it runs code at Anthropic')
    count = tool.get("max_uses")
    if type(count) is not int or not 1 <= count <= _MAX_USES:
        raise Refused(f"the API's own tool {kind} needs max_uses, at most {_MAX_USES}")
    return count


def _shown(name: object) -> str:
    return name[:100] if isinstance(name, str) else "without a name"
