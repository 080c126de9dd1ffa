"""Attacks that are more than one way out, each stands for a kind: by a tool of the real CLI at each strength that this
machine offers, beside another tenant's run. Each has its control, where a defence is taken out and it succeeds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from claude_invoker.isolation import confine, namespaces
from tests.escape.conftest import NOTHING_BUT_A_USER
from tests.invoker.conftest import Invoker, StandInProcess, bash, program, tool, wait_for
from tests.invoker.ordinary import cli_of_its, folder_of_its, started
from tests.invoker.test_attack_endings import DEEP, FREEZER, left
from tests.invoker.test_attack_money import THIEF
from tests.invoker.test_attack_sessions import NOTE, READ_AND_WRITE, answer
from tests.invoker.test_bounds import a_neighbour
from tests.invoker.test_messages import FORGER, GOOD

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="a user for each run needs an invoker started as root"),
    pytest.mark.skipif(confine.abi() < 6, reason="this kernel's Landlock has no scopes"),
    pytest.mark.xdist_group("escape"),
]
ROOT = Path(__file__).resolve().parents[2]
MB = 1 << 20
SETTINGS = {"pool_size": 0, "idle_s": 60, "max_runs": 10, "api_timeout_s": 30, "first_output_s": 60}
WITHOUT = {
    "namespaces": (),
    "landlock": ("a_machine_without_bubblewrap",),
    "user": ("a_kernel_without_landlock",),
}
with_bubblewrap = pytest.mark.skipif(namespaces.program() is None, reason="bubblewrap is not installed")
STRENGTHS = [pytest.param("namespaces", marks=with_bubblewrap), "landlock", "user"]


@dataclass(frozen=True)
class Place:
    """Where an attack is tried. `strength`: what surrounds its run."""

    strength: str
    invoker: Invoker


@pytest.fixture(
    scope="module",
    params=[*STRENGTHS, pytest.param("namespaces, one user", marks=with_bubblewrap), "landlock, one user"],
)
def place(
    request: pytest.FixtureRequest, start_invoker: Callable[..., Invoker], stand_in: StandInProcess
) -> Iterator[Place]:
    """One user: an invoker that is not root's."""
    strength, _, shared = str(request.param).partition(", ")
    settings = SETTINGS | {"isolation": strength}
    if not shared:
        yield Place(strength, start_invoker(without=WITHOUT[strength], **settings))
        return
    with ExitStack() as held:
        cli = cli_of_its(held.enter_context(folder_of_its()))
        folder = held.enter_context(folder_of_its("/var/tmp"))  # not below /tmp: then a run has a /tmp of its own
        without = WITHOUT[strength]
        yield Place(strength, held.enter_context(started(stand_in, folder, without=without, cli_path=cli, **settings)))


@pytest.fixture(scope="module")
def undefended(start_invoker: Callable[..., Invoker]) -> Invoker:
    """The control: a user id for each run, a CLI whose process its commands look into, and what a run leaves stays."""
    without = (*NOTHING_BUT_A_USER, "trees_by_recursion", "strays_that_stay")
    return start_invoker(without=without, isolation="user", **SETTINGS)


# A killer that is stopped


def test_the_killer_is_not_stopped(place: Place) -> None:
    """The control is `test_the_killer_cannot_be_stopped`."""
    invoker = place.invoker
    command = program(FREEZER, "8") + "; sleep 60"
    body = {"prompt": tool("Bash", command=command), "tools": ["Bash"]}
    with a_neighbour(invoker), ExitStack() as held:
        streams = []
        for _ in range(3):
            client = held.enter_context(invoker.client())
            request = client.build_request("POST", "/invoke", json=body, headers={"Accept": "text/event-stream"})
            streams.append(client.send(request, stream=True))
        works = "trees/engines/*/*/work/freezing"
        wait_for(lambda: len(list(invoker.state.glob(works))) == 3, what="the attackers")
        for stream in streams:
            stream.close()  # which cancels the run
        with invoker.client() as victim:
            assert victim.post("/invoke", json={"prompt": "[[say fine]]"}).json()["result"] == "fine"
        wait_for(lambda: not list(invoker.state.glob(works)), what="the end of all attackers")
    with invoker.client() as api:
        assert api.get("/readyz").json()["checks"]["lost_users"] == 0


