"""The same in a container as docker-compose.yml makes it, which may do less: read-only, without most capabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.escape import attacks, container, test_kinds
from tests.escape.conftest import NOTHING_BUT_A_USER, Raid, raid
from tests.escape.test_egress import (
    check_that_it_goes_nowhere_else,
    check_that_it_works,
    goes_elsewhere,
    reached_by,
)
from tests.escape.test_kinds import (  # noqa: F401 -- the same attacks, in a container
    Place,
    test_a_deep_tree_goes,
    test_a_deep_tree_stays_where_trees_are_walked_by_recursion,
    test_no_command_speaks_for_its_cli,
    test_nothing_is_left_for_another_tenant,
    test_the_killer_is_not_stopped,
    test_the_runs_token_is_found_in_a_process_that_commands_look_into,
    test_the_runs_token_is_not_found,
    test_what_a_run_leaves_is_there_where_nobody_tidies,
)
from tests.escape.test_landlock import OPTIONAL, assert_kept_by_its_user
from tests.escape.test_namespaces import OF_USER_NAMESPACES, makes_user_namespaces
from tests.escape.test_ordinary import WITHOUT
from tests.escape.test_promises import holds
from tests.escape.test_taking import TAKES, taken
from tests.invoker.conftest import Invoker, StandInProcess, bash
from tests.invoker.test_bounds import GB, over, unstopped
from tests.support.site import Site

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]
STRENGTHS = tuple(container.FILES)
# What the profile of system calls and the capabilities that were dropped close by themselves.
CLOSED_BY_DOCKER = ("not permitted", "Permission denied", "not implemented", "Read-only file system")
BARE = ("--init", "--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined")
"""A container that closes as little as one can: what an attack that compose's options close by themselves does there."""


@dataclass(frozen=True)
class Kind:
    """`files`: whose options, None: `BARE`. `one_user`: the container's user is not root, and its runs have its user id."""

    isolation: str
    files: str | None
    without: tuple[str, ...] = ()
    one_user: bool = False


ROOTS = "changes_what_all_runs_execute"
"""The CLI is root's in an image, and so nobody's who would change it: there is no control."""
FILES_OF = {"landlock": "landlock", "namespaces": "namespaces", "user": "landlock"}
USER = Kind("user", "landlock", ("a_kernel_without_landlock",))
CONFINED = {
    "landlock": Kind("landlock", "landlock"),
    "namespaces": Kind("namespaces", "namespaces"),
    "landlock, one user": Kind("landlock", "landlock", one_user=True),
    "namespaces, one user": Kind("namespaces", "namespaces", one_user=True),
}
"""As shipped, and as whoever says `user: 1000` has it. The image has bubblewrap: whether that makes namespaces is for the
container's options to say."""


def control(kind: Kind, *, bare: bool = False) -> Kind:
    """The same container with no boundary around its runs."""
    files = None if bare else kind.files
    return Kind("none", files, WITHOUT["none"], True) if kind.one_user else Kind("user", files, NOTHING_BUT_A_USER)


@pytest.fixture(scope="module")
def containers(stand_in: StandInProcess, services: dict[str, Any], site: Site) -> Iterator[container.Containers]:
    container.skip_or_fail()
    container.build_image()
    made = container.Containers(stand_in, {Path(services["socket"]).parent, site.authority.parent})
    yield made
    made.stop()


@pytest.fixture(scope="module")
def raids(containers: container.Containers, services: dict[str, Any]) -> Mapping[Kind, Raid]:
    """Each when it is first asked for."""

    class Raids(dict[Kind, Raid]):
        def __missing__(self, kind: Kind) -> Raid:
            options = BARE if kind.files is None else container.options_of_compose(kind.files)
            more: dict[str, Any] = {}
            if kind.isolation == "none":
                more = {"allow_commands_below": 1, "cli_path": containers.readable_cli}
            invoker = containers.start(
                isolation=kind.isolation, options=options, without=kind.without, one_user=kind.one_user, **more
            )
            assert container.isolation_of(invoker).split()[0] == kind.isolation
            self[kind] = raid(invoker, services)
            return self[kind]

    return Raids()


