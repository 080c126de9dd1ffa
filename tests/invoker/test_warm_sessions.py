"""A session's process goes on with the next turn, where that asks for the same and nothing else is alive in it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.invoker.conftest import Invoker, StandInProcess, tool, wait_for

pytestmark = [pytest.mark.timeout(180), pytest.mark.xdist_group("warm-sessions")]  # its invoker is started once


@pytest.fixture(scope="module")
def warm(start_invoker: Callable[..., Invoker]) -> Invoker:
    return start_invoker(pool_size=0, session_idle_s=600, session_idle_memory=1 << 40)


@pytest.fixture
def asked(warm: Invoker) -> Callable[..., tuple[dict[str, Any], set[int]]]:
    """A turn's answer, and all processes of the CLI after it: those of other sessions stay as they are."""

    def ask(session: str = "new", prompt: str = "hi", **more: Any) -> tuple[dict[str, Any], set[int]]:
        with warm.client() as api:
            answered = api.post("/invoke", json={"prompt": prompt, "session": session} | more)
        assert answered.status_code == 200, answered.text
        return answered.json(), {process.pid for process in warm.clis()}

    return ask


def test_the_next_turn_is_in_the_same_process_and_costs_what_it_costs(
    asked: Callable[..., Any], warm: Invoker, stand_in: StandInProcess
) -> None:
    before = {process.pid for process in warm.clis()}
    first, one = asked(prompt="warm-one " + tool("Write", file_path="n.txt", content="4711"), max_budget_usd=0.5)
    second, two = asked(first["session"], "warm-two " + tool("Read", file_path="n.txt"), max_budget_usd=0.4)
    third, three = asked(first["session"], "warm-three [[say the same]]")
    assert one == two == three and len(one - before) == 1
    assert "4711" in second["result"] and second["artifacts"] == []
    alone, _ = asked(prompt="warm-alone [[say the same]]")
    assert third["cost_usd"] == alone["cost_usd"] > 0, "each turn its own, not the sum"
    assert third["usage"] == alone["usage"] and third["num_turns"] == 1
    reached = next(line for line in reversed(stand_in.lines()) if "warm-three" in json.dumps(line["messages"]))
    assert all(f"warm-{which}" in json.dumps(reached["messages"]) for which in ("one", "two", "three"))
    # What the model is told of money is not that of all turns together.
    assert "USD budget" not in json.dumps(reached)


def test_a_turns_own_budget_binds_in_the_same_process(asked: Callable[..., Any]) -> None:
    first, _ = asked()
    poor, _ = asked(first["session"], max_budget_usd=0.000001)
    assert poor["stop_reason"] == "max_budget" and poor["cost_usd"] <= 0.000001
    rich, _ = asked(first["session"], max_budget_usd=1)
    assert rich["stop_reason"] == "end_turn"


@pytest.mark.parametrize(
    "other",
    [
        {"tools": ["Read"]},
        *(
            pytest.param(other, marks=pytest.mark.slow)
            for other in (
                {"max_turns": 3},
                {"system": "Other."},
                {"model": "haiku"},
                {"output_schema": {"type": "object"}},
            )
        ),
    ],
    ids=lambda other: next(iter(other)),
)
def test_another_kind_of_turn_starts_cold(asked: Callable[..., Any], other: dict[str, Any]) -> None:
    first, one = asked()
    _, two = asked(first["session"])
    assert one == two  # the control
    if "output_schema" in other:
        other = other | {"prompt": '[[tool StructuredOutput {"a": 1}]]'}
    _, three = asked(first["session"], **other)
    assert len(two - three) == 1 == len(three - two)


@pytest.mark.slow  # an invoker of its own
def test_after_a_command_nothing_is_kept(asked: Callable[..., Any], warm: Invoker) -> None:
    before = {process.pid for process in warm.clis()}
    first, one = asked(prompt=tool("Bash", command="(setsid sleep 300 &) ; echo x"), tools=["Bash", "Read"])
    assert one == before and not [child for child in warm.children() if "sleep 300" in " ".join(child.cmdline())]
    _, two = asked(first["session"], tools=["Bash", "Read"])
    assert len(two - before) == 1, "a turn without a command leaves its process, though it may have had one"


@pytest.mark.slow  # an invoker of its own
def test_what_is_kept_ends_in_time_and_within_its_memory(start_invoker: Callable[..., Invoker]) -> None:
    invoker = start_invoker(pool_size=0, session_idle_s=1)
    with invoker.client() as api:
        session = api.post("/invoke", json={"prompt": "x", "session": "new"}).json()["session"]
        wait_for(lambda: not invoker.clis(), what="its end")
        assert api.post("/invoke", json={"prompt": "x", "session": session}).status_code == 200
    invoker.stop()
    small = start_invoker(pool_size=0, session_idle_s=600, session_idle_memory=1)
    with small.client() as api:
        assert api.post("/invoke", json={"prompt": "x", "session": "new"}).status_code == 200
        wait_for(lambda: not small.clis(), what="its end")


@pytest.mark.slow  # an invoker of its own
def test_two_invokers_with_one_directory_do_not_meet_in_a_session(start_invoker: Callable[..., Invoker]) -> None:
    """The second takes the session over while the first has kept its process; the first notices."""
    first = start_invoker(pool_size=0, session_idle_s=60)
    second = start_invoker(pool_size=0, session_idle_s=60, state_dir=first.state)
    with first.client() as here, second.client() as there:

        def turn(api: httpx.Client, prompt: str, session: str = "new") -> dict[str, Any]:
            answered = api.post("/invoke", json={"prompt": prompt, "session": session})
            assert answered.status_code == 200, answered.text
            answer: dict[str, Any] = answered.json()
            return answer

        session = turn(here, "one " + tool("Write", file_path="n.txt", content="1"))["session"]
        for number, api in enumerate((there, here, here, there)):
            edit = tool("Edit", file_path="n.txt", old_string=f"{number + 1}", new_string=f"{number + 2}")
            assert [a["path"] for a in turn(api, edit, session)["artifacts"]] == ["n.txt"]
        time.sleep(0.1)
        assert "5" in turn(here, tool("Read", file_path="n.txt"), session)["result"]