# A tree that cannot be deleted


def test_a_deep_tree_goes(place: Place) -> None:
    with place.invoker.client() as api, a_neighbour(place.invoker):
        assert "deep" in answer(bash(api, program(DEEP.format(3000))))
    wait_for(lambda: not left(place.invoker), what="no tree being left")


def test_a_deep_tree_stays_where_trees_are_walked_by_recursion(undefended: Invoker) -> None:
    with undefended.client() as api:
        assert "deep" in answer(bash(api, program(DEEP.format(3000))))
    time.sleep(1)
    assert left(undefended)
    subprocess.run(["rm", "-rf", *left(undefended)], check=True)


# A result that a tool has written itself, events that fill memory

EVENTS = 40


def forged(invoker: Invoker) -> dict[str, object]:
    """The answer of a run whose command takes the CLI's output, and says 40 MB of text and the result there."""
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "@"}}
    line, size = json.dumps({"type": "stream_event", "event": delta}), MB
    said = json.dumps(GOOD | {"result": "FORGED"})
    source = FORGER.replace(
        "sys.stdin.buffer.read()",
        f"({line!r}.replace('@', 'y' * {size}) + '\\n').encode() * {EVENTS} + {said!r}.encode() + b'\\n'",
    )
    with invoker.client() as api:
        api.timeout = 120
        answered = bash(api, program(source))
        assert answered.status_code == 200, answered.text[:1000]
        return dict(answered.json())


def held(invoker: Invoker) -> float:
    """Bytes that the invoker keeps of runs."""
    with invoker.client() as api:
        lines = api.get("/metrics").text.splitlines()
    (found,) = (line for line in lines if line.startswith("claude_invoker_held_bytes{") and '"memory"' in line)
    return float(found.split()[-1])


def test_no_command_speaks_for_its_cli(place: Place) -> None:
    with a_neighbour(place.invoker):
        for _ in range(3):
            assert forged(place.invoker)["result"] != "FORGED"
    assert held(place.invoker) < MB


def test_where_a_command_speaks_for_its_cli_memory_is_bounded_and_money_is_counted(undefended: Invoker) -> None:
    """The control; and what holds behind the boundary."""
    for _ in range(3):
        said = forged(undefended)
        assert said["result"] == "FORGED"
        assert float(str(said["cost_usd"])) > 0, "as the API says"
    assert EVENTS * MB / 2 < held(undefended) <= 64 * MB


# The run's token, used past the CLI


def test_the_runs_token_is_not_found(place: Place) -> None:
    with place.invoker.client() as api, a_neighbour(place.invoker):
        said = bash(api, program(THIEF, "1", "hello", "{}"))
        assert said.status_code == 200, said.text
        assert "Error" in said.json()["result"], said.text
        assert [file["path"] for file in said.json()["artifacts"]] == ["a.py"]


def test_the_runs_token_is_found_in_a_process_that_commands_look_into(undefended: Invoker) -> None:
    """The control; what it may spend is bounded (`test_a_stolen_token_spends_no_more_than_the_run_may`)."""
    command = (
        program(THIEF, "1", "hello", "{}") + "; cat answers.json"
    )  # without its walk this invoker finds no artifacts
    with undefended.client() as api:
        assert '["200' in answer(bash(api, command, model="claude-opus-5-5"))


# What a run leaves

PLACES = ("/tmp", "/var/tmp", "/dev/shm", "/run/lock", "/dev/mqueue")


def left_for_others(invoker: Invoker) -> tuple[str, list[str]]:
    """What another tenant reads of what a run has left for everybody, and where it is still where the invoker is."""
    name = f"left-{os.urandom(6).hex()}"
    leave = f"for d in {' '.join(PLACES)}; do (umask 022; echo one-tenants-note > $d/{name}); done; pwd"
    root = Path(f"/proc/{invoker.pid}/root")
    with invoker.client() as api:
        work = Path(answer(bash(api, leave)).splitlines()[-1])
        wait_for(lambda: not work.exists(), what="its end")
        found = [place for place in PLACES if (root / place[1:] / name).exists()]
        read = answer(bash(api, f"cat {' '.join(f'{place}/{name}' for place in PLACES)}; echo read"))
    for place in found:
        (root / place[1:] / name).unlink()
    return read, found


