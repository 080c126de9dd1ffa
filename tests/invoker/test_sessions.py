"""Conversations over several runs."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from claude_invoker.cli.tree import Discarded, Tree
from claude_invoker.problem import Problem
from claude_invoker.runs.sessions import Sessions, record_name
from tests.invoker.conftest import Invoker, StandInProcess, tool


def test_a_session_goes_on(api: httpx.Client, stand_in: StandInProcess) -> None:
    body = {"prompt": "my number is 4711 " + tool("Write", file_path="n.txt", content="4711"), "system": "First."}
    first = api.post("/invoke", json=body | {"session": "new"}).json()
    assert first["session"]
    second = api.post(
        "/invoke",
        json={
            "prompt": "which-number " + tool("Read", file_path="n.txt"),
            "session": first["session"],
            "system": "Second.",
        },
    )
    assert second.status_code == 200, second.text
    assert second.json()["session"] == first["session"]
    assert "4711" in second.json()["result"], "the session's files stay"
    assert second.json()["artifacts"] == [], "a file of an earlier run is not an artifact of this one"
    reached = next(line for line in reversed(stand_in.lines()) if "which-number" in json.dumps(line["messages"]))
    assert "my number is 4711" in json.dumps(reached["messages"])
    assert [block["text"] for block in reached["system"]][-1] == "Second."


def test_one_run_at_a_time(api: httpx.Client, invoker: Invoker) -> None:
    session = api.post("/invoke", json={"prompt": "x", "session": "new"}).json()["session"]
    statuses: list[int] = []

    def ask(client: httpx.Client) -> None:
        statuses.append(
            client.post("/invoke", json={"prompt": "[[delay 200]] [[say a b c d e f]]", "session": session}).status_code
        )

    with invoker.client() as other:
        threads = [threading.Thread(target=ask, args=(client,)) for client in (api, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(statuses) == [200, 409]


def test_sessions_that_are_not_there(api: httpx.Client) -> None:
    answer = api.post("/invoke", json={"prompt": "x", "session": "00000000-0000-0000-0000-000000000000"})
    assert answer.status_code == 404


def test_a_session_expires(start_invoker: Callable[..., Invoker]) -> None:
    invoker = start_invoker(session_ttl_s=0.5, pool_size=0)
    with invoker.client() as api:
        session = api.post("/invoke", json={"prompt": "x", "session": "new"}).json()["session"]
        time.sleep(0.6)
        assert api.post("/invoke", json={"prompt": "x", "session": session}).status_code == 404


def stored(folder: Path, ttl_s: float = 60) -> Sessions:
    for name in ("trees", "records", "discarded"):
        (folder / name).mkdir(exist_ok=True)
    return Sessions(folder / "trees", folder / "records", Discarded(folder / "discarded"), ttl_s)


def test_only_the_owner_finds_it(tmp_path: Path) -> None:
    sessions = stored(tmp_path)
    with sessions.hold("alice", "new") as session:
        with pytest.raises(Problem) as busy, sessions.hold("alice", session.id):
            pass
        assert busy.value.status == 409
    with sessions.hold("alice", session.id) as again:
        assert again == session
    with pytest.raises(Problem) as foreign, sessions.hold("bob", session.id):
        pass
    assert foreign.value.status == 404
    assert sessions.expire() == 0
    assert stored(tmp_path, 0).expire() == 1
    assert not session.tree.root.exists()
    assert not list((tmp_path / "records").iterdir())


def test_nothing_that_a_run_sees_is_made_of_the_sessions_id(tmp_path: Path) -> None:
    with stored(tmp_path).hold("alice", "new") as session:
        assert session.id not in str(session.tree.root)
        assert "alice" not in str(session.tree.root)
        assert not session.begun


@given(st.tuples(st.text(), st.text()), st.tuples(st.text(), st.text()))
@example(("u", "k:z"), ("u:k", "z"))
@example(("1:a", ""), ("1:", "a"))
def test_no_two_sessions_share_a_record(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (record_name(*one) == record_name(*other)) == (one == other)


def test_a_tree_without_a_session_is_deleted(tmp_path: Path) -> None:
    sessions = stored(tmp_path)
    left = tmp_path / "trees" / "left"
    (left / "work").mkdir(parents=True)
    with sessions.hold("alice", "new") as session:
        pass
    assert sessions.expire() == 0
    assert left.exists(), "it may be a session that is just being made"
    for tree in (left, session.tree.root):
        os.utime(tree, (0, 0))
    assert sessions.expire() == 0
    assert not left.exists()
    assert session.tree.root.exists()


def test_one_record_that_cannot_be_read_keeps_no_other(tmp_path: Path) -> None:
    sessions = stored(tmp_path)
    (tmp_path / "records" / "half").write_text('{"v": 1, "tr')
    (tmp_path / "records" / "folder").mkdir()
    with sessions.hold("alice", "new") as session:
        pass
    assert stored(tmp_path, 0).expire() == 2
    assert not session.tree.root.exists()


def test_a_record_that_cannot_be_opened_may_have_any_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where descriptors have run out, as a run can bring about, no session loses its directory."""
    sessions = stored(tmp_path)
    with sessions.hold("alice", "new") as session:
        (session.tree.root / "note").write_text("x")
    os.utime(session.tree.root, (1, 1))
    opened = Path.open

    def none_left(path: Path, *arguments: Any, **named: Any) -> Any:
        if path.parent == tmp_path / "records":
            raise OSError(24, "Too many open files")
        return opened(path, *arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", none_left)
        sessions.expire()
    with sessions.hold("alice", session.id) as again:
        assert (again.tree.root / "note").read_text() == "x"


def digest(subject: str) -> str:
    """How release 0.1.0 named the directory of a subject's sessions."""
    return hashlib.sha256(subject.encode()).hexdigest()[:32]


def as_0_1_0_kept_it(invoker: Invoker, session: str, subject: str) -> Path:
    """Turns the only session there is into one of release 0.1.0: no record, a tree of its old name, which belongs to
    the user of its last run, and the CLI's transcript as `--session-id` in that directory would have made it."""
    (record,) = (invoker.state / "sessions").iterdir()
    record.unlink()
    (tree,) = (invoker.state / "trees" / "sessions").iterdir()
    old = tree.parent / digest(subject) / session
    old.parent.mkdir(mode=0o711)
    tree.rename(old)
    (project,) = (old / "config" / "projects").iterdir()
    (transcript,) = project.iterdir()
    transcript.rename(project / f"{session}.jsonl")
    project.rename(project.with_name("".join(c if c.isalnum() else "-" for c in str(old / "work"))))
    if os.geteuid() == 0:
        Tree(old).create(invoker.uids[7])
    return old


def test_a_session_of_release_0_1_0_goes_on(start_invoker: Callable[..., Invoker], stand_in: StandInProcess) -> None:
    before = start_invoker(pool_size=0)
    with before.client() as api:
        prompt = "my number is 4711 " + tool("Write", file_path="n.txt", content="4711")
        session = api.post("/invoke", json={"prompt": prompt, "session": "new"}).json()["session"]
    before.stop()
    tree = as_0_1_0_kept_it(before, session, "developer")
    after = start_invoker(pool_size=0, after=before)
    assert tree.stat().st_uid == os.geteuid(), "it belongs to no run while none of it lasts"
    with after.client() as api:
        for turn in ("second-turn", "third-turn"):
            prompt = f"{turn} " + tool("Read", file_path="n.txt")
            answer = api.post("/invoke", json={"prompt": prompt, "session": session})
            assert answer.status_code == 200, answer.text
            assert "4711" in answer.json()["result"]
    reached = next(line for line in reversed(stand_in.lines()) if "third-turn" in json.dumps(line["messages"]))
    assert "my number is 4711" in json.dumps(reached["messages"])
    assert "second-turn" in json.dumps(reached["messages"])


def test_a_session_of_release_0_1_0_is_its_owners_until_it_expires(tmp_path: Path) -> None:
    sessions = stored(tmp_path)
    name = "11111111-2222-4333-8444-555555555555"
    tree, other = (tmp_path / "trees" / digest(subject) / name for subject in ("alice", "carol"))
    for each in (tree, other):
        (each / "work").mkdir(parents=True)
    assert sessions.expire() == 0
    for subject, wish in (("bob", name), ("alice", f"../{digest('alice')}/{name}"), ("alice", name.replace("1", "2"))):
        with pytest.raises(Problem) as foreign, sessions.hold(subject, wish):
            pass
        assert foreign.value.status == 404
    with sessions.hold("alice", name) as session:
        assert session.tree.root == tree
        with pytest.raises(Problem) as busy, sessions.hold("alice", name):
            pass
        assert busy.value.status == 409
    for each in (tree, other):
        os.utime(each, (0, 0))
    assert sessions.expire() == 0
    assert tree.exists(), "it has been used since"
    assert not other.parent.exists()
    with pytest.raises(Problem) as expired, sessions.hold("carol", name):
        pass
    assert expired.value.status == 404
    assert stored(tmp_path, 0).expire() == 1
    assert not tree.exists()


def test_a_session_of_a_newer_release_is_refused_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Sessions outlive a rollback: this release can tell neither whether it lives nor which tree it has."""
    sessions = stored(tmp_path)
    with sessions.hold("alice", "new") as session:
        pass
    (record,) = (tmp_path / "records").iterdir()
    record.write_text(json.dumps({"v": 3, "place": "elsewhere"}))
    for path in (record, session.tree.root):
        os.utime(path, (0, 0))
    with pytest.raises(Problem) as refused, sessions.hold("alice", session.id):
        pass
    assert (refused.value.status, refused.value.kind) == (503, "other-release")
    assert refused.value.detail == (
        "the session is of version 3, read are 0 and 1: a newer release wrote it, upgrade this one"
    )
    with sessions.hold("bob", "new"):
        pass
    sessions.recover()
    assert sessions.expire() == 0
    assert record.exists()
    assert session.tree.root.exists()
    assert "version 3" in caplog.text