@pytest.fixture(scope="module", params=STRENGTHS)
def strength(request: pytest.FixtureRequest) -> str:
    return str(request.param)


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


def of(name: str) -> list[str]:
    """What a run is kept from there."""
    kept = [*attacks.ATTACKS, *(attacks.OF_ONE_USER if CONFINED[name].one_user else ())]
    # What an ordinary user's runs are not told at `landlock` either (SECURITY.md).
    kept = [attack for attack in kept if attack not in attacks.OF_NAMESPACES or CONFINED[name].one_user]
    return [attack for attack in kept if attack != ROOTS]


@pytest.mark.parametrize(("name", "attack"), [(name, attack) for name in CONFINED for attack in of(name)])
def test_nothing_a_command_does_reaches_beyond_its_run(name: str, attack: str, raids: Mapping[Kind, Raid]) -> None:
    assert_held(attack, CONFINED[name], raids[CONFINED[name]], raids)


@pytest.mark.parametrize("name", [name for name, kind in CONFINED.items() if not kind.one_user])
def test_nor_does_it_reach_what_a_user_id_of_its_own_keeps_it_from(name: str, raids: Mapping[Kind, Raid]) -> None:
    assert_kept_by_its_user(raids[CONFINED[name]])


@pytest.mark.parametrize("name", CONFINED)
@pytest.mark.parametrize("attack", attacks.OF_NAMESPACES)
def test_what_the_machine_has_is_not_there_for_namespaces(attack: str, name: str, raids: Mapping[Kind, Raid]) -> None:
    """SECURITY.md says what is left of it in a container."""
    kind = CONFINED[name]
    if attack in attacks.LEFT_BY_A_CONTAINER or (kind.isolation == "landlock" and not kind.one_user):
        assert raids[kind].outcomes[attack] == "escaped", "SECURITY.md promises too little"
    elif kind.isolation == "namespaces":
        assert_held(attack, kind, raids[kind], raids)


@pytest.mark.parametrize("attack", [attack for attack in attacks.ALL if attack != ROOTS])
def test_user_holds_what_is_promised_of_it_and_no_more(attack: str, raids: Mapping[Kind, Raid]) -> None:
    """For kernels without Landlock: docker-compose.yml says to ask for `user` there."""
    if holds(attack, "user"):
        one_user = attack in attacks.OF_ONE_USER
        assert_held(attack, replace(USER, one_user=one_user), raids[USER], raids)
    elif raids[USER].outcomes[attack] != "escaped":
        assert_closed_by_the_container(attack, USER, raids[USER].outcomes[attack], raids)


def assert_held(attack: str, kind: Kind, held: Raid, raids: Mapping[Kind, Raid]) -> None:
    outcome = held.outcomes[attack]
    assert outcome != "escaped"
    assert "Error" in outcome, "it was refused, and did not die of something else"
    without = raids[control(kind)].outcomes[attack]
    if without != "escaped":
        assert_closed_by_the_container(attack, kind, without, raids)


def assert_closed_by_the_container(attack: str, kind: Kind, outcome: str, raids: Mapping[Kind, Raid]) -> None:
    """By its options: without them it succeeds, or else this machine has no such way out."""
    bare = raids[control(kind, bare=True)].outcomes[attack]
    if bare != "escaped":
        assert any(word in bare for word in OPTIONAL.get(attack, ())), bare
        pytest.skip(f"this machine has no such way out: {bare}")
    assert any(word in outcome for word in CLOSED_BY_DOCKER), outcome


