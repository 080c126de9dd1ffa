"""Sessions on a repository: each keeps its files, can be brought to the new head, and sees no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.invoker.conftest import StandInProcess, tool
from tests.invoker.test_workspace import Desk
from tests.invoker.test_workspace import desk as desk
from tests.support.git_server import git

pytestmark = pytest.mark.xdist_group("workspace")


def turn(desk: Desk, session: str, command: str, repository: str | None = "org/talk", **more: Any) -> httpx.Response:
    ref = more.pop("ref", None)
    document = {"prompt": tool("Bash", command=command), "tools": ["Bash"], "session": session}
    return desk.post(repository, ref, document | more)


def served(desk: Desk, name: str) -> str:
    desk.server.create(name)
    return desk.server.commit(name, {"a.txt": "one\n" * 9, "b.txt": "b\n", ".gitignore": "*.log\n"})


def paths(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code == 200, answer.text
    return {change["path"]: change["status"] for change in answer.json()["changes"]}


def test_a_session_keeps_its_files_and_no_git_of_its_own(desk: Desk, stand_in: StandInProcess) -> None:
    commit = served(desk, "org/talk")
    hostile = """echo two >> a.txt
        echo x > out.log
        git -c user.name=x -c user.email=x@x commit -qam mine
        mkdir sub
        git init -q sub
        mkdir -p .git/hooks
        echo 'touch hooked' > .git/hooks/post-index-change
        chmod +x .git/hooks/*
        git config core.fsmonitor 'touch ran'
        rm hostile.sh"""
    sent = [{"path": "hostile.sh", "content": hostile}]
    first = turn(desk, "new", "sh hostile.sh; git log --format=%s; git config core.fsmonitor", files=sent)
    assert "mine" in desk.said(first) and "touch ran" in desk.said(first)
    assert paths(first) == {"a.txt": "modified"}
    session = first.json()["session"]
    desk.server.commit("org/talk", {"b.txt": "changed meanwhile\n"})
    second = turn(desk, session, "git status --short; git log --format=%H; cat out.log b.txt; echo new > c.txt")
    said = desk.said(second)
    assert " M a.txt" in said and commit in said and "changed meanwhile" not in said and "mine" not in said
    assert paths(second) == {"a.txt": "modified", "c.txt": "added"}, "of all turns since its commit"
    assert second.json()["repository"] == {"name": "org/talk", "ref": "main", "commit": commit}
    assert second.json()["session"] == session
    third = turn(desk, session, "ls -A . sub; git config -l", ref="main")
    said = desk.said(third)
    assert "ran" not in said.split() and "hooked" not in said and "fsmonitor" not in said


def test_two_sessions_of_one_repository_do_not_see_each_other(desk: Desk) -> None:
    served(desk, "org/two")
    one = turn(desk, "new", "echo secret-of-one > mine", "org/two")
    other = turn(desk, "new", "ls -A; cat mine ../../*/work/mine", "org/two")
    assert other.status_code == 200 and other.json()["session"] != one.json()["session"]
    assert "secret-of-one" not in desk.said(other).replace("cat mine", "")
    again = turn(desk, one.json()["session"], "cat mine", "org/two")
    assert "secret-of-one" in desk.said(again)  # the control


def test_a_session_belongs_to_its_repository(desk: Desk) -> None:
    for name in ("org/its", "org/another"):
        served(desk, name)
    session = turn(desk, "new", "true", "org/its").json()["session"]
    plain = desk.post(None, None, {"prompt": "hi", "session": "new"}).json()["session"]
    for repository, asked in (("org/another", session), (None, session), ("org/its", plain)):
        answer = turn(desk, asked, "cat a.txt", repository)
        assert answer.status_code == 404, answer.text
    desk.server.commit("org/its", {"x": "y"}, branch="release/1")
    wrong = turn(desk, session, "true", "org/its", ref="release/1")
    assert wrong.status_code == 422 and "works on main" in wrong.json()["detail"]
    assert turn(desk, session, "true", "org/its", ref="main").status_code == 200  # the control


