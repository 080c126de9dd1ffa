"""An invoker that was not started as root: one user for all runs, and what keeps them apart all the same."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import psutil
import pytest

from claude_invoker.cli import usage
from claude_invoker.isolation import confine, namespaces
from tests.invoker.conftest import StandInProcess, bash, tool, wait_for
from tests.invoker.ordinary import AS_NOBODY, folder_of_its, started

with_landlock = pytest.mark.skipif(confine.abi() < 6, reason="this kernel's Landlock has no scopes")
with_bubblewrap = pytest.mark.skipif(namespaces.program() is None, reason="bubblewrap is not installed")
WITHOUT_LANDLOCK = ("a_kernel_without_landlock",)
STRENGTHS = [
    # Most that is done there is what it is for an invoker of root's.
    pytest.param("namespaces", (), marks=[pytest.mark.slow, with_landlock, with_bubblewrap]),
    pytest.param("landlock", ("a_machine_without_bubblewrap",), marks=with_landlock),
]


@pytest.fixture
def folder() -> Iterator[Path]:
    with folder_of_its() as made:
        yield made


def checks(api: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = api.get("/readyz").json()["checks"]
    return found


def test_tools_that_run_commands_need_what_keeps_runs_of_one_user_apart(stand_in: StandInProcess, folder: Path) -> None:
    with started(stand_in, folder, without=WITHOUT_LANDLOCK) as invoker, invoker.client() as api:
        assert checks(api)["isolation"] == "none" and checks(api)["tools_left_out"] == ["Bash"]
        assert bash(api, "id").status_code == 403
        answer = api.post("/invoke", json={"prompt": tool("Write", file_path="a.txt", content="x")})
        assert answer.status_code == 200, answer.text
        assert [artifact["path"] for artifact in answer.json()["artifacts"]] == ["a.txt"]


def test_a_shared_user_can_be_chosen_and_runs_still_end(stand_in: StandInProcess, folder: Path) -> None:
    with (
        started(stand_in, folder, without=WITHOUT_LANDLOCK, allow_commands_below=1) as invoker,
        invoker.client() as api,
    ):
        seconds = str(20_000_000 + os.getpid())
        answer = bash(api, f"setsid -f sleep {seconds}; (setsid -f nohup sleep {seconds} >/dev/null 2>&1 &); id -u")
        assert answer.status_code == 200, answer.text
        assert not left(seconds)
        assert api.get("/healthz").status_code == 200, "the invoker has the same user, and lives"
        # The control of the test below: by the environment alone it is not found.
        assert bash(api, flees(seconds)).status_code == 200
        (escaped,) = left(seconds)
        escaped.kill()


def left(seconds: str) -> list[psutil.Process]:
    return [found for found in psutil.process_iter(["cmdline"]) if found.info["cmdline"] == ["sleep", seconds]]


def flees(seconds: str) -> str:
    """Away from its parents, its session and its environment, deaf to signals."""
    return (
        f"trap '' TERM HUP INT; setsid -f env -i setsid -f env -i sleep {seconds} </dev/null >/dev/null 2>&1; sleep 0.5"
    )


RUNS = 8
"""As many as an invoker has at once by default."""


def processes_of_its() -> int:
    """How many processes and threads the invoker's user has."""
    uid = AS_NOBODY.get("user", os.geteuid())
    return usage.of_users([uid])[uid].threads


@contextmanager
def highest(number: Callable[[], int]) -> Iterator[list[int]]:
    """What it was meanwhile."""
    seen: list[int] = []
    over = Event()

    def look() -> None:
        while not over.wait(0.05):
            seen.append(number())

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        try:
            yield seen
        finally:
            over.set()
            looking.result()


@pytest.mark.slow
@with_landlock
def test_control_without_a_limit_for_all_a_run_may_fill_the_machine(stand_in: StandInProcess, folder: Path) -> None:
    without = ("a_machine_without_bubblewrap", "processes_without_a_limit_for_all")
    with started(stand_in, folder, without=without, process_limit=200) as invoker, invoker.client() as api:
        answer = bash(api, "ulimit -u").json()["result"].split()[-1]
        assert answer == "unlimited" or int(answer) > processes_of_its() + 200 * (RUNS + 1)


BOMB = """
grow() { (trap '' TERM; grow & grow &) 2>/dev/null; sleep 30; }
grow & sleep 2; echo grown
"""


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """Not below /tmp: then a run has a /tmp of its own within namespaces."""
    with folder_of_its("/var/tmp") as made:
        yield made


