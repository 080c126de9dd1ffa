"""The same in a container as docker-compose.yml makes it, which may do less: read-only, without most capabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.escape import attacks, container
from tests.escape.conftest import NOTHING_BUT_A_USER, Raid, raid
from tests.escape.test_egress import (
    check_that_it_goes_nowhere_else,
    check_that_it_works,
    goes_elsewhere,
    reached_by,
)
from tests.escape.test_landlock import OPTIONAL
from tests.escape.test_namespaces import makes_user_namespaces
from tests.escape.test_taking import TAKES, taken
from tests.invoker.conftest import Invoker, StandInProcess, bash
from tests.invoker.test_bounds import GB, over, unstopped
from tests.support.site import Site

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]
STRENGTHS = tuple(container.FILES)
# What the profile of system calls and the capabilities that were dropped close by themselves.
CLOSED_BY_DOCKER = ("not permitted", "Permission denied", "not implemented", "Read-only file system")


@pytest.fixture(scope="module")
def containers(stand_in: StandInProcess, services: dict[str, Any], site: Site) -> Iterator[container.Containers]:
    container.skip_or_fail()
    container.build_image()
    made = container.Containers(stand_in, {Path(services["socket"]).parent, site.authority.parent})
    yield made
    made.stop()


@pytest.fixture(scope="module", params=STRENGTHS)
def strength(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def confined(containers: container.Containers, strength: str, services: dict[str, Any]) -> Raid:
    """The shipped image has bubblewrap: whether that makes namespaces is for the container's options to say."""
    invoker = containers.start(isolation=strength, options=container.options_of_compose(strength))
    assert container.isolation_of(invoker) == strength
    return raid(invoker, services)


@pytest.fixture(scope="module")
def start_reaching(containers: container.Containers, strength: str, site: Site) -> Callable[..., Invoker]:
    def start(*without: str, **more: Any) -> Invoker:
        chosen = {"options": container.options_of_compose(strength), "isolation": strength} | more
        return containers.start(without=without, environment=reached_by(site), **chosen)

    return start


@pytest.fixture(scope="module")
def reaching(start_reaching: Callable[..., Invoker]) -> Invoker:
    """Its runs may reach the site."""
    return start_reaching("names_of_a_test")


@pytest.fixture(scope="module")
def opened(reaching: Invoker, services: dict[str, Any]) -> Raid:
    return raid(reaching, services)


@pytest.fixture(scope="module")
def unconfined(containers: container.Containers, strength: str, services: dict[str, Any]) -> Raid:
    options = container.options_of_compose(strength)
    return raid(containers.start(isolation="user", without=NOTHING_BUT_A_USER, options=options), services)


@pytest.mark.parametrize("attack", attacks.ATTACKS)
def test_nothing_a_command_does_reaches_beyond_its_run(attack: str, confined: Raid, unconfined: Raid) -> None:
    assert_held(attack, confined, unconfined)


@pytest.mark.parametrize("attack", attacks.OF_NAMESPACES)
def test_what_the_machine_has_is_not_there_for_namespaces(
    attack: str, strength: str, confined: Raid, unconfined: Raid
) -> None:
    """SECURITY.md says what is left of it in a container."""
    if strength == "landlock" or attack in attacks.LEFT_BY_A_CONTAINER:
        assert confined.outcomes[attack] == "escaped"
    else:
        assert_held(attack, confined, unconfined)


def assert_held(attack: str, confined: Raid, unconfined: Raid) -> None:
    without = unconfined.outcomes[attack]
    assert confined.outcomes[attack] != "escaped"
    assert "Error" in confined.outcomes[attack], "it was refused, and did not die of something else"
    if without != "escaped":
        assert any(word in without for word in (*CLOSED_BY_DOCKER, *OPTIONAL.get(attack, ()))), without
        pytest.skip(f"closed by the container itself: {without}")


def test_most_of_it_works_without_the_boundary(unconfined: Raid) -> None:
    escaped = {name for name, outcome in unconfined.outcomes.items() if outcome == "escaped"}
    assert len(escaped) > len(unconfined.outcomes) / 2, unconfined.outcomes
    # What our profile opens is closed by the boundary alone.
    assert "has_a_user_namespace" in escaped


