"""What a run may take of the machine: by a tool of the real CLI, with another tenant's run beside it; each bound with its
control, the same tool where the bound is higher."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from claude_invoker.cli import usage
from claude_invoker.cli.contained import Contained
from claude_invoker.cli.tree import Tree
from claude_invoker.cli.usage import Files
from claude_invoker.problem import Problem
from claude_invoker.runs import watch
from claude_invoker.settings import Settings
from tests.invoker.conftest import Invoker, as_root, bash, program, wait_for, without_boundary
from tests.support.waiting import HANG_S

STRANGER = 3_900_000_000  # a user id that no invoker gives

GB = 1 << 30
HOG = (
    "import os, sys, time\n"
    "for _ in range({each}):\n"
    "    if os.fork() == 0:\n"
    "        held = bytearray(b'x' * {size}); open(f'held{{os.getpid()}}', 'w'); time.sleep(60)\n"
    "until = time.monotonic() + 30\n"
    "while len([n for n in os.listdir() if n.startswith('held')]) < {each} and time.monotonic() < until: time.sleep(0.05)\n"
    "time.sleep({then}); print('not stopped')"
)
FILL = (
    "import os, time\n"
    "for n in range({each}):\n"
    "    with open(f'f{{n}}', 'wb') as file:\n"
    "        for _ in range({size} >> 20): file.write(os.urandom(1 << 20))\n"
    "time.sleep({then}); print('not stopped')"
)
MANY = (
    "import os, time\n"
    "for n in range({each}): os.close(os.open(f'f{{n}}', os.O_CREAT))\n"
    "time.sleep({then}); print('not stopped')"
)
THEN_S = 4  # longer than it takes to be seen
MANY_S = 60


@contextlib.contextmanager
def a_neighbour(invoker: Invoker) -> Iterator[None]:
    """Another tenant's run, from before the block until after it, which must lose nothing."""
    answers: list[httpx.Response] = []
    mark = f"begun-{os.urandom(4).hex()}"  # the tree of an earlier one may still be there

    def run() -> None:
        with invoker.client() as api:
            answers.append(bash(api, f"touch begun {mark}; while [ ! -e go ]; do sleep 0.1; done; echo undisturbed"))

    thread = threading.Thread(target=run)
    thread.start()
    begun = f"trees/engines/*/*/work/{mark}"
    wait_for(lambda: list(invoker.state.glob(begun)), what="the neighbour")
    try:
        yield
    finally:
        for path in invoker.state.glob(begun):
            path.with_name("go").touch()
        thread.join()
    assert answers[0].status_code == 200, answers[0].text
    assert "undisturbed" in answers[0].json()["result"]


def over(answer: httpx.Response, limit: str, setting: str) -> None:
    assert answer.status_code == 422, answer.text
    problem = answer.json()
    assert problem["type"] == "urn:kong-claude:problem:limit"
    assert (problem["limit"], problem["setting"]) == (limit, setting)
    assert setting in problem["detail"]


def unstopped(answer: httpx.Response) -> None:
    assert answer.status_code == 200, answer.text
    assert "not stopped" in answer.json()["result"]


BOUNDED: dict[str, Any] = {
    "memory_limit": GB,
    "tree_limit": 64 << 20,
    "tree_entries_limit": 2000,
    "process_limit": 60,
    "held_per_subject": 200_000,
    "pool_size": 0,
    "idle_s": 60,
    "max_runs": 4,
}
ROOMY = BOUNDED | {
    "memory_limit": 3 * GB,
    "tree_limit": 256 << 20,
    "tree_entries_limit": 10_000,
    "process_limit": 300,
    "held_per_subject": 2_000_000,
}


BOTH = [pytest.param(False, id="bounded"), pytest.param(True, id="control", marks=pytest.mark.slow)]


@as_root
@pytest.mark.parametrize("roomy", BOTH)
def test_what_a_run_takes_together(start_invoker: Callable[..., Invoker], roomy: bool) -> None:
    invoker = start_invoker(**(ROOMY if roomy else BOUNDED))
    # Each process below what one may have; their sum is over it.
    memory = program(HOG.format(each=4, size=300 << 20, then=0 if roomy else MANY_S))
    number = program(MANY.format(each=5000, then=THEN_S if roomy else MANY_S))
    with invoker.client() as api, a_neighbour(invoker):
        if roomy:
            unstopped(bash(api, memory))
        else:
            over(bash(api, memory), "memory", "INVOKER_MEMORY_LIMIT")
            assert 'claude_invoker_runs_total{outcome="limit"} 1.0' in api.get("/metrics").text
    with invoker.client() as api:
        filled = bash(api, number)
        unstopped(filled) if roomy else over(filled, "tree_entries", "INVOKER_TREE_ENTRIES_LIMIT")
        # What the invoker keeps of it in memory.
        long = api.post("/invoke", json={"prompt": "[[say fine]]" + "y" * 300_000})
        if roomy:
            assert long.status_code == 200, long.text
        else:
            assert long.status_code == 429, long.text
            assert long.json()["limit"] == "held_per_subject"
        # Processes are the kernel's: a run that forks without end gets no more, and goes on.
        forked = (
            "import os, time\nn = 0\ntry:\n    while n < 100:\n"
            "        if os.fork() == 0: time.sleep(30); os._exit(0)\n        n += 1\nexcept OSError: pass\nprint('had', n)"
        )
        # Where its own CLI finds none left the run ends: the others are what it must not reach.
        answer = bash(api, program(forked))
        assert ("had 100" in answer.text) is roomy, answer.text
        shown = api.get("/metrics").text
        assert f"claude_invoker_run_processes_allowed {300 if roomy else 60}.0" in shown
        assert "claude_invoker_run_tree_entries 0.0" in shown, "no run is there any more"


