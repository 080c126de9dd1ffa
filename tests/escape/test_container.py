"""The same in a container as docker-compose.yml makes it, which may do less: read-only, without most capabilities."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.escape import attacks, container
from tests.escape.conftest import Raid, raid
from tests.escape.test_landlock import OPTIONAL
from tests.invoker.conftest import StandInProcess

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]
# What Docker's own profile of system calls and the capabilities that were dropped close by themselves.
CLOSED_BY_DOCKER = ("not permitted", "Permission denied", "not implemented", "Read-only file system")


@pytest.fixture(scope="module")
def containers(stand_in: StandInProcess, services: dict[str, Any]) -> Iterator[container.Containers]:
    container.skip_or_fail()
    container.build_image()
    made = container.Containers(stand_in, Path(services["socket"]).parent)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def confined(containers: container.Containers, services: dict[str, Any]) -> Raid:
    invoker = containers.start(isolation="landlock")
    assert container.isolation_of(invoker) == "landlock"
    return raid(invoker, services)


@pytest.fixture(scope="module")
def unconfined(containers: container.Containers, services: dict[str, Any]) -> Raid:
    return raid(containers.start(isolation="user", without=("a_kernel_without_landlock", "a_readable_cli")), services)


@pytest.mark.parametrize("attack", attacks.ATTACKS)
def test_nothing_a_command_does_reaches_beyond_its_run(attack: str, confined: Raid, unconfined: Raid) -> None:
    without = unconfined.outcomes[attack]
    assert confined.outcomes[attack] != "escaped"
    assert "Error" in confined.outcomes[attack], "it was refused, and did not die of something else"
    if without != "escaped":
        assert any(word in without for word in (*CLOSED_BY_DOCKER, *OPTIONAL.get(attack, ()))), without
        pytest.skip(f"closed by the container itself: {without}")


def test_most_of_it_works_without_the_boundary(unconfined: Raid) -> None:
    escaped = [name for name, outcome in unconfined.outcomes.items() if outcome == "escaped"]
    assert len(escaped) > len(unconfined.outcomes) / 2, unconfined.outcomes


def test_a_neighbour_sees_and_loses_nothing(confined: Raid) -> None:
    assert confined.secret in confined.neighbour
    assert confined.neighbour.rstrip().endswith("undisturbed")


def test_what_the_compose_file_says_is_what_is_tried() -> None:
    options = container.options_of_compose()
    assert {"--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges:true", "--init"} <= set(options)
    assert not any("SYS_ADMIN" in option or "privileged" in option for option in options)
