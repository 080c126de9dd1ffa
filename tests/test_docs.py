"""The documents name only what is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from kong_claude.cli.main import installed, main
from kong_claude.rate_tiers.schema import RateTiersConfig
from kong_claude.rate_tiers.tiers import tiers_from_config
from kong_claude.schema import read

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *(ROOT / "docs").rglob("*.md")])
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")
# In running text only between backquotes, so that "make sure" is no target.
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
MAKE = re.compile(r"(?:^|[`;&|]|… )[ \t]*make ([a-z][a-z-]*)", re.MULTILINE)
COMMAND = re.compile(r"(?<![\w/-])(?<!-n )(?:\.venv/bin/)?kong-claude ([a-z][a-z-]*)")


def code_of(path: Path) -> str:
    return "\n".join(CODE.findall(path.read_text()))


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_relative_links_lead_somewhere(path: Path) -> None:
    missing = [link for link in LINK.findall(path.read_text()) if not (path.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_named_targets_and_commands_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = code_of(path)
    assert set(MAKE.findall(code)) - targets == set()
    assert set(COMMAND.findall(code)) - set(installed()) == set()


YAML = re.compile(r"```yaml\n(.*?)```", re.DOTALL)
GUARD = re.compile(r"kong-claude (guard(?: --[a-z-]+(?: (?!--)[a-z.-]+)?)*)")


TOKEN = re.compile(r"kong-claude (token(?: --no-role| --[a-z]+ (?:'[^']*'|[\w.:=@/]+))+)")


@pytest.mark.parametrize("command", sorted({c for path in DOCUMENTS for c in TOKEN.findall(code_of(path))}))
def test_every_token_that_is_shown_is_made(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLAUDE_JWT_SECRET", "of the documents" * 4)
    assert main(shlex.split(command)) == 0


@pytest.mark.parametrize("command", sorted({c for path in DOCUMENTS for c in GUARD.findall(code_of(path))}))
def test_every_guard_command_runs(command: str) -> None:
    assert main(command.split()) == 0


def test_every_tier_that_is_shown_loads() -> None:
    shown = [block for path in DOCUMENTS for block in YAML.findall(path.read_text()) if block.startswith("tiers:")]
    assert any("egress" in block for block in shown)
    for block in shown:
        tiers_from_config(read(RateTiersConfig, yaml.safe_load(block)), 60, signed=True)


def test_the_patterns_find_something() -> None:
    code = "\n".join(code_of(path) for path in DOCUMENTS)
    assert {"up", "test", "chaos", "help"} <= set(MAKE.findall(code))
    assert {"token", "invoke", "guard", "doctor", "export"} <= set(COMMAND.findall(code))
    assert sum(len(LINK.findall(path.read_text())) for path in DOCUMENTS) > 20
