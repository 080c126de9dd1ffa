"""Python packages for the scripts of skills. What the machine's own Python lacks comes from the invoker's environment
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
import sys
from importlib import metadata
print(*sys.version_info[:2])
for name in sys.argv[1:]:
    try: metadata.version(name)
    except metadata.PackageNotFoundError: print(name)
"""


class Unavailable(Exception):
    """Why a package cannot be had."""


def lacking(packages: Iterable[str]) -> tuple[list[metadata.Distribution], dict[str, str]]:
    """Those of the packages that runs do not have anyway, with what they require; and why others cannot be had."""
    wanted = sorted(set(packages))
    if not wanted:
        return [], {}
    python = shutil.which("python3", path=PATH)
    if python is None:
        return [], dict.fromkeys(wanted, "runs have no Python here (python3 in /usr/local/bin or /usr/bin)")
    try:
        version, missing = _of_runs(python, wanted)
    except (subprocess.SubprocessError, ValueError):
        return [], dict.fromkeys(wanted, f"{python} does not run")
    if missing and version != sys.version_info[:2]:
        theirs, ours = (".".join(map(str, each)) for each in (version, sys.version_info[:2]))
        return [], dict.fromkeys(missing, f"{python} lacks it, which is {theirs} and not {ours} as the invoker's")
    found: list[metadata.Distribution] = []
    obstacles: dict[str, str] = {}
    taken: set[str] = set()
    for name in missing:
        try:
            found += _with_requirements(name, taken)
        except Unavailable as error:
            obstacles[name] = str(error)
    return found, obstacles


def _of_runs(python: str, packages: list[str]) -> tuple[tuple[int, int], list[str]]:
    """Its version, and which of the packages it lacks. Raises SubprocessError, ValueError."""
    command = [python, "-IB", "-c", _PROBE, *packages]
    said = subprocess.run(command, env={"PATH": PATH}, capture_output=True, text=True, check=True, timeout=_WITHIN_S)
    major, minor, *missing = said.stdout.split()
    return (int(major), int(minor)), missing


def _with_requirements(name: str, taken: set[str]) -> Iterator[metadata.Distribution]:
    """It, and what it requires here; each once. Raises Unavailable."""
    try:
        waiting = [metadata.distribution(name)]
    except metadata.PackageNotFoundError:
        raise Unavailable("it is not installed: pip install 'claude-invoker[skills]'") from None
    while waiting:
        distribution = waiting.pop()
        plain = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        if plain in taken:
            continue
        taken.add(plain)
        if distribution.files is None:
            raise Unavailable(f"nobody has written down which files belong to {distribution.metadata['Name']}")
        yield distribution
        for requirement in distribution.requires or ():
            found = _NAME.match(requirement)
            if found is not None and "extra ==" not in requirement:
                try:
                    waiting.append(metadata.distribution(found[0]))
                except metadata.PackageNotFoundError:
                    continue  # for another system or another Python, by its marker


def lay_out(distribution: metadata.Distribution, into: Path) -> None:
    """In a directory for PYTHONPATH. Goes on where it was broken off. Raises OSError."""
    for each in distribution.files or ():
        if ".." in each.parts or "__pycache__" in each.parts or each.is_absolute():
            continue  # programs, which no script imports
        source, target = Path(str(distribution.locate_file(each))), into / each
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            _link(source, target)


def _link(source: Path, target: Path) -> None:
    """The same file where that can be, and where all may read it and only we may write; else a copy."""
    status = source.stat()
    if status.st_mode & 0o066 == 0o044 and status.st_uid == os.geteuid():
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError:
            pass  # another file system, or one without links
        else:
            return
    made = target.with_name(f"{target.name}.new")
    shutil.copyfile(source, made)
    made.chmod(0o644)
    made.replace(target)
