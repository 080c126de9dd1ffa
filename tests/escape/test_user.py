"""The same at the strength `user`: a command has the CLI's user id, and does not get into its process."""

from __future__ import annotations

import os

import pytest

from tests.escape.conftest import Raid
from tests.escape.test_landlock import OPTIONAL

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="a user for each run needs an invoker started as root"),
    pytest.mark.xdist_group("escape"),
]


@pytest.mark.parametrize(
    "attack",
    [
        "reads_the_clis_environment",
        "reads_the_clis_memory_by_proc",
        "reads_the_clis_memory_by_a_call",
        "takes_the_clis_descriptors",
        "lists_the_clis_descriptors",
        "traces_the_cli",
    ],
)
def test_no_command_looks_into_its_clis_process(attack: str, users_only: Raid, unconfined: Raid) -> None:
    assert unconfined.outcomes[attack] == "escaped", "the attack itself does not work"
    assert "Error" in users_only.outcomes[attack]


@pytest.mark.parametrize("attack", ["has_a_user_namespace", "clones_into_a_user_namespace"])
def test_no_command_makes_a_namespace(attack: str, users_only: Raid, unconfined: Raid) -> None:
    """In one it would be root before parts of the kernel that have had more holes than others."""
    without = unconfined.outcomes[attack]
    if any(word in without for word in OPTIONAL[attack]):
        pytest.skip(f"this machine has no such way out: {without}")
    assert without == "escaped", "the attack itself does not work"
    assert "Error" in users_only.outcomes[attack]


@pytest.mark.parametrize(
    "attack",
    ["leaves_shared_memory", "leaves_a_semaphore", "leaves_a_message_queue", "leaves_a_posix_queue", "leaves_a_key"],
)
def test_no_command_leaves_something_that_is_no_file(attack: str, users_only: Raid, unconfined: Raid) -> None:
    """Whoever gets the run's user id after it would have it, and nobody ends memory that is no process's."""
    without = unconfined.outcomes[attack]
    if any(word in without for word in OPTIONAL.get(attack, ())):
        pytest.skip(f"this machine has no such way out: {without}")
    assert without == "escaped", "the attack itself does not work"
    assert "Error" in users_only.outcomes[attack]


def test_a_neighbour_is_not_disturbed(users_only: Raid) -> None:
    assert users_only.neighbour.rstrip().endswith("undisturbed")
