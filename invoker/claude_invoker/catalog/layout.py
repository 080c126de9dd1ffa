"""The catalog as runs have it: a directory of ours with a plugin of the CLI for each skill, which no run can write."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from claude_invoker.catalog.catalog import Catalog
from claude_invoker.catalog.entry import File, Skill
from claude_invoker.catalog.libraries import provide
from claude_invoker.cli.command import PATH, PLUGIN, WITHOUT_SKILLS, Skills

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """`root`: holds a directory for each skill, called as it is, and `libraries`."""

    root: Path

    @property
    def libraries(self) -> Path:
        return self.root / ".libraries"

    def of(self, names: Iterable[str]) -> Skills:
        """What a process has that may use these."""
        folders = tuple(self.root / name for name in names)
        return Skills(folders, self.libraries) if folders else WITHOUT_SKILLS


def lay_out(catalog: Catalog, root: Path) -> Catalog:
    """Writes it, anew. Returns the catalog with what its skills lack on this machine. Raises OSError."""
    layout = Layout(root)
    root.mkdir(mode=0o711)
    root.chmod(0o711)
    for skill in catalog.skills.values():
        _write(skill, root / skill.name)
    layout.libraries.mkdir(mode=0o755)
    modules = {module for skill in catalog.skills.values() for module in skill.needs.python}
    missing = provide(modules, layout.libraries)
    for path in (layout.libraries, *layout.libraries.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
    obstacles = {name: why for name, skill in catalog.skills.items() if (why := _obstacle(skill, missing))}
    for name, why in obstacles.items():
        _log.warning("skill %s cannot be used here: %s", name, why)
    return replace(catalog, obstacles=obstacles)


def _write(skill: Skill, folder: Path) -> None:
    inside = folder / "skills" / skill.name
    described = json.dumps({"name": PLUGIN, "description": "Skills of this gateway"})
    given = [File(".claude-plugin/plugin.json", described.encode())]
    text = skill.text.encode()
    given += [
        File(f"skills/{skill.name}/{file.path}", text if file.path == "SKILL.md" else file.content, file.is_executable)
        for file in skill.files
    ]
    inside.mkdir(mode=0o755, parents=True)
    for file in given:
        path = folder / file.path
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.write_bytes(file.content)
        path.chmod(0o755 if file.is_executable else 0o644)
    for path in (folder, *folder.rglob("*")):  # whatever our umask is
        if path.is_dir():
            path.chmod(0o755)


def _obstacle(skill: Skill, missing: dict[str, str]) -> str:
    """Empty: there is none."""
    found = [f"it needs the Python module {name}: {missing[name]}" for name in skill.needs.python if name in missing]
    found += [
        f"it needs the program {name}, which is not installed"
        for name in skill.needs.programs
        if shutil.which(name, path=PATH) is None
    ]
    return "; ".join(found)
