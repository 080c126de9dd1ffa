"""What hostile servers, repositories and runs do to mirrors, stores and differences, beside what is asked for first."""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from claude_contract.claims import Repository
from claude_invoker.cli import walk
from claude_invoker.cli.tree import Checkout, Tree
from claude_invoker.cli.walk import delete
from claude_invoker.problem import Problem
from claude_invoker.runs.forgetting import Forgetting
from claude_invoker.settings import Settings
from claude_invoker.workspace import content, difference, git, mirror
from claude_invoker.workspace.content import Unacceptable
from claude_invoker.workspace.mirror import Mirror, offered
from claude_invoker.workspace.repository import Repositories, Source
from claude_invoker.workspace.workspaces import Workspaces
from tests.support.git_server import git as served
from tests.support.waiting import HANG_S
from tests.workspace.conftest import USER, Place
from tests.workspace.test_difference import CONFINED, compared

# The server


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server of plain files, which knows nothing of git, and what it serves."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", tmp_path
    server.shutdown()
    server.server_close()
    thread.join(HANG_S)


async def test_a_server_of_plain_files_is_not_fetched_from(
    place: Place, files: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """git would take what it has object by object: unchecked, and each of them within the bound for all."""
    url, root = files
    made = place.server.create("org/plain")
    place.server.commit("org/plain", {".gitmodules": '[submodule "x"]\n\tpath = x\n\turl = -u./payload\n'})
    place.server.commit("org/plain", {"a": os.urandom(900_000), "b": os.urandom(900_000)})
    served(made, "update-server-info")
    (root / "plain.git").symlink_to(made)
    wanted = Repositories({"*": Source(url=url + "/{repository}.git", max_bytes=1 << 20)}).find(
        Repository("plain", "main")
    )
    with pytest.raises(Problem) as refused:
        await place.mirror("plain").find(wanted)
    assert refused.value.status == 503
    assert not place.mirror("plain").path.exists()
    with monkeypatch.context() as without:
        without.setattr(mirror, "_WHOLE", ())
        await place.mirror("plain").find(wanted)  # the control: malformed, and larger than what was allowed
        size = sum(path.stat().st_size for path in place.mirror("plain").path.glob("objects/*/*"))
        assert size > 1 << 20


async def test_an_old_history_comes_in_with_the_slips_of_its_time(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a time zone of five digits: a repository that has been served for years was not to be had."""
    bare = place.server.create("org/old")
    tree = served(bare, "rev-parse", place.server.commit("org/old", {"a": "x"}) + "^{tree}")
    slip = f"tree {tree}\nauthor A <a@b> 1300000000 -051800\ncommitter A <a@b>1300000000 +0000\n\nx\n"
    commit = served(bare, "hash-object", "-t", "commit", "-w", "--literally", "--stdin", stdin=slip.encode())
    served(bare, "update-ref", "refs/heads/main", commit)
    with monkeypatch.context() as strict:
        plain = {name: value for name, value in git.CONFIGURATION.items() if not name.startswith("fetch.fsck.")}
        strict.setattr(git, "CONFIGURATION", plain)
        with pytest.raises(Problem) as refused:
            await place.ready("org/old")
        assert refused.value.status == 422  # the control
    assert (await place.ready("org/old")).commit == commit


async def test_branches_that_turn_into_folders_go_and_come_back(place: Place) -> None:
    bare = place.server.create("org/turns")
    found = place.mirror("org/turns")
    for at, branches in enumerate((["a"], ["a/b", "HEAD"], [], ["a"])):
        for name in served(bare, "for-each-ref", "--format=%(refname)").split():
            served(bare, "update-ref", "-d", name)
        made = {name: place.server.commit("org/turns", {"f": f"{at} {name}"}, branch=name) for name in branches}
        for name, commit in made.items():
            assert await found.find(place.wanted("org/turns", name)) == (f"refs/heads/{name}", commit)
        with pytest.raises(Problem) as refused:
            await found.find(place.wanted("org/turns", "gone"))
        assert refused.value.status == 404
        assert set((await found._refs()).keys()) == {f"refs/heads/{name}" for name in branches}


async def test_what_is_here_is_not_brought_again(place: Place) -> None:
    place.server.create("org/still")
    commit = place.server.commit("org/still", {"a": "x"})
    for _ in range(3):
        assert (await place.mirror("org/still").find(place.wanted("org/still")))[1] == commit
    asked = [path for method, path in place.server.requests if method == "POST" and "still" in path]
    assert len(asked) == 5, "one list and two questions for what it holds, then a list each time"


def test_only_branches_tags_and_the_default_branch_are_read_of_a_list() -> None:
    listing = (
        b"ref: refs/heads/main\tHEAD\n1\tHEAD\nref: refs/heads/x\trefs/heads/sym\n2\trefs/heads/m\xff\n"
        b"3\trefs/tags/v1\n4\trefs/tags/v1^{}\n5\trefs/pull/1/head\n6\tx/HEAD\nref: refs/pull/1\tHEAD\n"
    )
    found = offered(listing)
    assert offered(b"ref: refs/heads/m\xff\tHEAD\n").head is None, "no answer can name it"
    assert offered("ref: refs/heads/mäin\tHEAD\n".encode()).head == "refs/heads/mäin"
    assert (found.refs, found.head) == ({"refs/heads/m\udcff": "2", "refs/tags/v1": "3"}, "refs/heads/main")


async def test_packs_of_many_fetches_become_one_and_nothing_is_lost(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what no branch has any more: somebody may be about to check it out."""
    bare = place.server.create("org/often")
    found = place.mirror("org/often")
    commits = []
    for number in range(4):
        served(bare, "update-ref", "-d", "refs/heads/main")
        commits.append(place.server.commit("org/often", {"a": f"{number}"}))
        await found.find(place.wanted("org/often"))
    packs = found.path / "objects" / "pack"
    assert len(list(packs.glob("*.pack"))) == 4
    with monkeypatch.context() as few:
        few.setattr(mirror, "_PACKS", 3)
        found.pack()
        assert found._packing is not None
        await found._packing
        assert len(list(packs.glob("*.pack"))) == 1
        found.pack()
        assert found._packing.done(), "one is not many"
    for commit in commits:
        await found.git("cat-file", "-e", commit)
    assert (await found.find(place.wanted("org/often")))[1] == commits[-1]


async def test_what_was_found_before_a_fetch_is_not_taken_for_what_it_brought(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.server.create("org/race")
    place.server.commit("org/race", {"a": "old"})
    found = place.mirror("org/race")
    await found.find(place.wanted("org/race"))
    old = found._ref
    looked, go_on = asyncio.Event(), asyncio.Event()

    async def slow(ref: str | None) -> tuple[str, str] | None:
        known = await old(ref)
        looked.set()
        await go_on.wait()
        return known

    with monkeypatch.context() as held:
        held.setattr(found, "_ref", slow)
        found._known.clear()
        late = asyncio.create_task(found.find(place.wanted("org/race", refresh_s=600)))
        await looked.wait()
        held.setattr(found, "_ref", old)
        newer = place.server.commit("org/race", {"a": "new"})
        assert (await found.find(place.wanted("org/race")))[1] == newer
        go_on.set()
        await late
    assert (await found.find(place.wanted("org/race", refresh_s=600)))[1] == newer


# Stores


async def test_the_store_of_a_run_that_goes_on_is_kept_however_long_it_takes(place: Place) -> None:
    """With the control: what it has changed could not be told."""
    place.server.create("org/long")
    place.server.commit("org/long", {"a": "x\n"})
    found = await place.ready("org/long")
    tree = Tree(place.folder / "tree")
    tree.create(None)
    await CONFINED.check_out(tree, None, found)
    (tree.work / "a").write_text("y\n")
    for in_use, kept in (([found.store], True), ([], False)):
        os.utime(found.store, (0, 0))
        place.stores.sweep(3600, in_use)
        assert found.store.exists() == kept
        if kept:
            assert [change.path for change in (await compared(place, tree, found)).changes] == ["a"]
    with pytest.raises(difference.NoDifference):
        await compared(place, tree, found)
    assert (await place.ready("org/long")).store.exists(), "it is made anew"


async def test_stores_leave_room_on_the_disk(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller may name each commit of a long history, one after the other: the least recently used go first."""
    names = ["first", "second", "third", "in-use", "new"]
    for age, name in enumerate(reversed(names)):
        (place.folder / "stores" / name).mkdir()
        then = time.time() - age * 100
        os.utime(place.folder / "stores" / name, (then, then))

    def left() -> set[str]:
        return {path.name for path in (place.folder / "stores").iterdir()}

    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=100, free=50))
        place.stores.sweep(3600, [])
        assert left() == set(names), "the control: there is room"
        # There is room again as soon as two of them are gone.
        full.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=100, free=29 - 5 * len(left())))
        place.stores.sweep(3600, [place.folder / "stores" / "first"])
        assert left() == {"first", "in-use", "new"}
        full.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=100, free=1))
        place.stores.sweep(3600, [place.folder / "stores" / "in-use"])
        assert left() == {"first", "in-use", "new"}, "what is used or new is kept"


async def test_repositories_that_are_not_there_leave_nothing(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "repositories.yaml"
    file.write_text(f"org/*: {{url: '{place.server.url}/{{repository}}.git', token_file: {place.token}}}")
    folder = place.folder / "all"
    launcher: Any = None
    found = Workspaces(Settings(repositories=file, trust="open", host="127.0.0.1"), launcher, folder, USER)
    found.open()
    place.server.create("org/there")
    commit = place.server.commit("org/there", {"a": "x"})
    there = found.known.find(Repository("org/there", "main"))
    assert (await found.ready(there)).commit == commit
    for number in range(3):
        with pytest.raises(Problem):
            await found.ready(found.known.find(Repository(f"org/none-{number}", "main")))
    assert (len(list(folder.glob("*.lock"))), len(found._mirrors), found.fetches) == (4, 4, 4)
    await found.sweep([])
    assert (len(list(folder.glob("*.lock"))), len(found._mirrors), found.fetches) == (1, 1, 4)
    assert (await found.ready(there)).commit == commit


async def test_a_lock_that_was_deleted_keeps_nobody_out_and_lets_no_two_in(place: Place) -> None:
    one, other = (Mirror(place.folder / "x.git", USER) for _ in range(2))
    inside: list[str] = []

    async def enter(who: Mirror, name: str, hold: asyncio.Event) -> None:
        async with who._alone():
            inside.append(name)
            await hold.wait()
            inside.remove(name)

    first, second = asyncio.Event(), asyncio.Event()
    holding = asyncio.create_task(enter(one, "one", first))
    waiting = asyncio.create_task(enter(other, "other", second))
    await asyncio.sleep(0.2)
    assert inside == ["one"]
    assert not Mirror(one.path, USER).forget(), "somebody is at it"
    first.set()
    await holding
    await asyncio.sleep(0.2)
    assert inside == ["other"]
    second.set()
    await waiting
    assert Mirror(one.path, USER).forget() and not list(place.folder.glob("*.lock"))


async def test_the_sweep_is_told_the_stores_of_the_runs_that_go_on() -> None:
    named: list[Path] = []

    async def sweep(in_use: list[Path]) -> None:
        named.extend(in_use)

    def run(store: str, finished_at: float | None) -> SimpleNamespace:
        return SimpleNamespace(checkout=SimpleNamespace(store=Path(store)) if store else None, finished_at=finished_at)

    runs = {"1": run("going-on", None), "2": run("over", 5.0), "3": run("", None)}
    forgetting: Any = SimpleNamespace(_workspaces=SimpleNamespace(sweep=sweep), _shelf=SimpleNamespace(runs=runs))
    await Forgetting.checkouts(forgetting)
    assert named == [Path("going-on")]


async def test_nobody_finds_half_of_a_store_that_is_being_deleted(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.server.create("org/half")
    place.server.commit("org/half", {"a": "x\n"})
    found = await place.ready("org/half")
    seen: list[bool] = []

    def watched(path: Path) -> None:
        seen.append(found.store.exists())
        delete(path)

    with monkeypatch.context() as patched:
        patched.setattr(walk, "delete", watched)
        os.utime(found.store, (0, 0))
        place.stores.sweep(3600, [])
    assert seen == [False]


# What a commit holds


async def test_a_link_longer_than_one_can_be_is_refused(place: Place) -> None:
    """100 MB of slashes are 100 kB on their way, and gigabytes as a list of the parts of a path."""
    place.server.create("org/slashes")
    place.server.commit("org/slashes", {"a": "x:link:" + "/" * 5000})
    with pytest.raises(Problem) as refused:
        await place.ready("org/slashes")
    assert refused.value.status == 422 and "longer than a link can be" in refused.value.detail


async def test_files_have_the_bytes_of_their_blobs_whatever_attributes_say(place: Place) -> None:
    """No line ends are converted, nothing is filled in, and a pointer of LFS stays one: nobody is asked for what it means."""
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"
    files: dict[str, Any] = {
        ".gitattributes": "* text eol=crlf ident working-tree-encoding=UTF-16\n*.bin filter=lfs diff=lfs merge=lfs -text\n",
        "a.txt": "one\ntwo $Id$\n",
        "large.bin": pointer,
    }
    place.server.create("org/attributes")
    place.server.commit("org/attributes", files)
    found = await place.ready("org/attributes")
    tree = Tree(place.folder / "tree")
    tree.create(None)
    await CONFINED.check_out(tree, None, found)
    assert {path: (tree.work / path).read_bytes().decode() for path in files} == files
    assert (await compared(place, tree, found)).changes == []


def test_links_that_lead_through_each_other_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them is short, and leads through forty others of a thousand parts: of 20,000 it was a day's work, in which
    nobody else was answered."""
    links = {f"l{n}": "x/../" * 500 + f"l{n + 1}" for n in range(2_000)}
    with monkeypatch.context() as fewer:
        fewer.setattr(content, "_STEPS", 100_000)
        with pytest.raises(Unacceptable, match="too often"):
            content.check_links(links)
        content.check_links({f"l{n}": f"l{n + 1}" for n in range(2_000)})  # the control: ordinary ones may be


# What a run has left


async def left(place: Place, name: str, uid: int | None) -> tuple[Tree, Checkout]:
    place.server.create(name)
    place.server.commit(name, {"a": "x\n", "d/b": "x\n", "d/e/c": "x\n", "p": "x\n"})
    found = await place.ready(name)
    tree = Tree(place.folder / "tree")
    tree.create(uid)
    await CONFINED.check_out(tree, uid, found)
    return tree, found


@pytest.mark.skipif(USER is None, reason="only root makes a file that another user cannot read")
@pytest.mark.parametrize("defended", [True, False])
async def test_a_change_is_told_whatever_may_be_read_of_it(
    place: Place, monkeypatch: pytest.MonkeyPatch, defended: bool
) -> None:
    """Modes that the run has taken from its own user, and a pipe where there was a file. With the control: git passes
    over them, and all that has changed goes unsaid."""
    tree, found = await left(place, f"org/closed-{defended}", USER)
    changed = {"a": "1\n", "d/b": "2\n", "d/e/c": "3\n"}
    for path, text in changed.items():
        (tree.work / path).write_text(text)
    (tree.work / "p").unlink()
    os.mkfifo(tree.work / "p")
    for path in ("a", "d/b", "d/e", "d"):
        (tree.work / path).chmod(0)
    told: list[tuple[str, str]]
    with monkeypatch.context() as without:
        if not defended:
            without.setattr(difference, "_make_readable", lambda entry: None)
        into = place.folder / "artifacts"
        changes = await difference.difference(CONFINED, tree, USER, found, into, 1 << 20)
        told = [(change.path, change.status) for change in changes.changes]
    expected = [("a", "modified"), ("d/b", "modified"), ("d/e/c", "modified"), ("p", "deleted")]
    assert told == (expected if defended else [])


@pytest.mark.parametrize("name", [".gitignore", "d/.gitattributes"])
async def test_a_pipe_in_the_place_of_a_file_that_git_reads_is_not_waited_for(place: Place, name: str) -> None:
    tree, found = await left(place, "org/pipe-" + name.replace("/", "-").strip("."), None)
    os.mkfifo(tree.work / name)
    (tree.work / "a").write_text("changed\n")
    began = time.monotonic()
    assert [change.path for change in (await compared(place, tree, found)).changes] == ["a"]
    assert time.monotonic() - began < 50  # it waited for the bound of a minute, and nothing was told
    assert stat.S_ISDIR(tree.work.stat().st_mode)
