"""Names of models and tools in tiers that are most likely mistyped: nobody refuses them, and nobody may use what is
meant. Names may be new, so this is a doubt and no opening."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from claude_contract.features import LARGE
from kong_claude.doctor.view import View

_FAMILIES = ("fable", "haiku", "mythos", "opus", "sonnet")
_WORDS = (*_FAMILIES, "claude", "fast", "instant", "latest")
_TOOLS = ("Agent", "AskUserQuestion", "Bash", "Edit", "Glob", "Grep", "LSP", "Monitor", "NotebookEdit", "Read", "Skill",
          "Task", "TodoWrite", "ToolSearch", "WebFetch", "WebSearch", "Write")  # fmt: skip
_ALIKE = 0.75
_SECTIONS = {"claude-rate-tiers": (), "claude-gateway": ("rate_tiers",)}


@dataclass(frozen=True)
class Doubt:
    """`field`: where the name stands; `meant`: the known one that is like it; `line`: in the file, where known."""

    field: str
    name: str
    meant: str
    line: int | None = None


def doubts(view: View) -> list[Doubt]:
    """Each once, however many plugins have it from one anchor."""
    found: dict[tuple[int | None, str], Doubt] = {}
    for plugin in view.plugins:
        for path in (_SECTIONS[name] for name in (plugin.get("name"),) if name in _SECTIONS):
            section = plugin.get("config")
            for name in path:
                section = section.get(name) if isinstance(section, Mapping) else None
            for field, said, meant in _misspelt(section):
                place = ".".join((*path, field))
                line = view.line(plugin, place)
                found.setdefault((line, said), Doubt(field, said, meant, line))
    return list(found.values())


def _misspelt(section: Any) -> Iterator[tuple[str, str, str]]:
    """Field, name, and the one that is meant."""
    tiers = section.get("tiers") if isinstance(section, Mapping) else None
    for number, tier in enumerate(tiers if isinstance(tiers, list) else (), 1):
        if not isinstance(tier, Mapping):
            continue
        cheaper = tier.get("cheaper")
        given = {"models": (tier.get("models"), model), "tools": (tier.get("tools"), tool)}
        if isinstance(cheaper, Mapping):
            given["cheaper.model"] = ([cheaper.get("model")], model)
        for field, (names, nearest) in given.items():
            for name in names if isinstance(names, list) else ():
                if isinstance(name, str) and (meant := nearest(name)) is not None:
                    yield f"tiers[{number}].{field}", name, meant


def model(name: str) -> str | None:
    """`claude-sonet-4-5` → `claude-sonnet-4-5`. None for what is known, and for what is like nothing that is."""
    plain = name.removesuffix(LARGE)
    words = [_nearest(word, _WORDS) or word for word in plain.split("-")]
    meant = "-".join(words) + name[len(plain) :]
    return meant if meant != name else None


def tool(name: str) -> str | None:
    """`bash` → `Bash`."""
    return _nearest(name, _TOOLS)


def _nearest(name: str, known: tuple[str, ...]) -> str | None:
    if name in known:
        return None
    spelled = {each.lower(): each for each in known}
    found = difflib.get_close_matches(name.lower(), spelled, 1, _ALIKE)
    return spelled[found[0]] if found else None
