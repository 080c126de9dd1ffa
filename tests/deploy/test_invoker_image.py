"""invoker/Dockerfile has what our skills need, as far as files tell: no engine is asked here (tests/docker does that)."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import typst

from claude_invoker.catalog.catalog import OURS, load
from claude_invoker.cli.command import PATH
from release.locks import locked

ROOT = Path(__file__).resolve().parents[2]
RECIPE = re.sub(r"\\\n", " ", (ROOT / "invoker/Dockerfile").read_text())
SKILLS = load(None).of("skill")


def plain(requirement: str) -> str:
    """The name of a package, as pip compares it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9._-]", requirement)[0]).lower()


def test_it_installs_the_libraries_of_our_skills_and_no_others() -> None:
    extras = tomllib.loads((ROOT / "invoker/pyproject.toml").read_text())["project"]["optional-dependencies"]
    needed = {plain(package) for skill in SKILLS.values() for package in skill.needs.python}
    assert {plain(requirement) for requirement in extras["skills"]} == needed
    assert re.search(r"pip install [^&]*'\./invoker\[[a-z,]*skills[a-z,]*\]'", RECIPE)
    assert needed <= locked((ROOT / "deploy/docker/invoker.lock").read_text()).keys()


def test_it_installs_the_programs_that_they_call() -> None:
    found = re.search(r"apt-get install -y --no-install-recommends ([a-z0-9 .+-]+?) &&", RECIPE)
    assert found is not None
    assert {program for skill in SKILLS.values() for program in skill.needs.programs} <= set(found[1].split())


def test_runs_have_the_pythons_version_that_the_libraries_are_for() -> None:
    """Else none of them could be laid out for runs: python:X-slim has its python3 in /usr/local/bin."""
    [version] = re.findall(r"^FROM python:(\d+\.\d+)-slim$", RECIPE, re.MULTILINE)
    assert "python3 -m venv /opt/kong-claude" in RECIPE and PATH.split(":")[0] == "/usr/local/bin"
    assert set(re.findall(r"/opt/kong-claude/lib/python(\d+\.\d+)/", RECIPE)) <= {version}


@pytest.mark.parametrize("name", SKILLS)
def test_scripts_import_what_their_skill_says(name: str) -> None:
    imported = {
        module.partition(".")[0]
        for path in (OURS / "skills" / name).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for module in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    from_where = packages_distributions()
    others = {plain(from_where[module][0]) for module in imported - sys.stdlib_module_names}
    assert others == {plain(package) for package in SKILLS[name].needs.python}


def test_the_fonts_that_are_promised_come_with_typst() -> None:
    """The image has none of its own."""
    bundled = set(typst.Fonts(include_system_fonts=False).families())
    text = (OURS / "skills/canvas-design/SKILL.md").read_text()
    [promised] = re.findall(r"^- Fonts that are always there: (.*)\.$", text, re.MULTILINE)
    assert set(promised.split(", ")) <= bundled
    template = (OURS / "skills/pdf/scripts/report.typ").read_text()
    first = re.findall(r'font: \(?"([^"]+)"', template)
    assert first and set(first) <= bundled
