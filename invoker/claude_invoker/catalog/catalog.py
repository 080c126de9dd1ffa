"""The catalog of an invoker: the skills that come with it, and those of its operator."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from claude_invoker.catalog.entry import Skill
from claude_invoker.catalog.sources import Refused, read

OURS = Path(__file__).parent / "ours"


@dataclass(frozen=True)
class Catalog:
    """`refused`: what the operator's has besides, left out. `obstacles`: why skills cannot work on this machine, by
    their names."""

    skills: Mapping[str, Skill] = field(default_factory=dict)
    refused: tuple[Refused, ...] = ()
    obstacles: Mapping[str, str] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """The same wherever the same skills are: on another machine, from an archive."""
        return version_of(self.skills.values())


EMPTY = Catalog()


def load(path: Path | None) -> Catalog:
    """`path`: the operator's directory or archive. A skill of his stands in the place of ours of that name.

    Raises ValueError for what is no catalog, OSError.
    """
    ours = read(OURS)
    theirs = None if path is None else read(path)
    skills = [*ours.skills, *(theirs.skills if theirs else ())]
    found = {skill.name: skill for skill in skills}
    return Catalog(dict(sorted(found.items())), theirs.refused if theirs else ())


def version_of(skills: Iterable[Skill]) -> str:
    """12 hexadecimal digits."""
    text = "".join(f"{skill.name} {skill.digest}\n" for skill in sorted(skills, key=lambda skill: skill.name))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
