"""A branch for what a run has changed: who may, what is pushed, and what never is. Against git's own http-backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from claude_contract.claims import UNCLAMPED, Repository
from claude_invoker.caller import Caller
from claude_invoker.cli import walk
from claude_invoker.cli.tree import Checkout, Tree
from claude_invoker.isolation.strength import Boundary, Strength
from claude_invoker.model import Check, InvokeRequest
from claude_invoker.plan import plan
from claude_invoker.problem import Problem
from claude_invoker.runs.remains import not_pushed
from claude_invoker.runs.run import Run
from claude_invoker.settings import Settings
from claude_invoker.workspace import content, git
from claude_invoker.workspace import push as module
from claude_invoker.workspace.push import NotPushed, push, refuse_taken
from claude_invoker.workspace.repository import Push, Repositories, Source, Wanted, load
from tests.support.git_server import git as served
from tests.workspace.conftest import TOKEN, USER, Place
from tests.workspace.test_difference import CONFINED, compared

POLICY = Push("claude/*", "Claude <claude@example.com>")
MESSAGE = "Mend it\n\nRun: run_1\nCo-authored-by: ada <ada@example.com>\n"


def wanted(place: Place, name: str, **more: Any) -> Wanted:
    found = place.wanted(name, push=POLICY, **more)
    return Wanted(found.name, found.ref, found.source, True)


async def pushed(place: Place, name: str, found: Checkout, patch: Path, branch: str = "claude/1", **more: Any) -> str:
    room = place.folder / "stores" / ".pushing"
    walk.delete(room)
    asked = wanted(place, name, **more)
    return await push(asked, found, branch, patch, MESSAGE, room, USER, content.Bounds(entries=20, file_size=100_000))


async def changed(place: Place, name: str) -> tuple[Checkout, Path]:
    """A checkout of a repository of two commits, and the patch of a run that has changed all that can be."""
    place.server.create(name)
    place.server.commit(name, {"a": "zero\n"})
    place.server.commit(name, {"a": "one\n", "gone": "x\n", "run": "y\n"})
    found = await place.ready(name)
    tree = Tree(place.folder / "tree")
    tree.create(None)
    await CONFINED.check_out(tree, None, found)
    (tree.work / "a").write_text("two\n")
    (tree.work / "gone").unlink()
    (tree.work / "run").chmod(0o755)
    (tree.work / "b c\u00e9").write_bytes(b"\0\1")
    (tree.work / "link").symlink_to("a")
    told = await compared(place, tree, found)
    assert told.patch is not None
    return found, place.folder / "artifacts" / told.patch.path


def at(place: Place, name: str, *arguments: str) -> str:
    return served(place.server.root / f"{name}.git", *arguments)


async def test_a_branch_has_one_commit_on_the_one_that_was_worked_on(place: Place) -> None:
    found, patch = await changed(place, "org/pushed")
    commit = await pushed(place, "org/pushed", found, patch)
    assert at(place, "org/pushed", "rev-parse", "claude/1", "claude/1^").split() == [commit, found.commit]
    assert at(place, "org/pushed", "log", "-1", "--format=%an <%ae>|%cn <%ce>", commit) == (
        "Claude <claude@example.com>|Claude <claude@example.com>"
    )
    said = at(place, "org/pushed", "log", "-1", "--format=%B%(trailers:key=Co-authored-by)", commit)
    assert said.startswith("Mend it\n\nRun: run_1\n") and said.count("Co-authored-by: ada <ada@example.com>") == 2
    assert at(place, "org/pushed", "rev-list", "--count", commit) == "3", "the server has all its history"
    expected = {"M\ta", "A\tb c\u00e9", "D\tgone", "A\tlink", "M\trun"}
    shown = at(
        place,
        "org/pushed",
        "-c",
        "core.quotePath=false",
        "diff",
        "--no-renames",
        "--name-status",
        "claude/1^",
        "claude/1",
    )
    assert set(shown.splitlines()) == expected
    assert at(place, "org/pushed", "ls-tree", "claude/1", "run").startswith("100755")
    at(place, "org/pushed", "fsck", "--strict")


async def test_a_branch_that_is_there_stays_as_it_is(place: Place) -> None:
    """Whether it was seen in time or not; also one that the commit could be added to without force."""
    found, patch = await changed(place, "org/taken")
    at(place, "org/taken", "branch", "claude/1", found.commit)
    theirs = at(place, "org/taken", "commit-tree", "-m", "x", f"{found.commit}^{{tree}}")
    at(place, "org/taken", "update-ref", "refs/heads/claude/2", theirs)
    for branch, before in (("claude/1", found.commit), ("claude/2", theirs)):
        with pytest.raises(NotPushed, match="has a branch"):
            await pushed(place, "org/taken", found, patch, branch)
        assert at(place, "org/taken", "rev-parse", branch) == before
    mirror = place.mirror("org/taken")
    await mirror.find(place.wanted("org/taken"))
    with pytest.raises(Problem) as refused:
        await refuse_taken(mirror, wanted(place, "org/taken"), "claude/1")
    assert refused.value.status == 409 and "claude/1" in refused.value.detail
    for branch in ("main", "Main"):
        with pytest.raises(Problem) as refused:
            await refuse_taken(mirror, wanted(place, "org/taken"), branch)
        assert refused.value.status == 403 and "default branch" in refused.value.detail
    await refuse_taken(mirror, wanted(place, "org/taken"), "claude/3")
    await pushed(place, "org/taken", found, patch, "claude/3")  # the control


async def test_without_the_lease_a_branch_would_have_moved(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test before this one."""
    found, patch = await changed(place, "org/moved")
    at(place, "org/moved", "branch", "claude/1", found.commit)
    run = git.run

    async def unleased(arguments: list[str], **more: Any) -> Any:
        return await run([word for word in arguments if "--force-with-lease" not in word], **more)

    with monkeypatch.context() as without:
        without.setattr(git, "run", unleased)
        commit = await pushed(place, "org/moved", found, patch)
    assert at(place, "org/moved", "rev-parse", "claude/1") == commit != found.commit