@pytest.mark.parametrize("all_of_it", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("strength", "without"), STRENGTHS)
def test_runs_of_one_user_are_kept_apart_and_end_whatever_they_do(
    strength: str, without: tuple[str, ...], all_of_it: bool, stand_in: StandInProcess, elsewhere: Path
) -> None:
    seconds = str(30_000_000 + os.getpid())
    settings = {"isolation": strength, "pool_size": 1, "process_limit": 200, "idle_s": 60, "tree_limit": 64 << 20}
    with started(stand_in, elsewhere, without=without, **settings) as invoker, invoker.client() as api:
        assert checks(api)["isolation"] == strength
        assert checks(api)["isolation_lacks"][0] == "a user id for each run: the invoker is not started as root"
        wait_for(lambda: checks(api)["warm"] == 1, what="a warm process")

        changes = "chmod +x kept && [ -x kept ] && echo changed"
        works = bash(api, f"{flees(seconds)}; echo text > kept; {changes}; git init -q x && echo worked")
        assert works.status_code == 200 and "worked" in works.text, works.text
        assert works.json()["isolation"] == strength
        if strength == "namespaces":
            assert "changed" in works.text
        elif os.uname().machine == "x86_64":
            assert "Operation not permitted" in works.text, "it is not said to have been done"
        assert [artifact["path"] for artifact in works.json()["artifacts"]] == ["kept"]
        assert not left(seconds)

        # Whatever a run does before it is looked at, the machine has processes left.
        most = int(bash(api, "ulimit -u").json()["result"].split()[-1])
        assert most <= (200 if strength == "namespaces" else processes_of_its() + 200 * (RUNS + 1))
        if not all_of_it:
            return

        with ThreadPoolExecutor(1) as pool:
            neighbour = pool.submit(bash, api, "for i in $(seq 30); do sleep 0.1; done; echo undisturbed")
            with highest(processes_of_its) as seen:
                grown = bash(api, BOMB)
            # No more are made, and some are left for the CLIs: its own says how it went, or it was seen before.
            assert grown.status_code == 200 or grown.json().get("limit") == "processes", grown.text
            assert strength == "namespaces" or 200 < max(seen) <= most + 200 // 8 * RUNS, "with what is left to CLIs"
            assert "undisturbed" in neighbour.result().text, neighbour.result().text
        late = bash(api, f"exec sleep {seconds}", timeout_s=2)
        assert late.status_code == 504, late.text
        assert not left(seconds)

        if strength == "namespaces" and not sys.prefix.startswith("/tmp/"):  # what a run needs of there hides /tmp
            has_directories_of_its_own(api)

        begun = api.post("/invoke", json=of_a_session("new", "echo one > a"))
        again = api.post("/invoke", json=of_a_session(begun.json()["session"], "cat a"))
        assert "one" in again.json()["result"], again.text
        checked(api, begun.json()["session"], seconds)

        with ThreadPoolExecutor(1) as pool:
            cut_off = pool.submit(bash, api, f"{flees(seconds)}; sleep 60")
            wait_for(lambda: left(seconds), what="a process that has fled")
            os.kill(invoker.pid, signal.SIGKILL)
            assert cut_off.exception() is not None
        wait_for(lambda: not left(seconds), what="the end of the run with its invoker")


def checked(api: httpx.Client, session: str, seconds: str) -> None:
    """What a check starts ends with it, as what the model starts does, and its session goes on."""
    check = f"{flees(seconds)}; echo y >> checks; cat a; ulimit -u; [ $(grep -c y checks) = 2 ]"
    answer = api.post("/invoke", json={**of_a_session(session, "cat a"), "check": check, "max_repairs": 2})
    assert answer.status_code == 200, answer.text
    found = answer.json()["check"]
    assert found["passed"] and found["repairs"] == 1 and answer.json()["session"] == session, found
    assert found["output"].split()[0] == "one"
    if answer.json()["isolation"] == "namespaces":
        assert found["output"].split()[1] == "200", "the kernel counts its processes as it does those of the model"
    assert not left(seconds)
    assert "y" in api.post("/invoke", json=of_a_session(session, "cat checks")).json()["result"]


def has_directories_of_its_own(api: httpx.Client) -> None:
    """Bounded as its tree is, and gone with it."""
    name = f"left-{os.getpid()}"
    locks = "/usr/bin/python3 -c 'import multiprocessing; multiprocessing.Lock(); print(6 * 7)'"
    works = bash(api, f"echo text > /tmp/{name}; cat /tmp/{name} $TMPDIR/{name}; {locks}; echo more > /dev/shm/{name}")
    assert works.json()["result"].split()[-3:] == ["text", "text", "42"], works.text
    assert not [path for path in ("/tmp", "/dev/shm") if Path(path, name).exists()]
    much = bash(api, f"head -c 100M /dev/zero > /dev/shm/{name}; sleep 30")
    assert much.status_code == 422 and much.json()["limit"] == "tree", much.text


def of_a_session(session: str, command: str) -> dict[str, Any]:
    return {"prompt": tool("Bash", command=command), "tools": ["Bash"], "session": session}