@as_root
@pytest.mark.slow
@pytest.mark.parametrize("roomy", [False, True], ids=["bounded", "control"])
def test_bytes_on_the_disk_wherever_they_are(start_invoker: Callable[..., Invoker], roomy: bool) -> None:
    """In its tree; at `user` also in /tmp and /dev/shm; and in open files that have no name any more."""
    then_s = THEN_S if roomy else MANY_S
    invoker = without_boundary(start_invoker)(**(ROOMY if roomy else BOUNDED))
    names = [Path(place) / f"stray-{os.getpid()}-{roomy}" for place in ("/tmp", "/dev/shm", "/var/tmp")]
    fill = "; ".join(f"mkdir {name}; head -c 30M /dev/urandom > {name}/file" for name in names)
    nameless = (
        "import os, time\n"
        "held = [os.open(f'g{n}', os.O_CREAT | os.O_WRONLY) for n in range(3)]\n"
        "for n in range(3): os.unlink(f'g{n}')\n"
        "for fd in held: os.write(fd, os.urandom(30 << 20))\n"
        f"time.sleep({then_s}); print('not stopped')"
    )
    pause = f"; sleep {then_s}; echo not stopped"
    with invoker.client() as api:
        for command in (program(FILL.format(each=10, size=10 << 20, then=then_s)), fill + pause, program(nameless)):
            answer = bash(api, command)
            unstopped(answer) if roomy else over(answer, "tree", "INVOKER_TREE_LIMIT")
        wait_for(lambda: not any(name.exists() for name in names), what="nothing being left")


@as_root
def test_what_a_user_leaves_is_found_wherever_all_users_may_leave_something() -> None:
    """Also where a lock file is left, and in what root has opened in /tmp. Not in a directory that is open to none."""
    with ExitStack() as held:
        places = [Path(place) for place in ("/tmp", "/var/tmp", "/dev/shm", "/run/lock", "/dev/mqueue")]
        places = [place for place in places if place.is_dir()]
        for mode in (0o1777, 0o755):
            place = Path(held.enter_context(tempfile.TemporaryDirectory(dir="/tmp", prefix="strays-")))
            place.chmod(mode)
            places.append(place)
        left = [place / f"left-{os.getpid()}" for place in places]
        for path in left:
            path.touch()
            held.callback(path.unlink)
            os.chown(path, STRANGER, STRANGER)
        assert sorted(usage.strays(STRANGER)) == sorted(left[:-1])
        assert len(left) > 4


