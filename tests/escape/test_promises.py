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
COLUMNS = ("none", "user", "landlock", "namespaces")
DEFINED = set(
    re.findall(r"^(?:async )?def (test_\w+)", "\n".join(p.read_text() for p in ROOT.glob("tests/*/*.py")), re.M)
)


def patterns(row: list[str]) -> list[str]:
    return re.findall(r"`([^`]+)`", row[-1])


def tried(row: list[str]) -> set[str]:
    return {attack for pattern in patterns(row) for attack in fnmatch.filter(attacks.ALL, pattern)}


def holds(attack: str, strength: str) -> bool:
    """Whether it is promised that a run is kept from it."""
    (said,) = {row[COLUMNS.index(strength) + 1].startswith("yes") for row in OF_STRENGTHS if attack in tried(row)}
    return said


def test_every_attack_is_in_one_line() -> None:
    assert len(OF_STRENGTHS) > 10 and len(ROWS) > 20, "the tables are read"
    assert sorted(attacks.ALL) == sorted(attack for row in OF_STRENGTHS for attack in tried(row))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row[0])[:40])
def test_what_a_line_names_is_there(row: list[str]) -> None:
    for pattern in patterns(row):
        assert pattern in DEFINED or fnmatch.filter(attacks.ALL, pattern), pattern


@pytest.mark.parametrize("row", OF_STRENGTHS, ids=lambda row: str(row[0])[:40])
def test_a_line_promises_what_is_tried(row: list[str]) -> None:
    """By the lists in which the attacks are: `test_landlock` and the others hold those to what happens, `test_user` the
    column of `user`."""
    assert all(cell.startswith(("yes", "no")) for cell in row[1:5])
    landlock, namespaces = row[3], row[4]
    found = tried(row)
    assert landlock.startswith("no") is bool(found & set(attacks.OF_NAMESPACES))
    assert landlock.startswith("yes") is not bool(found & set(attacks.OF_NAMESPACES))
    assert namespaces.startswith("yes")
    assert ("in a container no" in namespaces) is bool(found & set(attacks.LEFT_BY_A_CONTAINER))