def test_where_there_is_no_landlock_a_command_makes_no_namespace_either(
    containers: container.Containers, services: dict[str, Any]
) -> None:
    held = raid(containers.start(isolation="user", without=("a_kernel_without_landlock",)), services)
    for attack in ("has_a_user_namespace", "clones_into_a_user_namespace"):
        assert "Error" in held.outcomes[attack]


def test_a_neighbour_sees_and_loses_nothing(confined: Raid) -> None:
    assert confined.secret in confined.neighbour
    assert confined.neighbour.rstrip().endswith("undisturbed")


def test_what_a_tier_opens_works(reaching: Invoker, site: Site) -> None:
    check_that_it_works(reaching, site)


def test_a_command_goes_to_no_other_host(reaching: Invoker, site: Site) -> None:
    check_that_it_goes_nowhere_else(reaching, site)


def test_a_command_goes_elsewhere_without_the_filters_checks(
    start_reaching: Callable[..., Invoker], site: Site
) -> None:
    """The control of the test above."""
    with start_reaching("hosts_that_nobody_named").client() as api:
        answer = bash(api, goes_elsewhere(site))
        assert "elsewhere.test 200" in answer.text, answer.text


@pytest.mark.parametrize("attack", attacks.ATTACKS)
def test_nothing_else_is_opened_with_it(attack: str, opened: Raid, unconfined: Raid) -> None:
    assert_held(attack, opened, unconfined)


def test_in_namespaces_the_filter_alone_keeps_a_command_from_user_namespaces(containers: container.Containers) -> None:
    """bubblewrap cannot forbid them there: the control of what `confined` shows."""
    options = container.options_of_compose("namespaces")
    without = ("user_namespaces_in_namespaces", "namespaces_as_in_a_container")
    invoker = containers.start(isolation="namespaces", options=options, without=without)
    assert container.isolation_of(invoker) == "namespaces"
    assert "a container permits" in invoker.log.read_text()
    made = makes_user_namespaces(invoker)
    assert made["has_a_user_namespace"] == "escaped"
    assert made["clones_into_a_user_namespace"] == "escaped" or "not implemented" in str(made), "Docker's own profile"


def test_with_dockers_own_profile_the_request_is_refused(start_reaching: Callable[..., Invoker], site: Site) -> None:
    invoker = start_reaching("names_of_a_test", options=container.with_dockers_own_profile(), isolation="landlock")
    with invoker.client() as api:
        lacks = api.get("/readyz").json()["checks"]["egress_lacks"]
        assert "in a user namespace: Operation not permitted" in lacks
        refused = bash(api, "true")
        assert refused.status_code == 403 and lacks in refused.text


@pytest.mark.parametrize("looks", [True, False], ids=["looked_into", "as_shipped"])
def test_hidden_memory_is_seen_where_the_invoker_may_look_into_runs(
    containers: container.Containers, strength: str, looks: bool
) -> None:
    """Which is why SECURITY.md says that as shipped it is the container's own limit that holds."""
    options = [*container.options_of_compose(strength), *(["--cap-add=SYS_PTRACE"] if looks else [])]
    with containers.start(isolation=strength, options=options, memory_limit=GB).client() as api:
        answer = taken(api, TAKES["files_without_a_name"], control=not looks)
        over(answer, "memory", "INVOKER_MEMORY_LIMIT") if looks else unstopped(answer)


def test_what_the_compose_file_says_is_what_is_tried(strength: str) -> None:
    for service in ("invoker", "worker"):
        options = container.options_of_compose(strength, service)
        assert {"--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges:true", "--init"} <= set(options)
        assert not any("SYS_ADMIN" in option or "privileged=" in option for option in options)
        assert not any("systempaths" in option for option in options)
        asked = container.service_of_compose(service, strength)["environment"]["INVOKER_ISOLATION"]
        assert asked == strength
    assert len(container.with_dockers_own_profile()) == len(container.options_of_compose()) - 1
