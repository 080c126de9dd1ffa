"""The same at the strength `user`: a command has the CLI's user id, and does not get into its process."""

from __future__ import annotations

import os

import pytest

from tests.escape import attacks
from tests.escape.conftest import Raid
from tests.escape.test_landlock import OPTIONAL
from tests.escape.test_promises import holds

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="a user for each run needs an invoker started as root"),
    pytest.mark.xdist_group("escape"),
]


@pytest.mark.parametrize("attack", attacks.ALL)
def test_it_holds_what_is_promised_of_it_and_no_more(attack: str, users_only: Raid, unconfined: Raid) -> None:
    """SECURITY.md says which. Of what a user id of its own keeps a run from, `test_ordinary` has the control."""
    without = unconfined.outcomes[attack]
    if any(word in without for word in OPTIONAL.get(attack, ())):
        pytest.skip(f"this machine has no such way out: {without}")
    assert without == "escaped" or attack in attacks.OF_ONE_USER, "the attack itself does not work"
    if holds(attack, "user"):
        assert "Error" in users_only.outcomes[attack]
    else:
        assert users_only.outcomes[attack] == "escaped", "SECURITY.md promises too little"


def test_a_neighbour_is_not_disturbed(users_only: Raid) -> None:
    assert users_only.neighbour.rstrip().endswith("undisturbed")
