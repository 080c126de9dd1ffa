"""A team's budget, from the token's claim to the invoker's booking: with small figures in the example's place."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.conftest import COMMAND, ROOT, Gateway, free_port, own_environment, up

PROMPT = {"prompt": "hi", "system": "Be brief."}
FIGURES = {"max_usd_per_run: 2": "max_usd_per_run: 1", "usd: 500,": "usd: 1,", "concurrent: 20": "concurrent: 1"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("pools")
    text = (ROOT / "examples" / "pools.yml").read_text()
    for given, small in FIGURES.items():
        assert given in text
        text = text.replace(given, small)
    (home / "kong.yml").write_text(text)
    started = up(home, free_port(), config=home / "kong.yml")
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        running = json.loads((home / "stack.json").read_text())
        yield Gateway(running["proxy"], running["invoker"], home, running["pid"])
    finally:
        subprocess.run([COMMAND, "down"], env=own_environment(home), check=True, timeout=60)


def pools_of(stack: Gateway, subject: str, team: str) -> dict[str, Any]:
    with stack.client(subject, "--tier", "pro", "--claim", f"team={team}") as client:
        report = client.get("/claude/limits")
    assert report.status_code == 200, report.text
    return {pool["name"]: pool for pool in report.json()["pools"]}


def spent(stack: Gateway, team: str, pool: str) -> float:
    return float(pools_of(stack, "nobody-yet", team)[pool]["usd"]["budgets"][0]["spent"])


def until_booked(stack: Gateway, team: str) -> float:
    deadline = time.monotonic() + 30
    while not (found := spent(stack, team, "team")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def test_two_of_one_team_meet_its_budget(stack: Gateway) -> None:
    with stack.client("ada", "--tier", "pro", "--claim", "team=red") as ada:
        answer = ada.post("/claude/invoke", json=PROMPT)
    assert answer.status_code == 200, answer.text
    cost = until_booked(stack, "red")
    assert spent(stack, "red", "everybody") == cost and spent(stack, "blue", "team") == 0
    assert pools_of(stack, "ada", "red")["team"]["concurrent"]["running"] == 0

    with stack.client("bob", "--tier", "pro", "--claim", "team=red") as bob:
        refused = bob.post("/claude/invoke", json=PROMPT)
    assert refused.status_code == 429, refused.text
    said = refused.json()
    assert (said["pool"], said["limit"], said["allowed"], said["spent"]) == ("team", "usd_per_month", 1.0, cost)
    assert int(refused.headers["retry-after"]) > 0
    # The control: the same caller in another team has its budget.
    with stack.client("bob", "--tier", "pro", "--claim", "team=blue") as bob:
        assert bob.post("/claude/invoke", json=PROMPT).status_code == 200
    until_booked(stack, "blue")
    assert spent(stack, "blue", "everybody") > cost


def test_a_job_takes_its_pools_place_when_it_starts(stack: Gateway) -> None:
    with stack.client("cyd", "--tier", "pro", "--claim", "team=green") as client:
        accepted = client.post("/claude/jobs", json=PROMPT)
        assert accepted.status_code == 202, accepted.text
        deadline = time.monotonic() + 60
        while (job := client.get(accepted.headers["location"]).json())["state"] not in ("done", "failed"):
            assert time.monotonic() < deadline, job
            time.sleep(0.2)
        assert job["state"] == "done", job
    assert until_booked(stack, "green") == pytest.approx(job["cost_usd"], abs=1e-6)
    assert pools_of(stack, "dan", "green")["team"]["concurrent"]["running"] == 0


def test_without_the_claim_nothing_passes(stack: Gateway) -> None:
    with stack.client("eve", "--tier", "pro") as eve:
        refused = eve.post("/claude/invoke", json=PROMPT)
    assert refused.status_code == 403 and "team" in refused.json()["message"]
    with stack.client("eve", "--tier", "free") as eve:  # whose tier has only what everybody shares
        assert eve.post("/claude/invoke", json=PROMPT).status_code == 200
