"""A command of the real CLI tries to get out, within the boundary and, as the control, without it."""

from __future__ import annotations

import functools
import os
import subprocess

import pytest

from claude_invoker.isolation import confine, filters
from tests.escape import attacks
from tests.escape.conftest import Raid

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="a user for each run needs an invoker started as root"),
    pytest.mark.skipif(confine.abi() < 6, reason="this kernel's Landlock has no scopes"),
    pytest.mark.xdist_group("escape"),
]
# What a kernel may be built or set up without; then the control cannot succeed either.
OPTIONAL = {
    "connects_by_mptcp": ("ProtocolNotSupported", "Protocol not supported", "not supported", "Protocol not available"),
    "connects_by_tcp6": ("not supported",),
    "connects_by_sctp": ("not supported",),
    "sends_datagrams_by_another_protocol": ("not supported",),
    "leaves_a_file_in_run_lock": ("No such file",),
    "leaves_a_file_in_dev_mqueue": ("No such file",),
    "has_a_vsock_socket": ("not supported",),
    "has_an_io_uring": ("not permitted", "not implemented"),
    "has_a_userfaultfd": ("not implemented",),
    "has_a_user_namespace": ("not permitted", "No space left"),
    "clones_into_a_user_namespace": ("not permitted", "No space left"),
    "clones_into_a_user_namespace_by_the_older_call": ("not permitted", "No space left"),
    "leaves_a_posix_queue": ("not implemented",),
    "leaves_a_key": ("not implemented",),
    "compares_itself_with_the_cli": ("not implemented",),
    "traces_the_cli": ("not permitted",),
    "moves_the_clis_memory_to_another_node": ("not implemented",),
    "asks_where_the_clis_memory_is": ("not implemented",),
    "asks_for_the_clis_locks": ("not implemented",),
    "names_a_file_by_handle": ("not supported",),
    "lists_the_machines_mounts": ("not implemented",),
    "describes_the_machines_root": ("not implemented",),
    "opens_a_mount_by_another_call": ("not implemented",),
}


@pytest.mark.parametrize("attack", attacks.ATTACKS)
def test_nothing_a_command_does_reaches_beyond_its_run(attack: str, confined: Raid, unconfined: Raid) -> None:
    assert_held(attack, confined, unconfined)


def assert_held(attack: str, confined: Raid, unconfined: Raid) -> None:
    without = unconfined.outcomes[attack]
    if any(word in without for word in OPTIONAL.get(attack, ())):
        pytest.skip(f"this machine has no such way out: {without}")
    assert without == "escaped", "the attack itself does not work"
    assert confined.outcomes[attack] != "escaped"
    assert "Error" in confined.outcomes[attack], "it was refused, and did not die of something else"


def test_nor_does_it_reach_what_a_user_id_of_its_own_keeps_it_from(confined: Raid) -> None:
    assert_kept_by_its_user(confined)


def assert_kept_by_its_user(confined: Raid) -> None:
    """The control is `test_ordinary`, where runs have one user."""
    outcomes = {name: confined.outcomes[name] for name in attacks.OF_ONE_USER if name not in attacks.OF_NAMESPACES}
    assert {name: outcome for name, outcome in outcomes.items() if "Error" not in outcome} == {}


def test_a_command_may_still_step_back_itself() -> None:
    """What it may not do to its CLI: priority, disk, cores, kind of scheduling, limits."""
    enter = functools.partial(confine.filtered, filters.of_shells())
    command = "nice -n 5 ionice -c 2 -n 7 taskset 1 chrt --batch 0 sh -c 'ulimit -n 100 && ionice && nice'"
    said = subprocess.run(["bash", "-c", command], check=True, capture_output=True, text=True, preexec_fn=enter).stdout
    assert said.split() == ["best-effort:", "prio", "7", "5"]


@pytest.mark.parametrize("attack", attacks.OF_NAMESPACES)
def test_what_landlock_does_not_close(attack: str, confined: Raid) -> None:
    """SECURITY.md says so; where one of these fails, it promises too little."""
    assert confined.outcomes[attack] == "escaped"


def test_a_neighbour_sees_and_loses_nothing(confined: Raid) -> None:
    assert confined.secret in confined.neighbour
    assert confined.neighbour.rstrip().endswith("undisturbed")
