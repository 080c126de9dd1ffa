"""One tenant's tool after another tenant's session: by its id, by its user id, by the locks. Each attack also runs
against an invoker without the defence, where it must succeed."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from claude_invoker.cli.kill import owners
from tests.invoker.conftest import Invoker, as_root, bash, defended_and_without, program, wait_for, without_boundary
from tests.support.waiting import HANG_S


@pytest.fixture(scope="session")
def start_invoker(start_invoker: Callable[..., Invoker]) -> Callable[..., Invoker]:
    return without_boundary(start_invoker)


@pytest.fixture(scope="session")
def invoker(start_invoker: Callable[..., Invoker], unbounded: list[Invoker]) -> Invoker:
    if not unbounded:
        unbounded.append(start_invoker(pool_size=0))
    return unbounded[0]


pytestmark = [as_root, pytest.mark.xdist_group("unbounded")]
NOTE = "alices-private-note"
SPY = (
    "touch spying; until [ -e over ]; do cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'; sleep 0.1; done"
    " | grep -a -e -- | sort -u"
)


READ_AND_WRITE = """
import os, pathlib, sys
print(os.getuid())
tree = pathlib.Path(sys.argv[1])
for attempt in (
    lambda: print((tree / "work" / "note.txt").read_text()),
    lambda: print([path.read_text() for path in (tree / "config" / "projects").glob("*/*.jsonl")]),
    lambda: (tree / "work" / "note.txt").write_text("planted"),
):
    try: attempt()
    except OSError as error: print(error)
"""


def sessions(invoker: Invoker) -> set[Path]:
    return set(invoker.state.glob("trees/sessions/*"))


def answer(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["result"])


@pytest.mark.parametrize("without", defended_and_without("sessions_in_argv"))
def test_a_sessions_id_is_in_nobodys_argv(attacked: Callable[..., Invoker], without: tuple[str, ...]) -> None:
    invoker = attacked(without)
    with invoker.client() as alice, invoker.client() as bob:
        session = bash(alice, "echo first", session="new").json()["session"]
        seen: list[str] = []
        spy = threading.Thread(target=lambda: seen.append(answer(bash(bob, SPY))))
        spy.start()
        (spying,) = wait_for(lambda: list(invoker.state.glob("trees/engines/*/*/work/spying")), what="the spy")
        assert answer(bash(alice, "sleep 1; echo second", session=session))
        spying.with_name("over").touch()
        spy.join(HANG_S)
    assert "--tools=Bash" in seen[0], "the spy saw the other run's command line"
    assert (session in seen[0]) == bool(without)


@pytest.mark.parametrize(
    "without",
    [("two_user_ids",), pytest.param(("two_user_ids", "trees_that_stay_the_runs"), marks=pytest.mark.slow)],
)
def test_a_session_is_nobodys_who_gets_its_user_id(
    start_invoker: Callable[..., Invoker], without: tuple[str, ...]
) -> None:
    """Alice's session is over for now. Bob's run has the user id that alice's had, and knows the path."""
    open_to_him = "trees_that_stay_the_runs" in without
    invoker = start_invoker(without=without, pool_size=0, pool_max=0)
    with invoker.client() as alice, invoker.client() as bob:
        first = bash(alice, f"id -u; echo {NOTE} > note.txt", session="new")
        (tree,) = invoker.state.glob("trees/sessions/*")
        attack = program(READ_AND_WRITE, str(tree))  # of a shell the CLI itself denies writing elsewhere
        for _ in range(4):
            seen = answer(bash(bob, attack))
            if seen.split("\n")[1] == answer(first).split("\n")[1]:
                break
        else:
            raise AssertionError("bob never has alice's user id")
        assert (NOTE in seen) == open_to_him
        kept = answer(bash(alice, "cat note.txt", session=first.json()["session"]))
        assert ("planted" in kept) == open_to_him


