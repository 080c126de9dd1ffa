"""Submodules of repositories that runs work on: those come along that the operator lets, by the operator's address."""

from __future__ import annotations

import pytest

from tests.invoker.test_repository_sessions import turn
from tests.invoker.test_workspace import Desk
from tests.invoker.test_workspace import desk as desk
from tests.support.git_server import Gitlink, git

pytestmark = pytest.mark.xdist_group("workspace")
SAID = '[submodule "{0}"]\n\tpath = {0}\n\turl = {1}\n'


def served(desk: Desk, number: int) -> tuple[str, str, str]:
    """A repository with three submodules: one that may come along, one of another name, one of another server."""
    name, part, other = f"org/takes-{number}", f"org/part-{number}", f"org/secret-{number}"
    for each in (name, part, other):
        desk.server.create(each)
    here = desk.server.commit(part, {"p.txt": "of the part\n"})
    there = desk.server.commit(other, {"s.txt": "not for this\n"})
    files: dict[str, str | bytes | Gitlink | None] = {
        ".gitmodules": SAID.format("lib", f"../part-{number}.git")
        + SAID.format("deep/secret", f"{desk.server.url}/{other}.git")
        + SAID.format("elsewhere", "http://127.0.0.1:1/org/part.git"),
        "lib": Gitlink(here),
        "deep/secret": Gitlink(there),
        "elsewhere": Gitlink("d" * 40),
        "a.txt": "one\n",
    }
    desk.server.commit(name, files)
    return name, here, there


def test_a_submodule_comes_along_where_the_operator_lets_it(desk: Desk) -> None:
    name, here, _ = served(desk, 1)
    asked = len(desk.server.requests)
    command = (
        "cat lib/p.txt; find deep elsewhere -type f; git -C lib rev-parse HEAD; git status --short; "
        "git -C lib remote -v; echo two >> a.txt; echo edited >> lib/p.txt"
    )
    answer = desk.bash(name, "main", command)
    said = desk.said(answer)
    assert "of the part" in said and here in said and "s.txt" not in said and "http" not in said
    assert [change["path"] for change in answer.json()["changes"]] == ["a.txt"]
    assert {artifact["path"] for artifact in answer.json()["artifacts"]} == {"changes.patch", "a.txt", "lib/p.txt"}
    paths = {path.split("/")[2] for _, path in desk.server.requests[asked:]}
    assert paths == {"takes-1.git", "part-1.git"}, "nobody has asked for the others"


def test_a_submodule_is_at_a_commit_that_may_be_worked_on(desk: Desk) -> None:
    name, _, _ = served(desk, 2)
    hidden = desk.server.commit("org/part-2", {"p.txt": "of a branch that nobody may see\n"}, branch="private")
    for commit in (hidden, "e" * 40):
        desk.server.commit(name, {"lib": Gitlink(commit)})
        answer = desk.bash(name, "main", "cat lib/p.txt")
        assert answer.status_code == 422 and "submodule org/part-2" in answer.json()["detail"], answer.text


def test_a_session_has_its_submodules_in_each_turn(desk: Desk) -> None:
    name, here, _ = served(desk, 3)
    hostile = "echo edited >> lib/p.txt; git -C lib config core.fsmonitor 'touch ran'"
    session = turn(desk, "new", hostile, name).json()["session"]
    again = turn(desk, session, "cat lib/p.txt; git -C lib status --short; git -C lib config -l; ls lib", name)
    said = desk.said(again)
    assert "edited" in said and " M p.txt" in said and "fsmonitor=touch" not in said and "ran" not in said.split()
    desk.server.commit(name, {"new.txt": "of the branch\n"})
    rebased = turn(desk, session, "cat new.txt lib/p.txt; git -C lib rev-parse HEAD", name, rebase=True)
    said = desk.said(rebased)
    assert "of the branch" in said and "edited" in said and here in said
    moved = desk.server.commit("org/part-3", {"p.txt": "newer\n"})
    desk.server.commit(name, {"lib": Gitlink(moved)})
    refused = turn(desk, session, "true", name, rebase=True)
    assert refused.status_code == 409 and "lib" in refused.json()["detail"]
    led = turn(desk, session, "rm -rf lib; ln -s /tmp lib", name)
    assert led.status_code == 200
    assert turn(desk, session, "readlink lib", name).status_code == 200, "what is a link by now is left alone"
    git(desk.server.root / "org/part-3.git", "fsck")
    assert here != moved
