"""A tier's first run after a start finds a process that waits for it, as its runs before it were."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_contract.claims import Clamp
from claude_invoker.runs.tiers import MOST, Tiers
from tests.invoker.conftest import Invoker, wait_for
from tests.jobs.conftest import SECRET
from tests.replicas.test_replicas import client

PRO = Clamp(("haiku",), ("Read", "Bash"), 7, 0.5, skills=("pdf",), default_skills=("pdf",))


def test_what_was_noted_is_there_after_a_start(tmp_path: Path) -> None:
    tiers = Tiers(tmp_path / "tiers.json")
    assert tiers.load() == {}
    assert tiers.note("pro", PRO) and not tiers.note("pro", PRO)
    assert tiers.note("free", Clamp(tools=())) and tiers.note("pro", Clamp())
    tiers.write()
    assert (tmp_path / "tiers.json").stat().st_mode & 0o777 == 0o600
    again = Tiers(tmp_path / "tiers.json")
    assert list(again.load().items()) == [("pro", Clamp()), ("free", Clamp(tools=()))]
    assert not again.note("free", Clamp(tools=()))
    for number in range(MOST + 3):
        again.note(str(number), PRO)
    again.write()
    assert list(Tiers(tmp_path / "tiers.json").load()) == [str(number) for number in range(MOST + 2, 2, -1)]


@given(
    st.binary(max_size=60)
    | st.recursive(st.none() | st.text(max_size=5), st.lists).map(lambda x: json.dumps({"t": x}).encode())
)
def test_what_cannot_be_read_is_nothing(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("tiers") / "tiers.json"
    path.write_bytes(content)
    assert Tiers(path).load() in ({}, {"t": Clamp()})
    path.write_bytes(b"[" * 100_000)
    assert Tiers(path).load() == {}


def checks(invoker: Invoker) -> dict[str, Any]:
    with invoker.client() as api:
        found: dict[str, Any] = api.get("/readyz").json()["checks"]
        return found


def hits(invoker: Invoker) -> float:
    with invoker.client() as api:
        [line] = [each for each in api.get("/metrics").text.splitlines() if each.startswith("claude_invoker_pool_hits")]
        return float(line.split()[1])


@pytest.mark.timeout(180)
def test_the_first_run_of_a_tier_is_warm(start_invoker: Callable[..., Invoker]) -> None:
    settings = {
        "trust": "attested",
        "attestation_key": SECRET,
        "required_checks_run": "jwt-claims",
        "pool_size": 1,
        "pool_max": 2,
        "isolation": "user" if os.geteuid() == 0 else "none",
    }
    pro = {"tier": "pro", "clamp": {"tools": ["Read"], "max_turns": 7}}
    # What cannot run here is passed over: a skill that there is not.
    odd = {"tier": "odd", "clamp": {"skills": ["gone"], "default_skills": ["gone"]}}
    first = start_invoker(**settings)
    with client(first, "ada", **pro) as ada, client(first, "eve", **odd) as eve:
        assert ada.post("/invoke", json={"prompt": "hi"}).status_code == 200
        assert eve.post("/invoke", json={"prompt": "hi", "skills": []}).status_code == 200
    first.stop()
    second = start_invoker(after=first, **settings)
    wait_for(lambda: checks(second)["warm"] == 2, what="a process for each")
    with client(second, "ada", **pro) as ada:
        assert ada.post("/invoke", json={"prompt": "hi"}).status_code == 200
    assert hits(second) == 1
    # As cold as ever where nothing is to be kept warm.
    second.stop()
    third = start_invoker(after=second, **(settings | {"pool_size": 0}))
    with client(third, "ada", **pro) as ada:
        assert ada.post("/invoke", json={"prompt": "hi"}).status_code == 200
    assert hits(third) == 0
