"""Generated configurations with known openings: what the doctor says is what minikong lets pass, and no more.

The short form; `make doctor` runs 1,000 files, and with KONG=… as many as wanted on a real Kong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import kong_claude.doctor
from kong_claude.problem import Problem
from tests.doctor.cases import Case, cases, counted
from tests.doctor.forms import WAYS
from tests.doctor.gateways import pair, upstream
from tests.doctor.mutations import MUTATIONS, WORDS, changed
from tests.doctor.settings import SETTINGS

FILES = 36  # in which each way is at least once
MORE = 120  # for the mutations, which ask no gateway
PORT = 18181


def test_the_doctor_says_what_minikong_lets_pass(tmp_path: Path) -> None:
    with upstream() as port, pair() as gateways:
        made = list(cases(FILES, port))
        found = {one.number: one.differences(tmp_path) + gateways.differences(one) for one in made}
    assert {number: told for number, told in found.items() if told} == {}
    assert sum(bool(one.opens) for one in made) * 4 >= FILES
    forms = counted(made)
    assert {way.__name__ for way in WAYS if not forms[f"way: {way.__name__}"]} == set()
    assert all(forms[f"setting: {setting.__name__}"] for setting in SETTINGS)


@pytest.fixture(scope="module")
def many() -> list[Case]:
    return list(cases(MORE, PORT, seed=1))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("doctor")


def caught(many: list[Case], directory: Path) -> Iterator[str]:
    for one in many:
        try:
            yield from one.differences(directory)
        except Problem as refused:
            yield str(refused)


def test_control_the_doctor_as_it_is_finds_what_is_there(many: list[Case], directory: Path) -> None:
    assert list(caught(many, directory)) == []


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_doctor_that_lacks_something_is_caught(name: str, many: list[Case], directory: Path) -> None:
    with changed(MUTATIONS[name]):
        assert next(caught(many, directory), None)


def test_every_rule_has_its_mutation() -> None:
    folder = Path(kong_claude.doctor.__file__).parent
    said = {word for file in folder.glob("*.py") for word in re.findall(r'Opening\(\s*"([a-z-]+)"', file.read_text())}
    # What only asking and starting shows (probe.py) has its tests in tests/cli/test_doctor.py.
    assert said - set(WORDS) == {"bad-config", "unchecked", "odd-invoker", "weak-boundary", "unknown-key"}