def test_runs_that_share_a_user_are_told_apart_by_their_mark() -> None:
    """Not started as root there is no user for each run."""
    source = "import time\nheld = bytearray(b'x' * (100 << 20))\nprint('held', flush=True)\ntime.sleep(60)"
    environment = os.environ | {"CLAUDE_INVOKER_PROCESS": "a1"}
    with subprocess.Popen([sys.executable, "-c", source], env=environment, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            found = usage.marked(["CLAUDE_INVOKER_PROCESS=a1", "CLAUDE_INVOKER_PROCESS=b2"])
        finally:
            child.kill()
    assert found["CLAUDE_INVOKER_PROCESS=a1"].pids == [child.pid]
    assert 100 << 20 <= found["CLAUDE_INVOKER_PROCESS=a1"].memory < 200 << 20
    assert found["CLAUDE_INVOKER_PROCESS=b2"].memory == 0


def test_what_is_shared_counts_once_where_it_matters() -> None:
    """A program with much memory that forks is not taken for many such programs."""
    source = (
        "import os, time\nheld = bytearray(b'x' * (200 << 20))\n"
        "for _ in range(4):\n    if os.fork() == 0: time.sleep(60)\n"
        "print('held', flush=True)\ntime.sleep(60)"
    )
    environment = os.environ | {"CLAUDE_INVOKER_PROCESS": "c3"}
    with subprocess.Popen(
        [sys.executable, "-c", source], env=environment, stdout=subprocess.PIPE, start_new_session=True
    ) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            found = usage.marked(["CLAUDE_INVOKER_PROCESS=c3"])["CLAUDE_INVOKER_PROCESS=c3"]
            once = usage.memory_of(found, 0)
        finally:
            os.killpg(child.pid, 9)
    assert found.memory > 900 << 20
    assert 200 << 20 <= once < 300 << 20


HIDDEN = {
    "without_a_file": "held = mmap.mmap(-1, 64 << 20)\nfor n in range(0, 64 << 20, 4096): held[n] = 1\n"
    "held.madvise(mmap.MADV_DONTNEED)",
    "of_zeros": "held = mmap.mmap(os.open('/dev/zero', os.O_RDWR), 64 << 20)\n"
    "for n in range(0, 64 << 20, 4096): held[n] = 1\nheld.madvise(mmap.MADV_DONTNEED)",
    "without_a_name": "held = os.memfd_create('held'); os.write(held, bytes(64 << 20))",
    # MAP_NORESERVE: it only looks at it.
    "in_page_tables": "held = mmap.mmap(-1, 32 << 30, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, mmap.PROT_READ)\n"
    "for n in range(0, 32 << 30, 2 << 20): held[n]",
}


@as_root
@pytest.mark.parametrize("how", HIDDEN)
def test_memory_that_is_in_no_processs_tables_is_seen(how: str) -> None:
    """`tests/escape/test_taking.py` has the same by a command of the CLI, with the controls."""
    source = f"import mmap, os, time\n{HIDDEN[how]}\nprint('held', flush=True)\ntime.sleep(60)"
    mark = f"CLAUDE_INVOKER_PROCESS=d{os.getpid()}"  # not that of the same test beside this one
    environment = os.environ | {"CLAUDE_INVOKER_PROCESS": f"d{os.getpid()}"}
    with subprocess.Popen([sys.executable, "-c", source], env=environment, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            found = usage.marked([mark])[mark]
            on_disk, in_memory = usage.nameless(found.pids)
            once = usage.memory_of(found, in_memory)
        finally:
            child.kill()
    assert on_disk == 0
    assert 64 << 20 <= once <= found.memory + in_memory < 128 << 20


async def test_a_look_that_fails_is_repeated_and_each_run_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of the run that begins when the last one has just been ended."""
    looks = 0

    def files(root: Path, most: Files) -> Files:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise RuntimeError("no thread")
        return Files(bytes=2000, entries=1)

    monkeypatch.setattr(usage, "files", files)
    monkeypatch.setattr(watch, "_EVERY_S", 0.01)
    monkeypatch.setattr(watch, "_FILES_S", 0.01)
    watching = watch.Watch(watch.Bounds(tree=1000), lambda: False)
    for _ in range(3):
        process = cast(
            "Contained", SimpleNamespace(uid=None, hold=None, mark="CLAUDE_INVOKER_PROCESS=none", tree=Tree(tmp_path))
        )
        ended: asyncio.Queue[Problem] = asyncio.Queue()
        with watching.over(process, ended.put_nowait):
            problem = await asyncio.wait_for(ended.get(), HANG_S)
            assert problem.extra["limit"] == "tree"
            assert len([task for task in asyncio.all_tasks() if "_again" in repr(task)]) <= 4
    assert watching.most("tree") == 0
    await asyncio.sleep(0.1)
    assert not [task for task in asyncio.all_tasks() if "_again" in repr(task)], "nothing runs, nobody looks"


ANY = Files(1 << 60, 1 << 60)


def test_files_are_counted_at_any_depth(tmp_path: Path) -> None:
    where = os.open(tmp_path, os.O_RDONLY)
    for _ in range(300):
        os.mkdir("d", dir_fd=where)
        below = os.open("d", os.O_RDONLY, dir_fd=where)
        os.close(where)
        where = below
    os.close(os.open("deep", os.O_CREAT, dir_fd=where))
    os.close(where)
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    os.link(tmp_path / "file", tmp_path / "again")
    (tmp_path / "away").symlink_to("/")
    held = len(os.listdir("/proc/self/fd"))
    found = usage.files(tmp_path, ANY)
    assert found.entries == 300 + 5
    assert 100_000 <= found.bytes - 301 * 4096 < 200_000
    assert len(os.listdir("/proc/self/fd")) <= held
    assert usage.files(tmp_path, Files(1 << 60, 100)).entries == 101


def test_directories_that_move_lead_nowhere(tmp_path: Path) -> None:
    """Whatever a run does to its tree meanwhile, the look at it ends, raises nothing, and holds nothing open."""
    (tmp_path / "a" / "/".join("d" * 100)).mkdir(parents=True)
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    stop = threading.Event()

    def move() -> None:
        deep = Path("a", *("d" * 60))
        while not stop.is_set():
            with contextlib.suppress(OSError):
                os.rename(tmp_path / deep, tmp_path / "b")
                os.rename(tmp_path / "b", tmp_path / deep)

    thread = threading.Thread(target=move)
    thread.start()
    try:
        held = len(os.listdir("/proc/self/fd"))
        until = time.monotonic() + 1
        found = [usage.files(tmp_path, ANY).bytes for _ in range(50) if time.monotonic() < until]
        assert min(found) >= 100_000
        assert len(os.listdir("/proc/self/fd")) <= held
    finally:
        stop.set()
        thread.join()


def test_less_memory_than_the_cli_needs_is_no_setting() -> None:
    with pytest.raises(ValueError, match="1 GiB"):
        Settings(memory_limit=GB - 1)
    assert Settings(memory_limit=GB).memory_limit == GB
    assert Settings(memory_limit=0).memory_limit == 0
