"""What the CLI is told before it gets a prompt, and what it may do after it has answered. Each test also runs against an
invoker without the defence, where it must see the harm."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from tests.invoker.conftest import Invoker, StandInProcess, bash, defended_and_without, tool, without_boundary


@pytest.fixture(scope="session")
def start_invoker(start_invoker: Callable[..., Invoker]) -> Callable[..., Invoker]:
    return without_boundary(start_invoker)


@pytest.fixture(scope="session")
def invoker(start_invoker: Callable[..., Invoker], unbounded: list[Invoker]) -> Invoker:
    if not unbounded:
        unbounded.append(start_invoker(pool_size=0))
    return unbounded[0]


pytestmark = pytest.mark.xdist_group("unbounded")
CODES = {404: (422, "invalid"), 401: (502, "api-auth"), 529: (503, "api-overloaded"), 400: (422, "invalid")}


NEW = {"pool_size": 0, "pool_max": 0, "prices": json.dumps(
    {name: {"input": 3, "output": 15} for name in ("claude-brand-new-7", *(f"claude-new-status-{code}" for code in CODES))}
)}  # fmt: skip
"""Settings in which models have prices that the CLI does not know."""


@pytest.fixture(scope="module")
def of_new_models(start_invoker: Callable[..., Invoker]) -> Iterator[Invoker]:
    invoker = start_invoker(model="claude-brand-new-7", **NEW)
    yield invoker
    invoker.stop()


@pytest.mark.parametrize("without", defended_and_without("answers_that_nobody_reads"))
def test_a_model_that_is_not_taken_is_not_replaced_by_another(
    of_new_models: Invoker,
    start_invoker: Callable[..., Invoker],
    stand_in: StandInProcess,
    without: tuple[str, ...],
) -> None:
    """The CLI asks the API about a name that it does not know, and where that fails it goes on with its own model."""
    invoker = start_invoker(without=without, **NEW) if without else of_new_models
    for code in [404] if without else CODES:  # one shows the harm
        mark = f"who-answers-{code}-{len(without)}"
        with invoker.client() as api:
            answer = api.post("/invoke", json={"prompt": f"{mark} [[say x]]", "model": f"claude-new-status-{code}"})
        models = {line["model"] for line in stand_in.lines() if mark in str(line["messages"])}
        if without:
            assert models and not any("new" in model for model in models), "another model was asked, and paid for"
            continue
        assert models == set()
        status, kind = CODES[code]
        assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (status, kind)
        assert answer.json()["status"] == status


def test_a_model_that_the_cli_does_not_know_may_be_asked_for(of_new_models: Invoker) -> None:
    """Where its price is known."""
    with of_new_models.client() as client:
        other = client.post("/invoke", json={"prompt": "x", "model": "claude-brand-new-8"})
        assert (other.status_code, "INVOKER_PRICES" in other.json()["detail"]) == (403, True), other.text
        answer = client.post("/invoke", json={"prompt": "[[say x]]"})
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == "claude-brand-new-7"


@pytest.mark.parametrize("without", defended_and_without("work_in_the_background"))
def test_nothing_goes_on_after_the_answer(attacked: Callable[..., Invoker], without: tuple[str, ...]) -> None:
    """Subagents and commands in the background: the model has none, so that its work is over when its answer comes.
    Where it has them the answer comes first, and the work is cut off."""
    invoker = attacked(without)
    command = "sleep 2; echo late > late.txt"
    with invoker.client() as api:
        answer = api.post(
            "/invoke", json={"prompt": tool("Bash", command=command, run_in_background=True), "tools": ["Bash"]}
        )
    assert answer.status_code == 200, answer.text
    result = answer.json()["result"]
    assert ("running in background" in result) == bool(without), result
    assert ("unexpected parameter `run_in_background`" in result) == (not without)
    assert answer.json()["artifacts"] == []


@pytest.mark.parametrize("without", defended_and_without("whole_sessions_are_booked"))
def test_a_sessions_earlier_runs_are_not_booked_again(
    attacked: Callable[..., Invoker], without: tuple[str, ...]
) -> None:
    invoker = attacked(without)
    with invoker.client() as api:
        first = api.post("/invoke", json={"prompt": "[[large 40000]]", "session": "new"}).json()
        second = api.post("/invoke", json={"prompt": "[[say x]]", "session": first["session"]}).json()
    assert first["cost_usd"] > 0.01
    assert (second["cost_usd"] > first["cost_usd"]) == bool(without)
    if not without:
        assert 0 < second["cost_usd"] < 0.001
        assert first["usage"]["output_tokens"] == 10_001
        assert second["usage"]["output_tokens"] == 1


def test_half_an_emoji_is_no_error(api: object, invoker: Invoker) -> None:
    """A tool's output that a preview cut in the middle of a character (half a surrogate pair in the CLI's JSON)."""
    with invoker.client() as client:
        answer = bash(client, "python3 -c \"import sys; sys.stdout.write('\\\\ud83d-half '); print('x' * 10)\"")
        assert answer.status_code == 200, answer.text
        long = bash(client, "python3 -c \"print('\\U0001f600' * 40000)\"")
        assert long.status_code == 200, long.text
