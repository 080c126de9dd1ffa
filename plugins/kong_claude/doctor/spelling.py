"""Names in tiers that are most likely mistyped: nobody refuses them, and nobody may use what is meant. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from claude_contract.built_in import SERVERS, SKILLS
from claude_contract.features import LARGE

_FAMILIES = ("fable", "haiku", "mythos", "opus", "sonnet")
_WORDS = (*_FAMILIES, "claude", "fast", "instant", "latest")
_TOOLS = ("Agent", "AskUserQuestion", "Bash", "Edit", "Glob", "Grep", "LSP", "Monitor", "NotebookEdit", "Read", "Skill",
          "Task", "TodoWrite", "ToolSearch", "WebFetch", "WebSearch", "Write")  # fmt: skip
_ALIKE = 0.75
_ENTRIES: Mapping[str, Iterable[str]] = {"skills": SKILLS, "mcp": SERVERS}


def misspelt(tier: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Field, name, and the one that is meant."""
    cheaper = tier.get("cheaper")
    given: list[tuple[str, Any, Callable[[str], str | None]]] = [
        ("models", tier.get("models"), model),
        ("tools", tier.get("tools"), tool),
        *((kind, tier.get(kind), partial(entry, kind)) for kind in _ENTRIES),
    ]
    if isinstance(cheaper, Mapping):
        given.append(("cheaper.model", [cheaper.get("model")], model))
    for field, names, nearest in given:
        for name in texts(names):
            if (meant := nearest(name)) is not None:
                yield field, name, meant


def texts(names: Any) -> list[str]:
    """Of a list as a file has it."""
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def model(name: str) -> str | None:
    """`claude-sonet-4-5` → `claude-sonnet-4-5`. None for what is known, and for what is like nothing that is."""
    plain = name.removesuffix(LARGE)
    words = [_nearest(word, _WORDS) or word for word in plain.split("-")]
    meant = "-".join(words) + name[len(plain) :]
    return meant if meant != name else None


def tool(name: str) -> str | None:
    """`bash` → `Bash`, `mcp__memory__recal` → `mcp__memory__recall`."""
    server, _, of_it = name.removeprefix("mcp__").partition("__")
    if name.startswith("mcp__"):
        meant = _nearest(of_it, SERVERS.get(server, ()))
        return None if meant is None else f"mcp__{server}__{meant}"
    return _nearest(name, _TOOLS)


def entry(kind: str, name: str) -> str | None:
    """`pfd` → `pdf`. `kind`: the field of a tier. An operator's own may be called anything: it takes more likeness."""
    return _nearest(name, _ENTRIES.get(kind, ()), 0.8)


def _nearest(name: str, known: Iterable[str], alike: float = _ALIKE) -> str | None:
    spelled = {each.lower(): each for each in known}
    if name in spelled.values():
        return None
    turned = [each for each in spelled if sorted(each) == sorted(name.lower())]
    found = turned or difflib.get_close_matches(name.lower(), spelled, 1, alike)
    return spelled[found[0]] if found else None