def test_user_ids_are_not_the_same_after_a_restart(start_invoker: Callable[..., Invoker]) -> None:
    """Nobody finds what the first runs of the last start have left in /tmp by being one of the first of this start."""
    before: Invoker | None = None
    first: list[str] = []
    while len(set(first)) < 2 and len(first) < 4:  # one in 4,000 begins where the one before did
        before = start_invoker(after=before, pool_size=0)
        with before.client() as api:
            first.append(answer(bash(api, "id -u")).split("\n")[1])
        before.stop()
    assert len(set(first)) == 2


SQUATTER = """
import fcntl, glob, os, socket, time
held = []
for uid in range(UID_BASE, UID_BASE + 4096):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try: s.bind(f"\\0claude-invoker-uid-{uid}"); held.append(s)
    except OSError: pass
for path in glob.glob("/run/claude-invoker/*") + glob.glob("STATE/locks/users/*") + glob.glob("STATE/locks/*"):
    try: f = open(path); fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB); held.append(f)
    except OSError: pass
print("held", len(held) > 4000, flush=True)
open("ready", "w").close()
time.sleep(60)
"""


@pytest.mark.parametrize("without", defended_and_without("locks_that_anybody_can_take"))
def test_nobody_can_take_all_user_ids(attacked: Callable[..., Invoker], without: tuple[str, ...]) -> None:
    invoker = attacked(without)
    with invoker.client() as api:
        attack = {"prompt": "", "tools": ["Bash"]}
        attack["prompt"] = (
            f"[[tool Bash {_json(program(SQUATTER.replace('STATE', str(invoker.state)).replace('UID_BASE', str(invoker.uid_base))))}]]"
        )
        with api.stream("POST", "/invoke", json=attack, headers={"Accept": "text/event-stream"}) as stream:
            wait_for(lambda: list(invoker.state.glob("trees/engines/*/*/work/ready")), what="the squatter")
            statuses = {bash(httpx.Client(base_url=invoker.url, timeout=HANG_S), "id -u").status_code for _ in range(3)}
            api.delete(f"/runs/{stream.headers['x-claude-run']}")
            stream.read()
    assert statuses == ({502} if without else {200})


def _json(command: str) -> str:
    import json

    return json.dumps({"command": command})


def test_a_killed_invokers_session_is_taken_back(start_invoker: Callable[..., Invoker]) -> None:
    """The invoker is killed while a session's run goes on; the next one ends what lives of it, gives the tree to nobody,
    and the session goes on."""
    invoker = start_invoker(pool_size=0, idle_s=60)
    with invoker.client() as api:
        session = bash(api, f"echo {NOTE} > note.txt", session="new").json()["session"]
    with invoker.client() as api, pytest.raises(httpx.HTTPError):
        body = {
            "prompt": f"[[tool Bash {_json('id -u > uid; trap : TERM; setsid -f sleep 600; touch up; sleep 600')}]]",
            "tools": ["Bash"],
            "session": session,
        }
        with api.stream("POST", "/invoke", json=body, headers={"Accept": "text/event-stream"}) as stream:
            (tree,) = invoker.state.glob("trees/sessions/*")
            wait_for(lambda: (tree / "work" / "up").exists(), what="the tool")
            uid = int((tree / "work" / "uid").read_text())
            assert tree.stat().st_uid == uid
            os.kill(invoker.pid, signal.SIGKILL)
            stream.read()
    assert owners([uid]), "its processes live on"
    again = start_invoker(after=invoker, pool_size=0)
    assert not owners([uid])
    assert all(path.lstat().st_uid == 0 for path in [tree, *tree.rglob("*")])
    with again.client() as api:
        assert NOTE in answer(bash(api, "cat note.txt", session=session))


def test_what_is_too_much_to_hand_over_ends_the_session(invoker: Invoker, api: httpx.Client) -> None:
    """And says so: the answer names no session to go on with."""
    before = [set(invoker.state.glob(place)) for place in ("trees/[sd]*/*", "sessions/*")]
    first = bash(api, program("import os\nfor _ in range(300): os.mkdir('d'); os.chdir('d')"), session="new")
    assert first.status_code == 200, first.text
    assert first.json()["session"] is None
    wait_for(lambda: set(invoker.state.glob("trees/[sd]*/*")) <= before[0], what="nothing being left")
    assert set(invoker.state.glob("sessions/*")) <= before[1]


