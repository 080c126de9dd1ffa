"""SECURITY.md names what is tried, and all of it."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

import pytest

from tests.escape import attacks

ROOT = Path(__file__).resolve().parents[2]
LINES = (ROOT / "SECURITY.md").read_text().split("## Line by line\n")[1].split("\n## ")[0].splitlines()
ROWS = [line.strip("| ").split(" | ") for line in LINES if line.startswith("| ") and "`" in line.split("|")[-2]]
OF_STRENGTHS = [row for row in ROWS if len(row) == 6]
DEFINED = set(
    re.findall(r"^(?:async )?def (test_\w+)", "\n".join(p.read_text() for p in ROOT.glob("tests/*/*.py")), re.M)
)


def patterns(row: list[str]) -> list[str]:
    return re.findall(r"`([^`]+)`", row[-1])


def tried(row: list[str]) -> set[str]:
    return {attack for pattern in patterns(row) for attack in fnmatch.filter(attacks.ALL, pattern)}


def test_every_attack_is_in_one_line_at_least() -> None:
    assert len(OF_STRENGTHS) > 10 and len(ROWS) > 20, "the tables are read"
    assert set(attacks.ALL) == set().union(*map(tried, OF_STRENGTHS))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row[0])[:40])
def test_what_a_line_names_is_there(row: list[str]) -> None:
    for pattern in patterns(row):
        assert pattern in DEFINED or fnmatch.filter(attacks.ALL, pattern), pattern


@pytest.mark.parametrize("row", OF_STRENGTHS, ids=lambda row: str(row[0])[:40])
def test_a_line_promises_what_is_tried(row: list[str]) -> None:
    """By the lists in which the attacks are: `test_landlock` and the others hold those to what happens."""
    landlock, namespaces = row[3], row[4]
    found = tried(row)
    assert landlock.startswith("no") is bool(found & set(attacks.OF_NAMESPACES))
    assert landlock.startswith("yes") is not bool(found & set(attacks.OF_NAMESPACES))
    assert namespaces.startswith("yes")
    assert ("in a container no" in namespaces) is bool(found & set(attacks.LEFT_BY_A_CONTAINER))
