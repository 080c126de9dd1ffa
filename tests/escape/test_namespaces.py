"""The same within namespaces, by bubblewrap as the run's user: also what Landlock does not close."""

from __future__ import annotations

import os

import pytest

from claude_invoker.isolation import confine, namespaces
from tests.escape import attacks
from tests.escape.conftest import Raid
from tests.escape.test_landlock import assert_held

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="a user for each run needs an invoker started as root"),
    pytest.mark.skipif(confine.abi() < 6, reason="this kernel's Landlock has no scopes"),
    pytest.mark.skipif(namespaces.program() is None, reason="bubblewrap is not installed"),
    pytest.mark.xdist_group("escape"),
]


@pytest.mark.parametrize("attack", [*attacks.ATTACKS, *attacks.OF_NAMESPACES])
def test_nothing_a_command_does_reaches_beyond_its_run(attack: str, in_namespaces: Raid, unconfined: Raid) -> None:
    assert_held(attack, in_namespaces, unconfined)


def test_a_neighbour_sees_and_loses_nothing(in_namespaces: Raid) -> None:
    assert in_namespaces.secret in in_namespaces.neighbour
    assert in_namespaces.neighbour.rstrip().endswith("undisturbed")
