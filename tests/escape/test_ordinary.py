"""The same by an invoker that an ordinary user has started: its runs have its user id, and one domain or set of
namespaces each. The control are runs with nothing around them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from claude_invoker.isolation import confine, namespaces
from tests.escape import attacks
from tests.escape.conftest import Raid, raid
from tests.escape.test_landlock import assert_held
from tests.invoker.conftest import StandInProcess
from tests.invoker.ordinary import cli_of_its, folder_of_its, started

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(confine.abi() < 6, reason="this kernel's Landlock has no scopes"),
    pytest.mark.xdist_group("escape"),
]
with_bubblewrap = pytest.mark.skipif(namespaces.program() is None, reason="bubblewrap is not installed")
WITHOUT = {
    "namespaces": (),
    "namespaces, as in a container": ("namespaces_as_in_a_container",),
    "landlock": ("a_machine_without_bubblewrap",),
    "none": ("a_kernel_without_landlock", "namespaces_for_everybody", "programs_that_give_rights"),
}
HELD = [
    *(("landlock", attack) for attack in (*attacks.ATTACKS, *attacks.OF_ONE_USER)),
    *(pytest.param("namespaces", attack, marks=with_bubblewrap) for attack in attacks.ALL),
    *(
        pytest.param("namespaces, as in a container", attack, marks=with_bubblewrap)
        for attack in attacks.ALL
        if attack not in attacks.LEFT_BY_A_CONTAINER
    ),
]


@pytest.fixture(scope="module")
def cli() -> Iterator[Path]:
    with folder_of_its() as folder:
        yield cli_of_its(folder)


@pytest.fixture(scope="module")
def raids(stand_in: StandInProcess, services: dict[str, Any], cli: Path) -> dict[str, Raid]:
    """By strength, each when it is first asked for."""

    class Raids(dict[str, Raid]):
        def __missing__(self, strength: str) -> Raid:
            settings = {"isolation": strength.split(",")[0], "pool_size": 0, "idle_s": 60, "cli_path": cli}
            below = {"allow_commands_below": 1} if strength == "none" else {}
            # Not below /tmp: then a run has a /tmp of its own.
            with (
                folder_of_its("/var/tmp") as folder,
                started(stand_in, folder, without=WITHOUT[strength], **settings, **below) as invoker,
            ):
                self[strength] = raid(invoker, services)
            return self[strength]

    return Raids()


@pytest.mark.parametrize(("strength", "attack"), HELD)
def test_nothing_a_command_does_reaches_beyond_its_run(strength: str, attack: str, raids: dict[str, Raid]) -> None:
    assert_held(attack, raids[strength], raids["none"])


@pytest.mark.parametrize("strength", ["landlock", pytest.param("namespaces", marks=with_bubblewrap)])
def test_a_neighbour_sees_and_loses_nothing(strength: str, raids: dict[str, Raid]) -> None:
    found = raids[strength]
    assert found.secret in found.neighbour
    assert found.neighbour.rstrip().endswith("undisturbed")
