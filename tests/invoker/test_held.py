"""What runs hold in memory is bounded: of one run, of a subject, in all; six runs' events were 186 MB."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_invoker.holding import Bounds
from claude_invoker.plan import Plan
from claude_invoker.problem import Problem
from claude_invoker.runs.events import EventLog
from claude_invoker.runs.run import Run, new_id
from claude_invoker.runs.shelf import Shelf


def a_run(subject: str = "alice", prompt: str = "hi", per_run: int = 1 << 25) -> Run:
    content = ({"type": "text", "text": prompt},)
    plan = Plan(content, None, "sonnet", None, (), 1, 1.0, None, None, 60.0)
    run = Run(new_id(), subject, plan, Path("/nonexistent"), 60.0)
    run.events = EventLog(per_run)
    return run


def says(run: Run, size: int, times: int = 1) -> None:
    for _ in range(times):
        run.events.append_json("e", b"x" * size)


def end(shelf: Shelf, run: Run) -> None:
    run.events.close()
    run.done.set()
    shelf.ended(run)


def test_runs_that_are_over_make_room_the_oldest_first() -> None:
    shelf = Shelf(Bounds(per_subject=2_000_000))
    runs = [a_run() for _ in range(3)]
    other = a_run("bob")
    for run in (*runs, other):
        shelf.put(run)
        says(run, 600_000)
    for run in (runs[1], other, runs[0]):
        end(shelf, run)
    shelf.put(a_run(prompt="y" * 300_000))
    assert set(shelf.runs) >= {runs[0].id, runs[2].id, other.id}
    assert runs[1].id not in shelf.runs


def test_one_that_a_client_reads_is_not_dropped() -> None:
    shelf = Shelf(Bounds(per_subject=1_000_000))
    run = a_run()
    shelf.put(run)
    says(run, 900_000)
    end(shelf, run)
    run.watchers = 1
    with pytest.raises(Problem) as refused:
        shelf.put(a_run(prompt="y" * 200_000))
    assert refused.value.status == 429
    assert run.id in shelf.runs
    run.watchers = 0
    shelf.put(a_run(prompt="y" * 200_000))
    assert run.id not in shelf.runs


def test_a_subject_that_holds_too_much_is_refused_and_no_other() -> None:
    def fill(bounds: Bounds) -> Shelf:
        shelf = Shelf(bounds)
        for _ in range(4):
            shelf.put(a_run(prompt="y" * 900_000))
        return shelf

    with pytest.raises(Problem) as refused:
        fill(Bounds(per_subject=3_000_000))
    assert refused.value.status == 429
    assert refused.value.extra == {"limit": "held_per_subject", "allowed": 3_000_000}
    fill(Bounds(per_subject=4_000_000)).put(a_run("bob", "y" * 900_000))
    with pytest.raises(Problem) as refused:
        fill(Bounds(in_all=4_000_000)).put(a_run("bob", "y" * 900_000))
    assert refused.value.status == 507
    fill(Bounds(in_all=5_000_000)).put(a_run("bob", "y" * 900_000))


def test_six_runs_events_were_186_megabytes() -> None:
    bounds = Bounds(per_run=4_000_000, per_subject=10_000_000, in_all=15_000_000)
    shelf = Shelf(bounds)
    runs = [a_run("alice" if n < 3 else "bob", per_run=bounds.per_run) for n in range(6)]
    for run in runs:
        shelf.put(run)
    for _ in range(310):
        for run in runs:
            says(run, 100_000)
    assert sum(len(event.data) for run in runs for event in run.events.since(0)) < 15_000_000
    assert shelf.bytes <= 15_000_000
    assert all(run.events.since(309) for run in runs), "each has its last events"
    unbounded = Shelf(Bounds(1 << 40, 1 << 40, 1 << 40))
    runs = [a_run(per_run=1 << 40) for _ in range(6)]
    for run in runs:
        unbounded.put(run)
        says(run, 100_000, 310)
    assert unbounded.bytes > 186_000_000


def test_every_kind_of_input_has_a_size() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "a" * 1000}}
    for content, size in (({"type": "text", "text": ""}, 0), ({"type": "text", "text": "é" * 500}, 500), (image, 1000)):
        plan = replace(a_run().plan, content=(content,), system="s" * 100, output_schema={"x": "y" * 200})
        assert size + 300 <= plan.size <= size + 1000
    assert replace(a_run().plan, content=()).size < 500


def test_the_input_goes_at_the_end() -> None:
    shelf = Shelf(Bounds())
    run = a_run(prompt="y" * 5_000_000)
    shelf.put(run)
    assert shelf.bytes > 5_000_000
    end(shelf, run)
    assert shelf.bytes < 10_000
    assert sys.getsizeof(run.plan.content) < 100
    assert run.plan.model == "sonnet"


@given(
    st.lists(
        st.tuples(st.sampled_from(["put", "say", "end", "take"]), st.integers(0, 3), st.integers(1, 9)), max_size=80
    )
)
def test_what_is_counted_is_what_is_there(steps: list[tuple[str, int, int]]) -> None:
    shelf = Shelf(Bounds(per_subject=60_000, in_all=100_000))
    runs: list[Run] = []
    for step, which, size in steps:
        chosen = runs[which % len(runs)] if runs else None
        if step == "put":
            run = a_run(f"s{which}", "p" * size * 1000, per_run=30_000)
            try:
                shelf.put(run)
                runs.append(run)
            except Problem as problem:
                assert problem.status in (429, 507)
        elif chosen is None:
            continue
        elif step == "say":
            says(chosen, size * 1000)
        elif step == "end" and not chosen.done.is_set():
            end(shelf, chosen)
        elif step == "take":
            shelf.take(chosen.id)
        assert shelf.bytes == sum(shelf._sizes.values()) == sum(shelf._of.values()) >= 0
        assert set(shelf._sizes) == set(shelf.runs)
    for run in list(shelf.runs.values()):
        shelf.take(run.id)
    assert shelf.bytes == 0
    assert not shelf._of
    assert not shelf._over