def test_a_session_is_rebased_to_the_new_head(desk: Desk, tmp_path: Path) -> None:
    first = served(desk, "org/moves")
    session = turn(desk, "new", "sed -i 1s/one/ours/ a.txt; rm b.txt; echo n > n; echo x > x.log", "org/moves").json()
    head = desk.server.commit("org/moves", {"a.txt": "one\n" * 8 + "theirs\n", "added": "z\n"})
    stays = turn(desk, session["session"], "true", "org/moves")
    assert stays.json()["repository"]["commit"] == first
    moved = turn(
        desk,
        session["session"],
        "cat a.txt added x.log; git log --format=%H; git status --short",
        "org/moves",
        rebase=True,
    )
    said = desk.said(moved)
    assert moved.json()["repository"]["commit"] == head and head in said
    assert "ours" in said and "theirs" in said and "z" in said
    assert paths(moved) == {"a.txt": "modified", "b.txt": "deleted", "n": "added"}
    (patch,) = [each["path"] for each in moved.json()["artifacts"] if each["path"] == "changes.patch"]
    text = desk.get(f"/runs/{moved.json()['id']}/artifacts/{patch}").text
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(desk.server.root / "org/moves.git"), str(clone))
    git(clone, "apply", stdin=text.encode())
    assert (clone / "a.txt").read_text() == "ours\n" + "one\n" * 7 + "theirs\n"
    after = turn(desk, session["session"], "cat a.txt", "org/moves")
    assert after.json()["repository"]["commit"] == head and "theirs" in desk.said(after), "it stays there"


def test_what_cannot_be_rebased_stays_as_it_is(desk: Desk, stand_in: StandInProcess) -> None:
    first = served(desk, "org/stuck")
    session = turn(desk, "new", "sed -i 1s/one/ours/ a.txt; echo l > x.log", "org/stuck").json()["session"]
    desk.server.commit("org/stuck", {"a.txt": "theirs\n" + "one\n" * 8})
    spent = len(stand_in.lines())
    refused = turn(desk, session, "true", "org/stuck", rebase=True)
    assert refused.status_code == 409 and "a.txt" in refused.json()["detail"], refused.text
    assert len(stand_in.lines()) == spent, "it has cost nothing"
    after = turn(desk, session, "cat a.txt x.log; git status --short", "org/stuck")
    assert "ours" in desk.said(after) and after.json()["repository"]["commit"] == first
    desk.server.commit("org/stuck", {"a.txt": "one\n" * 9, "x.log": "theirs\n"})
    ignored = turn(desk, session, "true", "org/stuck", rebase=True)
    assert ignored.status_code == 409 and "overwritten" in ignored.json()["detail"], ignored.text


@pytest.mark.parametrize(
    ("repository", "document", "said"),
    [
        ("org/any", {"rebase": True}, "rebase is of a session that goes on"),
        ("org/any", {"rebase": True, "session": "new"}, "rebase is of a session that goes on"),
        (None, {"rebase": True, "session": "00000000-0000-4000-8000-000000000000"}, "on no repository"),
    ],
)
def test_what_cannot_be_asked_for(desk: Desk, repository: str | None, document: dict[str, Any], said: str) -> None:
    answer = desk.post(repository, None, {"prompt": "hi"} | document)
    assert answer.status_code == 422 and said in answer.json()["detail"]


def test_what_a_turn_has_put_in_the_place_of_its_record_leads_nowhere(desk: Desk) -> None:
    """Within the boundary its commands cannot write there; below it they can."""
    commit = served(desk, "org/forged")
    forged = "cd ../config/projects && rm -f checkout && ln -s /etc/passwd checkout; true"
    session = turn(desk, "new", forged, "org/forged").json()["session"]
    answer = turn(desk, session, "cat a.txt", "org/forged")
    assert answer.status_code == 200 and answer.json()["repository"]["commit"] == commit
