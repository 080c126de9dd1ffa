"""Records of runs: what comes back is what was kept, within bounds, and of known versions."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_contract.versions import UnknownVersion
from claude_invoker.model import RunResult, RunView
from claude_invoker.replicas import record
from claude_invoker.replicas.record import RunRecord, decode, encode, lost, pack, past, unpack
from claude_invoker.runs.events import Event

RUNNING = RunRecord("run_1", "alice", "a:1:x", "running", 5.0)
RESULT = RunResult(id="run_1", result="yes ü", model="m", stop_reason="end_turn", cost_usd=0.5)


def over(**more: object) -> RunRecord:
    view = RunView(id="run_1", state="succeeded", created_at=5.0, finished_at=6.0, result=RESULT)
    ended = {"state": "succeeded", "view": view.model_dump_json().encode(), "last_event": 7} | more
    return msgspec.structs.replace(RUNNING, **ended)


@given(st.lists(st.tuples(st.text(max_size=10), st.binary(max_size=50)), max_size=20), st.integers(1, 10**6))
def test_events_come_back(events: list[tuple[str, bytes]], first: int) -> None:
    known = [Event(first + n, name, data) for n, (name, data) in enumerate(events)]
    assert unpack(pack(known)) == known


def test_events_that_are_too_many_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(record, "MAX_EVENTS", 10)
        assert pack([Event(1, "x", b"y" * 100)]) == b""
    assert pack([Event(1, "x", b"y" * 100)])


def test_a_record_comes_back_and_another_releases_does_not() -> None:
    assert decode(encode(over())) == over()
    with pytest.raises(UnknownVersion, match="a newer release wrote it"):
        decode(encode(over(v=record.VERSION + 1)))


def test_an_ended_run_whose_events_were_too_many_ends_with_its_last_one() -> None:
    found = past(over())
    assert found.view().result == RESULT
    (last,) = found.events.since(0)
    assert (last.id, last.name, last.document["result"]) == (7, "run.finished", "yes ü")
    assert found.events.closed and found.events.since(7) == [] and found.is_over


def test_a_run_whose_replica_is_gone_ends_as_an_error() -> None:
    found = past(lost(RUNNING))
    view = found.view()
    assert (view.state, view.error and view.error["status"]) == ("failed", 503)
    (last,) = found.events.since(10**6)
    assert (last.name, last.document["run"]) == ("error", "run_1")