def test_the_directory_of_trees_cannot_be_squatted(start_invoker: Callable[..., Invoker], tmp_path: Path) -> None:
    """Where the state directory is closed to others the trees are under /tmp, where anybody may have been first."""
    from claude_invoker.cli.tree import tree_root

    state = tmp_path / "state"  # one of pytest's directories: closed to others
    first = tree_root(state, isolated=True)
    assert re.fullmatch(r"/tmp/claude-invoker-[0-9a-f]{12}", str(first))
    first.mkdir()
    os.chown(first, 65_000, 65_000)
    try:
        invoker = start_invoker(state_dir=state, pool_size=0)
        with invoker.client() as api:
            assert bash(api, "pwd").json()["result"].split("\n")[1].startswith(f"{first}1/")
        invoker.stop()
    finally:
        first.rmdir()


REDIRECT = """
import json, pathlib
for name in (".claude.json", ".config.json"):
    path = pathlib.Path("../config", name)
    document = json.loads(path.read_text()) if path.exists() else {}
    document["env"] = {"ANTHROPIC_CUSTOM_HEADERS": "x-api-key: another", "PATH": "/nowhere"}
    path.write_text(json.dumps(document))
pathlib.Path("../home/.gitconfig").write_text("[core]\\n\\tfsmonitor = false\\n")
print("planted")
"""


@pytest.mark.parametrize("without", defended_and_without("sessions_keep_all_that_the_cli_reads"))
def test_a_run_sets_nothing_for_the_next_of_its_session(
    attacked: Callable[..., Invoker], without: tuple[str, ...]
) -> None:
    """The CLI takes its environment from a file in the session's tree: the next run, which has no tools at all, would
    ask the API with another token, and by PATH start other programs."""
    invoker = attacked(without)
    before = sessions(invoker)
    with invoker.client() as api:
        first = bash(api, program(REDIRECT), session="new")
        assert "planted" in answer(first)
        body = {"prompt": "[[say fine]]", "tools": [], "session": first.json()["session"]}
        second = api.post("/invoke", json=body)
        (tree,) = sessions(invoker) - before
        assert (tree / "home" / ".gitconfig").exists() == bool(without)
        assert second.status_code == (502 if without else 200), second.text


@pytest.mark.parametrize("without", defended_and_without("sessions_keep_all_that_the_cli_reads"))
def test_a_session_leads_nobody_behind_a_closed_door(
    attacked: Callable[..., Invoker], without: tuple[str, ...], tmp_path: Path
) -> None:
    """A link in the place of its directory: root enters it before it becomes the run's user."""
    inner = tmp_path / "inner"
    inner.mkdir(mode=0o755)
    (inner / "note").write_text(NOTE)
    (inner / "note").chmod(0o644)
    tmp_path.chmod(0o700)
    invoker = attacked(without)
    before = sessions(invoker)
    with invoker.client() as api:
        first = bash(api, f"cat {inner}/note; cd ..; rm -r work; ln -s {inner} work; echo linked", session="new")
        assert "linked" in answer(first) and NOTE not in answer(first)
        body = {"prompt": "[[hang]]", "session": first.json()["session"]}
        (tree,) = sessions(invoker) - before
        with api.stream("POST", "/invoke", json=body, headers={"Accept": "text/event-stream"}) as stream:
            (cli,) = wait_for(lambda: _of_tree(invoker, tree), what="the second run")
            assert (cli.cwd() == str(inner)) == bool(without)
            api.delete(f"/runs/{stream.headers['x-claude-run']}")
            stream.read()
        assert (tree / "work").is_symlink() == bool(without)


def _of_tree(invoker: Invoker, tree: Path) -> list[psutil.Process]:
    """The CLI that runs in it: as its owner, who is not root then."""
    owner = tree.stat().st_uid
    return [cli for cli in invoker.clis() if cli.uids().real == owner > 0]
