"""Python modules for the scripts of skills. What the machine's own Python lacks comes from the invoker's environment
(`pip install 'claude-invoker[skills]'`), which runs cannot read: so it is laid out for them, by links where it can."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from claude_invoker.cli.command import PATH

_WITHIN_S = 60.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PROBE = """
import importlib.util, sys
print(*sys.version_info[:2], *(name for name in sys.argv[1:] if importlib.util.find_spec(name) is None))
"""


class Unavailable(Exception):
    """Why a module cannot be had."""


def provide(modules: Iterable[str], into: Path) -> dict[str, str]:
    """Fills a directory for PYTHONPATH with those of the modules that runs do not have anyway. Returns why others
    cannot be had. Raises OSError."""
    wanted = sorted(set(modules))
    if not wanted:
        return {}
    python = shutil.which("python3", path=PATH)
    if python is None:
        return dict.fromkeys(wanted, "runs have no Python here (python3 in /usr/local/bin or /usr/bin)")
    try:
        version, missing = _of_runs(python, wanted)
    except (subprocess.SubprocessError, ValueError):
        return dict.fromkeys(wanted, f"{python} does not run")
    obstacles: dict[str, str] = {}
    taken: set[str] = set()
    owners = metadata.packages_distributions() if missing else {}
    for module in missing:
        try:
            if version != sys.version_info[:2]:
                here = ".".join(map(str, sys.version_info[:2]))
                raise Unavailable(f"{python} is {'.'.join(map(str, version))}, the invoker's Python {here}")
            if module not in owners:
                raise Unavailable("it is not installed: pip install 'claude-invoker[skills]'")
            for distribution in _with_requirements(owners[module][0], taken):
                _lay_out(distribution, into)
        except Unavailable as error:
            obstacles[module] = str(error)
    return obstacles


def _of_runs(python: str, modules: list[str]) -> tuple[tuple[int, int], list[str]]:
    """Its version, and which of the modules it lacks. Raises SubprocessError, ValueError."""
    command = [python, "-IB", "-c", _PROBE, *modules]
    said = subprocess.run(command, env={"PATH": PATH}, capture_output=True, text=True, check=True, timeout=_WITHIN_S)
    major, minor, *missing = said.stdout.split()
    return (int(major), int(minor)), missing


def _with_requirements(name: str, taken: set[str]) -> Iterator[metadata.Distribution]:
    """It, and what it requires here; each once. Raises Unavailable."""
    waiting = [name]
    while waiting:
        name = waiting.pop()
        plain = re.sub(r"[-_.]+", "-", name).lower()
        if plain in taken:
            continue
        taken.add(plain)
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # of another system, by its marker
        yield distribution
        for requirement in distribution.requires or ():
            found = _NAME.match(requirement)
            if found is not None and "extra ==" not in requirement:
                waiting.append(found[0])


def _lay_out(distribution: metadata.Distribution, into: Path) -> None:
    """Raises Unavailable, OSError."""
    if distribution.files is None:
        raise Unavailable(f"nobody has written down which files belong to {distribution.metadata['Name']}")
    for each in distribution.files:
        if ".." in each.parts or "__pycache__" in each.parts or each.is_absolute():
            continue  # programs, which the module does not need
        source, target = Path(str(distribution.locate_file(each))), into / each
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            _link(source, target)


def _link(source: Path, target: Path) -> None:
    """The same file where that can be, and where all may read it and only its owner may write; else a copy."""
    if source.stat().st_mode & 0o066 == 0o044 and source.stat().st_uid == os.geteuid():
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError:
            pass  # another file system, or one without links
        else:
            return
    shutil.copyfile(source, target)
    target.chmod(0o644)
