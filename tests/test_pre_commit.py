"""The hooks of .pre-commit-config.yaml: in a repository of their own, with real commits."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / ".pre-commit-config.yaml"

SOUND = {"sample/__init__.py": "", "sample/good.py": "NUMBER: int = 1\n", "good.yaml": "a: 1\n"}
BAD = {
    "ruff check": ("sample/bad.py", "import os\n"),
    "ruff format": ("sample/bad.py", "x = {'a': 1}\n"),
    "mypy": ("sample/bad.py", 'x: int = "one"\n'),
    "yamllint": ("bad.yaml", "a: 1\na: 2\n"),
}


class Repository:
    """A checkout with our settings, our .venv and the hooks installed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Nothing of the git that may be running these tests, and nothing of the user's settings.
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | {
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "PRE_COMMIT_HOME": str(path / "home"),
        }
        self.run("git", "init", "--quiet", ".")
        for name, value in {"user.name": "t", "user.email": "t@example.com", "commit.gpgsign": "false"}.items():
            self.run("git", "config", name, value)
        (path / ".venv").symlink_to(sys.prefix)
        for name in (CONFIG.name, ".yamllint"):
            shutil.copy(ROOT / name, path / name)
        settings, changed = re.subn(
            r"(?m)(^\[tool\.mypy\]\n(?:\w.*\n)*?packages = ).*",
            r'\1["sample"]',
            (ROOT / "pyproject.toml").read_text(),
        )
        assert changed == 1
        self.write("pyproject.toml", settings)
        self.run(".venv/bin/pre-commit", "install")
        for name, text in SOUND.items():
            self.write(name, text)

    def run(self, *command: str) -> None:
        done = self.attempt(*command)
        assert done.returncode == 0, done.stdout

    def attempt(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.path,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
            check=False,
        )

    def write(self, name: str, text: str) -> None:
        file = self.path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        self.run("git", "add", name)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


def test_sound_files_are_committed(repository: Repository) -> None:
    done = repository.attempt("git", "commit", "-m", "sound")
    assert done.returncode == 0, done.stdout
    for name in BAD:
        assert re.search(rf"^{name}\.+Passed$", done.stdout, re.MULTILINE), done.stdout


@pytest.mark.parametrize("hook", BAD)
def test_a_bad_file_is_not_committed(repository: Repository, hook: str) -> None:
    repository.run("git", "commit", "--quiet", "-m", "sound")
    repository.write(*BAD[hook])
    done = repository.attempt("git", "commit", "-m", "bad")
    assert done.returncode == 1
    assert re.findall(r"^(.*?)\.+Failed$", done.stdout, re.MULTILINE) == [hook], done.stdout
    repository.run("git", "commit", "--no-verify", "--quiet", "-m", "bad")  # the hooks alone were in the way


def test_the_hooks_are_those_of_make_lint_and_nothing_is_fetched() -> None:
    repositories = yaml.safe_load(CONFIG.read_text())["repos"]
    assert [each["repo"] for each in repositories] == ["local"]
    hooks = [hook for each in repositories for hook in each["hooks"]]
    assert {hook["language"] for hook in hooks} == {"system"}
    recipe = re.search(r"(?m)^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text())
    assert recipe
    linters = re.findall(r"(?m)^\t\$\(BIN\)/(.*?)(?: \.)?$", recipe[1])
    entries = [hook["entry"].removeprefix(".venv/bin/").removesuffix(" --force-exclude") for hook in hooks]
    assert entries == linters
