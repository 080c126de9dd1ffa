"""One version: it stands in several files, one command sets it, and no file is forgotten."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
VERSION = re.compile(r'VERSION = "(.*?)"')
LUA = [
    str(path.relative_to(ROOT))
    for path in sorted((ROOT / "plugins" / "kong_claude" / "guard" / "lua").rglob("*.lua"))
    if VERSION.search(path.read_text())
]
PARTS = ("contract", "plugins", "invoker", "minikong", "local")
FILES = [
    *LUA,
    *(f"{part}/pyproject.toml" for part in PARTS),
    *(str(path.relative_to(ROOT)) for path in (ROOT / "deploy" / "kubernetes").glob("*.yaml")),
]
IMAGE = re.compile(r"registry\.example\.com/kong-claude/\w+(?::|, tag: \")([^ \"\n]+)")


def versions(root: Path) -> set[str]:
    """Every place's: of the distributions, their pins on each other, the plugins in Lua, and the images."""
    projects = [tomllib.loads((root / part / "pyproject.toml").read_text())["project"] for part in PARTS]
    ours = {project["name"] for project in projects}
    found = {project["version"] for project in projects}
    for project in projects:
        lists = [project.get("dependencies", []), *project.get("optional-dependencies", {}).values()]
        for requirement in map(Requirement, chain(*lists)):
            if requirement.name in ours:
                found.add(str(requirement.specifier).removeprefix("=="))
    assert len(LUA) == 2
    for name in LUA:
        found.update(VERSION.findall((root / name).read_text()))
    images = [IMAGE.findall(path.read_text()) for path in (root / "deploy" / "kubernetes").glob("*.yaml")]
    assert sum(map(len, images)) >= 3
    return found.union(*images)


def copy(folder: Path) -> Path:
    shutil.copy(ROOT / "Makefile", folder)
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def test_there_is_one_version_everywhere() -> None:
    assert len(versions(ROOT)) == 1


def test_a_forgotten_pin_is_seen(tmp_path: Path) -> None:
    project = copy(tmp_path) / "local" / "pyproject.toml"
    project.write_text(re.sub(r"(claude-invoker[^=\s]*)==[\d.]+", r"\1==0.0.9", project.read_text()))
    assert len(versions(tmp_path)) == 2


def test_make_version_sets_it_everywhere(tmp_path: Path) -> None:
    subprocess.run(["make", "-C", copy(tmp_path), "version", "VERSION=7.8.9"], check=True, capture_output=True)
    assert versions(tmp_path) == {"7.8.9"}


def test_make_version_asks_for_one(tmp_path: Path) -> None:
    asked = subprocess.run(
        ["make", "-C", copy(tmp_path), "version", "VERSION="], capture_output=True, text=True, check=False
    )
    assert asked.returncode != 0 and "make version VERSION=" in asked.stderr
    assert versions(tmp_path) == versions(ROOT)