OURS = [("link", "120000", "/etc/passwd"), ("readme", "100644", "x"), ("large", "100644", "x" * 100_001)]
PATCH = "diff --git a/{path} b/{path}\nnew file mode {mode}\n--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+{line}\n"


@pytest.mark.parametrize(
    ("path", "mode", "line"),
    [
        # What git does not apply, whatever we look at.
        (".git/hooks/post-checkout", "100755", "x"),
        ("sub/.GIT/config", "100644", "x"),
        ("git~1/config", "100644", "x"),
        ("../outside", "100644", "x"),
        ("/tmp/outside", "100644", "x"),
        (".gitmodules", "120000", "elsewhere"),
        *OURS,
    ],
)
async def test_a_patch_brings_nothing_that_a_repository_may_not_hold(
    place: Place, path: str, mode: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"org/h{(path + mode).encode().hex()}"
    place.server.create(name)
    place.server.commit(name, {"README": "x\n"})
    found = await place.ready(name)
    patch = place.folder / "patch"
    patch.write_text(PATCH.format(path=path, mode=mode, line=line))
    with pytest.raises(NotPushed):
        await pushed(place, name, found, patch)
    assert at(place, name, "for-each-ref", "--format=%(refname)") == "refs/heads/main"
    patch.write_text(PATCH.format(path="fine", mode="100644", line="x"))
    await pushed(place, name, found, patch)  # the control
    if (path, mode, line) in OURS:
        patch.write_text(PATCH.format(path=path, mode=mode, line=line))
        with monkeypatch.context() as without:
            without.setattr(module, "checked", unchecked)
            await pushed(place, name, found, patch, "claude/2")  # with the defence switched off


async def unchecked(*given: Any) -> bytes:
    return b""


async def test_a_patch_that_names_programs_runs_none(place: Place) -> None:
    """Attributes, hooks and configuration that come with the patch or the repository decide nothing."""
    place.server.create("org/quiet")
    mark = place.folder / "mark"
    place.server.commit("org/quiet", {".gitattributes": "* filter=evil text eol=crlf\n", "a": "x\n"})
    found = await place.ready("org/quiet")
    patch = place.folder / "patch"
    patch.write_text(PATCH.format(path="evil", mode="100755", line=f"#!/bin/sh touch {mark}"))
    await pushed(place, "org/quiet", found, patch)
    assert not mark.exists()
    assert at(place, "org/quiet", "cat-file", "blob", "claude/1:evil") == f"#!/bin/sh touch {mark}"


async def test_the_credential_is_only_in_what_the_server_hears(place: Place) -> None:
    found, patch = await changed(place, "org/secret")
    place.server.authorizations.clear()
    await pushed(place, "org/secret", found, patch)
    room = place.folder / "stores" / ".pushing"
    assert place.server.authorizations
    holding = [path for path in room.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert holding == []
    with pytest.raises(NotPushed, match="log says why"):
        await pushed(place, "org/secret", found, patch, "claude/2", token_file=None)
    place.server.down = True
    with pytest.raises(NotPushed, match="log says why"):
        await pushed(place, "org/secret", found, patch, "claude/2")


# Who may


def known(push: Push | None = POLICY) -> Repositories:
    return Repositories({"org/*": Source(url="https://h/{repository}", push=push)})


def decided(repository: Repository | None, result: Any, push: Push | None = POLICY) -> Any:
    request = InvokeRequest.model_validate({"prompt": "hi", "tools": [], "result": result})
    found = None if repository is None else known(push).find(repository)
    return plan(request, UNCLAMPED, Settings(trust="open"), Boundary(Strength.USER), found).push


@pytest.mark.parametrize(
    ("repository", "policy", "branch", "status", "said"),
    [
        (None, POLICY, "claude/1", 422, "no repository"),
        (Repository("org/app", None), POLICY, "claude/1", 403, "push_claim"),
        (Repository("org/app", None, True), None, "claude/1", 403, "INVOKER_REPOSITORIES"),
        (Repository("org/app", None, True), POLICY, "main", 403, "allowed: claude/*"),
        (Repository("org/app", None, True), POLICY, "claude/a/b", 403, "allowed: claude/*"),
        (Repository("org/app", None, True), POLICY, "claude/..", 422, "no name of a branch"),
        (Repository("org/app", None, True), POLICY, "claude/a:refs/heads/main", 422, "no name of a branch"),
        (Repository("org/app", None, True), POLICY, "+claude/a", 403, "allowed"),
        (Repository("org/app", None, True), POLICY, "-f", 422, "no name of a branch"),
        (Repository("org/app", None, True), Push("**", "A <a@b>"), "HEAD", 422, "no name of a branch"),
    ],
)
def test_what_may_not_be_pushed_is_refused_before_it_costs(
    repository: Repository | None, policy: Push | None, branch: str, status: int, said: str
) -> None:
    with pytest.raises(Problem) as refused:
        decided(repository, {"push": branch}, policy)
    assert (refused.value.status, said in refused.value.detail) == (status, True), refused.value.detail
    fine = decided(Repository("org/app", None, True), {"push": "claude/{run}", "message": "Mend it"})
    assert fine.branch == "claude/{run}" and fine.message == "Mend it", "the control"


@pytest.mark.parametrize(
    ("check", "patch", "said"),
    [
        (None, True, None),
        (True, True, None),
        (True, False, "nothing has changed"),
        (False, True, "its check has failed"),
        ("not run", True, "it was interrupted before its check"),
    ],
)
def test_what_was_to_be_checked_is_pushed_when_its_check_has_passed(check: Any, patch: bool, said: str | None) -> None:
    """An interrupted run has an answer, and no check: its work would have been pushed as if it had passed."""
    request = InvokeRequest.model_validate(
        {"prompt": "x", "tools": ["Bash"], "check": None if check is None else "true"}
    )
    run = Run(
        "run_0", "alice", plan(request, UNCLAMPED, Settings(trust="open"), Boundary(Strength.NAMESPACES)), Path(), 1
    )
    run.patch = Path("patch") if patch else None
    if isinstance(check, bool):
        run.check = Check(command="true", passed=check, output="", duration_ms=1, repairs=0)
    assert not_pushed(run) == said


@pytest.mark.parametrize("message", ["", "two\nlines", "a\u0000b", "x" * 201])
def test_a_message_is_one_line(message: str) -> None:
    with pytest.raises(ValueError, match="message"):
        InvokeRequest.model_validate({"prompt": "x", "result": {"push": "a", "message": message}})


@pytest.mark.parametrize(
    "wish", [{}, {"archive": False}, {"archive": True, "message": "x"}, {"push": None}, {"pull": "x"}]
)
def test_a_wish_that_says_nothing_is_refused(wish: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="result"):
        InvokeRequest.model_validate({"prompt": "x", "result": wish})


def test_nobody_poses_as_another_author() -> None:
    assert Caller("ada", email="ada@example.com").as_author == "ada <ada@example.com>"
    posing = Caller("ada <x>\nCo-authored-by: eve", email="a@b>\n\nx <").as_author
    assert posing == "ada xCo-authored-by: eve <a@bx >"


@pytest.mark.parametrize(
    ("push", "said"),
    [
        ("{branches: x}", "author"),
        ("{branches: x, author: Claude}", "push: author must be"),
        ('{branches: x, author: "A <a@b>\\nx <c@d>"}', "push: author must be"),
        ("{branches: '', author: A <a@b>}", "push: branches must be"),
        ("{branches: x, author: A <a@b>, force: true}", "unknown field"),
    ],
)
def test_what_is_wrong_in_the_policy_is_named(tmp_path: Path, push: str, said: str) -> None:
    file = tmp_path / "repositories.yaml"
    file.write_text(f"org/*:\n  url: https://h/{{repository}}\n  push: {push}")
    with pytest.raises(ValueError) as refused:
        load(file)
    assert f"{file}:3: " in str(refused.value) and said in str(refused.value), refused.value
    file.write_text("org/*:\n  url: https://h/{repository}\n  push: {branches: 'claude/*', author: Claude <c@h>}")
    assert load(file).find(Repository("org/a", None, True)).source.push == Push("claude/*", "Claude <c@h>")
