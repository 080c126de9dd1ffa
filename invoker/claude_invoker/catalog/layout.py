"""The catalog as runs have it: a directory of ours with a plugin of the CLI for each entry, which no run can write."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import Distribution
from pathlib import Path

from claude_invoker.catalog import libraries
from claude_invoker.catalog.catalog import Catalog
from claude_invoker.catalog.entry import Entry, File
from claude_invoker.cli.command import PATH, PLUGIN, Given

_log = logging.getLogger(__name__)


class Layout:
    """`root`: holds a directory for each skill, called as it is, and two more that no skill can be called as."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lacking: list[Distribution] = []
        """What runs with skills need, and is not there yet."""
        self._lock = threading.Lock()

    @property
    def libraries(self) -> Path:
        return self.root / ".libraries"

    @property
    def agents(self) -> Path:
        """A directory for each agent."""
        return self.root / ".agents"

    def of(
        self,
        skills: Iterable[str],
        agents: Iterable[str] = (),
        server_tools: tuple[str, ...] = (),
        *,
        starts_servers: bool = False,
    ) -> Given:
        """What a process has that may use these."""
        folders = tuple(self.root / name for name in skills)
        libraries = self.libraries if folders or starts_servers else None
        return Given(folders, tuple(self.agents / name for name in agents), libraries, server_tools)

    def write(self, catalog: Catalog) -> Catalog:
        """Lays it out, anew. Returns it with what its entries lack on this machine. Raises OSError."""
        for path in (self.root, self.libraries, self.agents):
            path.mkdir(mode=0o711)
            path.chmod(0o711)
        for entry in catalog.entries:
            if entry.kind != "server":  # of which a run has no file
                _write(entry, (self.root if entry.kind == "skill" else self.agents) / entry.name)
        packages = {package for entry in catalog.entries for package in entry.needs.python}
        self._lacking, missing = libraries.lacking(packages)
        obstacles = {(entry.kind, entry.name): why for entry in catalog.entries if (why := _obstacle(entry, missing))}
        for (kind, name), why in obstacles.items():
            _log.warning("%s %s cannot be used here: %s", kind, name, why)
        return replace(catalog, obstacles=obstacles)

    def bring_libraries(self) -> None:
        """For the first run with skills: they are 100 MB where they cannot be links. Blocks. Raises OSError."""
        with self._lock:
            for each in self._lacking:
                libraries.lay_out(each, self.libraries)
            if self._lacking:
                _open_to_readers(self.libraries)
            self._lacking = []


def _open_to_readers(folder: Path) -> None:
    """Whatever our umask is."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)


def _write(entry: Entry, folder: Path) -> None:
    described = json.dumps({"name": PLUGIN, "description": "Of this gateway"})
    given = [File(".claude-plugin/plugin.json", described.encode())]
    above = f"skills/{entry.name}" if entry.kind == "skill" else "agents"
    for file in entry.files:
        is_head = entry.kind == "agent" or file.path == "SKILL.md"
        given.append(File(f"{above}/{file.path}", entry.text.encode() if is_head else file.content, file.is_executable))
    for file in given:
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)
        path.chmod(0o755 if file.is_executable else 0o644)
    _open_to_readers(folder)


def _obstacle(entry: Entry, missing: dict[str, str]) -> str:
    """Empty: there is none."""
    found = [f"it needs the Python package {name}: {missing[name]}" for name in entry.needs.python if name in missing]
    found += [
        f"it needs the program {name}, which is not installed"
        for name in entry.needs.programs
        if shutil.which(name, path=PATH) is None
    ]
    return "; ".join(found)
