"""The skills and MCP servers that come with an invoker of this release, as far as tiers name them: what a gateway can
know of a catalog. An operator's own has others, and may have others of the same names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Needs:
    """What a run has to have: tools, and MCP servers."""

    tools: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()


SKILLS: Mapping[str, Needs] = {
    "canvas-design": Needs(("Bash", "Read", "Write")),
    "docx": Needs(("Bash", "Read", "Write")),
    "frontend-design": Needs(("Bash", "Read", "Write", "Edit")),
    "memory": Needs(servers=("memory",)),
    "pdf": Needs(("Bash", "Read", "Write")),
    "tdd": Needs(("Bash", "Read", "Write", "Edit")),
}
SERVERS: Mapping[str, tuple[str, ...]] = {"memory": ("remember", "recall", "forget", "export")}
"""With their tools."""