def test_nothing_is_left_for_another_tenant(place: Place) -> None:
    with a_neighbour(place.invoker):
        read, found = left_for_others(place.invoker)
    assert "read" in read and "one-tenants-note" not in read and found == []


def test_what_a_run_leaves_is_there_where_nobody_tidies(undefended: Invoker) -> None:
    read, found = left_for_others(undefended)
    root = Path(f"/proc/{undefended.pid}/root")
    open_to_all = [
        place for place in PLACES if (here := root / place[1:]).is_dir() and not os.statvfs(here).f_flag & os.ST_RDONLY
    ]
    assert found == open_to_all and len(found) > 1
    # What is in a queue is no file's contents.
    assert read.count("one-tenants-note") == len({*found} - {"/dev/mqueue"})


# A session that is taken with its user id


@pytest.mark.parametrize("strength", STRENGTHS)
def test_a_session_that_has_its_next_neighbours_user_id(strength: str, start_invoker: Callable[..., Invoker]) -> None:
    """A tree is the invoker's between runs (`test_a_session_is_nobodys_who_gets_its_user_id`). Were it not, it would be open
    at `user`, which is the control, and the boundary would close it."""
    without = ("two_user_ids", "trees_that_stay_the_runs", *WITHOUT[strength])
    invoker = start_invoker(without=without, isolation=strength, **SETTINGS | {"pool_max": 0})
    with invoker.client() as alice, invoker.client() as bob:
        first = bash(alice, f"id -u; echo {NOTE} > note.txt", session="new")
        (tree,) = invoker.state.glob("trees/sessions/*")
        for _ in range(4):
            seen = answer(bash(bob, program(READ_AND_WRITE, str(tree))))
            if seen.split("\n")[1] == answer(first).split("\n")[1]:
                break
        else:
            raise AssertionError("bob never has alice's user id")
        assert (NOTE in seen) is (strength == "user")
        kept = answer(bash(alice, "cat note.txt", session=first.json()["session"]))
        assert ("planted" in kept) is (strength == "user")


# Secrets of the volumes


@pytest.fixture(scope="module")
def secrets() -> Iterator[Path]:
    """As the shipped script makes them, in a directory that runs can pass."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    with tempfile.TemporaryDirectory(prefix="escape-secrets-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        script = ["sh", str(ROOT / "deploy/docker/make-secrets.sh")]
        subprocess.run(script, env=dict(os.environ) | {"SECRETS_DIR": name}, check=True, timeout=60)
        yield folder


def read_of(folder: Path, invoker: Invoker) -> set[str]:
    """The secrets of which a command has the contents."""
    files = {path for path in folder.rglob("*") if path.is_file()}
    assert len(files) > 5
    with invoker.client() as api:
        said = answer(bash(api, f"sha256sum {' '.join(map(str, files))}; echo done"))
    assert "done" in said
    hashes = {str(path): subprocess.check_output(["sha256sum", path]).split()[0].decode() for path in files}
    return {path for path, hashed in hashes.items() if hashed in said}


def test_no_secret_of_the_volumes_is_read(place: Place, secrets: Path) -> None:
    with a_neighbour(place.invoker):
        assert read_of(secrets, place.invoker) == set()


def test_secrets_that_are_open_are_read(undefended: Invoker, secrets: Path, place: Place) -> None:
    """The control: as they were made once. From `landlock` on not even these are."""
    before = {path: path.stat().st_mode for path in secrets.rglob("*")}
    try:
        for path in before:
            path.chmod(0o755 if path.is_dir() else 0o444)
        assert read_of(secrets, undefended) == {str(path) for path in before if path.is_file()}
        assert bool(read_of(secrets, place.invoker)) is (place.strength == "user")
    finally:
        for path, mode in before.items():
            path.chmod(mode & 0o7777)
