"""The same within namespaces, by bubblewrap as the run's user: also what Landlock does not close."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from claude_invoker.isolation import confine, namespaces
from tests.escape import attacks
from tests.escape.conftest import ATTACKS, Raid, raid
from tests.escape.test_landlock import OPTIONAL, assert_held, assert_kept_by_its_user
from tests.invoker.conftest import Invoker, bash, program

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="a user for each run needs an invoker started as root"),
    pytest.mark.skipif(confine.abi() < 6, reason="this kernel's Landlock has no scopes"),
    pytest.mark.skipif(namespaces.program() is None, reason="bubblewrap is not installed"),
    pytest.mark.xdist_group("escape"),
]


@pytest.mark.parametrize("attack", [*attacks.ATTACKS, *attacks.OF_NAMESPACES])
def test_nothing_a_command_does_reaches_beyond_its_run(attack: str, in_namespaces: Raid, unconfined: Raid) -> None:
    assert_held(attack, in_namespaces, unconfined)


def test_nor_does_it_reach_what_a_user_id_of_its_own_keeps_it_from(in_namespaces: Raid) -> None:
    assert_kept_by_its_user(in_namespaces)


def test_a_neighbour_sees_and_loses_nothing(in_namespaces: Raid) -> None:
    assert in_namespaces.secret in in_namespaces.neighbour
    assert in_namespaces.neighbour.rstrip().endswith("undisturbed")


@pytest.fixture(scope="module")
def as_in_a_container(start_invoker: Callable[..., Invoker], services: dict[str, Any]) -> Raid:
    """Without a /proc of its own (`test_container` tries it in one, where a Docker engine is)."""
    without = ("namespaces_as_in_a_container",)
    return raid(start_invoker(isolation="namespaces", without=without, pool_size=0, idle_s=60), services)


@pytest.mark.slow
@pytest.mark.parametrize("attack", [*attacks.ATTACKS, *attacks.OF_NAMESPACES])
def test_nor_does_it_in_namespaces_as_a_container_permits_them(
    attack: str, as_in_a_container: Raid, unconfined: Raid
) -> None:
    if attack in attacks.LEFT_BY_A_CONTAINER:
        assert as_in_a_container.outcomes[attack] == "escaped", "SECURITY.md promises too little"
    else:
        assert_held(attack, as_in_a_container, unconfined)


@pytest.mark.slow
def test_a_neighbour_of_those_sees_and_loses_nothing(as_in_a_container: Raid) -> None:
    assert as_in_a_container.secret in as_in_a_container.neighbour
    assert as_in_a_container.neighbour.rstrip().endswith("undisturbed")


OF_USER_NAMESPACES = [name for name in attacks.ATTACKS if "user_namespace" in name]


def makes_user_namespaces(invoker: Invoker) -> dict[str, str]:
    """What comes of it, by the attack's name."""
    wanted = {"attacks": OF_USER_NAMESPACES}
    with invoker.client() as api:
        answer = bash(api, program(ATTACKS, f"'{json.dumps(wanted)}'"))
    assert answer.status_code == 200, answer.text
    found: dict[str, str] = json.loads(answer.json()["result"].splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("in_container", [False, True], ids=["by_bubblewrap_too", "as_in_a_container"])
def test_a_command_makes_user_namespaces_where_the_filter_is_taken_out(
    in_container: bool, start_invoker: Callable[..., Invoker], unconfined: Raid
) -> None:
    """The control of these two attacks: in a container the filter is all there is; else bubblewrap has forbidden them, too."""
    without = ["user_namespaces_in_namespaces", *(["namespaces_as_in_a_container"] if in_container else [])]
    invoker = start_invoker(isolation="namespaces", without=tuple(without), pool_size=0, idle_s=60)
    for attack, outcome in makes_user_namespaces(invoker).items():
        if any(word in unconfined.outcomes[attack] for word in OPTIONAL[attack]):
            pytest.skip(f"this machine has no such way out: {unconfined.outcomes[attack]}")
        assert (outcome == "escaped") is in_container, outcome
