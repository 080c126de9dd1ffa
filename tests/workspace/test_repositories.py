"""From a name to a commit that is here: mirrors and stores, against git's own http-backend."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import subprocess
from pathlib import Path

import pytest

from claude_contract.claims import Repository
from claude_invoker.problem import Problem
from claude_invoker.workspace import content, git
from claude_invoker.workspace.content import Unacceptable
from claude_invoker.workspace.git import Bounds, GitFailed
from claude_invoker.workspace.repository import Repositories, Source, load
from tests.support.git_server import git as served
from tests.support.git_server import serving
from tests.workspace.conftest import TOKEN, USER, Place

# The file


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", ":1: must map patterns"),
        ("- a", ":1: must map patterns"),
        ("a: [", ":1: "),
        ("org/*: {}", ":1: org/*: Object missing required field `url`"),
        ("org/*:\n  url: https://h/{repository}\n  depth: -1", ":3: org/*.depth: Expected `int` >= 0"),
        ("org/*:\n  url: https://h/{repository}\n  colour: x", ":3: org/*.colour: Object contains unknown field"),
        ("org/*:\n  url: https://h/x\n  token_file: 3", ":3: org/*.token_file: "),
        ("org/*:\n  url: ext::sh -c x", ":2: org/*.url: must be https"),
        ("org/*:\n  url: file:///etc", ":2: org/*.url: must be https"),
        ("org/*:\n  url: http://example.com/x", ":2: org/*.url: http is for servers on this machine"),
        ("org/*:\n  url: https://me:secret@h/x", ":2: org/*.url: must hold no credentials"),
        ("org/*:\n  url: https://h/x", ":2: org/*.url: must have {repository} in its path"),
        ("org/x:\n  url: https://{repository}.h/x", ":2: org/x.url: may have {repository} in its path only"),
        ("'a b':\n  url: https://h/x", ":1: 'a b' is no pattern"),
    ],
)
def test_what_is_wrong_in_the_file_is_named_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "repositories.yaml"
    file.write_text(text)
    with pytest.raises(ValueError) as refused:
        load(file)
    assert f"{file}{problem}" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_the_first_pattern_that_fits_counts(tmp_path: Path) -> None:
    file = tmp_path / "repositories.yaml"
    file.write_text("org/app: {url: 'https://a/{repository}', depth: 3}\norg/*: {url: 'https://b/{repository}.git'}")
    known = load(file)
    assert known.find(Repository("org/app")).url == "https://a/org/app"
    assert known.find(Repository("org/other", "x")).url == "https://b/org/other.git"


@pytest.mark.parametrize(
    ("name", "ref", "status"),
    [
        ("other/app", "main", 404),
        ("../app", "main", 404),
        ("org/..", "main", 404),
        ("org/app/x", "main", 404),
        ("org/-x", "main", 404),
        ("org/a b", "main", 404),
        ("org/app?x", "main", 404),
        ("org/app", "private", 403),
        ("org/app", "release/1/2", 403),
        ("org/app", "../main", 422),
        ("org/app", "-x", 422),
        ("org/app", "m ain", 422),
        ("org/app", "main^{tree}", 422),
        ("org/app", "main.lock", 422),
        ("org/app", "r" * 300, 422),
    ],
)
def test_names_that_are_not_worked_on(name: str, ref: str, status: int) -> None:
    known = Repositories({"org/*": Source(url="https://h/{repository}", refs=("main", "release/*"))})
    assert known.find(Repository("org/app", "release/1")).url == "https://h/org/app"
    with pytest.raises(Problem) as refused:
        known.find(Repository(name, ref))
    assert refused.value.status == status


# The mirror


async def test_branches_tags_and_commits_are_found_and_nothing_that_is_hidden(place: Place) -> None:
    place.server.create("org/refs")
    first = place.server.commit("org/refs", {"a": "1"})
    served(place.server.root / "org/refs.git", "tag", "v1", first)
    second = place.server.commit("org/refs", {"a": "2"})
    hidden = place.server.commit("org/refs", {"a": "3"}, branch="private")
    for ref, commit, branch in (
        (None, second, "refs/heads/main"),
        ("main", second, "refs/heads/main"),
        ("v1", first, "refs/tags/v1"),
        (first, first, ""),
    ):
        wanted = place.wanted("org/refs", ref, refs=("main", "v*"))
        assert await place.mirror("org/refs").find(wanted) == (branch, commit)
    for ref, status in ((hidden, 403), ("0" * 40, 404), ("v2", 404)):
        with pytest.raises(Problem) as refused:
            await place.mirror("org/refs").find(place.wanted("org/refs", ref, refs=("main", "v*")))
        assert refused.value.status == status, ref
    assert await place.mirror("org/refs").find(place.wanted("org/refs", hidden)) == ("", hidden), "the control"
    if USER is not None:
        assert place.mirror("org/refs").path.stat().st_uid == USER
    assert place.mirror("org/refs").path.stat().st_mode & 0o077 == 0


async def test_fifty_at_once_share_one_fetch_and_none_follows_while_it_is_fresh(place: Place) -> None:
    place.server.create("org/busy")
    commit = place.server.commit("org/busy", {"a": "x"})
    wanted = place.wanted("org/busy", refresh_s=600)
    found = await asyncio.gather(*(place.mirror("org/busy").find(wanted) for _ in range(50)))
    assert {one for _, one in found} == {commit}
    assert place.mirror("org/busy").fetches == 1
    place.server.commit("org/busy", {"a": "y"})
    assert (await place.mirror("org/busy").find(wanted))[1] == commit
    newer = place.server.commit("org/busy", {"a": "z"}, branch="new")
    assert (await place.mirror("org/busy").find(place.wanted("org/busy", "new", refresh_s=600)))[1] == newer
    assert place.mirror("org/busy").fetches == 2, "a branch that is not known is asked for"


async def test_a_server_that_does_not_answer(place: Place) -> None:
    place.server.create("org/kept")
    commit = place.server.commit("org/kept", {"a": "x"})
    await place.mirror("org/kept").find(place.wanted("org/kept"))
    place.server.down = True
    for ref, stale, name in (("main", False, "kept"), ("other", True, "kept"), ("main", True, "never")):
        with pytest.raises(Problem) as refused:
            await place.mirror(f"org/{name}").find(place.wanted(f"org/{name}", ref, stale=stale))
        assert refused.value.status == 503 and f"org/{name}" in refused.value.detail
    assert (await place.mirror("org/kept").find(place.wanted("org/kept", stale=True)))[1] == commit
    assert not place.mirror("org/never").path.exists()


async def test_what_the_server_has_not(place: Place) -> None:
    place.server.create("org/empty")
    for name, ref in (("org/empty", None), ("org/empty", "main"), ("org/missing", "main")):
        with pytest.raises(Problem) as refused:
            await place.mirror(name).find(place.wanted(name, ref))
        assert refused.value.status == 404


async def test_the_credential_is_said_to_its_server_and_to_no_other(place: Place, tmp_path: Path) -> None:
    place.server.create("org/private")
    place.server.commit("org/private", {"a": "x"})
    with pytest.raises(Problem):
        await place.mirror("org/private").find(place.wanted("org/private", token_file=None))
    await place.mirror("org/private").find(place.wanted("org/private"))  # the control
    encoded = base64.b64encode(f"x-access-token:{TOKEN}".encode()).decode()
    assert any(encoded in given for given in place.server.authorizations)
    for needle in (TOKEN, encoded):
        found = subprocess.run(["grep", "-rl", needle, place.folder], capture_output=True, text=True).stdout
        assert found.splitlines() == ([str(place.token)] if needle == TOKEN else []), "the control is the token's file"
    with serving(tmp_path / "thief") as thief:
        place.server.redirect = thief.url
        with pytest.raises(Problem):
            await place.mirror("org/private").find(place.wanted("org/private"))
        assert not thief.requests and not thief.authorizations


async def test_what_a_transfer_brings_is_bounded_and_leaves_nothing(place: Place) -> None:
    place.server.create("org/large")
    place.server.commit("org/large", {"a": os.urandom(3 << 20)})
    with pytest.raises(Problem) as refused:
        await place.mirror("org/large").find(place.wanted("org/large", max_bytes=1 << 20))
    assert refused.value.status == 503
    assert not place.mirror("org/large").path.exists()
    await place.mirror("org/large").find(place.wanted("org/large"))  # the control


async def test_malformed_objects_do_not_come_in(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.server.create("org/forged")
    place.server.commit("org/forged", {".gitmodules": '[submodule "x"]\n\tpath = x\n\turl = -u./payload\n'})
    with pytest.raises(Problem) as refused:
        await place.mirror("org/forged").find(place.wanted("org/forged"))
    assert refused.value.status == 422
    with monkeypatch.context() as without:
        unchecked = git.CONFIGURATION | {"transfer.fsckObjects": "false", "fetch.fsckObjects": "false"}
        without.setattr(git, "CONFIGURATION", unchecked)
        await place.mirror("org/forged").find(place.wanted("org/forged"))  # the control


# The store


def cat(store: Path, blob: str) -> bool:
    command = ["git", "-c", "safe.directory=*", "cat-file", "-e", blob]
    return subprocess.run(command, cwd=store, capture_output=True).returncode == 0


async def test_a_store_holds_what_its_commit_reaches_and_nothing_else(place: Place) -> None:
    place.server.create("org/deep")
    place.server.commit("org/deep", {"old": "before\n"})
    place.server.commit("org/deep", {"old": None, "a": "now\n"})
    place.server.commit("org/deep", {"b": "elsewhere\n"}, branch="other")
    bare = place.server.root / "org/deep.git"
    here, before, elsewhere = (served(bare, "rev-parse", at) for at in ("main:a", "main~1:old", "other:b"))
    shallow, whole = await place.ready("org/deep", depth=1), await place.ready("org/deep", depth=0)
    assert [cat(shallow.store, blob) for blob in (here, before, elsewhere)] == [True, False, False]
    assert [cat(whole.store, blob) for blob in (here, before, elsewhere)] == [True, True, False]
    assert cat(place.mirror("org/deep").path, elsewhere), "the control: the mirror has it"
    assert shallow.store.stat().st_uid == os.geteuid()


HOSTILE: dict[str, tuple[dict[str, str | bytes | None], str]] = {
    "case": ({"README": "x", "readme": "y"}, "one name on some systems"),
    "directories": ({"A/b": "x", "a/c": "y"}, "one name on some systems"),
    "unicode": ({"\u00e9": "x", "e\u0301": "y"}, "one name on some systems"),
    "absolute": ({"a": "x:link:/etc/passwd"}, "leads out"),
    "out": ({"d/a": "x:link:../../b"}, "leads out"),
    "by-another": ({"x/y": "1", "a/b/d": "x:link:../../x", "e": "x:link:a/b/d/../../y"}, "leads out"),
    "large": ({"a": b"x" * 20_000}, "INVOKER_FILE_SIZE_LIMIT"),
    "many": ({f"f{n}": "x" for n in range(30)}, "INVOKER_TREE_ENTRIES_LIMIT"),
    "all": ({f"f{n}": b"%05d" % n * 1000 for n in range(9)}, "INVOKER_TREE_LIMIT"),
}


@pytest.mark.parametrize("what", HOSTILE)
async def test_a_commit_that_no_tree_may_hold_is_refused(
    place: Place, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, problem = HOSTILE[what]
    place.bounds = content.Bounds(entries=20, bytes=40_000, file_size=10_000)
    place.server.create(f"org/bad-{what}")
    commit = place.server.commit(f"org/bad-{what}", files)
    with pytest.raises(Problem) as refused:
        await place.ready(f"org/bad-{what}")
    assert refused.value.status == 422
    assert problem in refused.value.detail and commit in refused.value.detail
    assert not list((place.folder / "stores").iterdir()), "nothing is left behind"
    with monkeypatch.context() as without:
        without.setattr(content, "check", lambda listing, bounds: content.Listed(0, 0, {}, {}, modules_said=False))
        await place.ready(f"org/bad-{what}")  # the control


@pytest.mark.parametrize("name", [".git", ".GIT", "git~1", ".git.", ".git ", ".g\u200cit", ".git::$INDEX_ALLOCATION"])
def test_names_that_some_system_takes_for_git(name: str) -> None:
    listing = f"100644 blob {'0' * 40}       1\tsub/{name}/config\0".encode()
    with pytest.raises(Unacceptable):
        content.check(listing, content.Bounds())
    assert content.check(listing.replace(name.encode(), b".gitx"), content.Bounds()).links == {}  # the control


def test_links_within_the_tree_may_be() -> None:
    content.check_links({"a": "b", "b": "a", "c": "d/../e", "d/f": "../x"})
    with pytest.raises(Unacceptable):
        content.check_links({"a": "b/../..", "b": "c"})


# git itself


@pytest.mark.parametrize("defended", [True, False])
async def test_a_repository_makes_git_run_nothing(
    tmp_path: Path, defended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A git directory that a run has prepared: its hook, monitor and filter run, and with what we say they do not."""
    work, marks = tmp_path / "work", tmp_path / "marks"
    marks.mkdir()
    work.mkdir()
    served(work, "init", "--quiet")
    (work / "a").write_text("x")
    served(work, "add", "a")
    served(work, "commit", "--quiet", "-m", "x")

    def leaves(name: str) -> str:
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\ntouch {marks / name}\ncat\n")
        program.chmod(0o755)
        return str(program)

    served(work, "config", "core.fsmonitor", leaves("monitor"))
    (work / ".git" / "hooks" / "post-checkout").symlink_to(leaves("hook"))
    served(work, "config", "diff.external", leaves("external"))
    (work / "a").write_text("changed, not only touched")
    with monkeypatch.context() as without:
        if not defended:
            without.setattr(git, "CONFIGURATION", {})
        env = git.environment(GIT_DIR=str(work / ".git"), GIT_WORK_TREE=str(work))
        await git.run(["status"], cwd=work, uid=None, env=env)
        options = ["--no-ext-diff"] if defended else []
        await git.run(["diff", *options], cwd=work, uid=None, env=env)
        await git.run(["checkout", "--quiet", "-f", "HEAD", "--", "a"], cwd=work, uid=None, env=env)
        await git.run(["checkout", "--quiet", "-f", "HEAD"], cwd=work, uid=None, env=env)
    found = sorted(path.name for path in marks.iterdir())
    assert found == ([] if defended else ["external", "hook", "monitor"])


@pytest.mark.parametrize("protocol", ["ext", "file"])
@pytest.mark.parametrize("defended", [True, False])
async def test_git_speaks_no_protocol_but_that_of_the_url(
    place: Place, tmp_path: Path, protocol: str, defended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ext::` runs a command, and `file:` reads whatever git's user may."""
    name = f"org/spoken-{protocol}-{defended}"
    place.server.create(name)
    commit = place.server.commit(name, {"a": "x"})
    url = {"ext": f"ext::sh -c touch% {tmp_path}/ran", "file": f"file://{place.server.root}/{name}.git"}[protocol]
    served(tmp_path, "init", "--quiet", "--bare", "here")
    with monkeypatch.context() as without:
        if not defended:
            open_ = {
                name: "always" if name.startswith("protocol.") else value for name, value in git.CONFIGURATION.items()
            }
            without.setattr(git, "CONFIGURATION", open_ | {"safe.directory": "*"})
        with git.access(place.wanted(name).source, None) as access, contextlib.suppress(GitFailed):
            await access.ask(tmp_path / "here", None, Bounds(), "fetch", "--quiet", "--", url, commit)
    came = cat(tmp_path / "here", commit) or (tmp_path / "ran").exists()
    assert came == (not defended)