@pytest.mark.parametrize("name", CONFINED)
def test_most_of_it_works_without_the_boundary(name: str, raids: Mapping[Kind, Raid]) -> None:
    outcomes = raids[control(CONFINED[name])].outcomes
    escaped = {attack for attack, outcome in outcomes.items() if outcome == "escaped"}
    assert len(escaped) > len(outcomes) / 2, outcomes
    # What our profile opens is closed by the boundary alone.
    assert {"has_a_user_namespace", "clones_into_a_user_namespace_by_the_older_call"} <= escaped


def test_where_there_is_no_landlock_a_command_makes_no_namespace_either(
    containers: container.Containers, services: dict[str, Any]
) -> None:
    held = raid(containers.start(isolation="user", without=("a_kernel_without_landlock",)), services)
    for attack in OF_USER_NAMESPACES:
        assert "Error" in held.outcomes[attack]


@pytest.mark.parametrize("name", CONFINED)
def test_a_neighbour_sees_and_loses_nothing(name: str, raids: Mapping[Kind, Raid]) -> None:
    confined = raids[CONFINED[name]]
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
def test_nothing_else_is_opened_with_it(attack: str, opened: Raid, strength: str, raids: Mapping[Kind, Raid]) -> None:
    assert_held(attack, CONFINED[strength], opened, raids)


def test_in_namespaces_the_filter_alone_keeps_a_command_from_user_namespaces(containers: container.Containers) -> None:
    """bubblewrap cannot forbid them there: the control of what `confined` shows."""
    options = container.options_of_compose("namespaces")
    without = ("user_namespaces_in_namespaces", "namespaces_as_in_a_container")
    invoker = containers.start(isolation="namespaces", options=options, without=without)
    assert container.isolation_of(invoker) == "namespaces"
    assert "a container permits" in invoker.log.read_text()
    made = makes_user_namespaces(invoker)
    newer = made.pop("clones_into_a_user_namespace")
    assert newer == "escaped" or "not implemented" in newer, "Docker's own profile"
    assert {*made.values()} == {"escaped"}


def test_with_dockers_own_profile_the_request_is_refused(start_reaching: Callable[..., Invoker], site: Site) -> None:
    invoker = start_reaching("names_of_a_test", options=container.with_dockers_own_profile(), isolation="landlock")
    with invoker.client() as api:
        lacks = api.get("/readyz").json()["checks"]["egress_lacks"]
        assert "in a user namespace: Operation not permitted" in lacks
        refused = bash(api, "true")
        assert refused.status_code == 403 and lacks in refused.text


# Attacks that are more than one way out: those of `test_kinds`, here.


@pytest.fixture(scope="module")
def start_invoker(containers: container.Containers) -> Callable[..., Invoker]:
    def start(*, isolation: str, **more: Any) -> Invoker:
        return containers.start(isolation=isolation, options=container.options_of_compose(FILES_OF[isolation]), **more)

    return start


@pytest.fixture(scope="module", params=FILES_OF)
def place(request: pytest.FixtureRequest, start_invoker: Callable[..., Invoker]) -> Place:
    strength = str(request.param)
    without = USER.without if strength == "user" else ()
    return Place(strength, start_invoker(isolation=strength, without=without, **test_kinds.SETTINGS))


UNDEFENDED = (*NOTHING_BUT_A_USER, "trees_by_recursion", "strays_that_stay")


@pytest.fixture(scope="module")
def undefended(start_invoker: Callable[..., Invoker]) -> Invoker:
    return start_invoker(isolation="user", without=UNDEFENDED, **test_kinds.SETTINGS)


def test_where_a_command_speaks_for_its_cli_memory_is_bounded_and_money_is_counted(
    containers: container.Containers,
) -> None:
    """The control of `test_no_command_speaks_for_its_cli`. Docker's own profile closes the call by which it is done."""
    more: dict[str, Any] = {**test_kinds.SETTINGS}
    bare = containers.start(isolation="user", options=BARE, without=UNDEFENDED, **more)
    test_kinds.test_where_a_command_speaks_for_its_cli_memory_is_bounded_and_money_is_counted(bare)


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
